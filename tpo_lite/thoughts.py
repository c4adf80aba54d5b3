"""Thought prompts, and the parsing of an output into thought z and response y.

The thought prompts `GENERIC` and `SPECIFIC` are those of "Thinking LLMs: General Instruction Following with
Thought Generation" (arXiv 2410.10630). Works on text; knows nothing of tokens, chat templates or models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from tpo_lite.errors import InputError

Outcome = Literal[
    "ok",
    "no_marker",
    "marker_twice",
    "empty_thought",
    "empty_response",
    "truncated",
    "no_thought_marker",
    "budget_forced",
]
"""What became of an output; `parse` explains each. "budget_forced" is one with a response for which the thought's
budget put the response marker in."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
WELL_FORMED: tuple[Outcome, ...] = ("ok", "no_thought_marker", "empty_thought", "marker_twice", "budget_forced")
"""The outcomes of outputs that have a response. All others are malformed."""

PLACEHOLDER = "{instruction}"

# Runs of Markdown's emphasis directly before and after a marker. One that begins a word is free to open emphasis, and
# one that ends a word to close it; others may just as well belong to the text beside the marker.
_OPENING = re.compile(r"(?P<before>\A|\s|)(?P<run>[*_]{1,3})\Z")
_CLOSING = re.compile(r"[*_]{1,3}(?=\s|\Z)")
_HEADING = re.compile(r"(?:\A|(?<=\n))#{1,6}[ \t]*\Z")


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

With a chat template that opens the tag itself, as DeepSeek's do, outputs begin inside the thought and are counted as
"no_thought_marker". A model that writes `<think>` without being asked, such as Qwen3 in its thinking mode, is not
supported: the thoughts of its direct baseline would be part of the response.
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


def end_of_thought(style: ThoughtStyle, output: str) -> str:
    r"""Return the text that ends the thought of an unfinished `output`: the response marker in a paragraph of its own.

    If the output ends with at least half of the marker, it is the rest of it. It is empty if the output has the marker
    already, and for the direct style.

    >>> end_of_thought(SPECIFIC, "It is 4.\n"), end_of_thought(SPECIFIC, "It is 4.<R"), end_of_thought(SPECIFIC, "<R>")
    ('\n<R>', '>', '')
    """
    marker = style.response_marker
    if marker is None or marker in output:
        return ""
    for length in range(len(marker) - 1, (len(marker) - 1) // 2, -1):
        if output.endswith(marker[:length]):
            return marker[length:]
    line_breaks = len(output) - len(output.rstrip("\n"))
    return "\n" * max(0, 2 - line_breaks) + marker


@dataclass(frozen=True)
class Parse:
    """One output, split. Thought and response have no white space around them; both are empty if it is malformed."""

    outcome: Outcome
    """How the output was read; `parse` explains each."""
    thought: str = ""
    """z; always empty for the direct style."""
    response: str = ""
    """y, the only part a judge sees."""


def parse(style: ThoughtStyle, output: str, truncated: bool) -> Parse:
    """Split an output at its first response marker, by plain string matching as the paper does.

    An output is malformed, and has neither thought nor response, for one of three reasons, the first that holds:

    1. truncated: the token limit came before the end of turn (`truncated`). This rule is ours, not the paper's;
    2. no_marker: the response marker is missing;
    3. empty_response: there is only white space after the response marker.

    All others are well-formed: rated, judged, paired and shown. The paper's prompts leave it to the model whether to
    think, so a thought that is missing is a short one. The outcome says what is unusual, the first of these that holds:

    1. no_thought_marker: there is no thought marker before the response marker. The thought is all text before that;
    2. empty_thought: there is only white space where the thought should be;
    3. marker_twice: a marker comes again later. It belongs to the text that it stands in;
    4. ok: nothing is.

    Text before a thought marker is neither thought nor response. Markdown that emphasizes a marker is taken off with
    it, that of a heading too.

    >>> parse(SPECIFIC, "Draft: 4. It is right.<R>4", truncated=False)
    Parse(outcome='ok', thought='Draft: 4. It is right.', response='4')
    >>> parse(SPECIFIC, "Draft: 4. **<R>** Use <R> in HTML.", truncated=False)
    Parse(outcome='marker_twice', thought='Draft: 4.', response='Use <R> in HTML.')
    """
    if truncated:
        return Parse("truncated")
    if style.response_marker is None:
        response = output.strip()
        return Parse("ok", "", response) if response else Parse("empty_response")
    if style.response_marker not in output:
        return Parse("no_marker")
    thought, response = split_at(output, style.response_marker)
    if not response:
        return Parse("empty_response")
    if style.thought_marker is not None:
        if style.thought_marker not in thought:
            return Parse("no_thought_marker", thought, response)
        _, thought = split_at(thought, style.thought_marker)
    if not thought:
        return Parse("empty_thought", thought, response)
    markers = [marker for marker in (style.thought_marker, style.response_marker) if marker is not None]
    if any(output.count(marker) > 1 for marker in markers):
        return Parse("marker_twice", thought, response)
    return Parse("ok", thought, response)


def split_at(text: str, marker: str) -> tuple[str, str]:
    """Return what stands before and after the first `marker`, without white space and without the marker's Markdown.

    Emphasis may enclose the marker alone, or begin or end with it: then its other end is taken off too, if that is in
    the same paragraph.
    """
    before, _, after = text.partition(marker)
    opening, closing = _OPENING.search(before), _CLOSING.match(after)
    if opening and (opening.start() == opening.start("run") > 0) and not closing:
        opening = None  # it ends a word of the text before
    if opening:
        run = opening["run"][::-1]
        before = before[: opening.start("run")]
        end = len(after.partition("\n\n")[0])
        at = after.find(run, 0, end)
        if at >= 0:
            after = after[:at] + after[at + len(run) :]
    elif closing:
        run = closing[0][::-1]
        at = before.rfind(run, before.rfind("\n\n") + 1)
        if at >= 0:
            before = before[:at] + before[at + len(run) :]
        if at >= 0 or len(run) > 1:  # a single star may begin a list
            after = after[len(run) :]
    return _HEADING.sub("", before).strip(), after.strip()
