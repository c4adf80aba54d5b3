"""Evaluations that are repeated: each is one more line of a JSONL file, so that no later one hides an earlier one."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tpo_lite.errors import DISK_FULL, InputError
from tpo_lite.files import read_rows
from tpo_lite.version import __version__


def append(path: Path, found: dict[str, Any]) -> int:
    """Add what was found to a file, with the time and the package's version; return how many lines it has now.

    Raises `InputError` if the file holds something else or cannot be written.
    """
    earlier = history(path)
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "tpo_lite": __version__, **found}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InputError(f"{path} cannot be written ({error.strerror}). Give another --out.") from error
    return len(earlier) + 1


def history(path: Path) -> list[dict[str, Any]]:
    """Return all evaluations in a file, the earliest first; none if there is no file or it is empty.

    Raises `InputError` for a file that holds something else.
    """
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return []
    found = []
    for where, row in read_rows(path, "evaluation"):
        if not isinstance(row.get("at"), str):
            raise InputError(f"{where} is not an evaluation with its time. Give another --out.")
        found.append(row)
    return found
