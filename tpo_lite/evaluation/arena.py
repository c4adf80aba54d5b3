"""Arena-Hard: Bradley-Terry win rates against a baseline, with intervals, from battles.

A model's score is its probability to win against the baseline in the Bradley-Terry fit to all votes, as in the official
`show_result.py`. Where every model met only the baseline, that is (wins + ties / 2) / votes.

Two intervals are given. The official one resamples votes as if each were independent, though a question has two games
and a strong verdict counts three times. Ours resamples questions, which are what another set would have other ones of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpo_lite.errors import InputError
from tpo_lite.evaluation.arena_files import BASELINES, V01, Answers, Battle, Battles
from tpo_lite.evaluation.arena_style import StyleControl, style_controlled
from tpo_lite.evaluation.layout import aligned, between
from tpo_lite.intervals import bootstrap, percentiles
from tpo_lite.preferences.ratings import bradley_terry

ROUNDS, OFFICIAL_ROUNDS = 1000, 100
"""Resamples of questions, and of votes as the official code draws them."""
WEAK_PRIOR = 1e-6
"""Precision of the prior where a model met others than the baseline: weak enough to leave the fit as it is."""


@dataclass(frozen=True)
class ModelScore:
    """One model's score against the baseline, in per cent."""

    model: str
    """The model."""
    category: str
    """The category of the questions."""
    baseline: str
    """The model against which the score is."""
    score: float
    """100 times the probability to win against the baseline."""
    low: float
    """Lower end of the 95 % interval over questions."""
    high: float
    """Upper end."""
    official_low: float
    """Lower end of the official interval."""
    official_high: float
    """Upper end."""
    official_level: float
    """0.95 for version 0.1, 0.9 for version 2.0."""
    questions: int
    """Questions with a vote on this model."""
    wins: float
    """Votes for this model against any other, strong ones three times."""
    ties: float
    """Ties."""
    losses: float
    """Votes against it."""
    average_tokens: int | None
    """Mean length of its answers in tokens; None without its answers."""
    style: StyleControl | None
    """The score with equal style; None without the answers of all models."""

    def to_dict(self) -> dict[str, Any]:
        """Return the score as `eval arena --json` prints it."""
        style = self.style
        return {
            "model": self.model,
            "category": self.category,
            "baseline": self.baseline,
            "score": self.score,
            "interval": [self.low, self.high],
            "official_interval": [self.official_low, self.official_high],
            "official_level": self.official_level,
            "questions": self.questions,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "avg_tokens": self.average_tokens,
            "style_controlled_score": None if style is None else style.score,
            "style_controlled_interval": None if style is None else [style.low, style.high],
        }


def scores(found: Battles, baseline: str | None = None, answers: Sequence[Answers] = ()) -> list[ModelScore]:
    """Return the score of every model, the best first; those of several categories one category after the other.

    Raises `InputError` where it is not clear which model is the baseline, and for a model that no chain of battles
    connects with it.
    """
    by_category: dict[str, list[Battle]] = {}
    for battle in found.battles:
        by_category.setdefault(battle.category, []).append(battle)
    result = []
    for category, battles in by_category.items():
        result += _category_scores(battles, category, baseline or baseline_of(battles, category), answers)
    return result


def baseline_of(battles: Sequence[Battle], category: str) -> str:
    """Return the baseline of the battles of one category.

    That is the official one if it is in every battle, else the only model_a, else the only model that is in every
    battle. Raises `InputError` if there is none.
    """
    common = set.intersection(*({battle.model_a, battle.model_b} for battle in battles))
    official = BASELINES.get(category)
    if official in common:
        return str(official)
    for names in ({battle.model_a for battle in battles}, common):
        if len(names) == 1:
            return names.pop()
    raise InputError("No single model is in all battles as the baseline. Name it: --baseline NAME.")


def _category_scores(
    battles: Sequence[Battle], category: str, baseline: str, answers: Sequence[Answers]
) -> list[ModelScore]:
    names = sorted({battle.model_a for battle in battles} | {battle.model_b for battle in battles})
    if baseline not in names:
        raise InputError(f"The baseline {baseline!r} is in no battle. The models are {', '.join(names)}.")
    votes = _Votes.of(battles, names, baseline)
    votes.check_connected()
    points = votes.win_rates(votes.won.sum(0))
    low, high = percentiles(bootstrap(votes.of_questions, len(votes.won), ROUNDS, "arena/questions"))
    level = 0.95 if category == V01 else 0.9
    official_low, official_high = percentiles(votes.official(), level)
    styles = style_controlled(battles, names, baseline, {each.model: each for each in answers}, category == V01)
    tokens = {each.model: each.average_tokens for each in answers}
    total = votes.won.sum(0)
    result = []
    for row, name in enumerate(names):
        score, below, above, official_below, official_above = (
            100 * float(values[row]) for values in (points, low, high, official_low, official_high)
        )
        result.append(
            ModelScore(
                model=name,
                category=category,
                baseline=baseline,
                score=score,
                low=below,
                high=above,
                official_low=official_below,
                official_high=official_above,
                official_level=level,
                questions=int((votes.won[:, row].any(1) | votes.won[:, :, row].any(1)).sum()),
                wins=float(total[row].sum() - votes.ties[row] / 2),
                ties=float(votes.ties[row]),
                losses=float(total[:, row].sum() - votes.ties[row] / 2),
                average_tokens=tokens.get(name),
                style=styles.get(name),
            )
        )
    return sorted(result, key=lambda score: -score.score)


@dataclass(frozen=True)
class _Votes:
    """The votes of one category as arrays, Q questions and M models."""

    names: list[str]
    baseline: int
    """The baseline's row."""
    won: np.ndarray
    """(Q, M, M): how often m beat n on a question; a tie is half a win of each."""
    ties: np.ndarray
    """(M,): each model's ties."""
    rows: np.ndarray
    """(V, 4): for each vote the question, both models and the score of the first, strong verdicts three times."""

    @classmethod
    def of(cls, battles: Sequence[Battle], names: list[str], baseline: str) -> _Votes:
        numbers = {name: number for number, name in enumerate(names)}
        questions: dict[str, int] = {}
        for battle in battles:
            questions.setdefault(battle.question, len(questions))
        rows = np.array(
            [
                [questions[battle.question], numbers[battle.model_a], numbers[battle.model_b], battle.score]
                for battle in battles
                for _ in range(battle.votes)
            ]
        )
        won = np.zeros((len(questions), len(names), len(names)))
        question, first, second = rows[:, :3].astype(int).T
        np.add.at(won, (question, first, second), rows[:, 3])
        np.add.at(won, (question, second, first), 1 - rows[:, 3])
        tied = rows[:, 3] == 0.5
        ties = np.bincount(np.concatenate([first[tied], second[tied]]), minlength=len(names)).astype(float)
        return cls(names, numbers[baseline], won, ties, rows)

    def check_connected(self) -> None:
        met = (self.won.sum(0) + self.won.sum(0).T) > 0
        reached = np.zeros(len(self.names), bool)
        reached[self.baseline] = True
        for _ in self.names:
            reached |= met[reached].any(0)
        if not reached.all():
            name = self.names[int(np.flatnonzero(~reached)[0])]
            raise InputError(
                f"No chain of battles leads from {name} to the baseline {self.names[self.baseline]}, so that {name} "
                "cannot be scored. Leave it out, or name another baseline: --baseline NAME."
            )

    def win_rates(self, won: np.ndarray) -> np.ndarray:
        """Return each model's probability to beat the baseline, (M,), for wins (M, M); NaN for one without votes."""
        games = won + won.T
        others = games.copy()
        others[self.baseline] = others[:, self.baseline] = 0
        if not others.any():
            with np.errstate(invalid="ignore"):
                rates = won[:, self.baseline] / games[:, self.baseline]
        else:
            strengths = bradley_terry(won, WEAK_PRIOR)
            rates = 1 / (1 + np.exp(strengths[self.baseline] - strengths))
            rates[~games.any(1)] = np.nan
        rates[self.baseline] = 0.5
        return np.asarray(rates)

    def of_questions(self, chosen: np.ndarray) -> np.ndarray:
        """Return the win rates (M,) for a resample of the questions."""
        counts = np.bincount(chosen, minlength=len(self.won))
        return self.win_rates(np.tensordot(counts, self.won, 1))

    def official(self) -> np.ndarray:
        """Return the win rates of the official resamples, (rounds, M), which draw votes instead of questions."""
        first, second = self.rows[:, 1].astype(int), self.rows[:, 2].astype(int)
        shape = (len(self.names), len(self.names))

        def rates(chosen: np.ndarray) -> np.ndarray:
            won = np.zeros(shape)
            np.add.at(won, (first[chosen], second[chosen]), self.rows[chosen, 3])
            np.add.at(won, (second[chosen], first[chosen]), 1 - self.rows[chosen, 3])
            return self.win_rates(won)

        return bootstrap(rates, len(self.rows), OFFICIAL_ROUNDS, "arena/votes")


def as_data(found: Battles, models: Sequence[ModelScore]) -> dict[str, Any]:
    """Return the scores with what they come from, as `eval arena --json` prints them."""
    return {
        "models": [model.to_dict() for model in models],
        "judges": found.judges,
        "votes": sum(battle.votes for battle in found.battles),
        "unparsed_games": found.unparsed,
        "left_out_games": found.left_out,
    }


def as_text(found: Battles, models: Sequence[ModelScore]) -> str:
    """Return the scores as lines for a terminal."""
    judges = ", ".join(found.judges) or "that the files do not name"
    lines = [f"Arena-Hard prompts, judge {judges}"]
    for category in dict.fromkeys(model.category for model in models):
        of_category = [model for model in models if model.category == category]
        level = f"{of_category[0].official_level:.0%}"
        rows = [["", "score", "95 % by question", f"official {level}", "style-controlled", "tokens", "questions"]]
        rows += [
            [
                model.model,
                f"{model.score:.2f}",
                between(model.low, model.high),
                between(model.official_low, model.official_high),
                "-" if model.style is None else f"{model.style.score:.2f}",
                "-" if model.average_tokens is None else str(model.average_tokens),
                str(model.questions),
            ]
            for model in of_category
        ]
        lines += ["", f"{category}, against {of_category[0].baseline}", aligned(rows)]
    if found.unparsed:
        lines += [
            "",
            f"{found.unparsed} games had no readable verdict; {found.left_out} others were left out with them.",
        ]
    return "\n".join(lines)
