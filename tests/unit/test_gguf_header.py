"""GGUF headers that lie: a clear error, soon, whatever is in them."""

from __future__ import annotations

import random
import struct

import pytest

from tpo_lite.gguf_header import GgufHeader

ERRORS = (ValueError, KeyError, IndexError, struct.error)
"""What the reader documents."""


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*values: bytes, tensors: bytes = b"", count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, count, len(values)) + b"".join(values) + tensors


@pytest.mark.parametrize(
    "data",
    [
        header(text("general.alignment") + struct.pack("<II", 4, 0)),
        header(text("general.alignment") + struct.pack("<I", 8) + text("wide")),
        header(text("nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 5000),
        header(text("long") + struct.pack("<IIQ", 9, 0, 2**63), text("next") + struct.pack("<II", 4, 0)),
        header(text("long") + struct.pack("<IIQ", 9, 8, 2**63)),
        header(text("unknown") + struct.pack("<IIQ", 9, 77, 3)),
        header(struct.pack("<Q", 2**64 - 1) + b"name"),
        header(tensors=text("weight") + struct.pack("<I", 2**32 - 1), count=1),
        b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 2**64 - 1),
        b"GGU",
        b"",
    ],
)
@pytest.mark.parametrize("arrays", [False, True])
def test_a_header_that_lies_is_an_error(data, arrays):
    with pytest.raises(ERRORS):
        GgufHeader(data, arrays)


def test_a_header_with_other_bytes_is_read_or_refused(tiny_judge):
    """Bytes of a real header are changed and cut out at places that a seed chooses."""
    whole = tiny_judge.read_bytes()[:20_000]
    numbers = random.Random(0)
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(numbers.randrange(1, 4)):
            place = numbers.randrange(300 if numbers.random() < 0.5 else len(data))
            if numbers.random() < 0.7:
                new = numbers.choice([0, 1, 2**31, 2**63, numbers.getrandbits(64)])
                data[place : place + 8] = struct.pack("<Q", new)
            else:
                del data[place : place + numbers.randrange(1, 9)]
        try:
            GgufHeader(bytes(data), arrays=numbers.random() < 0.5)
        except ERRORS:
            refused += 1
    assert refused > 100
