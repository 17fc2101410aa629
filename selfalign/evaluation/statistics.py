"""Means and paired differences with intervals; no number without one.

| values                     | mean: interval  | paired difference: interval | p-value          |
| -------------------------- | --------------- | --------------------------- | ---------------- |
| 0 and 1                    | Wilson score    | Tango's score interval      | exact McNemar    |
| numbers, 20 or more        | BCa bootstrap   | BCa bootstrap               | sign flips       |
| numbers, 2 to 19           | Student's t     | Student's t                 | sign flips       |
| numbers, all the same      | that number     | that number                 | sign flips       |
| a single number            | none            | none                        | 1                |
| nothing                    | none            | none                        | none             |

Several answers to one item are no new items: they form a cluster. Of 0 and 1, the counts are
divided by the design effect (the variance of the clustered mean over that of independent answers,
between 1 and the answers per item; Rao and Scott 1992, Biometrics 48, 577-585) before the same
intervals are taken; of numbers, each item counts with its mean.

Score intervals for 0 and 1 because they keep their width when every item agrees: a bootstrap of
three equal differences has width zero, and a gate would believe it. Intervals are two-sided and
everything is deterministic: the random ones are seeded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy  # its modules load at their first use: a second that most stages spare

# Bootstrap intervals of few values are too narrow (Hesterberg 2015, arXiv 1411.5279, on
# narrowness bias); where few ends is this project's choice.
MIN_BOOTSTRAP_ITEMS = 20
_RESAMPLES_AT_ONCE = 256  # bounds memory; resampling 10,000 items takes 20 MB

Method = Literal["wilson", "score", "bca", "t", "constant", "none"]
_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` items; None where there is nothing to say it from."""

    n: int
    mean: float | None
    low: float | None
    high: float | None
    method: Method


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of (subject - against) over `n` items that both have.

    Attributes:
        wins: items where the subject's value is higher.
        losses: items where it is lower.
        p_value: two-sided, of no difference.
    """

    n: int
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    wins: int
    losses: int
    method: Method


def proportion(values: Sequence[Sequence[float]], *, confidence: float) -> Estimate:
    """Share of ones among each item's values of 0 and 1, with the Wilson score interval."""
    if not values:
        return Estimate(0, None, None, None, "none")
    everything = _flat(values)
    share = float(everything.mean())
    n = everything.size / _design_effect(everything, _sizes(values))
    return Estimate(len(values), share, *_wilson(share, n, confidence), "wilson")


def _wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = -float(scipy.special.ndtri((1 - confidence) / 2))
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)


def mean(
    values: Sequence[float], *, confidence: float, bootstrap_samples: int, seed: int
) -> Estimate:
    """Mean of numbers, with the interval the table above names."""
    vector = np.asarray(values, dtype=np.float64)
    if not vector.size:
        return Estimate(0, None, None, None, "none")
    low, high, method = _interval_of_mean(vector, confidence, bootstrap_samples, seed)
    return Estimate(vector.size, float(vector.mean()), low, high, method)


def paired_difference(
    subject: Sequence[Sequence[float]],
    against: Sequence[Sequence[float]],
    *,
    binary: bool,
    confidence: float,
    bootstrap_samples: int,
    seed: int,
) -> Difference:
    """Mean difference of two equally long sequences, item by item and answer beside answer.

    `n`, `wins` and `losses` count items, by their means.

    Args:
        binary: whether all values are 0 or 1.
    """
    if not subject:
        return Difference(0, None, None, None, None, 0, 0, "none")
    ours, theirs, sizes = _flat(subject), _flat(against), _sizes(subject)
    everything = ours - theirs
    low: float | None
    high: float | None
    method: Method
    if binary:
        means = _sums(everything, sizes) / sizes
        effect = _design_effect(everything, sizes)
        ahead, behind = (everything > 0).sum() / effect, (everything < 0).sum() / effect
        low, high = score_interval(ahead, behind, everything.size / effect, confidence)
        method = "score"
    else:
        means = _sums(ours, sizes) / sizes - _sums(theirs, sizes) / sizes
        low, high, method = _interval_of_mean(means, confidence, bootstrap_samples, seed)
    wins, losses = int((means > 0).sum()), int((means < 0).sum())
    if binary and everything.size == means.size:
        p_value = mcnemar(wins, losses)
    else:
        p_value = _sign_flip_p_value(means, bootstrap_samples, seed)
    return Difference(means.size, float(means.mean()), low, high, p_value, wins, losses, method)


def _flat(items: Sequence[Sequence[float]]) -> _Vector:
    return np.fromiter(chain.from_iterable(items), np.float64)


def _sizes(items: Sequence[Sequence[float]]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(len, items), np.int64, len(items))


def _sums(values: _Vector, sizes: npt.NDArray[np.int64]) -> _Vector:
    """Of the values of each item, which stand one item after the other."""
    sums: _Vector = np.add.reduceat(values, np.cumsum(sizes) - sizes)
    return sums


def _design_effect(values: _Vector, sizes: npt.NDArray[np.int64]) -> float:
    """How many times wider the variance of the mean is than that of independent values."""
    most = values.size / sizes.size
    independent = float(values.var()) / values.size
    if most == 1 or independent == 0 or sizes.size == 1:
        return most
    clustered = float((_sums(values - values.mean(), sizes) ** 2).sum()) / values.size**2
    clustered *= sizes.size / (sizes.size - 1)
    return min(max(clustered / independent, 1.0), most)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value as it counts among all of them (Holm 1979, Scandinavian J. of Statistics 6)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value: among the items that differ, a win is as likely as a loss."""
    return min(1.0, 2 * float(scipy.special.bdtr(min(wins, losses), wins + losses, 0.5)))


def score_interval(wins: float, losses: float, n: float, confidence: float) -> tuple[float, float]:
    """Interval of P(win) - P(loss) from `n` > 0 independent pairs; the rest are ties. Counts need
    not be whole: those of clusters are divided by their design effect.

    Inverts the score test of each possible difference (Tango 1998, Statistics in Medicine 17,
    891-908): never of width zero, never outside [-1, 1].
    """
    z = -float(scipy.special.ndtri((1 - confidence) / 2))
    return _score_limit(wins, losses, n, z), 0.0 - _score_limit(losses, wins, n, z)


def _score_limit(wins: float, losses: float, n: float, z: float) -> float:
    """The lower limit. In the three corners the equation has a closed form, and a false root."""
    if losses == n:
        return -1.0
    if wins == n:
        return (n - z * z) / (n + z * z)
    if wins == losses == 0:
        return -z * z / (n + z * z)

    def excess(delta: float) -> float:
        # The loss probability that fits best when the difference is `delta`.
        a, b = 2 * n, (2 * n - wins + losses) * delta - wins - losses
        c = -losses * delta * (1 - delta)
        loss = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * loss + delta * (1 - delta))
        return wins - losses - n * delta - z * math.sqrt(max(variance, 0.0))

    return float(scipy.optimize.brentq(excess, -1.0, (wins - losses) / n, xtol=1e-12))


def _interval_of_mean(
    values: _Vector, confidence: float, bootstrap_samples: int, seed: int
) -> tuple[float | None, float | None, Method]:
    if values.size == 1:
        return None, None, "none"
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0]), "constant"
    if values.size >= MIN_BOOTSTRAP_ITEMS:
        low, high = _bootstrap(values, confidence, bootstrap_samples, seed)
        if math.isfinite(low) and math.isfinite(high):
            return low, high, "bca"
    half = scipy.stats.t.isf((1 - confidence) / 2, values.size - 1) * scipy.stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half), "t"


def _bootstrap(
    values: _Vector, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # One odd item among equal ones defeats the acceleration; t takes over then.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        interval = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=resamples,
            confidence_level=confidence,
            method="BCa",
            batch=_RESAMPLES_AT_ONCE,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def _sign_flip_p_value(differences: _Vector, resamples: int, seed: int) -> float:
    """Two-sided: were subject and opponent interchangeable, every sign could be the other."""
    if differences.size == 1 or not differences.any():
        return 1.0
    result = scipy.stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        batch=_RESAMPLES_AT_ONCE,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
