from itertools import combinations_with_replacement

import numpy as np
import pytest

from imdb_rlhf.frontier.curves import Curve, area, corners


def test_corners_by_hand() -> None:
    kl = [1.0, 2.0, 3.0, 4.0, 2.5]
    reward = [0.6, 0.7, 0.72, 0.71, 0.6]
    # 0.5 -> 0.6 -> 0.7 is one line; 4.0 and 2.5 have less reward than what costs less
    assert corners(kl, reward, 0.5) == [1, 2]


def test_a_point_under_the_line_is_no_corner() -> None:
    assert corners([1.0, 2.0, 4.0], [0.55, 0.8, 0.9], 0.5) == [1, 2]


def test_nothing_above_the_reference_has_no_corner() -> None:
    assert corners([1.0, 2.0], [0.4, 0.5], 0.5) == []


def test_of_equal_kl_the_better_one() -> None:
    assert corners([1.0, 1.0], [0.6, 0.7], 0.5) == [1]


@pytest.mark.parametrize("seed", range(5))
def test_corners_give_the_best_mixture(seed: int) -> None:
    random = np.random.default_rng(seed)
    kl, reward = random.uniform(0.1, 5, 12), random.uniform(0.3, 1, 12)
    chosen = corners(list(kl), list(reward), 0.5)
    curve = Curve(np.array([0, *kl[chosen]]), np.array([0.5, *reward[chosen]]), np.zeros((1, 1)), np.zeros((1, 1)))
    points = [(0.0, 0.5), *zip(kl, reward, strict=True)]
    for budget in np.linspace(0, 5, 21):
        # the best of all mixtures of two points whose mean KL is within the budget
        best = 0.5
        for (k1, r1), (k2, r2) in combinations_with_replacement(points, 2):
            share = np.linspace(0, 1, 2001)
            within = share * k1 + (1 - share) * k2 <= budget + 1e-12
            best = max(best, np.where(within, share * r1 + (1 - share) * r2, 0.5).max())
        assert curve.at(np.array([budget]))[0] == pytest.approx(best, abs=2e-3)


def test_between_and_past_the_corners() -> None:
    draws = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])  # the second resample has turned the corners round
    curve = Curve(np.array([0.0, 1, 2]), np.array([0.5, 0.7, 0.8]), draws, np.array([[0.5, 0.7, 0.8]] * 2))
    budgets = np.array([0.0, 0.5, 1.5, 9.0])
    assert curve.at(budgets) == pytest.approx([0.5, 0.6, 0.75, 0.8])
    assert curve.draws_at(budgets)[0] == pytest.approx([0.5, 0.6, 0.75, 0.8])
    assert np.isfinite(curve.draws_at(budgets)).all()


def test_area_by_hand() -> None:
    grid = np.array([0.0, 1.0, 3.0])
    # triangle 0.2 * 1 / 2 and a level 0.2 * 2, over 3 nats
    assert area(grid, np.array([0.5, 0.7, 0.7]), 0.5) == pytest.approx(0.5 / 3)
    both = area(grid, np.array([[0.5, 0.7, 0.7], [0.6, 0.6, 0.6]]), np.array([0.5, 0.4]))
    assert both == pytest.approx([0.5 / 3, 0.2])
