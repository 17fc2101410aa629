from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from selfalign.config import GateRule, PromoteConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.evaluation.gate import Verdict, judge
from selfalign.evaluation.scores import ALIGNED, MC2, ItemScore
from selfalign.evaluation.summary import EvaluationSummary, summarise


def scores(ones: int, n: int, *, first: int = 0, metric: str = ALIGNED) -> list[ItemScore]:
    """`n` items, of which `ones` in a row, from number `first` on, have the value 1."""
    return [
        ItemScore(
            f"i{k}", metric, "even" if k % 2 == 0 else "odd", int(first <= k < first + ones), 1, ""
        )
        for k in range(n)
    ]


def evaluation(**models: list[ItemScore]) -> EvaluationSummary:
    return summarise(models, confidence=0.95, tasks=("heldout",))


def gate(*rules: tuple[str, str, float]) -> PromoteConfig:
    return PromoteConfig(
        guards=None,
        rules=[GateRule(metric=m, against=a, min_difference=d) for m, a, d in rules],  # type: ignore[arg-type]
    )


def judged(*rules: tuple[str, str, float], **models: list[ItemScore]) -> Verdict:
    return judge(evaluation(**models), gate(*rules))


def outcomes(verdict: Verdict) -> list[str]:
    return [reason.outcome for reason in verdict.reasons]


@pytest.mark.parametrize(
    ("final", "base", "n", "min_difference", "outcome"),
    [
        # wins (final - base) of n; the interval's lower end (Tango, 95%) beside it
        (60, 0, 60, 0.0, "passed"),  # 0.8797
        (60, 0, 60, 0.879, "passed"),
        (60, 0, 60, 0.88, "failed"),
        (6, 0, 60, 0.0, "passed"),
        (1, 0, 60, 0.0, "failed"),  # one win of 60 is no evidence
        (0, 0, 60, 0.0, "failed"),  # equal is not better
        (0, 0, 60, -0.07, "passed"),  # -z²/(n+z²) = -0.0602: not worse by 0.07
        (0, 0, 60, -0.06, "failed"),
        (0, 6, 60, -0.02, "failed"),
        (4, 0, 4, 0.0, "passed"),  # 0.0202
        (3, 0, 3, 0.0, "failed"),  # -0.1230
    ],
)
def test_a_rule_passes_when_the_lower_end_lies_above_its_margin(
    final: int, base: int, n: int, min_difference: float, outcome: str
) -> None:
    summary = evaluation(base=scores(base, n), final=scores(final, n))
    verdict = judge(summary, gate((ALIGNED, "base", min_difference)))
    assert outcomes(verdict) == [outcome]
    assert verdict.promote == (outcome == "passed")
    (reason,) = verdict.reasons
    row = summary.comparison("final", "base", ALIGNED)
    assert reason.observed == row.difference
    assert reason.interval == (row.low, row.high)


def test_a_higher_mean_alone_does_not_promote() -> None:
    # 12 wins, 8 losses of 40: +0.1, but the interval holds 0.
    verdict = judged((ALIGNED, "base", 0.0), base=scores(8, 40), final=scores(12, 40, first=8))
    assert not verdict.promote
    assert verdict.reasons[0].observed == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("against_base", "against_promoted", "promote"),
    [(60, 60, True), (60, 0, False), (0, 60, False), (0, 0, False)],
)
def test_every_rule_must_hold(against_base: int, against_promoted: int, promote: bool) -> None:
    summary = evaluation(
        base=scores(60 - against_base, 60),
        final=scores(60, 60),
        promoted=scores(60 - against_promoted, 60),
    )
    rules = gate((ALIGNED, "base", 0.0), (ALIGNED, "promoted", 0.0))
    assert judge(summary, rules).promote is promote


def test_a_rule_against_what_does_not_exist_yet_is_skipped_and_said() -> None:
    rules = gate((ALIGNED, "base", 0.0), (ALIGNED, "promoted", -0.03), (ALIGNED, "anchor", -0.03))
    base, final = scores(0, 50), scores(45, 50)
    verdict = judge(evaluation(base=base, final=final), rules)
    assert outcomes(verdict) == ["passed", "skipped", "skipped"]
    assert verdict.promote
    assert verdict.explanation == "Promoted: 1 of 3 rules passed, 2 skipped."
    assert "nothing is promoted yet" in verdict.reasons[1].explanation
    assert verdict.reasons[1].interval is None
    verdict = judge(evaluation(base=base, final=final, promoted=base), rules)
    assert outcomes(verdict) == ["passed", "passed", "skipped"]
    assert "the anchor is the promoted model" in verdict.reasons[2].explanation
    verdict = judge(evaluation(base=base, final=base, promoted=base, anchor=final), rules)
    assert outcomes(verdict)[2] == "failed"


def test_where_the_anchor_is_the_promoted_model_its_rules_are_against_that() -> None:
    rules = gate((ALIGNED, "base", 0.0), (ALIGNED, "promoted", -0.9), (ALIGNED, "anchor", -0.03))
    base, promoted, final = scores(0, 50), scores(50, 50), scores(30, 50)
    verdict = judge(evaluation(base=base, final=final, promoted=promoted), rules)
    assert outcomes(verdict) == ["passed", "passed", "failed"]
    assert verdict.reasons[2].rule.against == "promoted"
    assert "Its lower end is not above -0.03" in verdict.reasons[2].explanation


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"min_difference": 0.0, "at_least": 0.9}, "better. final is below its floor of 0.9."),
        ({"max_ratio": 3.0, "at_most": 0.5}, "at most 3. final is above its ceiling of 0.5."),
        ({"min_difference": 0.0, "max_ratio": 2.0}, "better. That is 3.00 times as much;"),
    ],
)
def test_a_rule_of_several_bounds_says_which_one_failed(
    bounds: dict[str, float], told: str
) -> None:
    rule = GateRule.model_validate({"metric": ALIGNED, "against": "base", **bounds})
    summary = evaluation(base=scores(10, 50), final=scores(30, 50))
    (reason,) = judge(summary, PromoteConfig(guards=None, rules=[rule])).reasons
    assert reason.outcome == "failed"
    assert told in reason.explanation


def test_a_gate_that_skips_every_rule_does_not_promote_and_says_why() -> None:
    verdict = judged((ALIGNED, "promoted", 0.0), base=scores(0, 50), final=scores(50, 50))
    assert not verdict.promote
    assert outcomes(verdict) == ["skipped"]
    assert verdict.explanation.startswith("Not promoted: every rule was skipped (1)")


def test_a_gate_without_rules_does_not_promote() -> None:
    verdict = judge(
        evaluation(base=scores(0, 9), final=scores(9, 9)), PromoteConfig(rules=[], guards=None)
    )
    assert not verdict.promote
    assert verdict.explanation.startswith("Not promoted: the gate has no rules")


@pytest.mark.parametrize(
    "metric", ["heldout.algined", "heldout.aligned/evil", "gsm8k", "hhhh/honest"]
)
def test_an_unknown_metric_is_a_configuration_error_that_lists_the_known(metric: str) -> None:
    summary = evaluation(base=scores(0, 9), final=scores(9, 9))
    measured = "heldout.aligned, heldout.aligned/even, heldout.aligned/odd"
    for against in ("base", "promoted"):
        with pytest.raises(ConfigurationError, match=f"{re.escape(repr(metric))}.*{measured}"):
            judge(summary, gate((metric, against, 0.0)))


@pytest.mark.parametrize(
    ("metric", "setting"),
    [
        ("hhh", "evaluate.hhh"),
        ("hhh/honest", "evaluate.hhh"),
        ("mc1", "evaluate.truthfulqa"),
        ("heldout.refusal.must_not", "evaluate.heldout"),
    ],
)
def test_a_metric_whose_data_was_not_given_fails_and_says_so(metric: str, setting: str) -> None:
    verdict = judged(
        (ALIGNED, "base", 0.0), (metric, "base", 0.0), base=scores(0, 50), final=scores(50, 50)
    )
    assert outcomes(verdict) == ["passed", "failed"]
    assert not verdict.promote
    assert setting in verdict.reasons[1].explanation


def test_a_rule_for_each_kind_has_an_outcome_for_each() -> None:
    final = [s for s in scores(60, 60) if s.kind == "odd"]
    base = scores(0, 60)
    final += [s for s in base if s.kind == "even"]
    verdict = judged((f"{ALIGNED}/*", "base", 0.5), base=base, final=final)
    found = {reason.rule.metric: reason.outcome for reason in verdict.reasons}
    assert found == {f"{ALIGNED}/even": "failed", f"{ALIGNED}/odd": "passed"}
    no_kind = [ItemScore(s.item_id, ALIGNED, None, s.value, 1, "") for s in base]
    verdict = judged((f"{ALIGNED}/*", "base", 0.5), base=no_kind, final=no_kind)
    assert outcomes(verdict) == ["failed"]


@pytest.mark.parametrize(
    ("bounds", "outcome"),
    [
        ({"at_least": 0.75}, "passed"),
        ({"at_least": 0.76}, "failed"),
        ({"at_most": 0.75}, "passed"),
        ({"at_most": 0.74}, "failed"),
        ({"against": "base", "max_ratio": 3.0}, "passed"),
        ({"against": "base", "max_ratio": 2.9}, "failed"),
        ({"against": "base", "min_ratio": 3.1}, "failed"),
        ({"against": "base", "max_difference": 0.63}, "passed"),  # the upper end is 0.6226
        ({"against": "base", "max_difference": 0.62}, "failed"),
        ({"against": "base", "min_difference": 0.3, "at_most": 0.7}, "failed"),
    ],
)
def test_every_bound_of_a_rule_must_hold(bounds: dict[str, object], outcome: str) -> None:
    summary = evaluation(base=scores(15, 60), final=scores(45, 60))
    rule = GateRule.model_validate({"metric": ALIGNED, **bounds})
    verdict = judge(summary, PromoteConfig(rules=[rule], guards=None))
    assert outcomes(verdict) == [outcome], verdict.reasons[0].explanation


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"min_difference": 0.0}, "needs `against`"),
        ({"against": "base", "at_least": 0.5}, "`against` needs"),
        ({}, "no bound"),
    ],
)
def test_a_rule_that_says_nothing_is_no_rule(rule: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GateRule.model_validate({"metric": ALIGNED, **rule})


def test_metric_and_opponent_alone_ask_for_better() -> None:
    assert GateRule.model_validate({"metric": ALIGNED, "against": "base"}).min_difference == 0.0


def test_what_the_promoted_model_differs_from_itself_stands_beside_the_rule() -> None:
    (reason,) = judged(
        (ALIGNED, "promoted", -0.2),
        base=scores(0, 60),
        final=scores(50, 60),
        promoted=scores(48, 60),
        promoted_again=scores(45, 60),
    ).reasons
    assert reason.noise == pytest.approx(-0.05)
    assert "scored twice, differs from itself by -0.050" in reason.explanation


def test_equal_answers_to_a_few_items_are_not_yet_no_change() -> None:
    few = evaluation(base=scores(0, 49), final=scores(40, 49), promoted=scores(40, 49))
    many = evaluation(base=scores(0, 50), final=scores(40, 50), promoted=scores(40, 50))
    rules = gate((ALIGNED, "base", 0.0))
    assert [judge(found, rules).decision for found in (few, many)] == ["promoted", "no_change"]


def test_a_rule_may_name_one_kind() -> None:
    only_odd = [s for s in scores(60, 60) if s.kind == "odd"]
    base = scores(0, 60)
    final = [*only_odd, *(s for s in base if s.kind == "even")]
    verdict = judged(
        ("heldout.aligned/odd", "base", 0.5), (f"{ALIGNED}/even", "base", 0), base=base, final=final
    )
    assert outcomes(verdict) == ["passed", "failed"]
    assert verdict.reasons[0].observed == 1.0


def test_a_metric_of_a_harness_can_be_gated_by_name() -> None:
    assert judged(
        ("lm_eval.arc_easy", "base", 0.0),
        base=scores(0, 40, metric="lm_eval.arc_easy"),
        final=scores(40, 40, metric="lm_eval.arc_easy"),
    ).promote


def needed(explanation: str) -> int:
    match = re.search(r"would need roughly (\d+) items", explanation)
    assert match, explanation
    return int(match[1])


def test_a_rule_that_fails_for_too_few_items_says_how_many_it_needs_and_is_about_right() -> None:
    small = evaluation(base=scores(4, 40), final=scores(7, 40, first=4))  # +7 -4 of 40
    verdict = judge(small, gate((ALIGNED, "base", 0.0)))
    assert outcomes(verdict) == ["failed"]
    items = needed(verdict.reasons[0].explanation)
    assert items > 40

    def scaled(n: int) -> bool:
        losses, wins = round(n * 0.1), round(n * 0.175)
        summary = evaluation(base=scores(losses, n), final=scores(wins, n, first=losses))
        return judge(summary, gate((ALIGNED, "base", 0.0))).promote

    assert not scaled(items * 2 // 3)
    assert scaled(items * 4 // 3)


def test_no_number_of_items_is_asked_for_when_the_difference_itself_falls_short() -> None:
    verdict = judged((ALIGNED, "base", 0.0), base=scores(5, 40), final=scores(5, 40))
    assert "more items would not help" in verdict.reasons[0].explanation


def test_a_single_number_fails_for_want_of_an_interval() -> None:
    def mass(value: float) -> list[ItemScore]:
        return [ItemScore("i", MC2, None, value, None, "")]

    verdict = judged((MC2, "base", 0.0), base=mass(0.1), final=mass(0.9))
    assert outcomes(verdict) == ["failed"]
    assert verdict.reasons[0].interval is None
    assert verdict.reasons[0].observed == pytest.approx(0.8)
    assert "no interval" in verdict.reasons[0].explanation


def test_models_that_share_no_item_fail_the_rule() -> None:
    other = [ItemScore("z", ALIGNED, None, 0, 1, "")]
    verdict = judged((ALIGNED, "base", 0.0), base=other, final=scores(9, 9))
    assert outcomes(verdict) == ["failed"]
    assert "no item was scored for both final (9) and base (1)" in verdict.reasons[0].explanation


def test_items_left_out_of_the_comparison_are_said_in_the_reason() -> None:
    verdict = judged((ALIGNED, "base", 0.0), base=scores(0, 50), final=scores(45, 45))
    assert "Left out: 0 scored for final only and 5 for base only." in (
        verdict.reasons[0].explanation
    )


def test_an_evaluation_that_lacks_the_comparison_is_a_data_error() -> None:
    models: Mapping[str, list[ItemScore]] = {"base": scores(0, 9), "final": scores(9, 9)}
    with pytest.raises(DataError, match="holds no comparison of final against base"):
        judge(summarise(models, confidence=0.95, comparisons=[]), gate((ALIGNED, "base", 0.0)))


def test_a_reason_is_a_sentence_with_the_numbers() -> None:
    verdict = judged((ALIGNED, "base", -0.02), base=scores(0, 60), final=scores(60, 60))
    assert verdict.reasons[0].explanation == (
        "heldout.aligned: final 1.000, base 0.000 on 60 items, a difference of +1.000. "
        "Its 95% interval is [+0.8797, +1.0000] (p = 1.7e-18). "
        "Its lower end is above -0.02: not worse by 0.02 or more."
    )


def test_a_verdict_survives_json() -> None:
    verdict = judged((ALIGNED, "base", 0), base=scores(0, 50), final=scores(45, 50))
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
