"""Instructions from files or the Hugging Face Hub.

    load -> prepare -> slices       (the next two are in `tpo_lite.instructions.slices`)

How each source is read:

    x.jsonl                     one JSON object or string per line; empty lines are skipped
    x.csv                       UTF-8, comma-separated, the first line names the columns
    x.parquet                   one instruction per row
    x.txt                       one instruction per line
    hub:name[:split[:column]]   a hub dataset; split "train" unless another is named
    everyday                    the set that comes with the package

The text of a row is in the first of these columns that is there and not null, in any case: instruction, prompt,
question, text, messages, conversations, turns. In the last three it may be a list; then it is the first user turn, in
OpenAI's form (role, content), ShareGPT's (from, value) or plain text. A non-empty column `input` (or
`instances[0].input`, as in Self-Instruct's seed tasks) follows the instruction after a blank line, which is how
AlpacaEval joins the two. `category` and `answer` are kept where they are text or numbers.

`everyday` holds 600 instructions written for this package (CC0), 30 in each of the paper's 20 categories. About a
quarter have a short answer that `tpo_lite.checking` can check.
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
    """In the order of the source, not cleaned yet."""
    bad: int
    """The number of malformed lines that were left out (`skip_bad`)."""


def load(source: str | Path, *, skip_bad: bool = False) -> Loaded:
    """Read the instructions of a file, a hub dataset or `everyday`; see this module's description for the formats.

    Raises `InputError` for a source that cannot be read or holds no instructions, and for a malformed line unless
    `skip_bad` is set, which counts such lines instead.
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
                    f"{source}:{number}: {error}. Fix the line, or leave such lines out with --skip-bad."
                ) from error
            bad += 1
    if not instructions:
        raise InputError(
            f"{source} holds no instructions ({bad} malformed lines). Give a file with one instruction per line, "
            f"in a column named {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}."
        )
    return Loaded(instructions, bad)


def _instruction(row: Any, column: str | None, source: str) -> Instruction:
    """Return the instruction in a row. `column`: where its text is; None to search `TEXT_COLUMNS`.

    Raises `ValueError` that says what is wrong with the row.
    """
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise ValueError(f"it is not a JSON object but {type(row).__name__}")
    row = {str(key).casefold(): value for key, value in row.items()}
    if column is None:
        there = [name for name in TEXT_COLUMNS if name in row]
        if not there:
            raise ValueError(f"it has none of the columns {', '.join(TEXT_COLUMNS)}")
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
        raise ValueError("it holds half a surrogate pair (\\ud800 to \\udfff), which is not text") from error
    return Instruction(fingerprint(text), text.strip(), source, category, answer)


def _text(row: dict[str, Any], column: str) -> str:
    """Return the text in a column: the text itself, or the first user turn of a conversation; "" for null."""
    if column not in row:
        raise ValueError(f"there is no column {column!r}")
    value = row[column]
    if isinstance(value, list):
        # role/content as in OpenAI's messages, from/value as in ShareGPT's conversations; plain turns have no role.
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
    """Return a category or answer as text; None for what is neither text nor a number."""
    return str(value) if isinstance(value, (str, int, float)) else None


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, row), or (line number, `ValueError`) for a malformed line. Numbers start at 1.

    In Parquet the number is the row's. Raises `InputError` for a file that cannot be read at all.
    """
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
    # Not splitlines(): it also splits at U+2028 and similar characters, which may be part of a text.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, 1):
        if suffix == ".txt":
            yield number, line
        elif line.strip():
            yield number, _json(line)


def _everyday_rows() -> Iterator[tuple[int, Any]]:
    """Yield the rows of `everyday`, as `_file_rows` does."""
    text = resources.files("tpo_lite.instructions").joinpath("everyday.jsonl").read_text("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        yield number, _json(line)


def _json(line: str) -> Any:
    """Return the parsed line, or a `ValueError` that says why it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON ({error})")


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Yield as `_file_rows` does, with the first line of each row, which may span several."""
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


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number, row) with the columns that are of use, one batch in memory at a time."""
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
    """Return the rows of a dataset, numbered from 1, and the column that `source` names, if it names one."""
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
