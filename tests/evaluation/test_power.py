"""What a gate can see is said before training, and is true."""

from __future__ import annotations

import random

import pytest

from selfalign.config import GateRule, PromoteConfig
from selfalign.evaluation.power import CHANGED_SHARE, POWER, SAMPLES_CORRELATION, plan_rules
from selfalign.evaluation.scores import ALIGNED
from selfalign.evaluation.statistics import paired_difference, score_interval


def planned(items: int, margin: float, confidence: float = 0.9):  # type: ignore[no-untyped-def]
    rule = GateRule(metric=ALIGNED, against="promoted", min_difference=margin)
    config = PromoteConfig(rules=[rule], guards=None)
    (row,) = plan_rules(config, {ALIGNED: items}, ["heldout"], confidence)
    return row


def test_the_smallest_number_of_items_that_identical_answers_can_pass_with_is_right() -> None:
    assert "it takes 189 " in f"{planned(100, -0.02, 0.95).warning} "
    for items, passes in ((188, False), (189, True)):
        low, _ = score_interval(0, 0, items, 0.95)
        assert (low > -0.02) is passes
        assert (planned(items, -0.02, 0.95).warning is None) is passes


def test_a_rule_that_no_answers_could_satisfy_is_said_to_be_so() -> None:
    assert "can never pass with 3 items" in planned(3, 0.5).warning


def test_bounds_that_nothing_can_be_within_are_refused_or_told() -> None:
    rule = GateRule(metric=ALIGNED, at_least=1.5)
    (row,) = plan_rules(PromoteConfig(rules=[rule], guards=None), {ALIGNED: 9}, ["heldout"], 0.9)
    assert row.warning == "can never pass: a share is between 0 and 1"
    with pytest.raises(ValueError, match="min_ratio 2 is above max_ratio 1"):
        GateRule(metric=ALIGNED, against="base", min_ratio=2, max_ratio=1)


def test_several_answers_to_an_item_show_smaller_differences_as_it_says() -> None:
    items, samples, margin = 200, 3, -0.03
    rule = GateRule(metric=ALIGNED, against="promoted", min_difference=margin)
    config = PromoteConfig(rules=[rule], guards=None)
    (row,) = plan_rules(config, {ALIGNED: items}, ["heldout"], 0.9, samples)
    difference = row.passes_from
    assert difference is not None
    assert difference < planned(items, margin).passes_from - 0.01
    draw = random.Random(7)

    def value() -> int:
        each = draw.random()
        return (each < (0.1 + difference) / 2) - ((0.1 + difference) / 2 <= each < 0.1)

    passed, nights = 0, 200
    for _ in range(nights):
        changes = []
        for _ in range(items):
            common = value()  # of the item; an answer has it in place of its own half the time
            # for a correlation of 0.5 between two answers each has it with probability sqrt(0.5)
            changes.append(
                [common if draw.random() < SAMPLES_CORRELATION**0.5 else value() for _ in range(3)]
            )
        found = paired_difference(
            [[float(change > 0) for change in each] for each in changes],
            [[float(change < 0) for change in each] for each in changes],
            binary=True, confidence=0.9, bootstrap_samples=1, seed=0,
        )  # fmt: skip
        assert found.low is not None
        passed += found.low > margin
    assert passed / nights == pytest.approx(POWER, abs=0.09)


@pytest.mark.parametrize(("items", "margin"), [(420, -0.03), (420, 0.0), (35, -0.3)])
def test_a_rule_passes_in_as_many_nights_as_it_says(items: int, margin: float) -> None:
    difference = planned(items, margin).passes_from
    changed = max(CHANGED_SHARE, abs(difference))
    rng = random.Random(7)
    passed = 0
    for _ in range(600):
        drawn = [rng.random() for _ in range(items)]
        wins = sum(each < (changed + difference) / 2 for each in drawn)
        losses = sum((changed + difference) / 2 <= each < changed for each in drawn)
        passed += score_interval(wins, losses, items, 0.9)[0] > margin
    assert passed / 600 == pytest.approx(POWER, abs=0.08)
