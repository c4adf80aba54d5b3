"""Streaming an output gives the thought and the response that parsing it whole gives, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpo_lite.serving.streamed import Parts, Streamed
from tpo_lite.thoughts import DIRECT, GENERIC, SPECIFIC, THINK, WELL_FORMED, parse


def streamed(style, pieces, stops=()):
    """All that comes out, and the object."""
    stream = Streamed(style, stops)
    parts = [stream.feed(piece) for piece in pieces] + [stream.end()]
    return Parts("".join(part.thought for part in parts), "".join(part.response for part in parts)), stream


PARTS = [
    "Here is my thought process:", "Here is my response:", "<R>", "<think>", "</think>", "Here is my", "<", "</",
    "*", "**", "_", "#", "## ", " ", "\n", "\n\n", "a", "Two words.", "- item", "***", "\r\n", "\u00a0",
]  # fmt: skip


@given(st.sampled_from([GENERIC, SPECIFIC, THINK, DIRECT]), st.lists(st.sampled_from(PARTS), max_size=14), st.data())
@example(SPECIFIC, ["Draft.\n\n", "**", "<R>", "** ", "Four."], None)
@example(SPECIFIC, ["Draft.\n\n", "**", "<R>", " Four", "**", "\n\n", "a", "**"], None)
@example(SPECIFIC, ["Draft. ", "*", "<R>", "a", "*"], None)
def test_the_response_is_that_of_the_whole_output(style, words, data):
    output = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)), max_size=20))) if data else range(len(output))
    pieces = [output[a:b] for a, b in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    whole = parse(style, output, truncated=False)
    (_, response), stream = streamed(style, pieces)
    assert response == (whole.response if whole.outcome in WELL_FORMED else "")
    assert stream.thinking == (style.response_marker is not None and style.response_marker not in output)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("style", "output"),
    [
        (GENERIC, "Here is my thought process:\nIt is 2 * 2.\n\nHere is my response:\nFour."),
        (GENERIC, "**Here is my thought process:** Here is my idea.\n\n**Here is my response:** *Four*."),
        (GENERIC, "I think.\n\nHere is my response: Four."),
        (SPECIFIC, "Draft: 4 < 5.\n## <R>\nFour."),
        (THINK, "<think>\nIt </ is 4.\n</think>\n\nFour."),
    ],
)
def test_the_thought_is_that_of_the_whole_output(style, output, size):
    pieces = [output[at : at + size] for at in range(0, len(output), size)]
    whole = parse(style, output, truncated=False)
    assert streamed(style, pieces)[0] == (whole.thought, whole.response)


def test_thoughts_come_as_they_are_thought():
    stream = Streamed(GENERIC)
    assert stream.feed("Here is my thought") == ("", "")
    assert stream.feed(" process: It is") == ("It is", "")
    assert stream.feed(" four. Here is my") == (" four.", "")
    assert stream.feed(" guess") == (" Here is my guess", "")
    assert stream.feed(".\n\nHere is my response: Fo") == (".", "Fo")
    assert stream.end() == ("", "")


def test_an_output_that_never_answers_is_a_thought():
    assert streamed(SPECIFIC, ["I wonder", " why <"])[0] == ("I wonder why <", "")


@given(st.lists(st.sampled_from(["a", "b", "ab", "\n", " ", "END", "EN", "<R>", "*"]), max_size=12), st.integers(1, 4))
def test_stops_end_the_response_and_nothing_else(words, size):
    output = "aEND\nEND" + "<R>" + "a" + "".join(words)
    pieces = [output[at : at + size] for at in range(0, len(output), size)]
    response = parse(SPECIFIC, output, truncated=False).response
    found = min((at for at in map(response.find, ("END", "b\na")) if at >= 0), default=None)
    (thought, answered), stream = streamed(SPECIFIC, pieces, ("END", "b\na"))
    assert thought == "aEND\nEND"
    assert answered == response[:found]
    assert stream.stopped == (found is not None)


def test_without_a_style_nothing_is_taken_off():
    pieces = [" <R>", " a *", "b\n", "##", " stop", " here "]
    assert streamed(None, pieces)[0].response == "".join(pieces)
    assert streamed(None, pieces, ["stop"])[0].response == " <R> a *b\n## "
