"""Thought prompts, and the strict parsing of an output into thought z and response y.

The thought prompts `GENERIC` and `SPECIFIC` are those of "Thinking LLMs: General Instruction Following with
Thought Generation" (arXiv 2410.10630). Works on text; knows nothing of tokens, chat templates or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tpo_lite.errors import InputError

Outcome = Literal["ok", "no_marker", "marker_twice", "empty_thought", "empty_response", "truncated"]
"""What parsing an output comes to; `parse` explains each."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

PLACEHOLDER = "{instruction}"


@dataclass(frozen=True)
class ThoughtStyle:
    """How a model is asked to think, and where its response begins."""

    name: str
    """"generic", "specific", "think", "direct" or "custom"."""
    prompt: str
    """The thought prompt p, with `{instruction}` where x goes."""
    thought_marker: str | None
    """The thought begins after it; None: the thought begins with the output."""
    response_marker: str | None
    """The response begins after it; None: the whole output is the response (no thought)."""


GENERIC = ThoughtStyle(
    "generic",
    "Respond to the following user query in a comprehensive and detailed way. "
    "You can write down your thought process before responding. "
    'Write your thoughts after "Here is my thought process:" '
    'and write your response after "Here is my response:".\n\n'
    "User query: {instruction}",
    "Here is my thought process:",
    "Here is my response:",
)

SPECIFIC = ThoughtStyle(
    "specific",
    "Respond to the following user query in a comprehensive and detailed way. "
    "But first write down your internal thoughts. "
    "This must include your draft response and its evaluation. "
    'After this, write your final response after "<R>".\n\n'
    "User query: {instruction}",
    None,
    "<R>",
)

THINK = ThoughtStyle(
    "think",
    "Respond to the following user query in a comprehensive and detailed way. "
    "You can write down your thought process before responding. "
    'Write your thoughts between "<think>" and "</think>" '
    'and write your response after "</think>".\n\n'
    "User query: {instruction}",
    "<think>",
    "</think>",
)
"""The generic wording with tags that servers and chat programs know how to hide: for a model that is to be shared.

The tags are plain text. No token is added, and any instruct model can be asked for them. A tokenizer may have `<think>`
as a token of its own (Qwen3, DeepSeek's distilled models). In the prompt it becomes that token as in the model's own
chats, unless it is a special token, which stays text in a user's turn. In an output, the token and its spelling are the
same text, so both parse.

A chat template that opens the tag itself, as DeepSeek's do, is not supported: outputs begin inside the thought and have
no thought marker. Nor is a model that writes `<think>` without being asked, such as Qwen3 in its thinking mode: the
thoughts of its direct baseline would be part of the response.
"""

DIRECT = ThoughtStyle("direct", PLACEHOLDER, None, None)


def custom_style(template: str, response_marker: str, thought_marker: str | None = None) -> ThoughtStyle:
    """Make a style of a recipe's own thought prompt and markers.

    Raises `InputError` if `{instruction}` is not in the template exactly once, a marker is blank, one marker contains
    the other, or the template does not ask the model to write a marker.
    """
    if template.count(PLACEHOLDER) != 1:
        raise InputError(
            f"thought template: it has {PLACEHOLDER} {template.count(PLACEHOLDER)} times; write it exactly once."
        )
    for key, marker in (("response_marker", response_marker), ("thought_marker", thought_marker)):
        if marker is None:
            continue
        if not marker.strip():
            raise InputError(f"thought {key} is empty; give the text that comes before that part.")
        if not any(marker in part for part in template.split(PLACEHOLDER)):
            raise InputError(
                f"thought {key} {marker!r} is not in the template, so the model cannot know it; ask for it there."
            )
    if thought_marker is not None and (thought_marker in response_marker or response_marker in thought_marker):
        raise InputError(
            f"thought markers {thought_marker!r} and {response_marker!r} contain one another; choose distinct ones."
        )
    return ThoughtStyle("custom", template, thought_marker, response_marker)


def thought_prompt(style: ThoughtStyle, instruction: str) -> str:
    """Return p + x: the style's prompt with the instruction in its place.

    >>> thought_prompt(DIRECT, "Explain {instruction} in f-strings.")
    'Explain {instruction} in f-strings.'
    """
    before, _, after = style.prompt.partition(PLACEHOLDER)
    return before + instruction + after


@dataclass(frozen=True)
class Parse:
    """One output, split. Thought and response have no white space around them; they are empty unless "ok"."""

    outcome: Outcome
    """"ok", or why the output is malformed."""
    thought: str = ""
    """z; always empty for the direct style."""
    response: str = ""
    """y, the only part a judge sees."""


def parse(style: ThoughtStyle, output: str, truncated: bool) -> Parse:
    """Split an output by plain string matching, as the paper does; nothing is repaired.

    `truncated` says that the token limit came before the end of turn. The outcome is the first of these that holds:

    1. truncated: an output without its end is never rated, whatever it holds so far;
    2. no_marker: a marker is missing, or the response marker does not follow the thought marker;
    3. marker_twice: a marker is there more than once, so any split would be a guess;
    4. empty_thought: there is only white space between the thought marker and the response marker;
    5. empty_response: there is only white space after the response marker.

    Text before a thought marker is neither thought nor response.

    >>> parse(SPECIFIC, "Draft: 4. It is right.<R>4", truncated=False)
    Parse(outcome='ok', thought='Draft: 4. It is right.', response='4')
    """
    if truncated:
        return Parse("truncated")
    if style.response_marker is None:
        response = output.strip()
        return Parse("ok", "", response) if response else Parse("empty_response")

    thought_start = 0
    if style.thought_marker is not None:
        found = output.find(style.thought_marker)
        if found < 0:
            return Parse("no_marker")
        thought_start = found + len(style.thought_marker)
    thought_end = output.find(style.response_marker, thought_start)
    if thought_end < 0:
        return Parse("no_marker")
    markers = [marker for marker in (style.thought_marker, style.response_marker) if marker is not None]
    if any(output.count(marker) > 1 for marker in markers):
        return Parse("marker_twice")

    thought = output[thought_start:thought_end].strip()
    response = output[thought_end + len(style.response_marker) :].strip()
    if not thought:
        return Parse("empty_thought")
    if not response:
        return Parse("empty_response")
    return Parse("ok", thought, response)
