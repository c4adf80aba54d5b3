"""How a report writes models, numbers and the recorded kinds of outcomes."""

from __future__ import annotations

import re

from tpo_lite.records import DropReason
from tpo_lite.thoughts import Outcome

NONE = "\N{EN DASH}"
"""Where there is no figure."""

OUTCOME_WORDS: dict[Outcome, str] = {
    "ok": "well-formed",
    "no_marker": "no response marker",
    "marker_twice": "a marker is there twice",
    "empty_thought": "empty thought",
    "empty_response": "empty response",
    "truncated": "cut off at the token limit",
    "no_thought_marker": "no thought marker",
    "budget_forced": "the thought's budget was used up",
}
"""Parse outcomes (`tpo_lite.thoughts`) in words."""

DROP_WORDS: dict[DropReason, str] = {
    "no_well_formed": "no sample is well-formed",
    "one_response": "all samples gave the same response",
    "not_judged": "no comparison of its responses fitted the judge's context",
    "tied": "the judge rated its responses equal",
    "too_long": "the best or the worst sample is longer than pairs.max_tokens",
}
"""Why a prompt has no pair, in words."""

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def visible(text: str) -> str:
    r"""Return a text with its control characters, and those that change the direction of writing, by their names.

    A terminal would obey them. Line breaks and tabs stay.

    >>> visible("\x1b[31mred")
    '␛[31mred'
    """
    return _CONTROL.sub(lambda found: _named(ord(found[0])), text)


def _named(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"


def model_name(number: int) -> str:
    """Return M with its number as an index.

    >>> model_name(12)
    'M₁₂'
    """
    return f"M{str(number).translate(_SUBSCRIPTS)}"


def signed(value: float, form: str) -> str:
    """Return a number as text, with a real minus sign and no sign before zero.

    >>> signed(-0.04, ".1f"), signed(-2.5, "+.1f"), signed(2.5, "+.1f")
    ('0.0', '−2.5', '+2.5')
    """
    text = format(value, form)
    return text.lstrip("+-") if not float(text) else text.replace("-", "\N{MINUS SIGN}", 1)


def interval(low: float, high: float) -> str:
    """Return the ends of an interval of shares as whole percentages.

    >>> interval(0.336, 0.772)
    '34–77'
    """
    return f"{100 * low:.0f}\N{EN DASH}{100 * high:.0f}"


def gib(size: int) -> str:
    """Return bytes in GiB, or in MiB below a tenth of one; a dash for none."""
    if not size:
        return NONE
    return f"{size / 2**30:.2f} GiB" if size > 2**30 / 10 else f"{size / 2**20:.0f} MiB"


def short_name(name: str) -> str:
    """Return the last part of a model's or a judge's name, without the folders of a local path.

    >>> short_name("/home/me/models/SmolLM2.gguf"), short_name("unsloth/Llama-3.2-3B-Instruct")
    ('SmolLM2.gguf', 'unsloth/Llama-3.2-3B-Instruct')
    """
    hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return name if hub_id or not name.strip("/") else name.rstrip("/").rpartition("/")[2]
