"""Files of instructions, as a test writes them and as `load` reads them."""

from __future__ import annotations

from pathlib import Path

from tpo_lite.instructions.load import load


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def texts(source: Path | str, **options: bool) -> list[str]:
    return [instruction.text for instruction in load(source, **options).instructions]


GOOD = '{"prompt": "a"}\n'
