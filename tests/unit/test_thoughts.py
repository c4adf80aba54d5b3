"""Thought prompts and parsing, with outputs split by hand."""

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
    WELL_FORMED,
    Parse,
    custom_style,
    end_of_thought,
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
        (GENERIC, f" z {RESPOND} y", Parse("no_thought_marker", "z", "y")),
        (GENERIC, f"{RESPOND} y", Parse("no_thought_marker", "", "y")),
        (GENERIC, f"{RESPOND} y {THOUGHT} z", Parse("no_thought_marker", "", f"y {THOUGHT} z")),
        (GENERIC, f"{THOUGHT.lower()} z {RESPOND} y", Parse("no_thought_marker", f"{THOUGHT.lower()} z", "y")),
        (GENERIC, f"{THOUGHT} z {RESPOND.lower()} y", Parse("no_marker")),
        (GENERIC, f"{THOUGHT} z {RESPOND} y {RESPOND} x", Parse("marker_twice", "z", f"y {RESPOND} x")),
        (GENERIC, f"{THOUGHT} z {THOUGHT} x {RESPOND} y", Parse("marker_twice", f"z {THOUGHT} x", "y")),
        (GENERIC, f"{THOUGHT} z {RESPOND} y {THOUGHT}", Parse("marker_twice", "z", f"y {THOUGHT}")),
        (
            *(GENERIC, f"{RESPOND} y {THOUGHT} z {RESPOND} y"),
            Parse("no_thought_marker", "", f"y {THOUGHT} z {RESPOND} y"),
        ),
        (GENERIC, f"{THOUGHT}\n{RESPOND} y", Parse("empty_thought", "", "y")),
        (GENERIC, f"{THOUGHT} z {RESPOND}\n", Parse("empty_response")),
        (GENERIC, f"{THOUGHT} {RESPOND} ", Parse("empty_response")),
        (GENERIC, "", Parse("no_marker")),
        (SPECIFIC, "Draft: 5? No, 4.\n<R> 4", Parse("ok", "Draft: 5? No, 4.", "4")),
        (SPECIFIC, "4", Parse("no_marker")),
        (SPECIFIC, "a<R>b<R>c", Parse("marker_twice", "a", "b<R>c")),
        (SPECIFIC, "<R>b", Parse("empty_thought", "", "b")),
        (SPECIFIC, "<R>Use <R> in HTML", Parse("empty_thought", "", "Use <R> in HTML")),
        (SPECIFIC, "a<R>", Parse("empty_response")),
        (SPECIFIC, "a <|eot_id|> b<R>c<|eot_id|>", Parse("ok", "a <|eot_id|> b", "c<|eot_id|>")),
        (THINK, "<think>\nTwo and two.\n</think>\n\n4\n", Parse("ok", "Two and two.", "4")),
        (THINK, "Sure. <think>z</think>y", Parse("ok", "z", "y")),
        (THINK, "z</think>y", Parse("no_thought_marker", "z", "y")),
        (THINK, "<think>z", Parse("no_marker")),
        (THINK, "<think>z</think>y</think>", Parse("marker_twice", "z", "y</think>")),
        (THINK, "<think>\n\n</think>\n\ny", Parse("empty_thought", "", "y")),
        (THINK, "<think>z</think>", Parse("empty_response")),
        (DIRECT, " The answer is 4.\n", Parse("ok", "", "The answer is 4.")),
        (DIRECT, "a<R>b", Parse("ok", "", "a<R>b")),
        (DIRECT, " \n", Parse("empty_response")),
    ],
)
def test_parse(style, output: str, expected: Parse) -> None:
    assert parse(style, output, truncated=False) == expected


@pytest.mark.parametrize(
    ("output", "thought", "response"),
    [
        ("**{T}** z\n\n**{R}** Paris", "z", "Paris"),
        ("**{T}**\nz\n\n**{R}**\n\n**Paris** it is.", "z", "**Paris** it is."),
        ("*{T}* z *{R}* Paris", "z", "Paris"),
        ("__{T}__ z\n__{R}__\nParis", "z", "Paris"),
        ("***{T}*** z\n**_{R}_** Paris", "z", "Paris"),
        ("**{T}**z **{R}**Paris", "z", "Paris"),
        ("# {T}\nz\n\n### {R}\nParis", "z", "Paris"),
        ("## **{T}**\nz\n\n## **{R}**\nParis", "z", "Paris"),
        # Emphasis that begins or ends with the marker: its other end is taken off, too.
        ("{T} z\n**{R} Paris** it is.\n\n**Yes.**", "z", "Paris it is.\n\n**Yes.**"),
        ("{T} z.\n\n**So it is. {R}** Paris", "z.\n\nSo it is.", "Paris"),
        ("**{T} Think. {R}** Paris", "Think.", "Paris"),
        ("{T} z.**{R}** Paris", "z.", "Paris"),
        ("{T} z\n{R}** Paris", "z", "Paris"),
        # Markdown that belongs to thought or response stays.
        ("{T} *z*{R}Paris", "*z*", "Paris"),
        ("{T} a_{R} Paris", "a_", "Paris"),
        ("{T} **z** {R} **Paris**", "**z**", "**Paris**"),
        ("{T} **z** {R}**Paris** it is", "**z**", "**Paris** it is"),
        ("{T} z {R}* one\n* two", "z", "* one\n* two"),
        ("{T}\n* one\n* two\n\n{R}\n* one", "* one\n* two", "* one"),
        ("{T} 5 * {R} C#", "5 *", "C#"),
        ("{T} in C# {R} Paris", "in C#", "Paris"),
    ],
)
def test_emphasis_of_a_marker_goes_with_it(output: str, thought: str, response: str) -> None:
    generic = output.format(T=THOUGHT, R=RESPOND)
    assert parse(GENERIC, generic, truncated=False) == Parse("ok", thought, response)
    assert parse(THINK, output.format(T="<think>", R="</think>"), truncated=False) == Parse("ok", thought, response)


def test_a_response_of_emphasis_alone_is_empty() -> None:
    assert parse(GENERIC, f"**{THOUGHT}** z\n\n**{RESPOND}**\n", truncated=False) == Parse("empty_response")


@pytest.mark.parametrize("style", [GENERIC, SPECIFIC, THINK, DIRECT])
@pytest.mark.parametrize("output", [f"{THOUGHT} z {RESPOND} y<R>y", "", "a"])
def test_truncated_comes_first(style, output: str) -> None:
    assert parse(style, output, truncated=True) == Parse("truncated")


PIECES = st.lists(
    st.sampled_from(
        [THOUGHT, RESPOND, "<R>", "<think>", "</think>", "<", "R>", "Here is my", " ", "\n", "x", "é", "*", "#"]
    )
).map("".join)


@given(style=st.sampled_from([GENERIC, SPECIFIC, THINK, DIRECT]), output=PIECES | st.text(), truncated=st.booleans())
def test_parse_never_invents(style, output: str, truncated: bool) -> None:
    parsed = parse(style, output, truncated)
    assert parsed.outcome in OUTCOMES
    assert (parsed.outcome == "truncated") == truncated
    assert (parsed.outcome in WELL_FORMED) == bool(parsed.response)
    if not parsed.response:
        assert parsed.thought == ""
        return
    assert parsed.response == parsed.response.strip() and parsed.thought == parsed.thought.strip()
    if style is DIRECT:
        assert parsed == Parse("ok", "", output.strip())
        return
    before, _, after = output.partition(style.response_marker)
    plain = str.maketrans("", "", "*_#")
    assert after.translate(plain).strip() == parsed.response.translate(plain).strip()
    assert style.response_marker not in parsed.thought
    assert before.translate(plain).rstrip().endswith(parsed.thought.translate(plain).strip())
    if parsed.outcome == "no_thought_marker":
        assert before.translate(plain).strip() == parsed.thought.translate(plain).strip()
    else:
        assert bool(parsed.thought) == (parsed.outcome != "empty_thought")


def test_the_outcomes_that_are_malformed() -> None:
    assert set(OUTCOMES) - set(WELL_FORMED) == {"no_marker", "empty_response", "truncated"}


@pytest.mark.parametrize(
    ("style", "output", "rest"),
    [
        (GENERIC, f"{THOUGHT} z", f"\n\n{RESPOND}"),
        (GENERIC, f"{THOUGHT} z\n", f"\n{RESPOND}"),
        (GENERIC, f"{THOUGHT} z.\n\n\n", RESPOND),
        (GENERIC, "", f"\n\n{RESPOND}"),
        (GENERIC, f"{THOUGHT} z\n\nHere is my resp", "onse:"),
        (GENERIC, f"{THOUGHT} z\n\nHere is my response", ":"),
        (GENERIC, f"{THOUGHT} z\n\nHere is", f"\n\n{RESPOND}"),
        (GENERIC, f"{THOUGHT} z {RESPOND}", ""),
        (GENERIC, f"{THOUGHT} z {RESPOND} y", ""),
        (SPECIFIC, "z", "\n\n<R>"),
        (SPECIFIC, "z <R", ">"),
        (THINK, "<think>\nz", "\n\n</think>"),
        (THINK, "<think>\nz\n</thi", "nk>"),
        (DIRECT, "y", ""),
    ],
)
def test_how_a_thought_is_ended(style, output: str, rest: str) -> None:
    assert end_of_thought(style, output) == rest
    if rest:
        assert parse(style, f"{output}{rest} y", truncated=False).response == "y"


def _plain(text: str) -> bool:
    return text.strip() == text and text != "" and not any(marker in text for marker in (THOUGHT, RESPOND, "<R>"))


# No "H", "h" or ":", so that no marker can arise where two parts meet, and no Markdown around one.
PLAIN = st.text(st.characters(exclude_characters="Hh:<>R*_#", exclude_categories=["Cs"])).filter(_plain)


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
