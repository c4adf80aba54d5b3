"""Headers of safetensors files, read without the weights.

A safetensors file is the length of a JSON text in 8 bytes (little-endian), the JSON text, and the tensors without
gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict


class TensorEntry(TypedDict):
    """What the header says about one tensor."""

    dtype: str
    """Such as "BF16"."""
    shape: list[int]
    data_offsets: list[int]
    """Where its bytes begin and end, counted from the end of the header."""


def read_header(file: Path) -> tuple[bytes, dict[str, TensorEntry]]:
    """Return all bytes before the first tensor, and the entry of each tensor by its name."""
    with file.open("rb") as opened:
        length = opened.read(8)
        text = opened.read(int.from_bytes(length, "little"))
    entries = json.loads(text)
    entries.pop("__metadata__", None)
    return length + text, entries
