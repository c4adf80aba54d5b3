"""Exact answers: how often a response gives the right one, as in GSM8K.

The answer of a response is its last number, or what a regular expression finds last. Numbers are compared as numbers,
so that "1,080" and "1080.0" are the same; other answers are compared without case and outer white space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.evaluation.outputs import Outputs, answers_to
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.load import load
from tpo_lite.intervals import Share, share

NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+"
"""A number with a sign, thousands and decimals, if it has them."""


@dataclass(frozen=True)
class Exact:
    """How many responses are right."""

    model: str
    """The model."""
    right: Share
    """The share of right ones among all; what gives no answer is wrong."""
    without_answer: int
    """Responses in which no answer was found."""
    average_length: float
    """Mean length of the responses in characters."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as `eval exact --json` prints them."""
        return {
            "model": self.model,
            "n": self.right.n,
            "accuracy": self.right.value,
            "interval": [self.right.low, self.right.high],
            "without_answer": self.without_answer,
            "avg_length": self.average_length,
        }


def found_answer(response: str, pattern: re.Pattern[str]) -> str | None:
    """Return the last match of a pattern, or of its first group if it has one; None if there is none.

    >>> found_answer("3 + 4 is 7. The answer is 1,007.", re.compile(NUMBER))
    '1,007'
    """
    found = list(pattern.finditer(response))
    if not found:
        return None
    last = found[-1]
    return str(last.group(1) or "") if pattern.groups else last.group()


def same_answer(given: str, right: str) -> bool:
    """Return whether two answers are the same number or, if one is no number, the same text.

    >>> same_answer("$1,080", "1080.0"), same_answer(" Paris", "paris"), same_answer("7", "70")
    (True, True, False)
    """
    numbers = [_number(given), _number(right)]
    if None not in numbers:
        return numbers[0] == numbers[1]
    return given.strip().casefold() == right.strip().casefold()


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip().replace(",", "").replace("$", "").removesuffix("."))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def score(outputs: Outputs, questions: Path | None = None, regex: str | None = None) -> Exact:
    """Count the right responses.

    `questions` is a file of instructions with their answers, in any form that `tpo_lite.instructions.load` reads; None
    where the file of outputs has the answers. Raises `InputError` for a question without an answer, outputs to other
    questions, questions without an output, and a regular expression that is not one.
    """
    pattern = _compiled(regex)
    right_answers = {key: output.answer for key, output in outputs.by_id.items()}
    given = outputs.by_id
    if questions is not None:
        loaded = load(questions).instructions
        right_answers = {fingerprint(each.text): each.answer for each in loaded}
        given = answers_to(outputs, [each.text for each in loaded], questions.name)
    for key, answer in right_answers.items():
        if not answer:
            raise InputError(
                f"{given[key].where}: no right answer is known to {given[key].instruction[:60]!r}. Give --questions, a "
                "file with question and answer in each row."
            )
    answers = {key: found_answer(output.response, pattern) for key, output in given.items()}
    right = sum(found is not None and same_answer(found, right_answers[key] or "") for key, found in answers.items())
    length = sum(len(output.response) for output in given.values()) / len(given)
    return Exact(outputs.model, share(right, len(given)), list(answers.values()).count(None), length)


def _compiled(regex: str | None) -> re.Pattern[str]:
    try:
        return re.compile(regex or NUMBER)
    except re.error as error:
        raise InputError(f"--regex {regex!r} is no regular expression: {error}. Fix it or leave it out.") from error


def as_text(exact: Exact) -> str:
    """Return the figures as a line for a terminal."""
    right = exact.right
    return (
        f"{exact.model}: {100 * (right.value or 0):.2f} % right, 95 % interval {100 * right.low:.2f} to "
        f"{100 * right.high:.2f}, of {right.n}; {exact.without_answer} without an answer; mean length "
        f"{exact.average_length:.0f} characters"
    )
