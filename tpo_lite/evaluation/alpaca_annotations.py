"""Annotations of AlpacaEval 2: which of two outputs a judge prefers for each of the 805 instructions.

Two forms are read: the official `annotations.json` (a list of objects with instruction, output_1, output_2,
generator_1, generator_2, annotator and preference), and CSV with the columns row, index, len_1, len_2 and preference,
which has lengths instead of texts. A preference of 1 says that the baseline's output is better, 2 that the model's
is; 0 is an old way to write 1.5, a draw.

The official code joins the difficulty of an instruction on the row of the file, not on the instruction
(`alpaca_eval.metrics.glm_winrate`), and published files lack up to 4 rows. So each annotation has its row in the
leaderboard's order, counted without the rows that are missing, beside the number of its instruction.

The instructions are known by their hashes, since the texts may not be shipped. To write the list anew from a JSONL file
of the texts:

    python -m tpo_lite.evaluation.alpaca_annotations INSTRUCTIONS.jsonl > tpo_lite/evaluation/alpaca_instructions.txt
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError, TpoError
from tpo_lite.instructions.leakage import fingerprint

INSTRUCTIONS = 805
"""Instructions in AlpacaEval."""
MOST_MISSING = 8
"""A file may lack 1 % of the instructions, as some of the published ones do. The figures are of those that are left."""
BASELINE = "gpt4_1106_preview"
"""AlpacaEval 2's baseline, by the official name."""
OFFICIAL_JUDGE = "weighted_alpaca_eval_gpt4_turbo"
"""AlpacaEval 2's judge, by the official name."""


@dataclass(frozen=True)
class Annotation:
    """What the judge said about one instruction."""

    row: int
    """From 0: its place in the leaderboard's order among those that the file has."""
    index: int
    """From 0 to 804: the instruction's number."""
    len_1: int
    """Length of the baseline's output in characters."""
    len_2: int
    """Length of the model's output in characters."""
    preference: float
    """From 1, the baseline is better, to 2, the model is."""


@dataclass(frozen=True)
class Annotations:
    """One model's file of annotations, ordered by row."""

    rows: list[Annotation]
    """At least 797, one for each instruction that was judged."""
    model: str
    """The model's name: `generator_2`, or the file's stem."""
    baseline: str | None
    """The baseline's name, `generator_1`; None where the file does not tell."""
    judge: str | None
    """The judge's name, `annotator`; None where the file does not tell."""

    @property
    def missing(self) -> list[int]:
        """The numbers of the instructions that the file lacks."""
        return sorted(set(range(INSTRUCTIONS)) - {row.index for row in self.rows})

    @property
    def is_baseline(self) -> bool:
        """Whether the model is the baseline itself: equal lengths and a draw everywhere."""
        return all(row.len_1 == row.len_2 and row.preference == 1.5 for row in self.rows)


def read_annotations(path: Path) -> Annotations:
    """Read a file of annotations in either form, in any order.

    Raises `InputError`, with the row, for a value that is missing or out of range, an instruction that is not
    AlpacaEval's, one that comes twice, a gap in the column `row`, and a file that lacks more than 8 instructions.
    """
    text = read_text(path)
    found = _from_json(path, text) if text.lstrip().startswith("[") else _from_csv(path, text)
    if not found.rows:
        raise InputError(f"{path} has no annotations. Give one for each of AlpacaEval's {INSTRUCTIONS} instructions.")
    missing = found.missing
    if len(missing) > MOST_MISSING:
        raise InputError(
            f"{path} lacks {len(missing)} of AlpacaEval's {INSTRUCTIONS} instructions, the first of which is number "
            f"{missing[0]}. Annotate them too: a score of fewer cannot be compared with the leaderboard's."
        )
    return found


def fingerprints() -> tuple[str, ...]:
    """Return the hashes of the 805 instructions, in the leaderboard's order."""
    return tuple(_numbers())


@cache
def _numbers() -> dict[str, int]:
    lines = resources.files("tpo_lite.evaluation").joinpath("alpaca_instructions.txt").read_text("utf-8").splitlines()
    return {line: number for number, line in enumerate(line for line in lines if not line.startswith("#"))}


def number_of(instruction: str) -> int | None:
    """Return the number of an instruction in AlpacaEval, from 0; None if it is not one of them."""
    return _numbers().get(fingerprint(instruction))


def read_text(path: Path) -> str:
    """Return the text of a file of annotations. Raises `InputError` if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}. Give a JSON or CSV file of annotations.") from error


def _from_json(path: Path, text: str) -> Annotations:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Give the file that alpaca_eval wrote.") from error
    places: list[tuple[int, str, dict[str, Any]]] = []
    for position, item in enumerate(items):
        where = f"{path}, row {position}"
        if not isinstance(item, dict):
            raise InputError(f"{where} is not an annotation but {json.dumps(item)[:40]}. Fix that row or remove it.")
        for key in ("instruction", "output_1", "output_2"):
            if not isinstance(item.get(key), str):
                raise InputError(f"{where}: {key} is missing or not a text. Fix that row or remove it.")
        number = number_of(item["instruction"])
        if number is None:
            raise InputError(
                f"{where}: {item['instruction'][:60]!r} is not an instruction of AlpacaEval. Remove that row."
            )
        places.append((number, where, item))
    _refuse_twice([(number, where) for number, where, _ in places], "the instruction")
    places.sort(key=lambda place: place[0])
    rows = [
        Annotation(
            row, number, len(item["output_1"]), len(item["output_2"]), _preference(item.get("preference"), where)
        )
        for row, (number, where, item) in enumerate(places)
    ]
    names = [
        _only_name(path, key, [item for _, _, item in places]) for key in ("generator_2", "generator_1", "annotator")
    ]
    return Annotations(rows, names[0] or path.stem, names[1], names[2])


def _only_name(path: Path, key: str, items: Sequence[dict[str, Any]]) -> str | None:
    names = {str(item[key]) for item in items if item.get(key) is not None}
    if len(names) > 1:
        first, second, *_ = sorted(names)
        raise InputError(f"{path} has {key} {first!r} and {second!r}. Give the annotations of one model by one judge.")
    return names.pop() if names else None


def _from_csv(path: Path, text: str) -> Annotations:
    rows: list[Annotation] = []
    places: list[tuple[int, str]] = []
    instructions: list[tuple[int, str]] = []
    has_rows = False
    for where, line in csv_rows(path, text, ("index", "len_1", "len_2", "preference")):
        has_rows = "row" in line
        index = whole_number(line["index"], "index", where, INSTRUCTIONS - 1)
        row = whole_number(line["row"], "row", where, INSTRUCTIONS - 1) if has_rows else index
        lengths = [whole_number(line[key], key, where) for key in ("len_1", "len_2")]
        places.append((row, where))
        instructions.append((index, where))
        rows.append(Annotation(row, index, lengths[0], lengths[1], _preference(line["preference"], where)))
    _refuse_twice(places, "row")
    _refuse_twice(instructions, "instruction")
    rows.sort(key=lambda annotation: annotation.row)
    if has_rows:
        gap = next((number for number, annotation in enumerate(rows) if annotation.row != number), None)
        if gap is not None:
            raise InputError(f"{path} lacks row {gap}. Add it: the column `row` counts from 0 without gaps.")
    else:
        rows = [
            Annotation(number, each.index, each.len_1, each.len_2, each.preference) for number, each in enumerate(rows)
        ]
    return Annotations(rows, path.stem, None, None)


def csv_rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the lines of a CSV text with a header, each with its place.

    Raises `InputError` where one of the columns is missing, and for a line of another number of fields.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}. Give a file with the columns {', '.join(columns)}.")
    for line in reader:
        if not line:
            continue
        where = f"{path}:{reader.line_num}"
        if len(line) != len(header):
            raise InputError(
                f"{where} has {len(line)} fields and the header {len(header)}. Fix that line or remove it."
            )
        yield where, dict(zip(header, line, strict=True))


def whole_number(text: str, name: str, where: str, most: int | None = None) -> int:
    """Return a whole number from 0 to `most`. Raises `InputError` for anything else."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer() or number < 0 or (most is not None and number > most):
        limit = "from 0" if most is None else f"from 0 to {most}"
        raise InputError(f"{where}: {name} is {text!r}. Give a whole number {limit}.")
    return int(number)


def _preference(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number == 0:
        return 1.5
    if not 1 <= number <= 2:
        raise InputError(f"{where}: preference is {value!r}. Give a number from 1 (the baseline) to 2 (the model).")
    return number


def _refuse_twice(places: Sequence[tuple[int, str]], what: str) -> None:
    seen: dict[int, str] = {}
    for number, where in places:
        if number in seen:
            raise InputError(f"{where} has {what} {number} of {seen[number]} again. Keep one of them.")
        seen[number] = where


def main(paths: list[str]) -> int:
    """Print the hashes of the instructions in a JSONL file, in its order, and return the exit code."""
    from tpo_lite.instructions.load import load

    try:
        hashes = [fingerprint(row.text) for path in paths for row in load(path).instructions]
    except TpoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(
        f"# SHA-256 (first 16 hex digits, text normalized) of AlpacaEval's {INSTRUCTIONS} instructions, in the "
        "leaderboard's order; written by: python -m tpo_lite.evaluation.alpaca_annotations INSTRUCTIONS.jsonl "
        "> tpo_lite/evaluation/alpaca_instructions.txt"
    )
    print("\n".join(hashes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
