"""Files of outputs: what one model answered to a set of instructions.

Read as they are: AlpacaEval's `model_outputs.json` (instruction, output, generator), any JSON list or JSONL file with
an instruction (or prompt, or question) and an output (or response) in each row, and a run's files of samples, whose
last attempt counts. `category` and `answer` are kept where they are given. Only the response is read: of a file of
your own, leave thoughts out.

A folder of a run stands for a model's answers to the run's test slice: `RUN/thinking` for those of the arm's last
model, `RUN/thinking/iteration-1` for those of the model that the iteration made. A run without a test slice
gives those to the validation slice, which has chosen among checkpoints, so that a model looks a little better on it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tpo_lite.errors import InputError
from tpo_lite.files import read_rows
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.kinds import Arm
from tpo_lite.run import RunFolder
from tpo_lite.thoughts import WELL_FORMED

QUESTIONS = ("instruction", "prompt", "question")
RESPONSES = ("output", "response")


@dataclass(frozen=True)
class Output:
    """One answer of a model."""

    instruction: str
    """What was asked."""
    response: str
    """What the model answered, without its thought; empty where the output stayed malformed."""
    category: str | None = None
    """The category of the instruction, where it is given."""
    answer: str | None = None
    """The right answer, where it is given."""
    where: str = ""
    """Its place in the file, for messages."""


@dataclass(frozen=True)
class Outputs:
    """A model's answers."""

    model: str
    """Its name: `generator`, or the file's stem."""
    by_id: dict[str, Output]
    """By the fingerprint of the instruction, in the file's order."""


def read_outputs(path: Path) -> Outputs:
    """Read a file of outputs, or those of a run's folder.

    Raises `InputError`, with the row, for a row without instruction or output and for an instruction that comes twice;
    and for a folder that is not a run's or has no finished model.
    """
    if path.is_dir():
        arm, model, file = _of_run(path)
        return Outputs(f"{arm} M_{model}", read_outputs(file).by_id)
    by_id: dict[str, Output] = {}
    names: set[str] = set()
    for where, row in read_rows(path, "output"):
        output = _of_sample(row, where) if "samples" in row else _of_row(row, where)
        key = fingerprint(output.instruction)
        if key in by_id:
            raise InputError(f"{where} answers the instruction of {by_id[key].where} again. Keep one of them.")
        by_id[key] = output
        if isinstance(row.get("generator"), str):
            names.add(row["generator"])
    if len(names) > 1:
        raise InputError(f"{path} has outputs of {' and '.join(sorted(names)[:2])}. Give one file for each model.")
    return Outputs(names.pop() if names else path.stem, by_id)


def _of_run(path: Path) -> tuple[Arm, int, Path]:
    """Return the arm, the number of the model and the file of its answers."""
    folder, arm, model = find_model(path)
    tested = folder.test_of(arm, model)
    return arm, model, tested if tested.exists() else folder.validation_of(arm, model)


def find_model(path: Path) -> tuple[RunFolder, Arm, int]:
    """Return the run, the arm and the number of the model that a folder of a run stands for.

    Raises `InputError` for a folder that is not an arm's or an iteration's, or has no finished iteration.
    """
    path = path.resolve()
    above = next((each for each in (path, *path.parents[:2]) if (each / "recipe.yaml").is_file()), path)
    parts = path.relative_to(above).parts
    arm = next((arm for arm in get_args(Arm) if parts[:1] == (arm,)), None)
    if arm is None:
        raise InputError(f"{path} is not an arm of a run. Give RUN/thinking, or RUN/direct/iteration-0.")
    folder = RunFolder(above)
    model = finished = count_finished(folder, arm, "fold")
    if parts[1:]:
        number = parts[1].removeprefix("iteration-")
        model = int(number) + 1 if number.isdecimal() else 0
    if not 0 < model <= finished:
        raise InputError(f"{path} is not a finished iteration. Go on with the run: tpo-lite train --out {above}")
    return folder, arm, model


def _of_row(row: dict[str, Any], where: str) -> Output:
    question = next((row[key] for key in QUESTIONS if key in row), None)
    response = next((row[key] for key in RESPONSES if key in row), None)
    if not isinstance(question, str) or not isinstance(response, str):
        raise InputError(
            f"{where} has no text as instruction and output. Give both: {', '.join(QUESTIONS + RESPONSES)}."
        )
    return Output(question, response, _text(row.get("category")), _text(row.get("answer")), where)


def _of_sample(row: dict[str, Any], where: str) -> Output:
    try:
        asked, last = row["instruction"], row["samples"][-1]
        response = last["response"] if last["outcome"] in WELL_FORMED else ""
        return Output(str(asked["text"]), str(response), _text(asked["category"]), _text(asked["answer"]), where)
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{where} is a damaged line of samples ({type(error).__name__}: {error}). Remove it."
        ) from error


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


def same_instructions(first: Outputs, second: Outputs) -> list[str]:
    """Return the ids of the instructions of two models' outputs, in the order of the first.

    Raises `InputError`, with the row, where one has an instruction that the other lacks.
    """
    for here, there in ((first, second), (second, first)):
        lacking = [key for key in here.by_id if key not in there.by_id]
        if lacking:
            output = here.by_id[lacking[0]]
            raise InputError(
                f"{there.model} lacks {len(lacking)} instructions of {here.model}, the first of which is "
                f"{output.where}, {output.instruction[:60]!r}. Give outputs to the same instructions."
            )
    return list(first.by_id)


def answers_to(outputs: Outputs, instructions: Iterable[str], what: str) -> dict[str, Output]:
    """Return the outputs by the id of the instruction, for a set of instructions.

    Raises `InputError`, with the row, for an output to another instruction, and for an instruction without an output;
    `what` is the set's name in the messages.
    """
    asked = {fingerprint(text): text for text in instructions}
    for key, output in outputs.by_id.items():
        if key not in asked:
            raise InputError(
                f"{output.where}: {output.instruction[:60]!r} is not an instruction of {what}. Remove that row."
            )
    missing = [text for key, text in asked.items() if key not in outputs.by_id]
    if missing:
        raise InputError(
            f"{outputs.model} lacks an output to {len(missing)} instructions of {what}, the first of which is "
            f"{missing[0][:60]!r}. An output that stayed malformed is written as an empty text."
        )
    return {key: outputs.by_id[key] for key in asked}


def count_finished(folder: RunFolder, arm: Arm, phase: str) -> int:
    """Return how many iterations of an arm have finished `phase`, from the first one on."""
    number = 0
    while folder.is_done(phase, arm, number):
        number += 1
    return number


def worker_in(root: Path) -> str | None:
    """Return the process that works in a run folder, or "unknown"; None if none does. Writes nothing."""
    for name in ("run", "phase"):
        path = root / f".{name}.lock"
        if not path.exists():
            continue
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    return None
