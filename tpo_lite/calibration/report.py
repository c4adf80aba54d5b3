"""How far a judge can be trusted: accuracy, position bias, length bias, and the calibration of P(A).

Takes pairs judged in both orders (`tpo_lite.calibration.judged_pair`), with gold labels where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.intervals import Share, first_slot_rate, flip_rate, share
from tpo_lite.records import VerdictLabel


@dataclass(frozen=True)
class LengthBias:
    """How often the longer response wins. Only verdicts that name a winner on a pair of unequal length count."""

    longer_wins: Share
    """The share of all these verdicts. It is not a bias in itself, since the longer response may be the better one."""
    longer_wins_when_better: Share
    """The share where the gold label says that the longer response is better."""
    longer_wins_when_worse: Share
    """The share where the gold label says that the shorter response is better."""
    balanced: float | None
    """The mean of the two shares above: how often the longer response wins when length says nothing about quality. 0.5
    means no bias. It is None where one of the two has no verdicts."""


@dataclass(frozen=True)
class Bin:
    """The verdicts whose P(A) lies in one interval."""

    low: float
    """Lower end of the interval, which belongs to it."""
    high: float
    """Upper end of the interval, which does not belong to it; in the last bin, which ends at 1, it does."""
    mean_p: float | None
    """Mean of P(A); None in an empty bin."""
    a_better: Share
    """How often A is the better one by the gold label; for a calibrated judge this is `mean_p`."""


@dataclass(frozen=True)
class Reliability:
    """Calibration of P(A)."""

    ece: float
    """Expected calibration error (Naeini et al. 2015): |a_better - mean_p|, averaged over the verdicts."""
    bins: list[Bin]
    """The bins, of equal width, from 0 to 1."""


@dataclass(frozen=True)
class Report:
    """The figures of one judge on one set of pairs, each pair judged in both orders.

    Shares of verdicts count both verdicts on a pair as if they were independent, so their intervals are slightly too
    narrow. Shares of pairs do not have this problem.
    """

    pairs: int
    """Pairs judged."""
    overlong: int
    """Pairs that did not fit the judge's context in one order or the other. All figures below leave them out."""
    accuracy: Share
    """Verdicts that name the better response, of those on labelled pairs; ties and unparsed verdicts name none. This is
    LLMBar's average accuracy. n counts pairs, since two verdicts on one pair are not independent."""
    accuracy_in_order: Share
    """The same, of the verdicts that saw response 1 first."""
    accuracy_swapped: Share
    """The same, of the verdicts that saw response 2 first."""
    both_right: Share
    """Labelled pairs that are judged right in both orders."""
    more_right: Share
    """Labelled pairs with more right verdicts than wrong ones: JudgeBench's accuracy."""
    soft_accuracy: Share
    """Labelled pairs where the mean over both orders of P(the better response wins) is above 1/2; at 1/2 half a pair.
    This is what a rating from soft wins sees. n = 0 for recorded verdicts, which have no probabilities."""
    agreement: Share
    """Positional agreement: pairs with the same outcome in both orders. No verdict in either order is an agreement."""
    flip_rate: Share
    """Pairs whose winner changes with the order, of those with a winner in both."""
    first_slot_rate: Share
    """Verdicts for the response shown first, of those that name a winner; 0.5 without position bias."""
    ties: Share
    """Verdicts that are ties."""
    unparsed: Share
    """Verdicts that could not be read, or had to be forced (then P(A) still counts)."""
    length_bias: LengthBias | None
    """None where lengths are not known."""
    reliability: Reliability | None
    """None where there are no probabilities or no labels."""


def report(pairs: Sequence[JudgedPair]) -> Report:
    """Return all figures of these pairs."""
    whole = [pair for pair in pairs if not pair.overlong]
    labelled = [(pair, pair.label) for pair in whole if pair.label is not None]
    n = len(labelled)
    right = np.array([[winner == label for winner in winners(pair)] for pair, label in labelled]).reshape(n, 2)
    wrong = np.array([[winner == 3 - label for winner in winners(pair)] for pair, label in labelled]).reshape(n, 2)
    net = right.sum(axis=1) - wrong.sum(axis=1)
    soft = [soft_win(pair) for pair, _ in labelled if pair.soft]
    verdicts = [c.verdict for pair in whole for c in pair.comparisons]
    agreeing = sum(outcome[0] == outcome[1] for outcome in map(winners, whole))
    return Report(
        pairs=len(pairs),
        overlong=len(pairs) - len(whole),
        accuracy=share(float(right.sum()) / 2, n),
        accuracy_in_order=share(int(right[:, 0].sum()), n),
        accuracy_swapped=share(int(right[:, 1].sum()), n),
        both_right=share(int(right.all(axis=1).sum()), n),
        more_right=share(int((net > 0).sum()), n),
        soft_accuracy=share(sum(1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in soft), len(soft)),
        agreement=share(agreeing, len(whole)),
        flip_rate=flip_rate(pair.comparisons for pair in whole),
        first_slot_rate=first_slot_rate(pair.comparisons for pair in whole),
        ties=share(verdicts.count("tie"), len(verdicts)),
        unparsed=share(verdicts.count("unparsed"), len(verdicts)),
        length_bias=length_bias(whole),
        reliability=_reliability_of([pair for pair, _ in labelled]),
    )


def grouped_reports(pairs: Sequence[JudgedPair]) -> dict[str, Report]:
    """Return a report on each group of these pairs, by the group's name."""
    names = dict.fromkeys(pair.group for pair in pairs)
    return {name: report([pair for pair in pairs if pair.group == name]) for name in names}


def winners(pair: JudgedPair) -> list[int | VerdictLabel]:
    """Return for each order which response wins, 1 or 2, or else the verdict: "tie", "unparsed" or "overlong"."""
    return [c.first if c.verdict == "A" else c.second if c.verdict == "B" else c.verdict for c in pair.comparisons]


def soft_win(pair: JudgedPair) -> float:
    """Return the mean over both orders of the probability that the response labelled better wins."""
    return float(np.mean([c.p_first if c.first == pair.label else 1 - c.p_first for c in pair.comparisons]))


def length_bias(pairs: Sequence[JudgedPair]) -> LengthBias | None:
    """Return how often the longer response wins; None if no pair's lengths are known."""
    known = [(pair, pair.lengths) for pair in pairs if pair.lengths is not None]
    if not known:
        return None
    # One row per verdict: did the longer response win, and is it the better one (None: no label says)?
    rows = []
    for pair, (first, second) in known:
        if first == second:
            continue
        longer = 1 if first > second else 2
        better = None if pair.label is None else pair.label == longer
        rows += [(winner == longer, better) for winner in winners(pair) if winner in (1, 2)]
    when_better = share(sum(won for won, better in rows if better is True), sum(better is True for _, better in rows))
    when_worse = share(sum(won for won, better in rows if better is False), sum(better is False for _, better in rows))
    balanced = None
    if when_better.value is not None and when_worse.value is not None:
        balanced = (when_better.value + when_worse.value) / 2
    return LengthBias(share(sum(won for won, _ in rows), len(rows)), when_better, when_worse, balanced)


def _reliability_of(labelled: Sequence[JudgedPair]) -> Reliability | None:
    comparisons = [(c, pair.label) for pair in labelled if pair.soft for c in pair.comparisons]
    if not comparisons:
        return None
    return reliability([c.p_first for c, _ in comparisons], [c.first == label for c, label in comparisons])


def reliability(p_a: Sequence[float], a_better: Sequence[bool], n_bins: int = 10) -> Reliability:
    """Compare probabilities with what was the case, both of shape (n,), n > 0.

    >>> reliability([0.1, 0.1, 0.9, 0.7], [False, False, True, False], n_bins=2).ece
    0.2
    """
    p, hits = np.asarray(p_a, float), np.asarray(a_better, bool)
    which = np.minimum((p * n_bins).astype(int), n_bins - 1)
    bins, error = [], 0.0
    for index in range(n_bins):
        inside = which == index
        found = share(int(hits[inside].sum()), int(inside.sum()))
        mean_p = float(p[inside].mean()) if found.n else None
        bins.append(Bin(index / n_bins, (index + 1) / n_bins, mean_p, found))
        if found.value is not None and mean_p is not None:
            error += found.n * abs(found.value - mean_p)
    return Reliability(error / len(p), bins)
