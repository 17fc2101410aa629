from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from selfalign.evaluation.statistics import (
    MIN_BOOTSTRAP_ITEMS,
    Difference,
    Estimate,
    mcnemar,
    mean,
    paired_difference,
    proportion,
    score_interval,
)

PROPERTY = settings(deadline=None, derandomize=True)
Z = 1.959963984540054


def difference(subject, against, *, binary: bool = False, seed: int = 0) -> Difference:
    ours, theirs = ([[value] for value in values] for values in (subject, against))
    return paired_difference(
        ours, theirs, binary=binary, confidence=0.95, bootstrap_samples=500, seed=seed
    )


def estimate(values, *, seed: int = 0) -> Estimate:
    return mean(values, confidence=0.95, bootstrap_samples=500, seed=seed)


# Nothing, one, all the same


def test_nothing_has_no_mean_and_no_interval() -> None:
    assert estimate([]) == Estimate(0, None, None, None, "none")
    assert proportion([], confidence=0.95) == Estimate(0, None, None, None, "none")
    assert difference([], []) == Difference(0, None, None, None, None, 0, 0, "none")


def test_one_number_has_a_mean_and_no_interval() -> None:
    assert estimate([7.0]) == Estimate(1, 7.0, None, None, "none")
    assert difference([7.0], [4.5]) == Difference(1, 2.5, None, None, 1.0, 1, 0, "none")


def test_one_win_leaves_nearly_everything_open() -> None:
    found = difference([1], [0], binary=True)
    assert found.low is not None
    assert found.low < -0.5
    assert (found.difference, found.high, found.p_value) == (1.0, 1.0, 1.0)


def test_equal_numbers_are_constant_and_never_a_warning() -> None:
    assert estimate([3.0] * 40) == Estimate(40, 3.0, 3.0, 3.0, "constant")
    assert difference([2.0] * 40, [2.0] * 40) == Difference(
        40, 0.0, 0.0, 0.0, 1.0, 0, 0, "constant"
    )


def test_one_odd_number_among_equal_ones_still_has_an_interval() -> None:
    for odd in (1.0, 1e-300):
        found = estimate([0.0] * 30 + [odd])
        assert found.low is not None
        assert found.high is not None
        assert found.low <= odd / 31 <= found.high


# Proportions


@pytest.mark.parametrize(("ones", "n"), [(0, 10), (10, 10), (7, 10), (1, 1), (83, 240)])
def test_a_proportion_has_wilsons_interval(ones: int, n: int) -> None:
    found = proportion([[1]] * ones + [[0]] * (n - ones), confidence=0.95)
    share = ones / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    assert found.mean == share
    assert found.low == pytest.approx(max(centre - half, 0), abs=1e-12)
    assert found.high == pytest.approx(min(centre + half, 1), abs=1e-12)


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (9, 1, 2 * (1 + 10) / 1024),
        (3, 3, 1.0),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_is_the_exact_binomial_test_of_discordant_items(
    wins: int, losses: int, expected: float
) -> None:
    assert mcnemar(wins, losses) == pytest.approx(expected)


def profile_statistic(wins: int, losses: int, n: int, delta: float) -> float:
    """The score statistic, its nuisance found by maximising the likelihood numerically."""
    ties = n - wins - losses

    def minus_log_likelihood(loss: float) -> float:
        return -sum(
            count * math.log(max(p, 1e-300))
            for count, p in ((wins, loss + delta), (losses, loss), (ties, 1 - 2 * loss - delta))
            if count
        )

    low, high = max(0.0, -delta), (1 - delta) / 2
    loss = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = n * (2 * loss + delta - delta**2)
    return (wins - losses - n * delta) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("wins", "losses", "n"), [(150, 86, 1600), (9, 3, 40), (1, 0, 44), (5, 4, 9), (0, 7, 30)]
)
def test_the_limits_are_where_the_score_test_just_rejects(wins: int, losses: int, n: int) -> None:
    low, high = score_interval(wins, losses, n, 0.95)
    assert profile_statistic(wins, losses, n, low) == pytest.approx(Z, abs=1e-3)
    assert profile_statistic(wins, losses, n, high) == pytest.approx(-Z, abs=1e-3)


def test_the_limits_have_their_closed_forms_in_the_corners() -> None:
    n, z2 = 12, Z**2
    corner = (n - z2) / (n + z2)
    assert score_interval(12, 0, 12, 0.95) == pytest.approx((corner, 1.0))
    assert score_interval(0, 12, 12, 0.95) == pytest.approx((-1.0, -corner))
    assert score_interval(0, 0, 12, 0.95) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))


def test_three_equal_wins_do_not_look_certain() -> None:
    found = difference([1, 1, 1], [0, 0, 0], binary=True)
    assert found.difference == 1.0
    assert found.low is not None
    assert found.low < 0
    assert found.p_value == 0.25


counts = st.tuples(*[st.integers(0, 60)] * 3).filter(lambda c: sum(c) > 0)


@PROPERTY
@given(counts)
def test_the_score_interval_mirrors_holds_the_difference_and_stays_in_range(
    c: tuple[int, int, int],
) -> None:
    wins, losses, ties = c
    n = wins + losses + ties
    low, high = score_interval(wins, losses, n, 0.95)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert low < high
    assert score_interval(losses, wins, n, 0.95) == pytest.approx((-high, -low), abs=1e-9)


def test_the_score_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    for p_win, p_loss, n in ((0.2, 0.1, 40), (0.05, 0.05, 100), (0.6, 0.05, 25)):
        draws = rng.multinomial(n, [p_win, p_loss, 1 - p_win - p_loss], size=1500)
        rows, repeats = np.unique(draws, axis=0, return_counts=True)
        covered = 0
        for (wins, losses, _), repeat in zip(rows.tolist(), repeats.tolist(), strict=True):
            low, high = score_interval(wins, losses, n, 0.95)
            covered += repeat * (low <= p_win - p_loss <= high)
        # 4 standard errors of 1500 draws are 0.023; discreteness moves the true coverage a little.
        assert 0.92 < covered / 1500 < 0.985


# Numbers


def test_few_numbers_have_students_interval() -> None:
    values = [3.0, 5.0, 4.0, 8.0]
    found = estimate(values)
    # mean 5, variance 14/3, t(3) at 97.5% is 3.18244630528
    half = 3.18244630528 * math.sqrt(14 / 3 / 4)
    assert found.method == "t"
    assert (found.low, found.high) == pytest.approx((5 - half, 5 + half))


def test_two_numbers_close_together_do_not_look_certain() -> None:
    found = difference([0.10, 0.12], [0.0, 0.0])
    assert found.low is not None
    assert found.low < 0


def test_many_numbers_have_a_seeded_bootstrap_near_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(10, 2, 400).tolist()
    found = mean(values, confidence=0.95, bootstrap_samples=4000, seed=1)
    half = Z * float(stats.sem(values))
    assert found.method == "bca"
    assert found.low == pytest.approx(np.mean(values) - half, abs=0.02)
    assert found.high == pytest.approx(np.mean(values) + half, abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(3).exponential(30, 50).tolist()
    assert estimate(values, seed=1) == estimate(values, seed=1)
    assert estimate(values, seed=1) != estimate(values, seed=2)


def test_skewed_lengths_are_covered_as_often_as_the_interval_says() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(300):
        values = rng.exponential(30, 60).tolist()
        found = mean(values, confidence=0.9, bootstrap_samples=300, seed=trial)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 30 <= found.high
    # Nominal 0.9; 3 standard errors of 300 draws are 0.052, and skew costs a little.
    assert 0.83 < covered / 300 < 0.955


def test_the_sign_flip_p_value_is_exact_for_few_items() -> None:
    # All five of one sign: 2 of the 32 sign patterns are as extreme.
    assert difference([1.5, 2.5, 3.5, 4.5, 5.5], [0.0] * 5).p_value == pytest.approx(2 / 32)
    # 1 + 2 - 0.5 = 2.5; as extreme: +++, ++- and their negatives, 4 of 8.
    assert difference([1.0, 2.0, 0.0], [0.0, 0.0, 0.5]).p_value == pytest.approx(4 / 8)


@PROPERTY
@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100)),
        min_size=1,
        max_size=MIN_BOOTSTRAP_ITEMS + 10,
    )
)
def test_exchanging_the_models_negates_the_difference(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    once, again = difference(ours, theirs), difference(theirs, ours)
    assert (once.wins, once.losses, once.n) == (again.losses, again.wins, again.n)
    assert once.difference == pytest.approx(-again.difference, abs=1e-9)
    assert once.p_value == pytest.approx(again.p_value)
    if once.low is None:
        assert again.low is None
    else:
        assert once.low == pytest.approx(-again.high, abs=1e-6)
        assert once.high == pytest.approx(-again.low, abs=1e-6)


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=50))
def test_exchanging_the_models_negates_the_difference_of_proportions(
    pairs: list[tuple[int, int]],
) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    once = difference(ours, theirs, binary=True)
    again = difference(theirs, ours, binary=True)
    assert once.difference == pytest.approx(-again.difference)
    assert (once.low, once.high) == pytest.approx((-again.high, -again.low), abs=1e-9)
    assert once.p_value == pytest.approx(again.p_value)
