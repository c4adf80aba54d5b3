"""A chat template into which the thought prompt is baked, so that a model thinks without a prompt of its own.

The template of the base stays as it is. What comes before it rewrites the messages that it gets:

- the last user turn x becomes p + x, the thought prompt with the instruction in its place, as in training;
- thoughts are dropped from older answers, whose text may still hold them;
- `reasoning_content` of an answer after the last user turn is written between the markers.

Works on text; knows nothing of tokenizers or models.
"""

from __future__ import annotations

from tpo_lite.thoughts import PLACEHOLDER, ThoughtStyle

_PREAMBLE = """\
{{#- The thought prompt is in this template: the last user turn gets it. Thoughts of older answers are dropped. -#}}
{{%- set tpo = namespace(messages=[], last=-1) -%}}
{{%- for message in messages -%}}
{{%- if message['role'] == 'user' -%}}{{%- set tpo.last = loop.index0 -%}}{{%- endif -%}}
{{%- endfor -%}}
{{%- for message in messages -%}}
{{%- set text = message['content'] -%}}
{{%- if loop.index0 == tpo.last -%}}
{{%- if text is not string -%}}{{%- set text = text | map(attribute='text') | join -%}}{{%- endif -%}}
{{%- set tpo.messages = tpo.messages + [{{'role': 'user', 'content': ({before} + text + {after}) | trim}}] -%}}
{{%- elif message['role'] == 'assistant' and text is string and not message['tool_calls'] -%}}
{{%- if loop.index0 < tpo.last and {response} in text -%}}
{{%- set text = (text.split({response})[1:] | join({response})) | trim -%}}
{{%- elif loop.index0 > tpo.last and message['reasoning_content'] -%}}
{{%- set text = {opening} + (message['reasoning_content'] | trim) + {closing} + (text | trim) -%}}
{{%- endif -%}}
{{%- set tpo.messages = tpo.messages + [{{'role': 'assistant', 'content': text}}] -%}}
{{%- else -%}}
{{%- set tpo.messages = tpo.messages + [message] -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- set messages = tpo.messages %}}
"""
"""The line break after the last tag is not written: every program that reads such templates trims blocks."""


def thinking_template(template: str, style: ThoughtStyle) -> str:
    """Return the Jinja chat template `template` with the thought prompt of `style` in it.

    A style without thoughts (the direct one) leaves it as it is.
    """
    if style.response_marker is None:
        return template
    before, _, after = style.prompt.partition(PLACEHOLDER)
    opening, closing = around_thought(style)
    texts = {"before": before, "after": after, "response": style.response_marker, "opening": opening}
    return _PREAMBLE.format(closing=_quoted(closing), **{key: _quoted(text) for key, text in texts.items()}) + template


def around_thought(style: ThoughtStyle) -> tuple[str, str]:
    r"""Return what is written before a thought, and what between it and the response.

    >>> from tpo_lite.thoughts import SPECIFIC, THINK
    >>> around_thought(THINK), around_thought(SPECIFIC)
    (('<think>\n', '\n</think>\n\n'), ('', '\n\n<R>\n'))
    """
    opening = f"{style.thought_marker}\n" if style.thought_marker else ""
    if style.response_marker == "</think>":
        return opening, "\n</think>\n\n"  # as the models that brought these tags write them
    return opening, f"\n\n{style.response_marker}\n"


def _quoted(text: str) -> str:
    r"""Return a text as a Jinja string.

    >>> print(_quoted("it's\n"))
    'it\'s\n'
    """
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\r", "\\r").replace("\n", "\\n")
    return f"'{escaped}'"
