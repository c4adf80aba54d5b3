"""The header of a GGUF file: metadata by key, and where each tensor is.

gguf's own reader takes many seconds, since it makes objects of all tokens and merges. Numbers are little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from typing import Any, NamedTuple

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's types of numbers, as `struct` calls them."""
_STRING, _ARRAY = 8, 9


class GgufTensor(NamedTuple):
    """A tensor's place and form."""

    dimensions: list[int]
    """The fastest first: a matrix is (columns, rows)."""
    kind: int
    """Its type, as in `gguf.GGMLQuantizationType`."""
    offset: int
    """Where its data begins, from the start of all tensors' data."""


class GgufHeader:
    """The header of the GGUF file in `data`. Arrays are read only if `arrays` is true; otherwise they are None.

    Raises `ValueError`, `KeyError`, `IndexError` or `struct.error` for what is no GGUF or is cut off.
    """

    def __init__(self, data: mmap.mmap, arrays: bool = False):
        self._data, self._at, self._arrays = data, 4, arrays
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        _version, tensors, values = self._number("I"), self._number("Q"), self._number("Q")
        self.values = {self._text(): self._value(self._number("I")) for _ in range(values)}
        self.tensors = {self._text(): self._tensor() for _ in range(tensors)}
        alignment = self.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        self.start = -(-self._at // alignment) * alignment
        """Where the first tensor's data may begin."""

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._data, self._skip(struct.calcsize(f"<{form}")))
        return value

    def _skip(self, size: int) -> int:
        """Go past the next `size` bytes; return where they begin."""
        start = self._at
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it is cut off, or gives a length that it does not have")
        return start

    def _text(self) -> str:
        length = self._number("Q")
        start = self._skip(length)
        return self._data[start : start + length].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(_NUMBERS[kind])
        kind, count = self._number("I"), self._number("Q")
        if kind == _ARRAY:
            raise ValueError("it holds an array of arrays, which no model needs")
        if self._arrays:
            return self._array(kind, count)
        if kind in _NUMBERS:
            self._skip(count * struct.calcsize(f"<{_NUMBERS[kind]}"))
            return None
        if kind != _STRING:
            raise ValueError(f"it holds an array of an unknown type, {kind}")
        for _ in range(count):
            self._skip(self._number("Q"))
        return None

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            return [self._value(kind) for _ in range(count)]
        form = _NUMBERS[kind]
        start = self._skip(count * struct.calcsize(f"<{form}"))
        return list(struct.unpack_from(f"<{count}{form}", self._data, start))

    def _tensor(self) -> GgufTensor:
        dimensions = [self._number("Q") for _ in range(self._number("I"))]
        return GgufTensor(dimensions, self._number("I"), self._number("Q"))
