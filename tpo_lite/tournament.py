"""Which comparisons a judge is asked for: the paper's round robin (every pair, in both orders)."""

from __future__ import annotations

from itertools import permutations

from tpo_lite.records import PromptSamples


def round_robin(samples: PromptSamples) -> list[tuple[int, int]]:
    """(first, second) sample ks to show the judge: every pair of distinct responses, in both orders.

    Only well-formed samples play. The lowest k stands for all samples with the same response text:
    responses a, b, a make (0, 1) and (1, 0). K distinct responses make K(K - 1) comparisons.
    """
    representatives: dict[str, int] = {}
    for sample in samples.samples:
        if sample.outcome == "ok":
            representatives.setdefault(sample.response, sample.k)
    return list(permutations(representatives.values(), 2))


def saved_calls(samples: PromptSamples, calls: int) -> int:
    """How many more calls a round robin over all W well-formed samples takes: W(W - 1) - calls."""
    well_formed = sum(sample.outcome == "ok" for sample in samples.samples)
    return well_formed * (well_formed - 1) - calls
