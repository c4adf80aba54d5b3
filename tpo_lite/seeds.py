"""Random numbers and shuffles that depend on keys alone, not on the order in which they are asked for."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(key: str) -> int:
    """128 bits that depend on `key` alone (SHA-256)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")


def generator(seed: int) -> np.random.Generator:
    """The random numbers of one sample; `random()` gives those of `uniforms` one by one."""
    return np.random.Generator(np.random.Philox(key=seed))


def uniforms(key: str, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) that depend on `key` alone."""
    return generator(seed_of(key)).random(count)


def keyed_hash(seed: int, text: str) -> bytes:
    """Sorting by it is a shuffle that depends on the seed and the texts alone, not on their order."""
    return hashlib.blake2b(text.encode(), digest_size=16, key=str(seed).encode()).digest()
