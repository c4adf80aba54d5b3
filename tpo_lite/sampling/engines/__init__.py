"""Engines load M_t ready to sample: a base and one live adapter.

                   quantize: nf4   none
    transformers   NF4             16 or 32 bits   the loop of `tpo_lite.sampling.huggingface.ContinuousSampler`
    unsloth        NF4             16 bits         unsloth's kernels and its `generate`
    gguf           Q4_K_M          F16             llama.cpp, the adapter converted; a GGUF that is M_0 as it is

All draw the same random numbers, so they sample the same tokens, up to rounding and quantization.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tpo_lite.errors import InputError
from tpo_lite.kinds import Engine
from tpo_lite.machine.device import Device

if TYPE_CHECKING:
    from tpo_lite.sampling.policy import Policy
    from tpo_lite.sampling.sampler import Sampler
    from tpo_lite.settled import SettledRecipe


DEFAULT: Engine = "transformers"
"""What samples where no engine was measured. It is the one that needs nothing more, not the one hoped to be fastest."""


def hindrance(engine: Engine, device: Device) -> str | None:
    """Return why an engine cannot sample on a device with what is installed here, or None if it can.

    Imports none of the engines.
    """
    if engine == "unsloth" and importlib.util.find_spec("unsloth") is None:
        return "is not installed here"
    if engine == "gguf" and device == "cuda" and not _llama_cpp_has_cuda():
        return "needs llama.cpp with CUDA, which is not installed here"
    return None


def _llama_cpp_has_cuda() -> bool:
    """Return whether llama.cpp's libraries include the one for CUDA."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return False
    return any(Path(found.origin).parent.glob("lib/*ggml-cuda*"))


def load(policy: Policy, recipe: SettledRecipe, device: Device, stops: list[int], pad: int) -> Sampler:
    """Load M_t, ready to sample until one of the tokens `stops`; `pad` fills up rows of unequal length.

    Raises `InputError` if the recipe's engine is not installed or the model cannot be loaded.
    """
    if recipe.engine == "gguf":
        from tpo_lite.sampling.engines.gguf import GgufSampler

        return GgufSampler(policy, recipe, device, stops)
    if recipe.engine == "unsloth" and hindrance("unsloth", device):
        raise InputError(
            "engine: unsloth is not installed. Run `pip install 'tpo_lite[gpu]'`, or set engine: transformers."
        )
    from tpo_lite.sampling.huggingface import ContinuousSampler, GenerateSampler

    precision = recipe.precision(device)
    if recipe.engine == "unsloth":
        from tpo_lite.sampling.engines import unsloth_model
        from tpo_lite.sampling.room import longest_prompt

        longest = longest_prompt(recipe) + recipe.sampling.max_new_tokens  # unsloth has to know before it loads
        model = unsloth_model.load(policy.model, policy.adapter, device, precision, longest)
        return GenerateSampler(model, stops, pad, recipe.sampling)
    from tpo_lite import base_weights

    model = base_weights.load(policy.model, policy.adapter, device, precision)
    return ContinuousSampler(model, stops, pad, recipe.sampling)
