"""Published figures of judges, by the functions that measure ours: AlpacaEval's humans, GPT-4's log-probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from tests.helpers.shared import SHARED
from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.calibration.report import report
from tpo_lite.evaluation.alpaca import score
from tpo_lite.evaluation.alpaca_annotations import Annotation, Annotations
from tpo_lite.judges.choices import branches, probabilities
from tpo_lite.records import Comparison

pytestmark = pytest.mark.shared
DATA = SHARED / "data"


def human_votes() -> list[tuple[tuple[int, int], list[int]]]:
    """Lengths of both outputs, and the first four humans' votes, of each pair."""
    path = DATA / "human_preferences" / "alpaca_farm_human_crossannotations.json"
    votes: dict[tuple[str, str, str], list[int]] = {}
    for row in json.loads(path.read_text(encoding="utf-8")):
        votes.setdefault((row["instruction"], row["output_1"], row["output_2"]), []).append(row["preference"])
    return [((len(first), len(second)), each[:4]) for (_, first, second), each in votes.items()]


def accuracy(votes: Sequence[int], labels: Sequence[int]) -> float:
    """How often votes agree with labels, by the report on a judge that votes the same in both orders."""
    verdicts = {1: ("A", "B"), 2: ("B", "A")}
    pairs = [
        JudgedPair(
            str(number),
            "humans",
            label,
            None,
            [Comparison(1, 2, 0.5, verdicts[vote][0]), Comparison(2, 1, 0.5, verdicts[vote][1])],
            soft=False,
        )
        for number, (vote, label) in enumerate(zip(votes, labels, strict=True))
    ]
    return report(pairs).accuracy.value


def majority(votes: Sequence[int]) -> int:
    """A tie of four is 2: the official code draws it, with the same seed for every pair."""
    return 1 if votes.count(1) > len(votes) / 2 else 2


def test_humans_agree_with_other_humans_as_published():
    votes = [each for _, each in human_votes()]
    rates = [
        accuracy([each[one] for each in votes], [majority(each[:one] + each[one + 1 :]) for each in votes])
        for one in range(4)
    ]
    assert 100 * np.mean(rates) == pytest.approx(65.66358024691358)


def test_the_longest_output_agrees_with_humans_as_published():
    pairs = human_votes()
    longest = [1 if first > second else 2 for (first, second), _ in pairs]
    assert 100 * accuracy(longest, [majority(votes) for _, votes in pairs]) == pytest.approx(62.19135802469136)


def test_humans_prefer_the_longer_output_as_published():
    rows = [Annotation(row, row, *lengths, votes[0]) for row, (lengths, votes) in enumerate(human_votes())]
    found = score(Annotations(rows, "humans", None, None)).prefers_longer
    assert (found.value, found.n) == (pytest.approx(0.6359550561797753), 445)


@pytest.mark.parametrize("model", ["alpaca-7b", "gemma-2b-it"])
def test_log_probabilities_give_the_published_preferences(model):
    """m says that the first output is better, M the second; `is_switched` says that the model's came first."""
    two_tokens = branches([[0], [1]])
    lines = (DATA / "alpaca_eval2" / "judge_logprobs" / f"{model}.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        logits = np.array([line["top_logprobs"].get(token, -math.inf) for token in "mM"])
        first_better = probabilities(two_tokens, [logits])[0]
        preference = 1 + first_better if line["is_switched"] else 2 - first_better
        assert preference == pytest.approx(line["preference"], abs=1e-6)
