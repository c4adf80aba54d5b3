"""Pairs of responses to one instruction, most of them with a gold label that says which is better.

Three forms are read as they are: LLMBar's (Zeng et al., arXiv 2310.07641: a JSON list of input, output_1,
output_2, label 1 or 2), JudgeBench's (Tan et al., arXiv 2410.12784: JSONL of question, response_A,
response_B, label "A>B" or "B>A"), and our own JSONL of instruction, response_1, response_2 and, if known,
label and id. Knows nothing of judges.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.files import read_rows

FORMS = (
    ("instruction", "response_1", "response_2"),
    ("input", "output_1", "output_2"),
    ("question", "response_A", "response_B"),
)
"""The text fields of our own form, LLMBar's and JudgeBench's."""

_LABELS = {"1": 1, "2": 2, "A>B": 1, "B>A": 2}


@dataclass(frozen=True)
class ResponsePair:
    """Two responses to one instruction."""

    id: str
    """JudgeBench's pair_id, an id given in the file, or the file's stem and the number from 0 ("Natural:17")."""
    group: str
    """What the pair counts towards beside the whole: the file's stem, or JudgeBench's source."""
    instruction: str
    """What the user asked."""
    response_1: str
    """One response."""
    response_2: str
    """The other."""
    label: int | None
    """Which is better, 1 or 2; None without a label."""

    @property
    def lengths(self) -> list[int]:
        """The lengths of both responses in characters."""
        return [len(self.response_1), len(self.response_2)]

    @property
    def digest(self) -> str:
        """The hash of the three texts."""
        texts = [self.instruction, self.response_1, self.response_2]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def read_pairs(path: Path) -> list[ResponsePair]:
    """Read the pairs of a file, in its order.

    Raises `InputError`, with file and line, for a line in none of the forms, a label that is not one, two pairs with
    one id, and a file without pairs.
    """
    pairs = []
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(read_rows(path, "pair of responses")):
        fields = next((form for form in FORMS if form[0] in row), None)
        if fields is None:
            known = "; ".join(", ".join(form) for form in FORMS)
            raise InputError(f"{where} is not a pair of responses. Give one of these sets of keys: {known}.")
        for field in fields:
            if not isinstance(row.get(field), str):
                raise InputError(f"{where}: {field} is missing or not a text. Give all of {', '.join(fields)}.")
        pair_id = str(row.get("pair_id", row.get("id", f"{path.stem}:{number}")))
        if pair_id in seen:
            raise InputError(f"{where} has the id {pair_id!r} of {seen[pair_id]}. Give each pair an id of its own.")
        seen[pair_id] = where
        group = judgebench_group(str(row["source"])) if "pair_id" in row and "source" in row else path.stem
        instruction, response_1, response_2 = (row[field] for field in fields)
        label = read_label(row.get("label"), where)
        pairs.append(ResponsePair(pair_id, group, instruction, response_1, response_2, label))
    return pairs


def read_label(label: Any, where: str) -> int | None:
    """Read a label: 1 or 2 for the first or second response, None for no label.

    Raises `InputError` for anything else; `where` says in its message where the label was.
    """
    if label is None:
        return None
    if isinstance(label, bool) or str(label) not in _LABELS:
        raise InputError(f'{where}: the label is {label!r}. Give 1 or 2, "A>B" or "B>A", or no label at all.')
    return _LABELS[str(label)]


def judgebench_group(source: str) -> str:
    """Return the benchmark that a JudgeBench pair was made from; all subjects of mmlu-pro are one, as in its paper.

    >>> judgebench_group("mmlu-pro-computer science"), judgebench_group("livebench-math")
    ('mmlu-pro', 'livebench-math')
    """
    return "mmlu-pro" if source.startswith("mmlu-pro") else source
