"""The figures of a report, worked by hand, and how they are shown."""

from __future__ import annotations

import math
import random
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.calibration.report import reliability, report, soft_win
from tpo_lite.calibration.views import group_lines, reliability_lines, reliability_svg, report_lines
from tpo_lite.intervals import share
from tpo_lite.records import Comparison


def pair(label, first, second, lengths=None, group="g", soft=False):
    """A pair judged "A", "B", ... or with (P, verdict), response 1 first, then response 2 first."""
    comparisons = []
    for slots, answer in zip(((1, 2), (2, 1)), (first, second), strict=True):
        p, verdict = answer if isinstance(answer, tuple) else ({"A": 1.0, "B": 0.0}.get(answer, 0.5), answer)
        comparisons.append(Comparison(*slots, p, verdict))
    return JudgedPair("id", group, label, lengths, comparisons, soft)


def test_accuracy_and_position_by_hand():
    found = report(
        [
            pair(1, "A", "B"),  # right twice
            pair(2, "A", "B"),  # wrong twice
            pair(1, "A", "A"),  # the first slot twice: right once, flips
            pair(2, "B", "tie"),  # right once, no wrong one
            pair(2, "unparsed", "unparsed"),  # nothing twice, which agrees
            pair(None, "B", "B"),  # no label: counts for position alone
        ]
    )
    assert found.accuracy == share(4 / 2, 5)
    assert found.accuracy_in_order == share(3, 5)
    assert found.accuracy_swapped == share(1, 5)
    assert found.both_right == share(1, 5)
    assert found.more_right == share(2, 5)
    assert found.agreement == share(3, 6)
    assert found.flip_rate == share(2, 4)
    assert found.first_slot_rate == share(4, 9)
    assert (found.ties, found.unparsed) == (share(1, 12), share(2, 12))
    assert found.soft_accuracy.n == 0
    assert (found.length_bias, found.reliability) == (None, None)


def test_overlong_pairs_are_left_out():
    whole = [pair(1, (0.9, "A"), (0.2, "B"), [3, 5], soft=True)]
    found = report(whole + [pair(2, (0.5, "overlong"), (0.9, "A"), [900, 5], soft=True)])
    assert (found.pairs, found.overlong) == (2, 1)
    assert found.accuracy == share(1, 1)
    assert found.reliability == report(whole).reliability
    assert report([pair(1, "overlong", "overlong")]).accuracy.n == 0


def test_soft_accuracy_is_of_the_mean_over_both_orders():
    # A judge that likes the first slot, but less where the second is better.
    right = pair(2, (0.6, "A"), (0.9, "A"), soft=True)
    assert soft_win(right) == pytest.approx((0.4 + 0.9) / 2)
    wrong = pair(1, (0.6, "A"), (0.9, "A"), soft=True)
    even = pair(1, (0.7, "A"), (0.7, "A"), soft=True)
    found = report([right, wrong, wrong, even])
    assert found.accuracy.value == 0.5
    assert found.soft_accuracy == share(1.5, 4)


def test_length_bias_by_hand():
    found = report(
        [
            pair(1, "A", "B", [9, 5]),  # the longer is better and wins twice
            pair(2, "A", "A", [9, 5]),  # the longer is worse and wins once
            pair(2, "B", "unparsed", [9, 5]),  # the longer is worse and loses once
            pair(None, "B", "A", [5, 9]),  # the longer wins twice; nobody says which is better
            pair(1, "A", "B", [7, 7]),  # none is longer
            pair(1, "A", "B"),  # lengths not known
        ]
    ).length_bias
    assert found.longer_wins == share(5, 7)
    assert found.longer_wins_when_better == share(2, 2)
    assert found.longer_wins_when_worse == share(1, 3)
    assert found.balanced == pytest.approx((1 + 1 / 3) / 2)
    assert report([pair(1, "A", "B", [9, 5])]).length_bias.balanced is None


def test_reliability_by_hand():
    found = reliability([0.1, 0.1, 0.9, 0.7], [False, False, True, False], n_bins=2)
    assert found.ece == pytest.approx((2 * abs(0 - 0.1) + 2 * abs(0.5 - 0.8)) / 4)
    assert [(b.low, b.high, b.mean_p, b.a_better) for b in found.bins] == [
        (0.0, 0.5, pytest.approx(0.1), share(0, 2)),
        (0.5, 1.0, pytest.approx(0.8), share(1, 2)),
    ]
    assert [b.a_better.n for b in reliability([0.0, 0.5, 1.0], [True] * 3).bins] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_every_verdict_is_in_one_bin_and_ece_is_bounded(rows):
    found = reliability([p for p, _ in rows], [hit for _, hit in rows])
    assert sum(b.a_better.n for b in found.bins) == len(rows)
    assert sum(b.a_better.n * (b.a_better.value or 0) for b in found.bins) == pytest.approx(sum(hit for _, hit in rows))
    assert 0 <= found.ece <= 1
    # No bin can be better than the whole: the error of the means bounds the ECE from below.
    means = math.fsum(p for p, _ in rows) / len(rows), sum(hit for _, hit in rows) / len(rows)
    assert found.ece >= abs(means[0] - means[1]) - 1e-9


def test_a_calibrated_judge_has_no_ece_and_an_overconfident_one_has():
    draw = random.Random(0)
    p = [draw.random() for _ in range(20_000)]
    hits = [draw.random() < value for value in p]
    assert reliability(p, hits).ece < 0.02
    # P pushed to 0 and 1: as far off as its error rate, 1/4 for a uniform P.
    assert reliability([float(value > 0.5) for value in p], hits).ece == pytest.approx(0.25, abs=0.02)


def test_calibration_takes_both_orders_of_labelled_pairs():
    found = report([pair(1, (0.9, "A"), (0.9, "A"), soft=True), pair(None, (0.1, "B"), (0.1, "B"), soft=True)])
    (filled,) = [b for b in found.reliability.bins if b.a_better.n]
    assert (filled.low, filled.a_better) == (0.9, share(1, 2))
    assert found.reliability.ece == pytest.approx(0.4)


def test_the_report_as_text():
    soft = [pair(1, (0.92, "A"), (0.15, "B"), [9, 5], soft=True), pair(2, (0.6, "A"), (0.9, "A"), [9, 5], soft=True)]
    lines = report_lines(report(soft))
    assert "accuracy (verdicts)      75.0 %   [ 19.8,  97.3]   2 pairs" in lines
    assert "positional agreement     50.0 %   [  9.5,  90.5]   2 pairs" in lines
    assert any(line.startswith("  at equal quality       75.0 %") for line in lines)
    assert any(line.startswith("ECE of P(A)") for line in lines)
    unlabelled = report_lines(report([pair(None, "A", "A")]))
    assert not any("accuracy" in line or "longer" in line or "ECE" in line for line in unlabelled)
    table = group_lines({"one": report(soft), "another": report([pair(None, "A", "A")])})
    assert table[0].split()[:3] == ["group", "pairs", "accuracy"]
    assert table[1].split()[:4] == ["one", "2", "75.0", "%"]
    assert table[2].split()[:3] == ["another", "1", "-"]
    assert len({len(line) for line in table}) == 1


def test_the_plot_as_text():
    lines = reliability_lines(reliability([0.15, 0.95, 0.95], [False, True, False]), width=20)
    assert lines[2] == "0.1-0.2      |                     0.0 %       1"
    assert lines[10] == "0.9-1.0   ##########         |    50.0 %       2"
    assert len(lines) == 11


def test_the_plot_as_svg():
    found = reliability([0.15, 0.95, 0.95], [False, True, False])
    root = ElementTree.fromstring(reliability_svg(found, "a < b & c"))
    names = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{names}text")]
    assert texts[:2] == ["a < b & c", "ECE 0.350, 3 verdicts"]
    # The plane runs from (60, 450) for (0, 0) to (460, 50) for (1, 1).
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{names}circle")]
    assert circles == [(120.0, 450.0), (440.0, 250.0)]
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float((element.get(name) or "0").rstrip("%")) <= float(root.get("width"))
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.get(name) or 0) <= float(root.get("height"))
