"""Length control, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_lite.preferences.length_control import RHO_GRID, AutoRho, auto_rho, length_controlled, z_scores


def test_z_scores_by_hand() -> None:
    # mean 5, population variance (9 + 1 + 1 + 1 + 0 + 0 + 4 + 16) / 8 = 4
    values = [2, 4, 4, 4, 5, 5, 7, 9]
    np.testing.assert_allclose(z_scores(values), [-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2])


@pytest.mark.parametrize("values", [[], [3.0], [0.1] * 7, [0, 0]])
def test_no_spread_is_zero(values: list[float]) -> None:
    assert z_scores(values).tolist() == [0.0] * len(values)


def test_length_controlled_by_hand() -> None:
    # z(score) = -1, 1 and z(length) = 1, -1 with a third of each taken off.
    np.testing.assert_allclose(length_controlled([0, 4], [30, 10], 1 / 3), [-4 / 3, 4 / 3])
    np.testing.assert_allclose(length_controlled([0, 4], [10, 30], 0.5), [-0.5, 0.5])
    np.testing.assert_allclose(length_controlled([0, 4], [20, 20], 0.5), [-1, 1])
    np.testing.assert_allclose(length_controlled([1, 1], [10, 30], 0.5), [0.5, -0.5])


def test_a_pair_that_cannot_be_used_does_not_count() -> None:
    # The first prompt's best response, too long with its thought, would make the chosen shorter on average.
    prompts = [([1, 0], [100, 150]), ([1, 0], [60, 20])]
    assert auto_rho(prompts) == AutoRho(0.0, True, 80.0, 85.0)
    assert auto_rho(prompts, [[False, True], [True, True]]) == AutoRho(0.5, False, 60.0, 20.0)
    assert auto_rho(prompts, [[True, False], [False, True]]) == AutoRho(0.0, True, 0.0, 0.0)


def test_auto_rho_is_zero_where_chosen_are_short_already() -> None:
    assert auto_rho([([2, 1], [10, 20])]) == AutoRho(0.0, True, 10.0, 20.0)
    assert auto_rho([([2, 1], [15, 15])]) == AutoRho(0.0, True, 15.0, 15.0)


# The long best response is only just ahead of a short second one; the worst is of middle length. With
# z(score) = (1, 0.8, -1.8) / s, s = sqrt(4.88 / 3), and z(length) = (1, -1, 0) * sqrt(3 / 2) the second
# overtakes the first at rho = (0.2 / s) / (2 sqrt(1.5)) = 0.0640, so 0.07 is the first rho of the grid.
NARROW = ([1.0, 0.8, -1.8], [300, 100, 200])


def test_auto_rho_by_hand() -> None:
    assert auto_rho([NARROW]) == AutoRho(0.07, True, 100.0, 200.0)


def test_auto_rho_is_over_all_prompts() -> None:
    # A second prompt with the chosen response 1,000 tokens shorter pays for the first.
    assert auto_rho([NARROW, ([1, 0], [0, 1000])]) == AutoRho(0.0, True, 150.0, 600.0)
    # One with the chosen 150 tokens longer, which no rho up to 0.5 can turn: 100 < 150.
    assert auto_rho([NARROW, ([1, 0], [150, 0])]) == AutoRho(0.5, False, 125.0, 100.0)


def test_auto_rho_without_preference() -> None:
    assert auto_rho([]) == AutoRho(0.0, True, 0.0, 0.0)
    assert auto_rho([([], []), ([0.0], [9]), ([1.0, 1.0], [5, 50])]) == AutoRho(0.0, True, 0.0, 0.0)


responses = st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 99)), min_size=2, max_size=8)


@given(st.lists(responses, min_size=1, max_size=6))
def test_auto_rho_is_the_smallest(prompts: list[list[tuple[int, int]]]) -> None:
    def excess(rho: float) -> int:
        total = 0
        for prompt in prompts:
            scores, lengths = zip(*prompt, strict=True)
            if len(set(scores)) > 1:
                controlled = length_controlled(scores, lengths, rho).tolist()
                chosen, rejected = controlled.index(max(controlled)), controlled.index(min(controlled))
                total += lengths[chosen] - lengths[rejected]
        return total

    found = auto_rho([tuple(zip(*prompt, strict=True)) for prompt in prompts])
    assert found.reached == (excess(found.rho) <= 0)
    assert all(excess(rho) > 0 for rho in RHO_GRID if rho < found.rho)
    assert found.reached or found.rho == 0.5
