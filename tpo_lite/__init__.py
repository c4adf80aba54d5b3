"""Thought Preference Optimization (arXiv 2410.10630) for one consumer GPU.

The names in `__all__` are the public API. Each is imported when it is first used, so that `import tpo_lite` takes no
time and loads no model library. `docs/loop_by_hand.py` shows them at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tpo_lite.version import __version__

if TYPE_CHECKING:
    from tpo_lite.api import base_policy, load_instructions, open_policy, settle, train
    from tpo_lite.checking import is_right
    from tpo_lite.errors import InputError, OutOfMemory, TpoError
    from tpo_lite.judges.open import open_judge
    from tpo_lite.judges.protocol import Judge, JudgeRequest, Verdict
    from tpo_lite.loop.results import read_results
    from tpo_lite.preferences.pairs import make_pairs, score_prompts
    from tpo_lite.preferences.play import judge_prompts
    from tpo_lite.preferences.tournament import Adaptive, RoundRobin, Single
    from tpo_lite.recipe import Recipe, load_recipe
    from tpo_lite.records import Comparison, Instruction, Pair, PromptJudgements, PromptSamples, Sample, read_jsonl
    from tpo_lite.run import RunFolder
    from tpo_lite.sampling.policy import LoadedPolicy, Policy
    from tpo_lite.settled import SettledRecipe
    from tpo_lite.training.iteration import train_on_pairs

_HOMES = {
    "api": ["base_policy", "load_instructions", "open_policy", "settle", "train"],
    "checking": ["is_right"],
    "errors": ["InputError", "OutOfMemory", "TpoError"],
    "judges.open": ["open_judge"],
    "judges.protocol": ["Judge", "JudgeRequest", "Verdict"],
    "loop.results": ["read_results"],
    "preferences.play": ["judge_prompts"],
    "preferences.pairs": ["make_pairs", "score_prompts"],
    "preferences.tournament": ["Adaptive", "RoundRobin", "Single"],
    "recipe": ["Recipe", "load_recipe"],
    "records": ["Comparison", "Instruction", "Pair", "PromptJudgements", "PromptSamples", "Sample", "read_jsonl"],
    "run": ["RunFolder"],
    "sampling.policy": ["LoadedPolicy", "Policy"],
    "settled": ["SettledRecipe"],
    "training.iteration": ["train_on_pairs"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Adaptive",
    "Comparison",
    "InputError",
    "Instruction",
    "Judge",
    "JudgeRequest",
    "LoadedPolicy",
    "OutOfMemory",
    "Pair",
    "Policy",
    "PromptJudgements",
    "PromptSamples",
    "Recipe",
    "RoundRobin",
    "RunFolder",
    "Sample",
    "SettledRecipe",
    "Single",
    "TpoError",
    "Verdict",
    "base_policy",
    "is_right",
    "judge_prompts",
    "load_instructions",
    "load_recipe",
    "make_pairs",
    "open_judge",
    "open_policy",
    "read_jsonl",
    "read_results",
    "score_prompts",
    "settle",
    "train",
    "train_on_pairs",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tpo_lite' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tpo_lite.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
