"""What is put into an output, token by token, by hand."""

from __future__ import annotations

import pytest

from tpo_lite.insertion import Insertion, Insertions

STOP = 9


def sampled(insertion: Insertion | None, *tokens: int) -> list[int]:
    """The output of row 5, whose model would say `tokens`."""
    row, output = Insertions(insertion, 5, [STOP]), []
    for token in tokens:
        output.append(row.next_token(output, token))
        if output[-1] == STOP:
            break
    return output


@pytest.mark.parametrize(
    ("after", "before_stop", "tokens", "expected"),
    [
        (2, False, [1, 2, 3, 4, 5, STOP], [1, 2, 7, 8, 5, STOP]),
        (0, False, [1, 2, 3, STOP], [7, 8, 3, STOP]),
        (4, False, [1, 2, STOP], [1, 2, STOP]),
        (4, True, [1, 2, STOP, 3, 4, STOP], [1, 2, 7, 8, 4, STOP]),
        (2, False, [1, 2, STOP, 3, 4], [1, 2, 7, 8, 4]),
        (2, True, [1, STOP, 3, 4, STOP], [1, 7, 8, 4, STOP]),
    ],
)
def test_tokens_are_put_in_once(after, before_stop, tokens, expected):
    assert sampled(Insertion(after, lambda row, output: [7, 8], before_stop), *tokens) == expected


def test_nothing_put_in_is_no_insertion_and_it_is_asked_once():
    asked = []
    insertion = Insertion(2, lambda row, output: asked.append((row, list(output))) or [], before_stop=True)
    assert sampled(insertion, 1, 2, 3, STOP) == [1, 2, 3, STOP]
    assert asked == [(5, [1, 2])]
    assert sampled(None, 1, 2, 3, STOP) == [1, 2, 3, STOP]


def test_a_row_that_has_ended_is_not_asked():
    """transformers goes on with padding after a stop token, until all rows have ended."""
    row = Insertions(Insertion(2, lambda row, output: [7]), 0, [STOP])
    assert row.next_token([], STOP) == STOP
    assert row.next_token([STOP], 0) == 0
    assert row.next_token([STOP, 0], 0) == 0
