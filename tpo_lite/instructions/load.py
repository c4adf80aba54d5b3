"""Instructions: read from files or the hub, cleaned, and cut into disjoint slices.

    load -> prepare -> slices

`load` reads JSONL, CSV, Parquet, plain text (one a line) or `hub:name[:split[:column]]`. The text of a
row is in the first of these columns that it has, whatever their case: instruction, prompt, question,
text, messages, conversations, turns. Of a conversation it is the first user turn. A non-empty `input`
(or `instances[0].input`, as in Self-Instruct's seed tasks) follows the instruction after a blank line,
which is how AlpacaEval joins the two. `category` and `answer` are kept where they are text or numbers.

`everyday` is the set that comes with the package: 600 instructions written for it, 30 in each of the
paper's 20 categories, about a quarter with a short answer that `tpo_lite.checking` can check (CC0).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.records import Instruction

TEXT_COLUMNS = ("instruction", "prompt", "question", "text", "messages", "conversations", "turns")
OTHER_COLUMNS = ("input", "instances", "answer", "category")
SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt")
EVERYDAY = "everyday"
"""The source that comes with the package."""


@dataclass(frozen=True)
class Loaded:
    """What a source held."""

    instructions: list[Instruction]
    """In the source's order, not cleaned yet."""
    bad: int
    """Malformed lines left out (`skip_bad`)."""


def load(source: str | Path, *, skip_bad: bool = False) -> Loaded:
    """The instructions of a file, by its suffix, of a hub dataset (split "train" unless named), or `everyday`.

    Raises `InputError` for a source that cannot be read or holds no instruction, and for a malformed line,
    unless `skip_bad` counts those.
    """
    source = str(source)
    column = None
    if source == EVERYDAY:
        rows = _everyday_rows()
    elif source.startswith("hub:"):
        rows, column = _hub_rows(source)
    else:
        rows = _file_rows(Path(source))
    instructions, bad = [], 0
    for number, row in rows:
        try:
            if isinstance(row, Exception):
                raise row
            instructions.append(_instruction(row, column, f"{source}:{number}"))
        except ValueError as error:
            if not skip_bad:
                raise InputError(
                    f"{source}:{number}: {error}. Mend the line, or leave such lines out with --skip-bad."
                ) from error
            bad += 1
    if not instructions:
        raise InputError(
            f"{source} holds no instructions ({bad} malformed lines). Give a file with one in each line, "
            f"in a column named {', '.join(TEXT_COLUMNS)}."
        )
    return Loaded(instructions, bad)


def _instruction(row: Any, column: str | None, source: str) -> Instruction:
    """Raises `ValueError` saying what is wrong with the row."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, not {type(row).__name__}")
    row = {str(key).casefold(): value for key, value in row.items()}
    if column is None:
        there = [name for name in TEXT_COLUMNS if name in row]
        if not there:
            raise ValueError(f"none of the columns {', '.join(TEXT_COLUMNS)} is there")
        column = next((name for name in there if row[name] is not None), there[0])
    column = column.casefold()
    text = _text(row, column)
    extra = row.get("input") if column != "input" else None
    instances = row.get("instances")
    if extra is None and isinstance(instances, list) and instances and isinstance(instances[0], dict):
        extra = instances[0].get("input")
    if isinstance(extra, str) and extra.strip():
        text = f"{text}\n\n{extra}"
    category, answer = _label(row.get("category")), _label(row.get("answer"))
    try:
        f"{text}{category}{answer}".encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair (\\ud800 to \\udfff) is no text") from error
    return Instruction(fingerprint(text), text.strip(), source, category, answer)


def _text(row: dict[str, Any], column: str) -> str:
    if column not in row:
        raise ValueError(f"there is no column {column!r}")
    value = row[column]
    if isinstance(value, list):
        # Roles as in OpenAI's messages, or from/value as in ShareGPT's conversations; plain turns have none.
        for turn in value:
            if isinstance(turn, str):
                turn = {"content": turn}
            if isinstance(turn, dict) and turn.get("role", turn.get("from", "user")) in ("user", "human"):
                value = turn.get("content", turn.get("value"))
                break
        else:
            raise ValueError(f"{column!r} has no user turn")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column!r} is not text but {type(value).__name__}")
    return value


def _label(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int, float)) else None


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, row) or (line number, ValueError), numbered from 1 (Parquet: by row)."""
    suffix = path.suffix.casefold()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown suffix {path.suffix!r}. Instruction files end in {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line} is not UTF-8. Convert the file, e.g. with iconv -t UTF-8.") from error
    if suffix == ".csv":
        yield from _csv_rows(text)
        return
    # Not splitlines(): U+2028 and its like may stand inside a text.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, 1):
        if suffix == ".txt":
            yield number, line
        elif line.strip():
            yield number, _json(line)


def _everyday_rows() -> Iterator[tuple[int, Any]]:
    text = resources.files("tpo_lite.instructions").joinpath("everyday.jsonl").read_text("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        yield number, _json(line)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON ({error})")


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed takes all lines to the end with it.
            for lost in range(line, max(line, reader.line_num) + 1):
                yield lost, ValueError(f"not CSV ({error})")
            continue
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
        elif len(cells) != len(header):
            yield line, ValueError(f"{len(cells)} columns, but the header has {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name.casefold() in TEXT_COLUMNS + OTHER_COLUMNS]
        number = 0
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({error}). Check the path, or copy the file again."
        ) from error


def _hub_rows(source: str) -> tuple[Iterator[tuple[int, Any]], str | None]:
    name, split, column = (source.removeprefix("hub:").split(":", 2) + ["", ""])[:3]
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # The hub's client raises a dozen unrelated types.
        raise InputError(
            f"{source} cannot be loaded ({error}). Check name, split and network, or `hf auth login`."
        ) from error
    if column and column not in dataset.column_names:
        raise InputError(f"{source}: no column {column!r}; there are {', '.join(dataset.column_names)}.")
    wanted = TEXT_COLUMNS + OTHER_COLUMNS
    columns = [name for name in dataset.column_names if name == column or name.casefold() in wanted]
    return enumerate(dataset.select_columns(columns), 1), column or None
