"""Head to head: how often a judge prefers one model's responses to another's, and how sure that is.

A judge sees each pair of responses in both orders. The two answers about one prompt are not independent, so they are
one cluster: a prompt's figure is the mean over both orders of the probability that A is better. Equal responses tie,
and an empty one, an output that stayed malformed, loses; neither is put to the judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpo_lite.calibration.gold_pairs import ResponsePair
from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.checking import is_right
from tpo_lite.errors import InputError
from tpo_lite.evaluation.layout import aligned, between
from tpo_lite.evaluation.logistic import logistic
from tpo_lite.evaluation.outputs import Outputs
from tpo_lite.intervals import (
    Estimate,
    Share,
    bootstrap,
    estimate,
    flip_rate,
    minimum_detectable_effect,
    paired_difference,
    percent,
    percentiles,
    share,
    sign_test,
)

ROUNDS = 500
"""Resamples of prompts for the length-controlled win rate."""


@dataclass(frozen=True)
class Match:
    """One prompt: how both responses fared."""

    category: str | None
    """The prompt's category, where it is known."""
    win: float
    """Mean over both orders of the probability that A's response is better."""
    lengths: tuple[int, int]
    """Lengths of both responses in characters."""
    right: tuple[bool, bool] | None = None
    """Whether each response gives the right answer; None where that is not known."""


@dataclass(frozen=True)
class Versus:
    """Model A against model B. All shares are between 0 and 1."""

    a: str
    """A's name."""
    b: str
    """B's name."""
    judge: str
    """Who judged."""
    win_rate: Estimate
    """How often A's response is better; 0.5 is even."""
    difference: Estimate
    """A's share of wins less B's, prompt by prompt."""
    length_controlled: tuple[float, float, float] | None
    """A's win rate had both the same lengths, with its 95 % bootstrap interval; None where no length differs."""
    wins: int
    """Prompts on which A is better on the whole."""
    ties: int
    """Prompts on which neither is."""
    losses: int
    """Prompts on which B is."""
    sign_test: float
    """Two-sided p-value of the exact sign test over wins and losses."""
    detectable: float | None
    """The true win rate above 0.5 that as many prompts as these find in four of five cases."""
    flips: float | None
    """The share of asked pairs whose winner changes with the order."""
    lengths: Estimate
    """A's response length less B's in characters, prompt by prompt."""
    accuracy: tuple[Share, Share, Estimate] | None
    """The share of right answers of both and their paired difference, where the right answers are known."""
    categories: dict[str, Estimate]
    """The win rate in each category, where categories are known."""
    overlong: int
    """Pairs that did not fit the judge; they are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as `eval versus --json` prints them."""
        controlled = self.length_controlled
        return {
            "a": self.a,
            "b": self.b,
            "judge": self.judge,
            "n": self.win_rate.n,
            **_figures("win_rate", self.win_rate),
            **_figures("paired_difference", self.difference),
            "length_controlled_win_rate": None if controlled is None else controlled[0],
            "length_controlled_interval": None if controlled is None else list(controlled[1:]),
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "sign_test_p": self.sign_test,
            "minimum_detectable_effect": self.detectable,
            "flip_rate": self.flips,
            **_figures("length_difference", self.lengths),
            "accuracy": None if self.accuracy is None else _accuracy(self.accuracy),
            "categories": {
                name: {"n": found.n, "noise": is_noise(found)} | _figures("win_rate", found)
                for name, found in self.categories.items()
            },
            "overlong": self.overlong,
        }


def _figures(name: str, found: Estimate) -> dict[str, Any]:
    interval = [found.low, found.high] if math.isfinite(found.low) else None
    return {name: found.value, f"{name}_standard_error": found.standard_error, f"{name}_interval": interval}


def _accuracy(found: tuple[Share, Share, Estimate]) -> dict[str, Any]:
    a, b, difference = found
    return {
        "n": a.n,
        "a": a.value,
        "a_interval": [a.low, a.high],
        "b": b.value,
        "b_interval": [b.low, b.high],
        **_figures("difference", difference),
    }


def is_noise(found: Estimate) -> bool:
    """Return whether a win rate cannot be told from even."""
    return found.low <= 0.5 <= found.high


def pairs_to_judge(a: Outputs, b: Outputs, ids: Sequence[str]) -> list[ResponsePair]:
    """Return the pairs of responses that a judge has to be asked about."""
    return [
        ResponsePair(key, a.by_id[key].category or "all", a.by_id[key].instruction, first, second, None)
        for key in ids
        for first, second in [(a.by_id[key].response, b.by_id[key].response)]
        if first and second and first != second
    ]


def first_wins(a: Outputs, b: Outputs, ids: Sequence[str], judged: Sequence[JudgedPair]) -> dict[str, float | None]:
    """Return how clearly A's response is better for each id: the mean over both orders of the judge's probability.

    `judged` are the answers about `pairs_to_judge`. None means that a pair did not fit the judge.
    """
    by_id = {pair.id: pair for pair in judged}
    wins: dict[str, float | None] = {}
    for key in ids:
        first, second = a.by_id[key].response, b.by_id[key].response
        pair = by_id.get(key)
        if pair is None:
            wins[key] = 0.5 if first == second else float(bool(first))
        elif pair.overlong:
            wins[key] = None
        else:
            in_order, swapped = pair.comparisons
            wins[key] = (in_order.p_first + 1 - swapped.p_first) / 2
    return wins


def head_to_head(a: Outputs, b: Outputs, ids: Sequence[str], judged: Sequence[JudgedPair], judge: str) -> Versus:
    """Return the figures of A against B from a judge's answers about `pairs_to_judge`.

    Raises `InputError` if no pair fits the judge.
    """
    wins = first_wins(a, b, ids, judged)
    matches = []
    for key, win in wins.items():
        if win is None:
            continue
        first, second = a.by_id[key], b.by_id[key]
        answer = first.answer or second.answer
        right = (is_right(first.response, answer), is_right(second.response, answer)) if answer else None
        lengths = (len(first.response), len(second.response))
        matches.append(Match(first.category or second.category, win, lengths, right))
    if not matches:
        raise InputError("No pair of responses fits the judge. Give it a larger --context.")
    overlong = len(wins) - len(matches)
    flips = flip_rate([pair.comparisons for pair in judged]).value
    return compare(matches, (a.model, b.model), judge, flips, overlong)


def compare(
    matches: Sequence[Match], names: tuple[str, str], judge: str, flips: float | None = None, overlong: int = 0
) -> Versus:
    """Return the figures of A against B over prompts. Raises `ValueError` without prompts."""
    wins = np.array([match.win for match in matches])
    lengths = np.array([match.lengths for match in matches], dtype=float).reshape(-1, 2)
    rate = estimate(wins)
    counts = int((wins > 0.5).sum()), int((wins == 0.5).sum()), int((wins < 0.5).sum())
    right = np.array([match.right for match in matches if match.right is not None])
    by_category: dict[str, list[float]] = {}
    for match in matches:
        if match.category is not None:
            by_category.setdefault(match.category, []).append(match.win)
    return Versus(
        *names,
        judge,
        rate,
        paired_difference(wins, 1 - wins),
        length_controlled(wins, lengths[:, 0] - lengths[:, 1]),
        *counts,
        sign_test(counts[0], counts[2]),
        None if rate.standard_error is None else minimum_detectable_effect(rate.standard_error),
        flips,
        paired_difference(lengths[:, 0], lengths[:, 1]),
        _accuracy_of(right) if len(right) else None,
        {name: estimate(values) for name, values in sorted(by_category.items())},
        overlong,
    )


def _accuracy_of(right: np.ndarray) -> tuple[Share, Share, Estimate]:
    """Return the accuracy of both and their paired difference; `right` is (N, 2)."""
    a, b = (share(int(column.sum()), len(column)) for column in right.T)
    return a, b, paired_difference(right[:, 0], right[:, 1])


def length_controlled(wins: np.ndarray, differences: np.ndarray) -> tuple[float, float, float] | None:
    """Return the win rate with equal lengths and the ends of its 95 % bootstrap interval; None where no length differs.

    `wins` (N,) and the differences of lengths, A's less B's (N,). The fit is AlpacaEval's without the difficulty of
    prompts, which is known for AlpacaEval's own only: P(A wins) = sigma(bias + w tanh(difference / std)).
    """
    if len(differences) < 2 or not differences.std() > 0:
        return None

    def rate(chosen: np.ndarray) -> float:
        spread = differences[chosen].std(ddof=1)
        feature = np.tanh(differences[chosen] / spread) if spread > 0 else np.zeros(len(chosen))
        design = np.column_stack([np.ones(len(chosen)), feature])
        # The penalty is next to nothing, but keeps the fit finite where A always wins.
        bias = logistic(design, wins[chosen], np.ones(len(chosen)), 1e-4)[0]
        return float(1 / (1 + np.exp(-bias)))

    point = rate(np.arange(len(wins)))
    low, high = percentiles(bootstrap(rate, len(wins), ROUNDS, "versus/length"))
    return point, float(low), float(high)


def as_text(found: Versus) -> str:
    """Return the figures as lines for a terminal."""
    rows = [["", "%", "95 % interval", "n"]]
    rows.append(_row(f"{found.a} is better", found.win_rate))
    rows.append(_row("paired difference of wins", found.difference, least=-1.0))
    if found.length_controlled is not None:
        value, low, high = (100 * each for each in found.length_controlled)
        rows.append(["length-controlled win rate", f"{value:.1f}", between(low, high, 1), str(found.win_rate.n)])
    lines = [
        f"{found.a} against {found.b}, judge {found.judge}; a prompt in both orders is one unit",
        aligned(rows),
        f"wins, ties, losses: {found.wins}, {found.ties}, {found.losses}; sign test p = {found.sign_test:.3g}",
    ]
    if found.detectable is not None:
        lines.append(
            f"{found.win_rate.n} prompts find a win rate of {50 + 100 * found.detectable:.1f} % in 4 of 5 cases"
        )
    if found.flips is not None:
        lines.append(f"the winner changes with the order in {100 * found.flips:.1f} % of the pairs asked about")
    lines.append(f"length of {found.a} less that of {found.b}: {found.lengths.value:+.0f} characters")
    if found.accuracy is not None:
        a, b, difference = found.accuracy
        lines.append(
            f"right answers of {a.n}: {percent(a.value)} and {percent(b.value)}, "
            f"difference {100 * difference.value:+.1f} ({between(100 * difference.low, 100 * difference.high, 1)})"
        )
    if found.overlong:
        lines.append(f"{found.overlong} pairs did not fit the judge and are left out")
    if found.categories:
        rows = [["category", "%", "95 % interval", "n"]]
        for name, rate in found.categories.items():
            rows.append(_row(f"{name} (may be noise)" if is_noise(rate) else name, rate))
        lines += ["", aligned(rows)]
    return "\n".join(lines)


def _row(name: str, found: Estimate, least: float = 0.0) -> list[str]:
    """Return a row for the terminal. No share is below `least` or above 1, though a normal interval may end there."""
    low, high = max(least, found.low), min(1.0, found.high)
    interval = between(100 * low, 100 * high, 1) if math.isfinite(found.low) else "-"
    return [name, f"{100 * found.value:.1f}", interval, str(found.n)]
