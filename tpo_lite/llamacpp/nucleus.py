"""Nucleus sampling on plain arrays, with random numbers for each sample. Knows nothing of models.

The random numbers of a sample come from a counter-based generator (Philox) keyed by a hash, so they do not depend on
what is sampled beside it, before it, or by which engine.
"""

from __future__ import annotations

import numpy as np

BUCKETS_A_NAT = 16
"""Tokens whose log-probabilities differ by less than 1/16 nat share a bucket, and are ranked together."""
LAST_BUCKET = 1023
"""Holds everything that is at least 64 nats below the most likely token."""


def nucleus_token(logits: np.ndarray, draw: float, temperature: float, top_p: float) -> int:
    """Sample a token by inverting the cumulative distribution of the nucleus, the most likely token first.

    `logits` has shape (vocabulary,), `draw` is in [0, 1). The nucleus is the smallest set of most likely tokens whose
    probability reaches `top_p`, as in transformers. Equally likely tokens are ordered by their ids.
    """
    scaled = (logits - logits.max()) / np.float32(temperature)
    weights = np.exp(scaled)
    weights /= weights.sum(dtype=np.float64)
    # Sorting a vocabulary takes 10 ms. The tokens below this probability together hold less than 1 - top_p, so none
    # of them is in the nucleus. Of the others, only those of two buckets are sorted.
    tokens = np.flatnonzero(weights >= (1 - top_p) / len(weights))
    weights = weights[tokens]
    bucket = np.minimum(-BUCKETS_A_NAT * scaled[tokens], LAST_BUCKET).astype(np.intp)
    reached = np.bincount(bucket, weights).cumsum()

    def ranked(number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a bucket's tokens, the most likely first, and the probability of each with all before it."""
        members = np.flatnonzero(bucket == number)
        order = members[np.argsort(-weights[members], kind="stable")]
        return tokens[order], weights[order].cumsum(dtype=np.float64) + (reached[number - 1] if number else 0.0)

    # Rounding can leave `top_p` above the total, and a draw just past the last token of the nucleus.
    last = min(int(reached.searchsorted(top_p)), len(reached) - 1)
    _, cumulative = ranked(last)
    end = cumulative[min(int(cumulative.searchsorted(top_p)), len(cumulative) - 1)]
    inside, cumulative = ranked(min(int(reached.searchsorted(draw * end, side="right")), last))
    inside = inside[cumulative <= end]
    return int(inside[min(int(cumulative.searchsorted(draw * end, side="right")), len(inside) - 1)])
