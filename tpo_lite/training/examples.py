"""The examples that a warm start trains on: from the model's own outputs, or from a file. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from tpo_lite.chat import Chat
from tpo_lite.errors import InputError
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.rows import file_rows
from tpo_lite.records import Example, PromptSamples
from tpo_lite.thoughts import ThoughtStyle, parse, thought_prompt

COLUMNS = ("instruction", "thought", "response")
"""What each line of a file holds."""


def choose_examples(samples: Sequence[PromptSamples], count: int) -> list[Example]:
    """Return at most `count` of the outputs that hold each marker once and have ended.

    Every prompt gives its first such output, then those that have more give their second, and so on: many prompts
    teach more than many outputs to one.
    """
    columns = [
        [Example(x.instruction.id, s.k, x.prompt_ids, s.token_ids) for s in x.samples if s.outcome == "ok"]
        for x in samples
    ]
    return [example for turn in zip_longest(*columns) for example in turn if example is not None][:count]


def read_examples(path: Path, chat: Chat, style: ThoughtStyle, held_out: frozenset[str]) -> list[Example]:
    """Return the examples of a JSONL, JSON or CSV file with an instruction, a thought and a response in each row.

    Instructions of a held-out slice, by id, are left out. Raises `InputError` that
    names the row for anything else, a text that holds a marker included.
    """
    examples = []
    end = cast(int, chat.tokenizer.eos_token_id)
    for place, row in file_rows(path):
        where = f"warm_start.file: {path}:{place}"
        instruction, thought, response = _texts(row, where)
        output = "\n\n".join(
            part for part in (_marked(style.thought_marker, thought), _marked(style.response_marker, response))
        )
        if parse(style, output, truncated=False).outcome != "ok":
            raise InputError(
                f"{where} holds a marker of the thought prompt. The markers are put before thought and response; take "
                "them out of the texts."
            )
        if (id := fingerprint(instruction)) not in held_out:
            prompt_ids = chat.prompt_ids(thought_prompt(style, instruction))
            examples.append(Example(id, 0, prompt_ids, [*chat.text_ids(output), end]))
    return examples


def _marked(marker: str | None, text: str) -> str:
    """Return a text under its marker, if it has one."""
    return f"{marker}\n{text}" if marker else text


def _texts(row: Any, where: str) -> list[str]:
    """Return the three texts of a row. Raises `InputError` if it is not JSON, or one is missing or empty."""
    if isinstance(row, ValueError):
        raise InputError(f"{where} cannot be read: {row}. Fix that line.") from row
    texts = [str(row.get(name) or "").strip() if isinstance(row, dict) else "" for name in COLUMNS]
    for name, text in zip(COLUMNS, texts, strict=True):
        if not text:
            raise InputError(f'{where} has no "{name}". Each line needs {", ".join(COLUMNS)}.')
    return texts
