"""The promotion gate: is tonight's final model better than the base, not worse than what is
promoted, and free of broken answers?

A rule compares paired intervals with a bound: "better" is a lower end above 0, "not worse by 0.03
or more" a lower end above -0.03. Too few items make an interval wide, and a wide interval fails.
Every rule must hold (an intersection-union test: each at its own level, none to be paid for by
another, so no correction for their number is due).

A rule that could not be measured fails, as does one for which the final model lacks answers that
its opponent has, and says why. Only a rule against a model that does not exist is skipped: nothing
is promoted on the first night. Where the anchor is the promoted model, its rules are against that.
Promotion needs a rule that passed and none that failed. A final model that answers every item as
the promoted one does is no change: a verdict of its own, neither promoted nor a failure.

The anchor bounds what many small losses add up to: it is a model of earlier nights, and the rules
against it do not move when a slightly worse model is promoted (`anchor.py` says when it moves).
"""

from __future__ import annotations

from typing import Literal

from selfalign.config import GateRule, PromoteConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.evaluation import explanations, scores
from selfalign.evaluation.rules import for_each_kind, one_sided, rules_of
from selfalign.evaluation.scores import source_of, split_metric_name
from selfalign.evaluation.summary import Comparison, EvaluationSummary
from selfalign.records import FrozenModel
from selfalign.store.documents import StoredCount

SUBJECT = "final"
# So few equal answers say little about two models; 3 / n bounds the share that would differ.
NO_CHANGE_ITEMS = 50
MISSING_SHARE = 0.02  # of the opponent's items may lack an answer of the final model

Outcome = Literal["passed", "failed", "skipped"]
# rejected: by a person, what the gate had passed (`promote.approval: manual`)
Decision = Literal["promoted", "refused", "no_change", "rejected"]


class RuleOutcome(FrozenModel):
    """What became of one rule.

    Attributes:
        rule: with the metric it was applied to; a rule for each kind has an outcome for each.
        measured: the final model's mean.
        opponent: the mean of the model it is compared with, over the same items.
        observed: the difference of the two, and `interval` its interval.
        items: how many both have.
        noise: the difference that the promoted model has to itself, scored a second time.
        explanation: why, in sentences.
    """

    rule: GateRule
    outcome: Outcome
    measured: float | None = None
    opponent: float | None = None
    observed: float | None = None
    interval: tuple[float, float] | None = None
    items: StoredCount | None = None
    noise: float | None = None
    explanation: str


class Verdict(FrozenModel):
    """Whether to promote, in one sentence, and why, rule by rule."""

    promote: bool
    decision: Decision = "refused"
    explanation: str
    reasons: tuple[RuleOutcome, ...]

    def told(self) -> list[str]:
        """What a person reads first: the verdict, and the rules that failed."""
        failed = [reason.explanation for reason in self.reasons if reason.outcome == "failed"]
        return [self.explanation, *(failed if self.decision == "refused" else ())]


def judge(summary: EvaluationSummary, config: PromoteConfig) -> Verdict:
    """Apply every rule to an evaluation.

    Raises:
        ConfigurationError: a rule names a metric that does not exist.
        DataError: the evaluation holds no comparison of two models it scored.
    """
    reported, summary = summary, summary.deciding
    rules = rules_of(config, summary.tasks or _tasks(summary))
    reasons = tuple(
        _apply(rule, summary)
        for given in _held_to_promoted(rules, summary)
        for rule in _by_kind(given, summary)
    )
    unchanged = unchanged_items(summary) if unchanged_items(reported) is not None else None
    if unchanged is not None and unchanged >= NO_CHANGE_ITEMS:
        return Verdict(
            promote=False,
            decision="no_change",
            explanation="No change: the final model answered all of the "
            f"{unchanged} held-out and multiple-choice items as the promoted model did, so "
            "there is nothing to promote.",
            reasons=reasons,
        )
    decision, explanation = _decide(reasons)
    return Verdict(
        promote=decision == "promoted", decision=decision, explanation=explanation, reasons=reasons
    )


def _tasks(summary: EvaluationSummary) -> list[str]:
    """What an evaluation had data for, where an earlier version did not write it down."""
    sources = (source_of(split_metric_name(name)[0]) or "" for name in summary.metric_names())
    return list(dict.fromkeys(source.removeprefix("evaluate.") for source in sources))


def unchanged_items(summary: EvaluationSummary) -> int | None:
    """How many items the final model and the promoted one answered, where no answer differs; None
    where one does, or nothing was compared."""
    rows = [
        row
        for row in summary.comparisons
        if (row.subject, row.against, row.kind) == (SUBJECT, "promoted", None)
        and row.metric not in scores.JUDGED
    ]
    if not rows or any(row.changed != 0 or row.wins or row.losses for row in rows):
        return None
    items: dict[str, int] = {}
    for row in rows:
        task = source_of(row.metric) or row.metric
        if row.metric.startswith(scores.HARNESS):  # one source, and items of each task
            task = ".".join(row.metric.split(".")[:2])
        items[task] = max(items.get(task, 0), row.n)
    return sum(items.values())


def _decide(reasons: tuple[RuleOutcome, ...]) -> tuple[Decision, str]:
    failed = [reason for reason in reasons if reason.outcome == "failed"]
    passed = [reason for reason in reasons if reason.outcome == "passed"]
    if failed:
        names = ", ".join(dict.fromkeys(explanations.short(reason.rule) for reason in failed))
        return "refused", f"Not promoted: {len(failed)} of {len(reasons)} rules failed: {names}."
    if not reasons:
        return (
            "refused",
            "Not promoted: the gate has no rules, so nothing shows the model is better.",
        )
    if not passed:
        return (
            "refused",
            f"Not promoted: every rule was skipped ({len(reasons)}), so nothing shows the model "
            "is better.",
        )
    skipped = len(reasons) - len(passed)
    return "promoted", f"Promoted: {len(passed)} of {len(reasons)} rules passed, {skipped} skipped."


def _held_to_promoted(rules: tuple[GateRule, ...], summary: EvaluationSummary) -> list[GateRule]:
    """Where the anchor is the promoted model: its rules are against that, except those that are
    asked of it anyway, which stay and are skipped."""
    if "anchor" in summary.models or "promoted" not in summary.models:
        return list(rules)
    moved = (
        rule.model_copy(update={"against": "promoted"}) if rule.against == "anchor" else rule
        for rule in rules
    )
    return [given if rule in rules else rule for given, rule in zip(rules, moved, strict=True)]


def _by_kind(rule: GateRule, summary: EvaluationSummary) -> list[GateRule]:
    lacks_opponent = rule.against is not None and rule.against not in summary.models
    found = [] if lacks_opponent else for_each_kind(rule, summary.metric_names())
    return found or [rule]  # which says why it cannot be applied


def _apply(rule: GateRule, summary: EvaluationSummary) -> RuleOutcome:
    unmeasured = _why_unmeasured(rule, summary)
    if unmeasured is not None:
        return RuleOutcome(rule=rule, outcome="failed", explanation=unmeasured)
    if rule.against is None:
        return _absolute(rule, summary)
    if rule.against not in summary.models:
        return _without_opponent(rule, summary)
    found = summary.comparison(SUBJECT, rule.against, rule.metric)
    if found is None:
        raise DataError(
            f"{rule.metric}: the evaluation scored {', '.join(summary.models)} but holds no "
            f"comparison of {SUBJECT} against {rule.against}",
            remedy="run the stage evaluate again",
        )
    return _compared(rule, summary, found)


def _why_unmeasured(rule: GateRule, summary: EvaluationSummary) -> str | None:
    """A sentence where the final model has no value of the rule's metric.

    Raises ConfigurationError where no evaluation ever could have it.
    """
    measured = summary.metric_names()
    metric, kind = split_metric_name(rule.metric)
    lacks_opponent = rule.against is not None and rule.against not in summary.models
    if metric in measured and kind == "*" and lacks_opponent:
        return None
    if rule.metric not in measured:
        if source_of(metric) is None or (metric in measured and kind != "*"):
            raise ConfigurationError(
                f"promote.rules: unknown metric {rule.metric!r}; measured in this evaluation: "
                f"{', '.join(measured) or 'nothing'}",
                remedy="name one of these; a part of a metric is spelt metric/kind"
                if kind is None or metric in measured
                else "correct the metric's name",
            )
        if metric in measured:
            return f"{rule.metric}: no item has a kind, so there is none to hold to this rule."
        return (
            f"{rule.metric} was not measured: {source_of(metric)} names no data that has it, or "
            "every item of it was set aside. A rule that cannot be measured fails."
        )
    if metric not in scores.JUDGED and summary.metric(_scored(metric), rule.metric) is None:
        return (
            f"{rule.metric} was not measured for {SUBJECT}. A rule that cannot be measured fails."
        )
    why = one_sided(metric, measured)
    return why and f"{metric}: {why}."


def _scored(metric: str) -> str:
    """Whose mean a metric is."""
    return scores.JUDGE if metric == scores.AGREEMENT else SUBJECT


def _without_opponent(rule: GateRule, summary: EvaluationSummary) -> RuleOutcome:
    if rule.against == "base":
        why = f"{rule.metric}: base was not evaluated."
        return RuleOutcome(rule=rule, outcome="failed", explanation=why)
    if rule.against == "anchor" and "promoted" in summary.models:
        why = "the anchor is the promoted model, which another rule holds it to"
    else:
        why = "nothing is promoted yet, so there is nothing to compare with"
    return RuleOutcome(rule=rule, outcome="skipped", explanation=f"{rule.metric}: {why}.")


def _absolute(rule: GateRule, summary: EvaluationSummary) -> RuleOutcome:
    found = summary.metric(_scored(rule.metric), rule.metric)
    assert found is not None
    if found.mean is None:
        why = f"{rule.metric}: no item was scored."
        return RuleOutcome(rule=rule, outcome="failed", explanation=why)
    return RuleOutcome(
        rule=rule,
        outcome="passed" if _within(found.mean, rule.at_least, rule.at_most) else "failed",
        measured=found.mean,
        items=found.n,
        explanation=explanations.absolute(rule, found),
    )


def _compared(rule: GateRule, summary: EvaluationSummary, found: Comparison) -> RuleOutcome:
    if found.difference is None or found.subject_mean is None or found.against_mean is None:
        why = (
            f"{rule.metric}: no item was scored for both {SUBJECT} ({found.only_subject}) and "
            f"{rule.against} ({found.only_against}), so nothing can be compared."
        )
        return RuleOutcome(rule=rule, outcome="failed", explanation=why)
    again = summary.comparison("promoted_again", "promoted", rule.metric)
    noise = None if again is None else again.difference
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    holds = _within(found.subject_mean, rule.at_least, rule.at_most) and _ratio_holds(rule, found)
    if rule.min_difference is not None:
        holds = holds and interval is not None and interval[0] > rule.min_difference
    if rule.max_difference is not None:
        holds = holds and interval is not None and interval[1] < rule.max_difference
    explanation = explanations.compared(
        rule, found, summary.confidence_against(rule.against), noise
    )
    if found.only_against > max(1, MISSING_SHARE * (found.n + found.only_against)):
        holds, explanation = False, f"{explanation} So many missing answers fail a rule."
    return RuleOutcome(
        rule=rule,
        outcome="passed" if holds else "failed",
        measured=found.subject_mean,
        opponent=found.against_mean,
        observed=found.difference,
        interval=interval,
        items=found.n,
        noise=noise,
        explanation=explanation,
    )


def _ratio_holds(rule: GateRule, found: Comparison) -> bool:
    if rule.min_ratio is None and rule.max_ratio is None:
        return True
    assert found.subject_mean is not None
    if not found.against_mean:
        return False
    return _within(found.subject_mean / found.against_mean, rule.min_ratio, rule.max_ratio)


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)
