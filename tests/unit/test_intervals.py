"""Intervals against published values, scipy and statsmodels; rates worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.power import TTestPower

from tpo_lite.intervals import (
    T_95,
    Estimate,
    Mean,
    Share,
    bootstrap,
    estimate,
    first_slot_rate,
    flip_rate,
    mean,
    minimum_detectable_effect,
    paired_difference,
    percentiles,
    share,
    sign_test,
)
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


RANDOM = np.random.default_rng(7)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=60))
def test_the_error_of_a_mean_is_scipys(values: list[float]) -> None:
    found = estimate(values)
    assert found.standard_error == pytest.approx(scipy.stats.sem(values), abs=1e-12)
    assert found.n == len(values)


@pytest.mark.parametrize("groups", [2, 12, 200])
def test_clustered_errors_are_those_of_statsmodels(groups: int) -> None:
    clusters = np.append(np.arange(groups), RANDOM.integers(0, groups, 3 * groups))  # of unequal size
    values = RANDOM.normal(size=groups)[clusters] + RANDOM.normal(size=len(clusters))
    fit = sm.OLS(values, np.ones_like(values)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    found = estimate(values, [f"prompt {cluster}" for cluster in clusters])
    assert (found.value, found.standard_error) == (pytest.approx(values.mean()), pytest.approx(fit.bse[0]))
    half = scipy.stats.t.ppf(0.975, groups - 1) if groups <= 31 else 1.959964
    assert found.high - found.value == pytest.approx(half * fit.bse[0], rel=1e-5)
    assert found.n == groups


def test_an_estimate_of_little() -> None:
    assert estimate([0.25, 0.75], ["same", "same"]) == Estimate(0.5, None, -math.inf, math.inf, 1)
    assert estimate([0.25, 0.25]).times(100) == Estimate(25.0, 0.0, 25.0, 25.0, 2)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    first, shift = RANDOM.normal(size=20), RANDOM.normal(0.3, 0.2, size=20)
    expected = scipy.stats.ttest_rel(first + shift, first)
    found = paired_difference(first + shift, first)
    assert found.value / found.standard_error == pytest.approx(expected.statistic)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=1e-4), pytest.approx(interval.high, abs=1e-4))


def test_the_bootstrap_is_scipys() -> None:
    values = RANDOM.exponential(size=80)
    resampled = bootstrap(lambda chosen: np.median(values[chosen]), len(values), 4000, "test")
    expected = scipy.stats.bootstrap((values,), np.median, n_resamples=4000, method="percentile", rng=3)
    low, high = percentiles(resampled)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.03)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.03)
    assert resampled.std(ddof=1) == pytest.approx(expected.standard_error, rel=0.1)
    again = bootstrap(lambda chosen: np.median(values[chosen]), len(values), 10, "test")
    assert (again == resampled[:10]).all()  # it depends on the key alone


def test_percentiles_of_several_statistics_leave_nan_out() -> None:
    resampled = np.column_stack([np.arange(101.0), np.full(101, 5.0)])
    resampled[100, 1] = np.nan
    low, high = percentiles(resampled, level=0.9)
    assert (low.tolist(), high.tolist()) == (pytest.approx([5.0, 5.0]), pytest.approx([95.0, 5.0]))


@given(wins=st.integers(0, 300), losses=st.integers(0, 300))
def test_the_sign_test_is_scipys(wins: int, losses: int) -> None:
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, abs=1e-9)


def test_the_minimum_detectable_effect_has_the_power_of_80_per_cent() -> None:
    n, deviation = 10_000, 0.5
    effect = minimum_detectable_effect(deviation / math.sqrt(n))
    assert TTestPower().power(effect / deviation, n, 0.05) == pytest.approx(0.8, abs=1e-3)


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
