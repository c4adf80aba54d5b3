"""Verdicts in the text that a judge wrote."""

from __future__ import annotations

import re

from tpo_lite.records import VerdictLabel

VERDICTS: dict[str, VerdictLabel] = {
    "A": "A", "A>B": "A", "A>>B": "A",
    "B": "B", "B>A": "B", "B>>A": "B",
    "C": "tie", "A=B": "tie",
}  # fmt: skip
"""Labels that a judge may write, and what each says: MT-Bench's three and Arena-Hard's five."""

_BRACKETED = re.compile(r"\[\[([ABC<>=]+)\]\]")


def bracketed_label(text: str) -> str | None:
    """Return the label in double brackets, by Arena-Hard's rule: None if there is none, or if two differ.

    >>> bracketed_label("My final verdict is: [[A>>B]]"), bracketed_label("[[A]] or [[B]]?")
    ('A>>B', None)
    """
    labels = set(_BRACKETED.findall(text))
    return labels.pop() if len(labels) == 1 and labels <= VERDICTS.keys() else None


def final_label(text: str) -> str | None:
    """Return the last label in double brackets, for prompts that ask for the verdict after the explanation.

    >>> final_label("B ends with [[B]], which is no answer. My verdict: [[A]]")
    'A'
    """
    labels = _BRACKETED.findall(text)
    return labels[-1] if labels and labels[-1] in VERDICTS else None
