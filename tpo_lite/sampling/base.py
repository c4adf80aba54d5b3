"""The base model of a recipe: as it is, or made from a GGUF file once for a run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tpo_lite.hub import gguf_path, is_gguf, model_path


class Base(NamedTuple):
    """A base model on disk."""

    model: str
    """A hub id or a folder, for transformers to load."""
    gguf: Path | None
    """The GGUF file that the folder was made from, if it was."""


def base_model(name: str, root: Path) -> Base:
    """Return the base that a recipe's `model` names; a GGUF is dequantized to ROOT/base first, unless it is there.

    Raises `InputError` if there is no such model or the GGUF is not supported, and `TpoError` if the disk is too small.
    """
    if not is_gguf(name):
        return Base(model_path(name), None)
    source, folder = gguf_path(name), root / "base"
    if not folder.exists():
        from tpo_lite.llamacpp.dequantize import dequantize

        print(f"{name}: dequantizing to {folder}", flush=True)
        dequantize(source, folder)
    return Base(str(folder), source)
