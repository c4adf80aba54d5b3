"""A judge in a GGUF file that rates one response from 1 to 10 (MT-Bench's single-answer grading).

The judge's turn is opened with `[[`, and the logits of the ten ratings after it give a distribution, whose mean is the
score (as in G-Eval, arXiv 2303.16634, section 2). Nothing is sampled, so a response cannot make the judge write another
rating: `[[10]]` in a response is a text like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tpo_lite.judges.gguf_prompt import GgufPrompt, ask
from tpo_lite.judges.pointwise import compare_scores
from tpo_lite.judges.prompts import SCORE_FIELDS, SCORE_TEMPLATE
from tpo_lite.judges.protocol import Item, JudgeRequest, Verdict
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.model import GgufModel

RATINGS = np.arange(1, 11)


def score_prompt(
    model: GgufModel, template: str | None = None, system: str | None = None, chat_template: str | None = None
) -> GgufPrompt:
    """Return the prompt that asks for a rating; see `ScoreJudge`."""
    answers = [str(rating) for rating in RATINGS]
    return GgufPrompt(model, template or SCORE_TEMPLATE, SCORE_FIELDS, answers, system, chat_template)


class ScoreJudge:
    """Rates responses with a GGUF language model; implements `tpo_lite.judges.protocol.PointwiseJudge`.

    `template` is a judge prompt with {instruction} and {response} (None: `SCORE_TEMPLATE`); the other arguments are
    those of `tpo_lite.judges.gguf.GgufJudge`. Raises `InputError` for a model without chat template if none is given,
    for a vocabulary that cannot write the ratings, and for a context too small for any response.
    """

    pointwise = True

    def __init__(
        self,
        decoder: LlamaCpp,
        template: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
        overlong: Literal["drop", "truncate"] = "drop",
    ):
        self.decoder, self.overlong = decoder, overlong
        self.max_tokens = decoder.max_leaf
        """The most tokens of a prompt."""
        self._prompt = score_prompt(decoder, template, system, chat_template)
        self._prompt.check_room(self.max_tokens)

    @property
    def tokens_decoded(self) -> int:
        """Tokens evaluated so far; a shared prefix counts once."""
        return self.decoder.tokens_decoded

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return one verdict per request, in the same order; see `tpo_lite.judges.protocol.Judge`."""
        return compare_scores(requests, self.ratings, p_better, lambda rating: f"{rating @ RATINGS:.2f}")

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """Return the mean rating of each (instruction, response), from 1 to 10; None if it is too long."""
        return [None if rating is None else float(rating @ RATINGS) for rating in self.ratings(items)]

    def ratings(self, items: Sequence[Item]) -> list[np.ndarray | None]:
        """Return the probabilities of the ratings 1 to 10 for each (instruction, response); None if it is too long."""
        questions = [
            self._prompt.question(
                dict(zip(SCORE_FIELDS, item, strict=True)), self.decoder.max_leaf, self.overlong == "truncate"
            )
            for item in items
        ]
        return [None if answer is None else answer.probabilities for answer in ask(self.decoder, questions)]


def p_better(a: np.ndarray, b: np.ndarray) -> float:
    """Return P(A is rated higher than B) plus half of P(both are rated alike), for independent ratings.

    The difference of the two means would need a scale to become a probability; this needs none. For the same means, a
    judge that spreads its ratings gives a probability nearer to 0.5 than one that is sure of them.

    >>> p_better(np.array([0, 1.0]), np.array([0.5, 0.5]))
    0.75
    """
    # Computed from the difference of the two sides, so that equal distributions give exactly 0.5.
    a_wins, b_wins = a @ (np.cumsum(b) - b), b @ (np.cumsum(a) - a)
    return min(1.0, max(0.0, float(0.5 + (a_wins - b_wins) / 2)))
