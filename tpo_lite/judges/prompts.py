"""Judge prompts: the Self-Taught Evaluator's in both of its forms and one for ratings, and how they are filled in.

Sources: the verdict form is from Oxen.ai's write-up of the paper, with straight quotes instead of the curly ones of a
word processor. The explain form is that of Self-Taught Evaluators (arXiv 2408.02666, appendix), i.e. FastChat's
`pair-v2` prompt without the tie. The score form is FastChat's `single-v1` (MT-Bench, arXiv 2306.05685) without its
explanation. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tpo_lite.errors import InputError

_ASK = """\
Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to \
the user question displayed below. You should choose the assistant that follows the user's instructions and \
answers the user's question better. Your evaluation should consider factors such as the helpfulness, \
relevance, accuracy, depth, creativity, and level of detail of their responses. Begin your evaluation by \
comparing the two responses and provide a short explanation. Avoid any position biases and ensure that the \
order in which the responses were presented does not influence your decision.

Do not allow the length of the responses to influence your evaluation. Do not favor certain names of the \
assistants. Be as objective as possible.

"""

_SHOW = """

[User Question]
{instruction}

[The Start of Assistant A's Answer]
{response_a}
[The End of Assistant A's Answer]

[The Start of Assistant B's Answer]
{response_b}
[The End of Assistant B's Answer]"""

VERDICT_TEMPLATE = (
    _ASK
    + 'Output your final verdict by strictly following this format: "[[A]]" if assistant A is better, '
    + '"[[B]]" if assistant B is better. Answer with just the verdict string and nothing else.'
    + _SHOW
)
"""The judge answers at once."""

EXPLAIN_TEMPLATE = (
    _ASK
    + "After providing your explanation, output your final verdict by strictly following this format: "
    + '"[[A]]" if assistant A is better, "[[B]]" if assistant B is better.'
    + _SHOW
)
"""The judge explains its verdict first, as in the paper."""

SCORE_TEMPLATE = """\
Please act as an impartial judge and evaluate the quality of the response provided by an AI assistant to the \
user question displayed below. Your evaluation should consider factors such as the helpfulness, relevance, \
accuracy, depth, creativity, and level of detail of the response. Do not allow the length of the response to \
influence your evaluation. Be as objective as possible. You must rate the response on a scale of 1 to 10 by \
strictly following this format: "[[rating]]", for example: "[[5]]". Answer with just the rating and nothing else.

[User Question]
{instruction}

[The Start of Assistant's Answer]
{response}
[The End of Assistant's Answer]"""
"""The judge rates one response."""

FIELDS = ("instruction", "response_a", "response_b")
"""The placeholders of a prompt that compares."""

SCORE_FIELDS = ("instruction", "response")
"""The placeholders of a prompt that rates."""

CUT_MARK = "\n[...]\n"
"""Replaces the middle of a response that was cut out."""


def check_template(template: str, fields: Sequence[str] = FIELDS) -> str:
    """Return the template itself. Raises `InputError` unless it contains a placeholder for each of `fields`."""
    missing = [f"{{{field}}}" for field in fields if f"{{{field}}}" not in template]
    if missing:
        raise InputError(f"The judge template lacks {', '.join(missing)}. Add each where its text belongs.")
    return template


def fill(template: str, texts: Mapping[str, str]) -> str:
    """Return the template with its placeholders replaced, in one pass: braces inside the texts stay text.

    >>> fill("{instruction}|{response}", {"instruction": "{response}", "response": "1"})
    '{response}|1'
    """
    placeholders = "|".join(rf"\{{{field}\}}" for field in texts)
    return re.sub(placeholders, lambda match: texts[match[0][1:-1]], template)


def cut_middle(
    text: str, excess: int, tokenize: Callable[[str], list[int]], detokenize: Callable[[list[int]], str]
) -> str | None:
    """Return the text with `excess` tokens less, its middle replaced by `CUT_MARK`; None if too little is left."""
    tokens = tokenize(text)
    keep = len(tokens) - excess - len(tokenize(CUT_MARK))
    if keep < 2:
        return None
    return detokenize(tokens[: keep - keep // 2]) + CUT_MARK + detokenize(tokens[-(keep // 2) :])
