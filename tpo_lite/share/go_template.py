"""A chat template in Go, as Ollama reads it, with the thought prompt in it.

Jinja cannot be translated in general. So the template is rendered for a few conversations, and the texts between the
turns are put into a Go template. Where other conversations would look otherwise, there is none.
"""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from tpo_lite.chat import PLACE, clock, special_token_ids, split_at_special_tokens
from tpo_lite.share.thinking_template import around_thought
from tpo_lite.thoughts import PLACEHOLDER, ThoughtStyle


def go_template(tokenizer: Any, style: ThoughtStyle, day: date | None) -> str | None:
    """Return the Go template, or None if the chat template of `tokenizer` is not a sequence of turns.

    Ollama takes the tags of a thought from the text around `.Thinking`, and puts BOS in front by itself.
    """
    try:
        user = _between(tokenizer, day, ["user"])
        dialogue = _between(tokenizer, day, ["user", "assistant", "user"])
        longer = _between(tokenizer, day, ["user", "assistant", "user", "assistant", "user"])
        system = _between(tokenizer, day, ["system", "user"])
    except Exception:  # a template is a program, and may raise anything
        return None
    if user is None or dialogue is None or longer is None or system is None:
        return None
    start, end = user
    specials = special_token_ids(tokenizer)
    opening = _common_end(start, dialogue[2], specials)
    after_answer = dialogue[2].removesuffix(opening)
    regular = (
        dialogue == [start, end, dialogue[2], end]
        and longer == [start, end, dialogue[2], end, dialogue[2], end]
        and system[1].endswith(opening)
        and system[2] == end
    )
    if not regular:
        return None
    bos = tokenizer.bos_token or ""
    without_system = start.removesuffix(opening).removeprefix(bos)
    before, _, after = style.prompt.partition(PLACEHOLDER)
    thought = ""
    if style.response_marker is not None:
        left, right = around_thought(style)
        thought = "{{ if and .Thinking (gt $i $last) }}" + left + "{{ .Thinking }}" + right + "{{ end }}"
    return "".join(
        [
            "{{- $last := -1 }}",
            '{{- range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $last = $i }}{{ end }}{{ end }}',
            f"{{{{- if .System }}}}{_text(system[0].removeprefix(bos))}{{{{ .System }}}}",
            f"{_text(system[1].removesuffix(opening))}{{{{ else }}}}{_text(without_system)}{{{{ end }}}}",
            "{{- range $i, $m := .Messages }}",
            f'{{{{- if eq .Role "user" }}}}{_text(opening)}{{{{ if eq $i $last }}}}{_text(before)}{{{{ end }}}}',
            f"{{{{ .Content }}}}{{{{ if eq $i $last }}}}{_text(after)}{{{{ end }}}}{_text(end)}",
            f'{{{{- else if eq .Role "assistant" }}}}{thought}{{{{ .Content }}}}{_text(after_answer)}',
            "{{- end }}{{- end }}",
        ]
    )


def _between(tokenizer: Any, day: date | None, roles: list[str]) -> list[str] | None:
    """Return the texts around the turns of a conversation that waits for an answer; None if turns are missing."""
    turns = [{"role": role, "content": PLACE.format(index)} for index, role in enumerate(roles)]
    rest = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **clock(day))
    texts = []
    for index in range(len(roles)):
        text, place, rest = rest.partition(PLACE.format(index))
        if not place:
            return None
        texts.append(text)
    return [*texts, rest]


def _common_end(first: str, second: str, specials: dict[str, int]) -> str:
    """Return what both texts end with, in whole special tokens."""
    pieces = [split_at_special_tokens(text, specials) for text in (first, second)]
    common: list[str] = []
    for left, right in zip(reversed(pieces[0]), reversed(pieces[1]), strict=False):
        if left != right:
            break
        common.insert(0, left)
    return "".join(common)


def _text(text: str) -> str:
    """Return a text as an action of a Go template, which keeps its white space."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
