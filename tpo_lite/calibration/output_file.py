"""The output file of `tpo-lite judge run`: who may write it, which judge it belongs to, which pairs are finished."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.errors import DISK_FULL, InputError, TpoError
from tpo_lite.hub import judge_path, reward_model_path
from tpo_lite.judges.prompts import prompt_of
from tpo_lite.recipe_keys import JudgeSettings
from tpo_lite.records import read_jsonl


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Keep other processes from writing the output. A file in which nothing was written is removed.

    Raises `InputError` if it cannot be written, before hours of judging, and `TpoError` if another process writes it.
    """
    try:
        if output.exists() and not output.is_file():
            raise InputError(f"--out {output} is not an ordinary file. Give another.")
        output.parent.mkdir(parents=True, exist_ok=True)
        file = output.open("ab")
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InputError(f"--out {output} cannot be written ({error.strerror}). Give another file.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TpoError(f"--out {output} is in use by another process. Wait, or give another file.") from error
        try:
            yield
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                output.unlink(missing_ok=True)


def beside(output: Path, what: str) -> Path:
    """Return the file beside the output that holds `what`."""
    return output.with_name(f"{output.name}.{what}")


def finished_pairs(output: Path, inputs: dict[str, Any], name: str) -> dict[str, JudgedPair]:
    """Return the pairs in the output file by id. Raises `InputError` if it is not one of this judge on these pairs.

    `inputs` is what is kept beside it: "judge" as `identity` gives it, and "pairs", their digests by id.
    """
    try:
        there = list(read_jsonl(output, JudgedPair))
    except InputError as error:
        # Not the reader's own message: it says to delete the file, which may be anything.
        raise InputError(f"--out {output} holds something other than judgements. Give another file.") from error
    if not there and output.exists() and output.stat().st_size:
        raise InputError(f"--out {output} has no judgements in it. Give another file, or delete it.")
    if not there:
        return {}
    try:
        before = json.loads(beside(output, "inputs").read_text(encoding="utf-8"))
        judge_before, digests = before["judge"], before["pairs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--out {output}: {beside(output, 'inputs')}, which says what was judged, is missing or damaged. Give "
            "another file."
        ) from error
    for pair in there:
        if pair.judge != name:
            raise InputError(f"--out {output} was written by {pair.judge!r}, not {name!r}. Give another file.")
        if pair.id not in inputs["pairs"] or digests.get(pair.id) != inputs["pairs"][pair.id]:
            raise InputError(f"--out {output} has a pair {pair.id!r} that is not among those given. Give another file.")
    for what, now in inputs["judge"].items():
        # The first version did not write the prompt. Its prompts have not changed, and the name tells others apart.
        if judge_before.get(what, now) != now:
            raise InputError(f"--out {output} was written by {name!r} with another {what}. Give another file.")
    return {pair.id: pair for pair in there}


def identity(settings: JudgeSettings) -> dict[str, Any]:
    """Return what tells judges of one name apart: what they are asked, the context and the contents of the files."""
    asked = {}
    if settings.mode != "reward-model":
        prompt = prompt_of(settings)
        text = json.dumps([prompt.system, prompt.template])
        asked = {"prompt": hashlib.sha256(text.encode()).hexdigest()[:16]}
    if settings.mode == "openai":
        return asked
    path = Path(reward_model_path(settings.model)) if settings.mode == "reward-model" else judge_path(settings.model)
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    # A hub id is not a path: its name is all there is.
    prints = {each.name: file_print(each) for each in files if each.is_file()}
    return asked | {"context": settings.context, "model file": prints}


def file_print(path: Path) -> str:
    """Return what tells files apart without reading gigabytes: the size, and a hash of the first and the last MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        digest.update(file.read())
    return f"{size} {digest.hexdigest()[:16]}"
