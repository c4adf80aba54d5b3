"""Random numbers and shuffles that depend on keys alone, not on the order in which they are asked for.

Three hashes turn a key into randomness. Which one serves what is part of every result: the samples, comparisons and
pairs of all runs hang on it, down to the demo's table. Do not merge them and do not change the format of a key.

    SHA-256, first 16 bytes -> Philox   `seed_of`, `generator`, `uniforms`: the random numbers of one sample.
                                        Key: "seed/arm/model/purpose/instruction/k" (`tpo_lite.sampling.policy`).
                                        And the round robins that a tournament draws; key: "seed/tournament/instruction"
                                        And resamples; key: "bootstrap/what" (`tpo_lite.intervals`)
    BLAKE2b, keyed with the seed        `keyed_hash`: shuffles and coin flips, such as which instructions form a slice,
                                        which response a judge sees first, which malformed output is rejected
    SHA-256, first 8 bytes -> torch     `tpo_lite.adapters.fresh_block`: the start of a new adapter, layer by layer

The ids of instructions are hashes too (`tpo_lite.instructions.leakage.fingerprint`, and the embedded world's own), and
they are part of the keys above.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(key: str) -> int:
    """Return 128 bits that depend on `key` alone: the first half of its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")


def generator(seed: int) -> np.random.Generator:
    """Return the random numbers of one seed. `random()` gives those of `uniforms` one by one.

    `seed`: from 0, at most 128 bits.
    """
    return np.random.Generator(np.random.Philox(key=seed))


def uniforms(key: str, count: int) -> np.ndarray:
    """Return `count` float64 numbers in [0, 1) that depend on `key` alone; a larger count only appends to them."""
    return generator(seed_of(key)).random(count)


def keyed_hash(seed: int, text: str) -> bytes:
    """Return 16 bytes that depend on `seed` and `text` alone.

    Sorting texts by it shuffles them; the result does not depend on their order before.
    """
    return hashlib.blake2b(text.encode(), digest_size=16, key=str(seed).encode()).digest()
