"""Arena-Hard's style control: scores as they would be if all answers had the baseline's length and markdown.

Four features of both answers enter the Bradley-Terry fit beside the models: tokens, headings, list items and bold
passages. Version 0.1 and version 2.0 of the benchmark define them differently, and both are here as published
(`utils_math.py` of version 0.1, `show_result.py` of version 2.0, github.com/lmarena/arena-hard-auto):

    version 0.1   (a - b) / (a + b + 1) of each count, standardized; L2 penalty 1/2 |w|^2, as scikit-learn's default
    version 2.0   (a - b) / (a + b) of the tokens, and of the densities d = count / (tokens + 1) the ratio
                  (d_a - d_b) / (d_a + d_b + 1), standardized; no penalty

The official coefficients come from the battles of all models of the leaderboard. Here they come from the battles that
are given, so that scores differ from the published ones where those are few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpo_lite.evaluation.arena_files import Answers, Battle
from tpo_lite.evaluation.logistic import logistic
from tpo_lite.intervals import bootstrap, percentiles

ROUNDS = 200
"""Resamples of questions."""
FEATURES = 4


@dataclass(frozen=True)
class StyleControl:
    """A model's score with equal style, in per cent."""

    score: float
    """100 times the probability to win against the baseline."""
    low: float
    """Lower end of the 95 % bootstrap interval over questions."""
    high: float
    """Upper end."""


def style_controlled(
    battles: Sequence[Battle],
    names: Sequence[str],
    baseline: str,
    answers: Mapping[str, Answers],
    version_01: bool,
) -> dict[str, StyleControl]:
    """Return each model's style-controlled score; none where answers to some question of the battles are missing."""
    for battle in battles:
        for name in (battle.model_a, battle.model_b):
            if name not in answers or battle.question not in answers[name].styles:
                return {}
    features = _features(battles, answers, version_01)
    numbers = {name: number for number, name in enumerate(names)}
    design = np.zeros((len(battles), len(names) + FEATURES))
    scale = math.log(10) if version_01 else 1.0  # it matters for the penalty only
    rows = np.arange(len(battles))
    design[rows, [numbers[battle.model_a] for battle in battles]] = scale
    design[rows, [numbers[battle.model_b] for battle in battles]] = -scale
    design[:, len(names) :] = features
    wins = np.array([battle.score for battle in battles])
    # Version 0.1 fits to each battle twice, a tie being a win and a loss.
    votes = np.array([battle.votes for battle in battles]) * (2.0 if version_01 else 1.0)
    questions: dict[str, int] = {}
    question = np.array([questions.setdefault(battle.question, len(questions)) for battle in battles])
    anchor = numbers[baseline]

    def win_rates(counts: np.ndarray) -> np.ndarray:
        """Return the win rates (M,) where each question counts so often."""
        coefficients = logistic(design, wins, votes * counts[question], 1.0 if version_01 else 1e-9)[: len(names)]
        rates: np.ndarray = 1 / (1 + np.exp(scale * (coefficients[anchor] - coefficients)))
        return rates

    points = win_rates(np.ones(len(questions)))
    resampled = bootstrap(
        lambda chosen: win_rates(np.bincount(chosen, minlength=len(questions))), len(questions), ROUNDS, "arena/style"
    )
    low, high = percentiles(resampled)
    return {
        name: StyleControl(100 * float(points[row]), 100 * float(low[row]), 100 * float(high[row]))
        for row, name in enumerate(names)
    }


def _features(battles: Sequence[Battle], answers: Mapping[str, Answers], version_01: bool) -> np.ndarray:
    """Return the standardized features of each battle, (B, 4)."""

    def counts(side: str) -> np.ndarray:
        styles = [answers[getattr(battle, side)].styles[battle.question] for battle in battles]
        return np.array([[style.tokens, style.headers, style.lists, style.bold] for style in styles], dtype=float)

    a, b = counts("model_a"), counts("model_b")
    votes = np.array([battle.votes for battle in battles])
    if version_01:
        features = (a - b) / (a + b + 1)
    else:
        tokens = a[:, :1] + b[:, :1]
        features = np.empty_like(a)
        features[:, :1] = (a[:, :1] - b[:, :1]) / np.where(tokens > 0, tokens, 1)
        dense_a, dense_b = a[:, 1:] / (a[:, :1] + 1), b[:, 1:] / (b[:, :1] + 1)
        features[:, 1:] = (dense_a - dense_b) / (dense_a + dense_b + 1)
    # The official code standardizes over votes, strong verdicts three times.
    mean = np.average(features, axis=0, weights=votes)
    variance = np.average((features - mean) ** 2, axis=0, weights=votes)
    if not version_01:
        variance *= votes.sum() / (votes.sum() - 1)
    return np.asarray((features - mean) / np.where(variance > 0, np.sqrt(variance), 1.0))
