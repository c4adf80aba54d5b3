"""The names that a recipe chooses among. The command line offers them too, so this module imports next to nothing."""

from __future__ import annotations

from typing import Literal

Arm = Literal["thinking", "direct"]
"""A model that a run trains: with thoughts, or the direct baseline."""
HeldOut = Literal["validation", "test"]
"""A slice that is never trained on: one on which checkpoints are chosen, one on which models are reported."""
Engine = Literal["transformers", "unsloth", "gguf"]
"""What samples."""
Quantize = Literal["nf4", "none"]
"""Whether the base is quantized."""
Dtype = Literal["float32", "bfloat16"]
"""Type of the weights of a base that is not quantized."""
Precision = Literal["nf4", "float32", "bfloat16"]
"""What the linear layers of a base are held in: both of the above in one."""
KvType = Literal["f16", "q8_0"]
"""Type of a KV cache, keys and values alike."""
JudgeMode = Literal["verdict", "explain", "score", "reward-model", "openai"]
"""How a judge compares; `JudgeSettings.mode` explains each."""
PromptSet = Literal["seed", "self-taught-evaluator", "skywork-critic", "fastchat-pair"]
"""The judge prompts that come with the package; `tpo_lite.judges.prompts` gives their sources."""
TournamentKind = Literal["round-robin", "single", "adaptive"]
"""Which comparisons are made; `TournamentSettings.kind` explains each."""
Merge = Literal["fold", "continue", "requantize"]
"""How M_{t+1} carries an iteration's update on."""
MergeBase = Literal["w16", "nf4"]
"""What requantizing merges into: the 16-bit weights, or the dequantized 4-bit ones."""
SampledGguf = Literal["Q4_K_M", "F16"]
"""The type of the GGUF that llama.cpp samples of a base: quantized, or as it is."""
ThoughtPrompt = Literal["generic", "specific", "think", "direct"]
"""A thought prompt with a name."""
