"""Nucleus sampling with random numbers of each sample's own, on plain arrays. Knows nothing of models.

A sample's random numbers are those of a counter-based generator (Philox) keyed by a hash, so they do not
depend on what is sampled beside it, before it, or by which engine.
"""

from __future__ import annotations

import numpy as np

BUCKETS_A_NAT = 16
"""Tokens whose log-probabilities are within 1/16 are ranked together."""
LAST_BUCKET = 1023
"""For everything 64 nats and more below the most likely token."""


def nucleus_token(logits: np.ndarray, draw: float, temperature: float, top_p: float) -> int:
    """Samples by inverting the cumulative distribution of the nucleus, the most likely token first.

    logits (vocabulary,), draw in [0, 1). The nucleus is the smallest set of most likely tokens whose
    probability reaches `top_p`, as in transformers; equal ones are ordered by token id.
    """
    scaled = (logits - logits.max()) / np.float32(temperature)
    weights = np.exp(scaled)
    weights /= weights.sum(dtype=np.float64)
    # Sorting a vocabulary takes 10 ms. All the tokens below this probability hold less than 1 - top_p together, so
    # none of them is in the nucleus. Where many are left, only those of like probability are sorted.
    tokens = np.flatnonzero(weights >= (1 - top_p) / len(weights))
    weights = weights[tokens]
    bucket = np.minimum(-BUCKETS_A_NAT * scaled[tokens], LAST_BUCKET).astype(np.intp)
    reached = np.bincount(bucket, weights).cumsum()

    def ranked(number: int) -> tuple[np.ndarray, np.ndarray]:
        """A bucket's tokens, the most likely first, and the probability of each and all before it."""
        members = np.flatnonzero(bucket == number)
        order = members[np.argsort(-weights[members], kind="stable")]
        return tokens[order], weights[order].cumsum(dtype=np.float64) + (reached[number - 1] if number else 0.0)

    # Rounding can leave `top_p` above all there is, and a draw just past the last token of the nucleus.
    last = min(int(reached.searchsorted(top_p)), len(reached) - 1)
    _, cumulative = ranked(last)
    end = cumulative[min(int(cumulative.searchsorted(top_p)), len(cumulative) - 1)]
    inside, cumulative = ranked(min(int(reached.searchsorted(draw * end, side="right")), last))
    inside = inside[cumulative <= end]
    return int(inside[min(int(cumulative.searchsorted(draw * end, side="right")), len(inside) - 1)])
