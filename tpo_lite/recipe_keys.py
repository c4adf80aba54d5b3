"""The keys of a recipe, section by section, with their meaning and their defaults.

`tpo_lite.recipe` puts the sections together, and reads and checks a whole recipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tpo_lite.kinds import JudgeMode, KvType, PromptSet, Quantize, TournamentKind

Positive = Annotated[int, Field(ge=1)]
Auto = Literal["auto"]
"""Left to `tpo_lite.plan.choices.settle`, which chooses a value for the machine when a run starts. A `SettledRecipe`
(`tpo_lite.settled`) has none of these."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Instructions(Section):
    """Where instructions come from and which are kept (the paper's data and sampling)."""

    source: str = "embedded"
    """A JSONL, JSON, CSV, Parquet or text file, `hub:name[:split[:column]]`, `everyday` (600 shipped) or `embedded`."""
    per_iteration: Positive = 500
    """Instructions per iteration; iterations never share one."""
    validation: Positive = 100
    """Held-out instructions on which checkpoints are compared."""
    test: Annotated[int, Field(ge=0)] = 100
    """Held-out instructions on which models are reported, and nothing is chosen; 0: report on the validation slice."""
    max_tokens: Positive = 512
    """Longer instructions are dropped and counted."""
    allow_leakage: bool = False
    """Keep instructions that are among AlpacaEval's 805 or Arena-Hard's 500."""
    turn: Literal["first", "last"] = "first"
    """Which user turn of a conversation is answered; last: with all turns before it as history."""
    skip_bad: bool = False
    """Count malformed lines instead of stopping at the first."""


class Thought(Section):
    """The thought prompt (the paper's thought prompts)."""

    style: Literal["generic", "specific", "think", "direct", "custom"] = "generic"
    """The paper's two prompts, its generic one with <think> tags, no thought at all, or `prompt` below."""
    prompt: str | None = None
    """Custom style: the text around the instruction, with {instruction} once."""
    thought_marker: str | None = None
    """Custom style: what thoughts are written after, if anything."""
    response_marker: str | None = None
    """Custom style: what the response is written after."""
    budget: Positive | None = None
    """Tokens of output after which the response marker is put in, if it has not come; None: thoughts are not bounded.
    The whole output stays within `sampling.max_new_tokens`."""


class WarmStart(Section):
    """Supervised training before the first iteration, for a model that does not follow the thought prompt."""

    kind: Literal["auto", "none", "self", "file"] = "auto"
    """Learn from own outputs into which the markers are put (self), or from `file`; auto: self, where fewer than half
    of 32 outputs are well-formed."""
    file: str | None = None
    """kind file: JSONL with "instruction", "thought" and "response" in each line."""
    prompts: Positive = 96
    """Instructions to sample from; they are in no other slice."""
    samples: Positive = 4
    """Outputs per instruction."""
    thought_tokens: Positive = 64
    """A sampled thought ends with its last whole sentence within so many tokens; then the response marker is put in."""
    response_tokens: Positive = 256
    """Longer responses fill up the examples, each cut after its last whole sentence within so many tokens."""
    examples: Positive = 192
    """The most outputs that are trained on."""
    epochs: Positive = 2
    """Passes over them."""
    batch: Positive = 8
    """Outputs per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-4
    """Peak learning rate; schedule, warm-up and optimizer are those of `train`."""


class Sampling(Section):
    """How the K outputs of an instruction are sampled (the paper's data and sampling)."""

    k: Annotated[int, Field(ge=2)] = 8
    """Outputs per instruction."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.8
    """Softmax temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus: the smallest set of tokens with at least this probability."""
    max_new_tokens: Positive = 1024
    """Longer outputs are truncated, and a truncated output is malformed."""
    batch: Auto | Positive = 64
    """Sequences decoded at a time."""


class JudgeSettings(Section):
    """The model that compares two responses (the paper's judges)."""

    model: str = "embedded"
    """A GGUF file, `hub:owner/repo/file.gguf`, or `embedded`; reward-model: a folder or hub id (owner/name);
    openai: the server's name for it."""
    mode: JudgeMode = "explain"
    """A GGUF that says its verdict at once, explains itself first, or rates each response from 1 to 10; a
    sequence-classification model that scores each response; any OpenAI-compatible server, with explanations."""
    prompt: PromptSet = "seed"
    """What a judge that compares is asked: the prompt that it was trained on (judges/prompts.py has the sources)."""
    template: str | None = None
    """A prompt of your own with {instruction}, {response_a}, {response_b} (score: {response})."""
    system: str | None = None
    """A system prompt of your own."""
    chat_template: str | None = None
    """A Jinja chat template, for a GGUF that has none of its own."""
    explain_tokens: Positive = 512
    """Tokens of explanation before the verdict is forced; openai: of the whole reply."""
    context: Auto | Positive = 8192
    """Tokens that all sequences decoded together may hold; reward-model: of a batch, padding included."""
    batch: Positive = 512
    """Tokens per decode."""
    sequences: Positive = 32
    """Comparisons decoded together; openai: requests in flight."""
    prompts_at_once: Positive = 8
    """Instructions judged as one unit of work."""
    kv_type: Auto | KvType = "f16"
    """Type of the KV cache, keys and values alike."""
    overlong: Literal["drop", "truncate"] = "drop"
    """A comparison longer than the context: leave it out, or cut the middle of the longer response, then of both."""
    gpu_layers: Annotated[int, Field(ge=-1)] = -1
    """With --gpu: layers of the GGUF on the GPU; -1: all."""
    fewer_gpu_layers: bool = False
    """If the GPU's memory is too small, put fewer layers there and say so, instead of stopping."""
    quantize: Quantize = "none"
    """reward-model: load it in 16 bit, or in 4-bit NF4."""
    trust_remote_code: bool = False
    """reward-model: run the Python code that came with it, which ArmoRM needs. Read it first."""
    base_url: str = "https://api.openai.com/v1"
    """openai: the server. Its key is read from the environment variable OPENAI_API_KEY."""
    max_calls: Positive | None = None
    """openai: stop before more requests than this are sent in the whole run, repeated ones included."""


class TournamentSettings(Section):
    """Which comparisons the judge is asked for."""

    kind: TournamentKind = "adaptive"
    """All pairs in both orders (the paper's), each pair in one, or as many as it takes to settle best and worst."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """adaptive: best and worst are settled when a full round robin would find none clearly better or worse, with
    this probability each."""


class Rating(Section):
    """Bradley-Terry ratings of the K responses (the paper's judges)."""

    wins: Literal["soft", "hard"] = "soft"
    """Probabilities or verdicts as wins. A verdict that the judge did not give itself counts as a probability only."""
    prior: Annotated[float, Field(gt=0.0)] = 0.1
    """Strength of the weak prior without which a response that wins everything has no finite rating."""


class LengthControl(Section):
    """Length-controlled scores (the paper's length control)."""

    rho: Literal["auto"] | Annotated[float, Field(ge=0.0, le=0.5)] = "auto"
    """Weight of the length; auto: the smallest with chosen responses on average not longer than rejected ones."""


class PairSettings(Section):
    """Which pairs are trained on."""

    malformed_share: Share = 0.1
    """At most this share of pairs reject a malformed output."""
    max_tokens: Positive = 2048
    """Prompt plus output; longer pairs are dropped, never cut."""
    budget_forced: bool = False
    """Also judge, rate and pair the outputs whose thought `thought.budget` has ended."""


class Lora(Section):
    """The adapter that one iteration adds, on all linear layers."""

    rank: Positive = 16
    """Rank r of an iteration's block."""
    alpha: Annotated[float, Field(gt=0.0)] = 16
    """Updates are scaled by alpha / rank."""


class Train(Section):
    """DPO (the paper's training; TRL's DPOTrainer)."""

    loss: Literal["dpo", "irpo"] = "dpo"
    """irpo adds the negative log-likelihood of the chosen output, divided by its length in tokens."""
    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Strength of the tie to the reference M_t."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-6
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Decay of the learning rate."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of steps over which the learning rate rises."""
    epochs: Positive = 2
    """Passes over the pairs; each ends in a checkpoint."""
    batch: Positive = 32
    """Pairs per optimizer step."""
    micro_batch: Auto | Positive = 1
    """Pairs per forward pass; gradients accumulate up to `batch`."""
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """Adam with 32-bit or 8-bit state; paged: on a full GPU the state moves to RAM. On a CPU nothing is paged."""
    gradient_checkpointing: Auto | bool = False
    """Recompute activations in the backward pass to save memory."""
    older_blocks: Literal["train", "frozen"] = "frozen"
    """With `merge: fold`: whether older blocks keep learning (benchmarks/results/embedded-settings.md)."""


class Selection(Section):
    """Which judge chooses checkpoints and reports; the keys of `judge` again."""

    judge: JudgeSettings | None = None
    """Another judge than the one that trains, so that a model which only learns to please that one shows; none: it."""


class Evaluation(Section):
    """Sampling on the validation slice."""

    retries: Annotated[int, Field(ge=0)] = 2
    """A malformed output is sampled again this often (the paper's training); then it loses."""
