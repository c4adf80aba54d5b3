"""A folder that appears only when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpo_lite.errors import DISK_FULL, InputError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`; rename it to `out` at the end, or remove it if anything goes wrong.

    Raises `InputError` if `out` is a file, a folder with something in it, or a place that cannot be written to.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"--out {out} exists already. Give another folder, or remove this one.")
    temporary = out.with_name(out.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
        temporary.mkdir(parents=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InputError(f"--out {out} cannot be used ({error.strerror}). Give another folder.") from error
    try:
        yield temporary
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
