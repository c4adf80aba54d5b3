"""The rows of a source, a file or a hub dataset, not interpreted yet.

Every reader yields (place, row). The place is where the row begins, for messages and for the record's `source`: a line
number, in Parquet and hub datasets a row number, both from 1. In a JSON array it is "52 (item 17)", as an array may
stand on one line. A row that cannot be parsed is a `ValueError` that says why.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError

Row = tuple[int | str, Any]
"""Where a row begins, and the row or a `ValueError`."""

TEXT_COLUMNS = ("instruction", "prompt", "question", "text", "messages", "conversations", "conversation", "turns")
"""Where the text of a row may be; the first that is there is taken."""
SYSTEM_COLUMNS = ("system", "system_prompt")
OTHER_COLUMNS = ("input", "instances", "answer", "category", *SYSTEM_COLUMNS)
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


def file_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file. Raises `InputError` for a file that cannot be read at all."""
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
        lines_before = data[: error.start].count(b"\n")
        raise InputError(
            f"{path}:{lines_before + 1} is not UTF-8. Convert the file, for example with iconv -t UTF-8."
        ) from error
    if suffix == ".csv":
        yield from _csv_rows(text)
        return
    if suffix == ".json":
        yield from _array_rows(text, path)
        return
    # Not splitlines(): it also splits at U+2028 and similar characters, which may be part of a text.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, 1):
        if suffix == ".txt":
            yield number, line
        elif line.strip():
            yield number, _json(line)


def _json(line: str) -> Any:
    """Return the parsed line, or a `ValueError` that says why it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON ({error})")


def _array_rows(text: str, path: Path) -> Iterator[Row]:
    """Yield the items of a JSON array. Raises `InputError` for text that is anything else."""
    end = _end_of_space(text, 0)
    if text[end : end + 1] != "[":
        raise InputError(f"{path} {_what_else(text, end)}")
    line, counted, number = 1, 0, 0
    try:
        end = _end_of_space(text, end + 1)
        while text[end : end + 1] != "]" or number:
            number += 1
            line, counted = line + text.count("\n", counted, end), end
            item, end = _DECODER.raw_decode(text, end)
            yield f"{line} (item {number})", item
            end = _end_of_space(text, end)
            if text[end : end + 1] == "]":
                break
            if text[end : end + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
            end = _end_of_space(text, end + 1)
        rest = _end_of_space(text, end + 1)
        if rest < len(text):
            raise json.JSONDecodeError("There is more text after the array", text, rest)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno} is not JSON ({error}). Fix that place, or copy the file again if it is cut off."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as many deep
        raise InputError(f"{path}:{line}: item {number} cannot be read ({error}). Fix it or take it out.") from error


def _end_of_space(text: str, start: int) -> int:
    """Return where the white space that begins at `start` ends."""
    return _SPACE.match(text, start).end()  # type: ignore[union-attr]  # the pattern matches anywhere


def _what_else(text: str, start: int) -> str:
    """Say what a .json file holds that does not begin with an array, and what to do about it."""
    if start == len(text):
        return "is empty. Give a JSON array of instructions."
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error}). Give a JSON array of instructions."
    if _end_of_space(text, end) < len(text):
        return "is not a JSON array but JSON Lines: one value after another. Rename it to end in .jsonl."
    kind = "an object" if isinstance(value, dict) else "a single value"
    return f"holds {kind}, not a JSON array. Put the rows into an array, or write one per line to a .jsonl file."


def _csv_rows(text: str) -> Iterator[Row]:
    """Yield the rows of a CSV file. A row may span several lines."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed swallows all lines to the end of the file.
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


def _parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file with the columns that are of use, one batch in memory at a time."""
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


def hub_rows(source: str) -> tuple[Iterator[Row], str | None]:
    """Return the rows of a dataset, and the column that `source` names, if it names one."""
    name, split, column = (source.removeprefix("hub:").split(":", 2) + ["", ""])[:3]
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # The hub's client raises a dozen unrelated types.
        raise InputError(
            f"{source} cannot be loaded ({error}). Check its name, its split and the network, or run `hf auth login`."
        ) from error
    if column and column not in dataset.column_names:
        raise InputError(
            f"{source} has no column {column!r}. Name one of those it has: {', '.join(dataset.column_names)}."
        )
    wanted = TEXT_COLUMNS + OTHER_COLUMNS
    columns = [name for name in dataset.column_names if name == column or name.casefold() in wanted]
    return enumerate(dataset.select_columns(columns), 1), column or None
