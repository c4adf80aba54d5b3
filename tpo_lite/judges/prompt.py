"""Judge prompts: the Self-Taught Evaluator's, in both of its forms, and how a prompt is filled in.

Sources: the verdict form is the one in Oxen.ai's write-up of the paper, with straight quotes where a
word processor curled them; the explain form is that of Self-Taught Evaluators (arXiv 2408.02666,
appendix), i.e. FastChat's `pair-v2` prompt without the tie. Knows nothing of models.
"""

from __future__ import annotations

import re

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
"""The judge explains itself first, as in the paper."""

FIELDS = ("instruction", "response_a", "response_b")
"""The placeholders of a judge prompt."""


def check_template(template: str) -> str:
    """The template itself; raises `InputError` unless it names every one of `FIELDS`."""
    missing = [f"{{{field}}}" for field in FIELDS if f"{{{field}}}" not in template]
    if missing:
        raise InputError(f"The judge template lacks {', '.join(missing)}. Add each where its text belongs.")
    return template


def fill(template: str, instruction: str, response_a: str, response_b: str) -> str:
    """The template with its placeholders replaced, in one pass: braces inside the texts stay text.

    >>> fill("{instruction}|{response_a}|{response_b}", "{response_b}", "1", "2")
    '{response_b}|1|2'
    """
    texts = dict(zip(FIELDS, (instruction, response_a, response_b), strict=True))
    return re.sub(r"\{(instruction|response_a|response_b)\}", lambda match: texts[match[1]], template)
