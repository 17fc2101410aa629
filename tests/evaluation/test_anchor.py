"""The anchor moves to a model that is better for sure, and to no other."""

from __future__ import annotations

import math

import pytest

from selfalign.config import GateRule, PromoteConfig
from selfalign.evaluation.anchor import ALPHA, anchor_confidence, surpasses_anchor
from selfalign.evaluation.gate import Verdict, judge
from selfalign.evaluation.scores import ALIGNED, REFUSAL_MUST, ItemScore
from selfalign.evaluation.statistics import mcnemar
from selfalign.evaluation.summary import EvaluationSummary, summarise


def evaluation(
    wins: int,
    losses: int,
    n: int = 100,
    against: tuple[str, ...] = ("anchor",),
    confidence: float | None = None,
) -> EvaluationSummary:
    def scores(ones: range) -> list[ItemScore]:
        return [ItemScore(f"i{k}", ALIGNED, None, float(k in ones), 1, "") for k in range(n)]

    final, other = scores(range(wins)), scores(range(wins, wins + losses))
    return summarise(
        {"final": final, **dict.fromkeys(against, other)},
        confidence=0.9,
        comparisons=[("final", name) for name in against],
        tasks=("heldout",),
        anchor_confidence=confidence,
    )


def test_a_clear_gain_moves_the_anchor_and_a_lucky_one_does_not() -> None:
    assert surpasses_anchor(evaluation(20, 2), 1)
    assert not surpasses_anchor(evaluation(12, 8), 1)
    assert not surpasses_anchor(evaluation(2, 20), 1)
    assert surpasses_anchor(evaluation(20, 2, against=("promoted",)), 1)


def test_a_model_that_did_worse_on_another_score_does_not_become_the_anchor() -> None:
    def against_anchor(refused: int) -> EvaluationSummary:
        def scores(right: int, refused: int) -> list[ItemScore]:
            return [
                ItemScore(f"i{k}", metric, None, float(k < limit), 1, "")
                for metric, limit in ((ALIGNED, right), (REFUSAL_MUST, refused))
                for k in range(60)
            ]

        return summarise(
            {"final": scores(50, refused), "anchor": scores(20, 40)},
            comparisons=[("final", "anchor")],
            tasks=("heldout",),
        )

    assert surpasses_anchor(against_anchor(40), 1)
    assert not surpasses_anchor(against_anchor(39), 1)


def test_each_promotion_since_the_anchor_was_set_widens_the_intervals_against_it() -> None:
    assert anchor_confidence(0.9, 0) == pytest.approx(0.9)
    spent = [(1 - anchor_confidence(0.9, k)) / 2 for k in range(5000)]
    assert spent == sorted(spent, reverse=True)
    assert sum(spent) < 0.05 * math.pi**2 / 6


def test_a_small_loss_passes_close_to_the_anchor_and_not_after_many_promotions() -> None:
    rules = PromoteConfig(
        rules=[
            GateRule(metric=ALIGNED, against=other, min_difference=-0.03)
            for other in ("anchor", "promoted")
        ],
        guards=None,
    )

    def night(promotions: int) -> Verdict:
        confidence = anchor_confidence(0.9, promotions)
        return judge(evaluation(11, 12, 400, ("promoted", "anchor"), confidence), rules)

    assert night(0).promote
    found = night(6)
    assert [reason.outcome for reason in found.reasons] == ["failed", "passed"]
    assert "Its 99.7959% interval is" in found.reasons[0].explanation
    assert "Its 90% interval is" in found.reasons[1].explanation


def test_the_level_shrinks_with_every_promotion_and_adds_up_to_alpha() -> None:
    one_sided = mcnemar(14, 4) / 2
    spent = [ALPHA * 6 / (math.pi * k) ** 2 for k in range(1, 5000)]
    assert sum(spent) < ALPHA
    assert sum(spent) > 0.99 * ALPHA
    last = max(k for k, level in enumerate(spent, start=1) if one_sided < level)
    assert surpasses_anchor(evaluation(14, 4), last)
    assert not surpasses_anchor(evaluation(14, 4), last + 1)
