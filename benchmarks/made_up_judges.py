"""Judges that are hard for an adaptive tournament, and how often it breaks its promise before them.

A judge here always gives a question the same answer, as a greedy or a pointwise model does. The promise is that of
`tpo_lite.preferences.tournament.Adaptive`: a round robin before the same judge would put no other response clearly
ahead of the best, or behind the worst.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tpo_lite.preferences.ratings import bradley_terry, win_matrix
from tpo_lite.preferences.tournament import MARGIN, Adaptive, round_robin, round_robin_noise
from tpo_lite.records import Comparison, Instruction, PromptJudgements, PromptSamples, Sample

PRIOR = 0.1


@dataclass(frozen=True)
class MadeUpJudge:
    """A judge whose margin for the first of two responses is the difference of their strengths, and what is added.

    Strengths are drawn from a normal distribution of variance 1.
    """

    soft: bool = False
    noise: float = 0.0
    """Standard deviation of what is drawn for each order of a pair: the answers flip."""
    against: float = 0.0
    """Standard deviation of what is drawn for a pair, the same in both orders: the judge contradicts itself (A over B
    over C over A), and nothing flips."""
    first: float = 0.0
    """What it likes the first slot for."""
    sharpness: float = 1.0
    """P(first is better) is the sigmoid of this many times the margin. At 10 most are near 0 or 1."""

    def table(self, k: int, numbers: np.random.Generator) -> np.ndarray:
        """Return P(first is better) (k, k) for k responses."""
        strengths = numbers.normal(size=k)
        upper = np.triu(numbers.normal(size=(k, k)), 1)
        margins = strengths[:, None] - strengths[None, :] + self.against * (upper - upper.T)
        margins += self.noise * numbers.normal(size=(k, k)) + self.first
        p: np.ndarray = 1 / (1 + np.exp(-self.sharpness * margins))
        return p


JUDGES = {
    "noisy, hard wins": MadeUpJudge(noise=2.0),
    "contradicts itself, hard wins": MadeUpJudge(against=2.0),
    "likes the first slot, hard wins": MadeUpJudge(noise=1.0, first=2.0),
    "noisy, soft wins": MadeUpJudge(soft=True, noise=1.0),
    "contradicts itself, soft wins": MadeUpJudge(soft=True, against=2.0),
    "contradicts itself, sure, soft wins": MadeUpJudge(soft=True, against=2.0, sharpness=10.0),
    "exact, soft wins": MadeUpJudge(soft=True),
}


@dataclass
class Kept:
    """What tournaments cost, and how their best and worst stand in the round robin: one figure per prompt."""

    calls: list[float] = field(default_factory=list)
    """As a share of the round robin's."""
    broken_best: list[bool] = field(default_factory=list)
    """Whether the round robin puts another response clearly ahead: by more than MARGIN."""
    broken_worst: list[bool] = field(default_factory=list)
    same_best: list[bool] = field(default_factory=list)
    same_worst: list[bool] = field(default_factory=list)


def promise(judge: MadeUpJudge, prompts: int, seed: int, confidence: float = 0.9, k: int = 8) -> Kept:
    """Play an adaptive tournament and the round robin for each of `prompts` prompts with k responses."""
    numbers, kept = np.random.default_rng(seed), Kept()
    for index in range(prompts):
        table = judge.table(k, numbers)
        samples = [Sample(i, [i], "", "ok", "", f"response {i}", 0, 1) for i in range(k)]
        prompt = PromptSamples(Instruction(str(index), "?", "made up"), [0], samples)
        tournament = Adaptive(0, confidence, judge.soft, PRIOR, 0.0)
        played: list[Comparison] = []
        while matches := tournament.next_round(prompt, played):
            played += _answers(table, matches)
        everything = round_robin(prompt)
        full = _ratings(prompt, _answers(table, everything), judge.soft)
        found = _ratings(prompt, played, judge.soft)
        allowed = MARGIN * np.sqrt(round_robin_noise(full, np.ones(k), PRIOR)) + 1e-9
        kept.calls.append(len(played) / len(everything))
        best, worst = int(found.argmax()), int(found.argmin())
        kept.broken_best.append(bool((full - full[best] > allowed[best]).any()))
        kept.broken_worst.append(bool((full[worst] - full > allowed[worst]).any()))
        kept.same_best.append(best == int(full.argmax()))
        kept.same_worst.append(worst == int(full.argmin()))
    return kept


def _answers(table: np.ndarray, matches: list[tuple[int, int]]) -> list[Comparison]:
    return [Comparison(*match, float(table[match]), "A" if table[match] > 0.5 else "B") for match in matches]


def _ratings(prompt: PromptSamples, comparisons: list[Comparison], soft: bool) -> np.ndarray:
    return bradley_terry(win_matrix(PromptJudgements("", comparisons, 0, 0), prompt, soft)[1], PRIOR)
