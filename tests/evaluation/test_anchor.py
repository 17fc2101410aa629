"""The anchor moves to a model that is better for sure, and to no other."""

from __future__ import annotations

import math

from selfalign.evaluation.anchor import ALPHA, surpasses_anchor
from selfalign.evaluation.scores import ALIGNED, ItemScore
from selfalign.evaluation.statistics import mcnemar
from selfalign.evaluation.summary import EvaluationSummary, summarise


def evaluation(wins: int, losses: int, n: int = 100, against: str = "anchor") -> EvaluationSummary:
    def scores(ones: range) -> list[ItemScore]:
        return [ItemScore(f"i{k}", ALIGNED, None, float(k in ones), 1, "") for k in range(n)]

    final, other = scores(range(wins)), scores(range(wins, wins + losses))
    return summarise({"final": final, against: other}, comparisons=[("final", against)])


def test_a_clear_gain_moves_the_anchor_and_a_lucky_one_does_not() -> None:
    assert surpasses_anchor(evaluation(20, 2), 1)
    assert not surpasses_anchor(evaluation(12, 8), 1)
    assert not surpasses_anchor(evaluation(2, 20), 1)
    assert surpasses_anchor(evaluation(20, 2, against="promoted"), 1)


def test_the_level_shrinks_with_every_promotion_and_adds_up_to_alpha() -> None:
    one_sided = mcnemar(14, 4) / 2
    spent = [ALPHA * 6 / (math.pi * k) ** 2 for k in range(1, 5000)]
    assert sum(spent) < ALPHA
    assert sum(spent) > 0.99 * ALPHA
    last = max(k for k, level in enumerate(spent, start=1) if one_sided < level)
    assert surpasses_anchor(evaluation(14, 4), last)
    assert not surpasses_anchor(evaluation(14, 4), last + 1)
