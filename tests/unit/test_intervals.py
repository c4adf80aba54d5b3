"""Intervals against published values, rates worked by hand."""

from __future__ import annotations

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tpo_lite.intervals import T_95, Mean, Share, first_slot_rate, flip_rate, mean, share
from tpo_lite.records import Comparison


def test_wilson_by_hand() -> None:
    # 81 of 263, E. B. Wilson's interval as in Newcombe (1998), table I: 0.2553 to 0.3662.
    found = share(81, 263)
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4)) == (0.3080, 0.2553, 0.3662)
    # 0 of 20: upper end z^2 / (n + z^2).
    assert share(0, 20) == Share(0.0, 0.0, pytest.approx(3.841459 / 23.841459), 20)


@given(n=st.integers(1, 10_000), data=st.data())
def test_wilson_equals_scipys(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
    found = share(successes, n)
    assert (found.low, found.high) == (
        pytest.approx(expected.low, abs=1e-6),
        pytest.approx(expected.high, abs=1e-6),
    )
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_share_of_nothing() -> None:
    assert share(0, 0) == Share(None, 0.0, 1.0, 0)


def test_t_quantiles() -> None:
    assert list(T_95) == [pytest.approx(scipy.stats.t.ppf(0.975, n), abs=1e-4) for n in range(1, 31)]


def test_mean_by_hand() -> None:
    # 1, 2, 3: standard deviation 1, so 4.3027 / sqrt(3).
    assert mean([1, 2, 3]) == Mean(2.0, pytest.approx(2.4842, abs=1e-4), 3)
    assert mean([0.7]) == Mean(0.7, None, 1)
    assert mean([0.5] * 40).half_width == 0.0
    with pytest.raises(ValueError, match="at least one"):
        mean([])


# Prompt 1: 0 beats 1 in both orders; 0 against 2 goes to the first slot both times.
# Prompt 2: the second slot both times; one order unparsed; one order never asked.
PROMPTS = [
    [
        Comparison(0, 1, 0.9, "A"),
        Comparison(1, 0, 0.1, "B"),
        Comparison(0, 2, 0.9, "A"),
        Comparison(2, 0, 0.9, "A"),
    ],
    [
        Comparison(0, 1, 0.1, "B"),
        Comparison(1, 0, 0.1, "B"),
        Comparison(0, 2, 0.9, "A"),
        Comparison(2, 0, 0.5, "unparsed"),
        Comparison(1, 2, 0.1, "B"),
    ],
]


def test_flip_rate() -> None:
    assert flip_rate(PROMPTS) == share(2, 3)
    assert flip_rate(PROMPTS[:1]) == share(1, 2)
    assert flip_rate([[], [Comparison(0, 1, 0.9, "A")]]) == share(0, 0)


def test_first_slot_rate() -> None:
    assert first_slot_rate(PROMPTS) == share(4, 8)
    assert first_slot_rate([[Comparison(0, 1, 0.5, "unparsed")]]) == share(0, 0)
