"""Whole files, written so that a crash never leaves half of one, and the JSON and YAML in them.

A file is written under another name (`NAME.tmp`), flushed to the disk (fsync) and only then renamed. Renaming replaces
the old file in one step (POSIX `rename`), so a reader sees the old file or the new one, never a mixture. After a power
cut the new name may be missing, since the folder itself is not flushed; then the old file is still there.

Files that grow line by line are `tpo_lite.records.JsonlAppender`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tpo_lite.errors import InputError


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file in UTF-8, or leave what was there before. Makes the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON that this project wrote. Raises `InputError` if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}). Delete it and run the same command again.") from error


def write_sealed(path: Path, data: dict[str, Any]) -> None:
    """Write JSON atomically with its own checksum, `sha256`, so that `read_sealed` sees any change."""
    write_json(path, data | {"sha256": _seal(data)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, or an earlier version without a checksum. Raises as `read_json`."""
    data = dict(read_json(path))
    if data.pop("sha256", None) not in (None, _seal(data)):
        raise InputError(f"{path} is damaged (its checksum is another). Delete it and run the same command again.")
    return data


def _seal(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read YAML that this project wrote into a run folder. Raises `InputError` if it is damaged."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())}). Fix it, or use --new to move the folder aside."
        ) from error


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """Replace each half of a surrogate pair with U+FFFD.

    JSON may hold such halves (RFC 8259, section 8.2), UTF-8 may not.
    """
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def read_rows(path: Path, each: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSONL file or of one JSON list, each with its place ("file:line" or "file, item").

    `each` says in messages what one of them is.

    Texts are `well_formed`. Raises `InputError` for a file that cannot be read or is empty, and for anything in it that
    is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}. Give a JSON or JSONL file.") from error
    if text.lstrip().startswith("["):
        rows = [(f"{path}, item {index}", row) for index, row in enumerate(_parse(text, str(path)))]
    else:
        # Not splitlines(): a JSON text may hold U+2028 and its like.
        numbered = enumerate(text.split("\n"), 1)
        rows = [(f"{path}:{n}", _parse(line, f"{path}:{n}")) for n, line in numbered if line.strip()]
    if not rows:
        raise InputError(f"{path} is empty. Give a JSON or JSONL file with one {each} per line.")
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object. Give one object per line, or a list of objects.")
        yield where, row


def _parse(text: str, where: str) -> Any:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}). Fix that line or remove it.") from error
    if "\\ud" in text.lower():
        parsed = json.loads(well_formed(json.dumps(parsed, ensure_ascii=False)))
    return parsed
