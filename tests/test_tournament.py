"""The round robin and what it saves."""

from __future__ import annotations

import pytest

from tpo_lite.records import Instruction, PromptSamples, Sample
from tpo_lite.tournament import round_robin, saved_calls


def prompt(*responses: str | None) -> PromptSamples:
    """Samples with these responses; None is a malformed one."""
    samples = [
        Sample(k, [k], "", "truncated" if text is None else "ok", "", text or "", 0, 1)
        for k, text in enumerate(responses)
    ]
    return PromptSamples(Instruction("x", "?", "test"), [0], samples)


@pytest.mark.parametrize(
    ("responses", "comparisons", "saved"),
    [
        (["a", "b"], [(0, 1), (1, 0)], 0),
        (["a", "b", "c"], [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)], 0),
        (["a", "b", "a"], [(0, 1), (1, 0)], 4),
        ([None, "a", None, "b"], [(1, 3), (3, 1)], 0),
        (["a", "a", "a"], [], 6),
        (["a", None], [], 0),
        ([None], [], 0),
    ],
)
def test_round_robin(responses: list, comparisons: list[tuple[int, int]], saved: int) -> None:
    samples = prompt(*responses)
    assert round_robin(samples) == comparisons
    assert saved_calls(samples, len(comparisons)) == saved


def test_the_papers_56_calls() -> None:
    assert len(round_robin(prompt(*"abcdefgh"))) == 56
