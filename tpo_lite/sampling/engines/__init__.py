"""Engines load M_t ready to sample: a 4-bit base and one live adapter.

    transformers   NF4, the loop of `tpo_lite.sampling.huggingface.ContinuousSampler`
    unsloth        NF4 with unsloth's kernels and its `generate`
    gguf           Q4_K_M in llama.cpp, the adapter converted

All draw the same random numbers, so that they sample the same tokens up to rounding and quantisation.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tpo_lite.errors import InputError

if TYPE_CHECKING:
    from tpo_lite.recipe import Recipe
    from tpo_lite.sampling.policy import Policy
    from tpo_lite.sampling.sampler import Sampler


LONGEST_PROMPT = 2048
"""Tokens; unsloth wants to know before it loads."""


def engine_name(wanted: str, on: str) -> str:
    """The engine to sample with: "auto" is unsloth on CUDA where it is installed, else transformers.

    That is what `auto` becomes where no engine was measured: `tpo_lite.plan.rates.choose_engine` settles it when a
    run starts, and the run's recipe keeps it.
    """
    if wanted != "auto":
        if wanted == "unsloth" and hindrance("unsloth", on):
            raise InputError(
                "engine: unsloth is not installed. Run `pip install 'tpo_lite[gpu]'`, or set engine: transformers."
            )
        return wanted
    return "unsloth" if on == "cuda" and not hindrance("unsloth", on) else "transformers"


def hindrance(engine: str, on: str) -> str | None:
    """What keeps an engine from sampling on "cuda" or "cpu" with what is installed here; None if nothing does.

    Imports none of them.
    """
    if engine == "unsloth" and importlib.util.find_spec("unsloth") is None:
        return "is not installed here"
    if engine == "gguf" and on == "cuda" and not _llama_cpp_has_cuda():
        return "needs llama.cpp with CUDA, which is not installed here"
    return None


def _llama_cpp_has_cuda() -> bool:
    """Whether the backend for CUDA lies among llama.cpp's libraries."""
    found = importlib.util.find_spec("llama_cpp")
    return found is not None and any(Path(found.origin).parent.glob("lib/*ggml-cuda*"))


def load(engine: str, policy: Policy, recipe: Recipe, on: str, stops: list[int], pad: int) -> Sampler:
    """M_t, ready to sample until one of the tokens `stops`; `pad` fills up rows of unequal length."""
    if engine == "gguf":
        from tpo_lite.sampling.engines.gguf import GgufSampler

        return GgufSampler(policy, recipe, on, stops)
    from tpo_lite.sampling.huggingface import ContinuousSampler, GenerateSampler

    if engine == "unsloth":
        from tpo_lite.sampling.engines import unsloth_nf4

        model = unsloth_nf4.load(policy.model, policy.adapter, on, LONGEST_PROMPT + recipe.sampling.max_new_tokens)
        return GenerateSampler(model, stops, pad, recipe.sampling)
    from tpo_lite import nf4

    return ContinuousSampler(nf4.load(policy.model, policy.adapter, on), stops, pad, recipe.sampling)
