"""Files that a kill never leaves half written, and the JSON in them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or leaves what was there: a kill never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON that this project wrote. Raises `InputError` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}). Delete it and run the same command again.") from error


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs: JSON may hold them (RFC 8259, section 8.2), UTF-8 may not."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
