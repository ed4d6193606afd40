"""Best-of-N against enumeration: all subsets of a reservoir, all draws from a small world."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from imdb_rlhf.evaluation.best_of_n import (
    blocks,
    curve,
    expected,
    kl_bound,
    kl_bound_atom,
    top_mass,
    weights,
    win_rate,
)
from tests.enumeration import exact_expected, exact_kl, exact_policy

LN2 = 0.6931471805599453


def best_shares(selector, drawn) -> dict[int, float]:
    """The best of the drawn indices, each with its share of the tie."""
    top = max(selector[i] for i in drawn)
    tied = [i for i in drawn if selector[i] == top]
    return {i: sum(i == j for j in tied) / len(tied) for i in tied}


def weights_by_subsets(selector, n: int) -> list[float]:
    """The chance of each sample to be the best, over all subsets of n."""
    chances = [0.0] * len(selector)
    for drawn in combinations(range(len(selector)), n):
        for i, share in best_shares(selector, drawn).items():
            chances[i] += share / math.comb(len(selector), n)
    return chances


def law_by_draws(probability, selector, n: int) -> list[float]:
    """Best-of-n over all n-tuples of outcomes; a tie is split among the draws."""
    law = [0.0] * len(probability)
    for drawn in product(range(len(probability)), repeat=n):
        chance = math.prod(probability[i] for i in drawn)
        for i, share in best_shares(selector, drawn).items():
            law[i] += chance * share
    return law


def worlds(seed: int, count: int, outcomes: int, levels: int):
    """Random references with selectors that tie."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield random.dirichlet(np.full(outcomes, 0.7)), random.integers(0, levels, outcomes).astype(float)


RESERVOIRS = [
    [3.0, 1.0, 2.0, 5.0, 4.0],
    [1.0, 1.0, 0.0, 2.0, 2.0, 1.0, 2.0],
    [0.5] * 6,
    [-math.inf, 7.0, -math.inf, math.inf, 7.0, 7.0],
    [0.0, -0.0, 1e-300, -1e300],
    [9.0],
]

# Two outcomes tie on top, one is between, one is the worst.
PROBABILITY = np.array([0.1, 0.4, 0.2, 0.3])
SELECTOR = np.array([2.0, 0.0, 2.0, 1.0])
VALUES = np.array([10.0, 1.0, -4.0, 2.5])


# --- the estimator


@pytest.mark.parametrize("reservoir", RESERVOIRS)
def test_weights_are_chances_over_all_subsets(reservoir) -> None:
    for n in range(1, len(reservoir) + 1):
        chances = weights(np.array([reservoir]), n)
        assert chances[0] == pytest.approx(weights_by_subsets(reservoir, n), abs=1e-12)


def test_each_prompt_has_its_own_ranks() -> None:
    reservoirs = np.random.default_rng(0).integers(0, 4, (5, 6)).astype(np.float32)
    rows = weights(reservoirs, 3)
    for row, reservoir in zip(rows, reservoirs, strict=True):
        assert row == pytest.approx(weights_by_subsets(reservoir, 3), abs=1e-12)


def test_one_of_n_is_uniform_and_m_of_m_the_best_alone() -> None:
    selector = np.array([[1.0, 4.0, 4.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    assert weights(selector, 1) == pytest.approx(np.full((2, 4), 1 / 4))
    assert weights(selector, 4).tolist() == [[0, 1 / 2, 1 / 2, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("n", [1, 2, 16, 1000, 2048, 4000, 4095, 4096])
def test_a_large_reservoir_by_exact_integers(n: int) -> None:
    size = 4096
    order = np.random.default_rng(n).permutation(size)
    chances = weights(order[None].astype(float), n)[0]
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    for i in {1, 2, n, (n + size) // 2, size - 1, size}:
        chance = math.comb(i - 1, n - 1) / math.comb(size, n)  # integers divide exactly rounded
        assert chances[order == i - 1][0] == pytest.approx(chance, rel=1e-9, abs=1e-16)


def test_the_mean_of_values_is_the_mean_over_subsets() -> None:
    random = np.random.default_rng(3)
    selector, values = random.integers(0, 3, (4, 6)).astype(float), random.normal(size=(4, 6))
    ns = [4, 1, 6]
    rows = curve(selector, values, ns)
    assert rows.shape == (3, 4)
    for n, means in zip(ns, rows, strict=True):
        by_hand = [np.dot(weights_by_subsets(selector[p], n), values[p]) for p in range(4)]
        assert means == pytest.approx(by_hand)
        assert expected(selector, values, n) == pytest.approx(by_hand)
    assert curve(selector, values, []).shape == (0, 4)


@pytest.mark.parametrize(("size", "n"), [(4, 1), (4, 2), (4, 4), (5, 3)])
def test_the_estimate_is_unbiased(size: int, n: int) -> None:
    # the average over every reservoir the world can give, against every draw of n
    drawn = np.array(list(product(range(4), repeat=size)))
    chances = PROBABILITY[drawn].prod(1)
    truth = np.dot(law_by_draws(PROBABILITY, SELECTOR, n), VALUES)
    assert chances @ expected(SELECTOR[drawn], VALUES[drawn], n) == pytest.approx(truth)


@pytest.mark.parametrize("n", [0, -1, 4])
def test_n_lies_within_the_reservoir(n: int) -> None:
    three = np.zeros((2, 3))
    with pytest.raises(ValueError, match="reservoir of 3"):
        weights(three, n)
    with pytest.raises(ValueError, match="reservoir of 3"):
        curve(three, three, [1, n])
    with pytest.raises(ValueError, match="reservoir of 3"):
        blocks(three[0], n, 1)


def test_nan_has_no_rank() -> None:
    broken = np.array([[0.0, math.nan]])
    for call in (lambda: weights(broken, 1), lambda: top_mass(broken), lambda: exact_kl(np.full(2, 0.5), broken[0], 2)):
        with pytest.raises(ValueError, match="nan"):
            call()


# --- win rates and draws


def test_win_rates_are_chances_over_subsets_and_pairs() -> None:
    random = np.random.default_rng(5)
    selector = random.integers(0, 3, (3, 5)).astype(float)
    values, other = random.integers(0, 4, (3, 5)).astype(float), random.integers(0, 4, (3, 2)).astype(float)
    for n in (1, 2, 5):
        by_hand = [
            sum(
                weight * (1.0 if value > other_value else 0.5 if value == other_value else 0.0) / 2
                for weight, value in zip(weights_by_subsets(selector[p], n), values[p], strict=True)
                for other_value in other[p]
            )
            for p in range(3)
        ]
        assert win_rate(selector, values, other, n) == pytest.approx(by_hand)


def test_blocks_by_hand() -> None:
    selector = np.array([1.0, 3.0, 2.0, 0.0, 5.0, 5.0, 9.0])
    assert blocks(selector, 2, 3) == [1, 2, 4]  # the tie goes to the earlier
    assert blocks(selector, 2, 2) == [1, 2]
    assert blocks(selector, 2, 10) == [1, 2, 4]  # the 9 is in no whole block
    assert blocks(selector, 7, 4) == [6]
    assert blocks(selector, 1, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="at least one block"):
        blocks(selector, 2, 0)


def test_blocks_draw_from_best_of_n() -> None:
    law = np.zeros((2, 4))  # of the first and of the second block, over all reservoirs of 5
    for drawn in product(range(4), repeat=5):
        for which, i in enumerate(blocks(SELECTOR[list(drawn)], 2, 2)):
            law[which, drawn[i]] += math.prod(PROBABILITY[list(drawn)])
    assert law[0] == pytest.approx(law_by_draws(PROBABILITY, SELECTOR, 2))
    assert law[1] == pytest.approx(law[0])


# --- discrete worlds


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_law_is_that_of_all_draws(n: int) -> None:
    for probability, selector in [(PROBABILITY, SELECTOR), *worlds(0, 6, 4, 3)]:
        law = law_by_draws(probability, selector, n)
        assert exact_policy(probability, selector, n) == pytest.approx(law, abs=1e-12)
        assert exact_expected(probability, selector, VALUES, n) == pytest.approx(np.dot(law, VALUES))
        kl = sum(pi * math.log(pi / p) for pi, p in zip(law, probability, strict=True) if pi > 0)
        assert exact_kl(probability, selector, n) == pytest.approx(kl, abs=1e-12)


def test_an_impossible_outcome_is_never_the_best() -> None:
    probability, selector = np.array([0.5, 0.0, 0.5, 0.0]), np.array([0.0, 3.0, 1.0, 1.0])
    assert exact_policy(probability, selector, 2) == pytest.approx([1 / 4, 0, 3 / 4, 0])
    assert exact_kl(probability, selector, 2) == pytest.approx(math.log(0.5) / 4 + 3 * math.log(1.5) / 4)
    # many draws: the best possible, at -log of its mass
    assert exact_policy(probability, selector, 10**6).tolist() == [0, 0, 1, 0]
    assert exact_kl(probability, selector, 10**6) == pytest.approx(LN2)


def test_rounded_probabilities_do_not_grow_with_n() -> None:
    # a sum of 1 - 5e-7 to the power of n would lose two fifths
    probability = PROBABILITY * (1 - 5e-7)
    assert exact_policy(probability, SELECTOR, 10**6) == pytest.approx([1 / 3, 0, 2 / 3, 0])
    assert exact_kl(probability, SELECTOR, 10**6) == pytest.approx(-math.log(0.3), abs=1e-5)


def test_a_world_of_one_level_stays_the_reference() -> None:
    assert exact_policy(PROBABILITY, np.ones(4), 7) == pytest.approx(PROBABILITY)
    assert exact_kl(PROBABILITY, np.ones(4), 7) == pytest.approx(0, abs=1e-12)


def test_a_reference_sums_to_1() -> None:
    for bad in (np.array([0.5, 0.4]), np.array([1.5, -0.5]), np.array([math.nan, 1.0])):
        with pytest.raises(ValueError, match="sum to 1"):
            exact_policy(bad, np.arange(2.0), 2)
    with pytest.raises(ValueError, match="at least 1"):
        exact_kl(PROBABILITY, SELECTOR, 0)


# --- bounds


def test_bounds_by_hand() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(LN2 - 1 / 2)
    # n = 2, mass 1/2: a quarter of (ln 2 - ln 2 - 1/2), three quarters of ln(3/2)
    assert kl_bound_atom(2, np.array([0.5])) == pytest.approx([-1 / 8 + 3 / 4 * math.log(1.5)])
    with pytest.raises(ValueError, match="at least 1"):
        kl_bound(0)
    for mass in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"within 0\.\.1"):
            kl_bound_atom(2, np.array([mass]))


def test_bounds_lie_above_the_exact_kl() -> None:
    for outcomes, levels in ((2, 2), (5, 3), (8, 100)):
        for probability, selector in worlds(levels, 100, outcomes, levels):
            atom = np.minimum(probability[selector == selector.max()].sum(keepdims=True), 1.0)
            for n in (1, 2, 3, 4, 16, 256, 4096):
                with_atom = kl_bound_atom(n, atom).item()
                assert exact_kl(probability, selector, n) <= with_atom + 1e-9
                assert with_atom <= kl_bound(n) + 1e-9


@pytest.mark.parametrize("atom", [0.0, 0.02, 0.4])
@pytest.mark.parametrize("n", [2, 8, 64])
def test_bounds_are_reached_where_nothing_else_ties(atom: float, n: int) -> None:
    fine = 200_000
    probability = np.append(np.full(fine, (1 - atom) / fine), atom)
    assert kl_bound_atom(n, np.array([atom])) == pytest.approx(
        [exact_kl(probability, np.arange(fine + 1.0), n)], abs=1e-3
    )


@pytest.mark.parametrize("n", [1, 2, 64, 4096])
def test_an_atom_lowers_the_bound_down_to_0(n: int) -> None:
    mass = np.concatenate([[0.0, 5e-324, 1e-300, 1e-16], np.geomspace(1e-12, 0.999, 300), [1 - 1e-16, 1.0]])
    bound = kl_bound_atom(n, mass)
    assert bound[:4] == pytest.approx(kl_bound(n), abs=1e-9)
    assert bound[-1] == 0
    assert (np.diff(bound) <= 1e-9).all()
    assert kl_bound_atom(n, np.array([[0.3, 1.0]])).shape == (1, 2)


def test_top_mass_is_the_share_of_the_best() -> None:
    assert top_mass(np.array([[1.0, 3.0, 3.0, 0.0], [1.0, 2.0, 3.0, 4.0], [5.0] * 4])).tolist() == [0.5, 0.25, 1.0]


def test_a_top_mass_without_an_atom_costs_the_bound_little() -> None:
    for size in (2, 3, 16, 256, 4096):
        gaps = [kl_bound(n) - kl_bound_atom(n, np.array([1 / size])).item() for n in range(1, size + 1)]
        assert min(gaps) > -1e-9
        assert max(gaps) < 0.03
