"""What llama_cpp.Llama says, one sequence at a time."""

from __future__ import annotations

import llama_cpp
import numpy as np

ROUNDING = 0.02
"""Largest logit difference that batching and a 16-bit KV cache explain; logits here have a spread of 1."""


def reference_logits(reference: llama_cpp.Llama, tokens: list[int]) -> np.ndarray:
    reference.reset()
    reference.eval(tokens)
    return reference.scores[len(tokens) - 1].copy()


def assert_greedy(reference: llama_cpp.Llama, prompt: list[int], continuation: list[int]) -> None:
    """Each token has the highest logit, up to rounding."""
    reference.reset()
    reference.eval(prompt + continuation)
    for position, token in enumerate(continuation, len(prompt)):
        assert reference.scores[position - 1].max() - reference.scores[position - 1][token] < ROUNDING
