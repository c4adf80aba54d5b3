"""Instructions from files or the Hugging Face Hub.

    load -> prepare -> slices       (the next two are in `tpo_lite.instructions.slices`)

How each source is read:

    x.jsonl                     one JSON object or string per line; empty lines are skipped
    x.json                      one array of such objects or strings
    x.csv                       UTF-8, comma-separated, the first line names the columns
    x.parquet                   one instruction per row
    x.txt                       one instruction per line
    hub:name[:split[:column]]   a hub dataset; split "train" unless another is named
    everyday                    the set that comes with the package

The text of a row is in the first of these columns that is there and not null, in any case: instruction, prompt,
question, text, messages, conversations, conversation, turns. In each of them it may be a conversation, as in TRL's
conversational `prompt`: a list of turns in OpenAI's form (role, content), ShareGPT's (from, value) or plain text. The
instruction is then the first user turn. With `instructions.turn: last` it is the last user turn, the turns before it
are its history, and a column that holds a conversation comes before one that holds text.

A system turn, or else the column `system` or `system_prompt`, is the system prompt. The model gets it and the history
as turns of their own, and a judge as part of the instruction.

A non-empty column `input` (or `instances[0].input`, as in Self-Instruct's seed tasks) follows the instruction after a
blank line, which is how AlpacaEval joins the two. `category` and `answer` are kept where they are text or numbers. Of
an answer that ends in "#### 42", as GSM8K's do, 42 is kept.

`everyday` holds 600 instructions written for this package (CC0), 30 in each of the paper's 20 categories. About a
quarter have a short answer that `tpo_lite.checking` can check.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.instructions.conversations import WhichTurn, read_conversation, system_turn
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.rows import SYSTEM_COLUMNS, TEXT_COLUMNS, file_rows, hub_rows
from tpo_lite.records import Instruction, Turn

EVERYDAY, EVERYDAY_FILE = "everyday", Path(__file__).with_name("everyday.jsonl")
"""The source that comes with the package."""


@dataclass(frozen=True)
class Loaded:
    """What a source held."""

    instructions: list[Instruction]
    """In the order of the source, not cleaned yet."""
    bad: int
    """The number of malformed lines that were left out (`skip_bad`)."""


def load(source: str | Path, *, skip_bad: bool = False, turn: WhichTurn = "first") -> Loaded:
    """Read the instructions of a file, a hub dataset or `everyday`; see this module's description for the formats.

    `turn` says which user turn of a conversation is the instruction. Raises `InputError` for a source that cannot be
    read or holds no instructions, and for a malformed line unless `skip_bad` is set, which counts such lines instead.
    """
    source = str(source)
    column = None
    if source == EVERYDAY:
        rows = file_rows(EVERYDAY_FILE)
    elif source.startswith("hub:"):
        rows, column = hub_rows(source)
    else:
        rows = file_rows(Path(source))
    instructions, bad = [], 0
    for place, row in rows:
        try:
            if isinstance(row, Exception):
                raise row
            instructions.append(_instruction(row, column, turn, f"{source}:{place}"))
        except ValueError as error:
            if not skip_bad:
                raise InputError(
                    f"{source}:{place}: {error}. Fix the line, or leave such lines out with --skip-bad."
                ) from error
            bad += 1
    if not instructions:
        raise InputError(
            f"{source} holds no instructions ({bad} malformed lines). Give a file with one instruction per line, "
            f"in a column named {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}."
        )
    return Loaded(instructions, bad)


def _instruction(row: Any, column: str | None, turn: WhichTurn, source: str) -> Instruction:
    """Return the instruction in a row. `column`: where its text is; None to search `TEXT_COLUMNS`.

    Raises `ValueError` that says what is wrong with the row.
    """
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise ValueError(f"it is not a JSON object but {type(row).__name__}")
    row = {str(key).casefold(): value for key, value in row.items()}
    column = _text_column(row, turn) if column is None else column.casefold()
    text, context = _text_and_context(row, column, turn)
    extra = row.get("input") if column != "input" else None
    instances = row.get("instances")
    if extra is None and isinstance(instances, list) and instances and isinstance(instances[0], dict):
        extra = instances[0].get("input")
    if isinstance(extra, str) and extra.strip():
        text = f"{text}\n\n{extra}"
    category, answer = _label(row.get("category")), _answer(row.get("answer"))
    instruction = Instruction("", text.strip(), source, category, answer, context or None)
    try:
        f"{instruction.conversation()}{category}{answer}".encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a surrogate pair (\\ud800 to \\udfff), which is not text") from error
    return replace(instruction, id=fingerprint(instruction.conversation()))


def _text_column(row: dict[str, Any], turn: WhichTurn) -> str:
    """Return the name of the column that holds the text."""
    there = [name for name in TEXT_COLUMNS if name in row]
    if not there:
        raise ValueError(f"it has none of the columns {', '.join(TEXT_COLUMNS)}")
    filled = [name for name in there if row[name] is not None]
    # Beside a conversation, `prompt` often repeats its first turn.
    conversations = [name for name in filled if turn == "last" and isinstance(row[name], list)]
    return (conversations + filled + there)[0]


def _text_and_context(row: dict[str, Any], column: str, turn: WhichTurn) -> tuple[str, list[Turn]]:
    """Return the text in a column or the user turn of its conversation ("" for null), and what comes before it."""
    if column not in row:
        raise ValueError(f"there is no column {column!r}")
    text: Any = row[column]
    context: list[Turn] = []
    if isinstance(text, list):
        try:
            text, context = read_conversation(text, turn)
        except ValueError as error:
            raise ValueError(f"{column!r} {error}") from error
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise ValueError(f"{column!r} is not text but {type(text).__name__}")
    if not any(said["role"] == "system" for said in context):
        prompts = [row[name] for name in SYSTEM_COLUMNS if row.get(name) is not None and name != column]
        try:
            context = system_turn(prompts[:1]) + context
        except ValueError as error:
            raise ValueError(f"it {error}") from error
    return text, context


def _label(value: Any) -> str | None:
    """Return a category or answer as text; None for what is neither text nor a number."""
    return str(value) if isinstance(value, (str, int, float)) else None


# The published evaluation reads the answer with this pattern and takes commas out:
# github.com/openai/grade-school-math, grade_school_math/dataset.py.
_GSM8K_ANSWER = re.compile(r"#### (-?[0-9.,]+)\s*$")


def _answer(value: Any) -> str | None:
    r"""Return an answer as text. In GSM8K's form it is the number after the solution, without commas.

    >>> _answer("She sold 1,000 + 80 = 1,080 clips.\n#### 1,080")
    '1080'
    """
    answer = _label(value)
    found = _GSM8K_ANSWER.search(answer) if answer else None
    return found.group(1).replace(",", "") if found else answer
