"""Judge prompts by name, one for ratings, and how they are filled in.

A judge is most reliable with the prompt that it was trained on, so a recipe names one (`judge.prompt`):

    seed                    Oxen.ai's write-up of the paper, with straight quotes instead of a word processor's curly
                            ones. With explanation: the prompt of Self-Taught Evaluators (arXiv 2408.02666, appendix).
                            Both stand in the user turn.
    self-taught-evaluator   The released evaluator's: facebookresearch/RAM, projects/self_taught_evaluator/src/utils.py.
                            The ask stands in the system turn, in one paragraph. The backslashes before its quotes are
                            that script's. For a verdict alone, which it does not have, the two requests for an
                            explanation are left out.
    skywork-critic          The card of Skywork/Skywork-Critic-Llama-3.1-8B. A verdict alone, in the user turn.
    fastchat-pair           `pair-v2` of lm-sys/FastChat, fastchat/llm_judge/data/judge_prompts.jsonl (MT-Bench, arXiv
                            2306.05685). Without its third option, "[[C]]" for a tie: our judges choose between A and B.
                            For a verdict alone, changed as the self-taught-evaluator's.

The prompt for ratings is FastChat's `single-v1` without its explanation. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tpo_lite.errors import InputError
from tpo_lite.hub import EMBEDDED_JUDGE_PROMPT
from tpo_lite.kinds import PromptSet
from tpo_lite.recipe_keys import JudgeSettings

_CHOOSE = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to "
    "the user question displayed below. You should choose the assistant that follows the user's instructions and "
    "answers the user's question better."
)
_CONSIDER = (
    "Your evaluation should consider factors such as the helpfulness, relevance, accuracy, depth, creativity, and "
    "level of detail of their responses."
)
_BEGIN = "Begin your evaluation by comparing the two responses and provide a short explanation."
_ORDER = (
    "Avoid any position biases and ensure that the order in which the responses were presented does not influence "
    "your decision."
)
_FAIR = (
    "Do not allow the length of the responses to influence your evaluation. Do not favor certain names of the "
    "assistants. Be as objective as possible."
)
_LETTERS = 'by strictly following this format: "[[A]]" if assistant A is better, "[[B]]" if assistant B is better.'

_SHOW = """\
[User Question]
{instruction}

[The Start of Assistant A's Answer]
{response_a}
[The End of Assistant A's Answer]

[The Start of Assistant B's Answer]
{response_b}
[The End of Assistant B's Answer]"""

_SEED = f"{_CHOOSE} {_CONSIDER} {_BEGIN} {_ORDER}\n\n{_FAIR}"

VERDICT_TEMPLATE = (
    f"{_SEED}\n\nOutput your final verdict {_LETTERS} Answer with just the verdict string and nothing else.\n\n{_SHOW}"
)
"""The seed's prompt for a verdict at once."""

EXPLAIN_TEMPLATE = f"{_SEED}\n\nAfter providing your explanation, output your final verdict {_LETTERS}\n\n{_SHOW}"
"""The seed's prompt for a verdict after an explanation, as in the paper."""

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


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is asked."""

    template: str
    """The user turn, with a placeholder for each text."""
    system: str | None = None
    """The system turn, if there is one."""


def named_prompt(name: PromptSet, explains: bool) -> JudgePrompt:
    """Return a prompt that compares, for a judge that explains its verdict or gives it at once.

    skywork-critic has one form only, which asks for the verdict at once.
    """
    if name == "seed":
        return JudgePrompt(EXPLAIN_TEMPLATE if explains else VERDICT_TEMPLATE)
    if name == "skywork-critic":
        ask = f"{_CHOOSE} \n{_CONSIDER} {_ORDER} {_FAIR} \nPlease directly output your final verdict {_LETTERS}"
        return JudgePrompt(f"{ask}\n\n{_SHOW}\n")
    letters, show = _LETTERS, _SHOW
    if name == "self-taught-evaluator":
        letters, show = _LETTERS.replace('"', '\\"'), f"{_SHOW}\n"
    if explains:
        begin, verdict = f"{_BEGIN} ", "After providing your explanation, output your final verdict"
    else:
        begin, verdict = "", "Output your final verdict"
    return JudgePrompt(show, f"{_CHOOSE} {_CONSIDER} {begin}{_ORDER} {_FAIR} {verdict} {letters}")


def prompt_of(settings: JudgeSettings) -> JudgePrompt:
    """Return what a recipe's judge is asked, in any mode but reward-model, where a judge is asked nothing.

    The embedded judge has a prompt of its own, unless the recipe gives another.
    """
    if settings.mode == "score":
        prompt = JudgePrompt(SCORE_TEMPLATE)
    elif settings.model == "embedded" and settings.mode != "openai":
        prompt = JudgePrompt(EMBEDDED_JUDGE_PROMPT.read_text(encoding="utf-8").rstrip("\n"))
    else:
        prompt = named_prompt(settings.prompt, explains=settings.mode != "verdict")
    return JudgePrompt(settings.template or prompt.template, settings.system or prompt.system)


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
