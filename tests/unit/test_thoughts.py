"""Thought prompts and strict parsing, with outputs split by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_lite.errors import InputError
from tpo_lite.thoughts import (
    DIRECT,
    GENERIC,
    OUTCOMES,
    SPECIFIC,
    THINK,
    Parse,
    custom_style,
    parse,
    thought_prompt,
)


def test_generic_prompt_is_the_papers() -> None:
    assert thought_prompt(GENERIC, "Why is the sky blue?").split("\n") == [
        "Respond to the following user query in a comprehensive and detailed way. "
        "You can write down your thought process before responding. Write your thoughts after "
        '"Here is my thought process:" and write your response after "Here is my response:".',
        "",
        "User query: Why is the sky blue?",
    ]


def test_specific_prompt_is_the_papers() -> None:
    assert thought_prompt(SPECIFIC, "Why?").split("\n") == [
        "Respond to the following user query in a comprehensive and detailed way. "
        "But first write down your internal thoughts. This must include your draft response and its "
        'evaluation. After this, write your final response after "<R>".',
        "",
        "User query: Why?",
    ]


def test_think_prompt_is_the_generic_one_with_tags() -> None:
    asked = thought_prompt(GENERIC, "Why?").replace(
        'after "Here is my thought process:"', 'between "<think>" and "</think>"'
    )
    assert thought_prompt(THINK, "Why?") == asked.replace("Here is my response:", "</think>")


@pytest.mark.parametrize("instruction", ["{instruction}", "f'{x} {{y}}'", "a{0}b", "\\1", ""])
def test_instruction_is_text(instruction: str) -> None:
    assert thought_prompt(DIRECT, instruction) == instruction
    assert thought_prompt(GENERIC, instruction).endswith("\n\nUser query: " + instruction)


THOUGHT, RESPOND = "Here is my thought process:", "Here is my response:"


@pytest.mark.parametrize(
    ("style", "output", "expected"),
    [
        (GENERIC, f"{THOUGHT}\nTwo and two.\n\n{RESPOND}\n 4 \n", Parse("ok", "Two and two.", "4")),
        (GENERIC, f"Sure! {THOUGHT} z {RESPOND} y", Parse("ok", "z", "y")),
        (GENERIC, f"{THOUGHT} z", Parse("no_marker")),
        (GENERIC, f"z {RESPOND} y", Parse("no_marker")),
        (GENERIC, f"{RESPOND} y {THOUGHT} z", Parse("no_marker")),
        (GENERIC, f"{THOUGHT.lower()} z {RESPOND} y", Parse("no_marker")),
        (GENERIC, f"{THOUGHT} z {RESPOND} y {RESPOND} y", Parse("marker_twice")),
        (GENERIC, f"{THOUGHT} z {THOUGHT} z {RESPOND} y", Parse("marker_twice")),
        (GENERIC, f"{RESPOND} y {THOUGHT} z {RESPOND} y", Parse("marker_twice")),
        (GENERIC, f"{THOUGHT}\n{RESPOND} y", Parse("empty_thought")),
        (GENERIC, f"{THOUGHT} z {RESPOND}\n", Parse("empty_response")),
        (GENERIC, f"{THOUGHT} {RESPOND} ", Parse("empty_thought")),
        (GENERIC, "", Parse("no_marker")),
        (SPECIFIC, "Draft: 5? No, 4.\n<R> 4", Parse("ok", "Draft: 5? No, 4.", "4")),
        (SPECIFIC, "4", Parse("no_marker")),
        (SPECIFIC, "a<R>b<R>c", Parse("marker_twice")),
        (SPECIFIC, "<R>b", Parse("empty_thought")),
        (SPECIFIC, "a<R>", Parse("empty_response")),
        (SPECIFIC, "a <|eot_id|> b<R>c<|eot_id|>", Parse("ok", "a <|eot_id|> b", "c<|eot_id|>")),
        (THINK, "<think>\nTwo and two.\n</think>\n\n4\n", Parse("ok", "Two and two.", "4")),
        (THINK, "Sure. <think>z</think>y", Parse("ok", "z", "y")),
        (THINK, "z</think>y", Parse("no_marker")),
        (THINK, "<think>z", Parse("no_marker")),
        (THINK, "<think>z</think>y</think>", Parse("marker_twice")),
        (THINK, "<think>\n\n</think>\n\ny", Parse("empty_thought")),
        (THINK, "<think>z</think>", Parse("empty_response")),
        (DIRECT, " The answer is 4.\n", Parse("ok", "", "The answer is 4.")),
        (DIRECT, "a<R>b", Parse("ok", "", "a<R>b")),
        (DIRECT, " \n", Parse("empty_response")),
    ],
)
def test_parse(style, output: str, expected: Parse) -> None:
    assert parse(style, output, truncated=False) == expected


@pytest.mark.parametrize("style", [GENERIC, SPECIFIC, THINK, DIRECT])
@pytest.mark.parametrize("output", [f"{THOUGHT} z {RESPOND} y<R>y", "", "a"])
def test_truncated_comes_first(style, output: str) -> None:
    assert parse(style, output, truncated=True) == Parse("truncated")


PIECES = st.lists(
    st.sampled_from([THOUGHT, RESPOND, "<R>", "<think>", "</think>", "<", "R>", "Here is my", " ", "\n", "x", "é"])
).map("".join)


@given(style=st.sampled_from([GENERIC, SPECIFIC, THINK, DIRECT]), output=PIECES | st.text(), truncated=st.booleans())
def test_parse_never_invents(style, output: str, truncated: bool) -> None:
    parsed = parse(style, output, truncated)
    assert parsed.outcome in OUTCOMES
    assert (parsed.outcome == "truncated") == truncated
    if parsed.outcome != "ok":
        assert (parsed.thought, parsed.response) == ("", "")
        return
    assert parsed.response and parsed.response == parsed.response.strip()
    assert output.rstrip().endswith(parsed.response)
    assert bool(parsed.thought) == (style is not DIRECT)
    if style is not DIRECT:
        assert style.response_marker not in parsed.thought + "\0" + parsed.response
        assert output.index(parsed.thought) < output.index(style.response_marker)


def _plain(text: str) -> bool:
    return text.strip() == text and text != "" and not any(marker in text for marker in (THOUGHT, RESPOND, "<R>"))


# No "H", "h" or ":", so that no marker can arise where two parts meet.
PLAIN = st.text(st.characters(exclude_characters="Hh:<>R", exclude_categories=["Cs"])).filter(_plain)


@given(thought=PLAIN, response=PLAIN)
def test_parse_undoes_formatting(thought: str, response: str) -> None:
    expected = Parse("ok", thought, response)
    assert parse(GENERIC, f"{THOUGHT}\n{thought}\n\n{RESPOND}\n{response}\n", False) == expected
    assert parse(SPECIFIC, f"{thought}\n<R>{response}", False) == expected
    assert parse(THINK, f"<think>\n{thought}\n</think>\n\n{response}", False) == expected


def test_custom_style() -> None:
    style = custom_style("Think in [T], answer in [A].\n{instruction}", "[A]", "[T]")
    assert style.name == "custom"
    assert thought_prompt(style, "1+1?") == "Think in [T], answer in [A].\n1+1?"
    assert parse(style, "[T]two[A]2", False) == Parse("ok", "two", "2")


@pytest.mark.parametrize(
    ("template", "response_marker", "thought_marker", "message"),
    [
        ("Answer after [A].", "[A]", None, "it has {instruction} 0 times"),
        ("[A] {instruction} {instruction}", "[A]", None, "it has {instruction} 2 times"),
        ("{instruction} [A]", " ", None, "response_marker is empty"),
        ("{instruction} [A]", "[A]", "", "thought_marker is empty"),
        ("{instruction}", "[A]", None, "'[A]' is not in the template"),
        ("{instruction} [A]", "[A]", "[T]", "'[T]' is not in the template"),
        ("[{instruction}A]", "[A]", None, "'[A]' is not in the template"),
        ("{instruction} my answer:", "my answer:", "answer:", "contain one another"),
    ],
)
def test_custom_style_errors(template: str, response_marker: str, thought_marker, message: str) -> None:
    with pytest.raises(InputError) as error:
        custom_style(template, response_marker, thought_marker)
    assert message in str(error.value)
