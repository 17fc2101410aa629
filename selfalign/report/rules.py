"""The gate's verdict as a picture: each rule's value and interval before the range it allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from selfalign.evaluation.explanations import bounds
from selfalign.evaluation.gate import RuleOutcome, Verdict
from selfalign.evaluation.scores import GUARD, LENGTH_WORDS
from selfalign.report import charts
from selfalign.report.words import signed

_LEAST_REACH = 0.05  # of a scale of differences, so that tiny ones do not look large

Group = Literal["difference", "ratio", "mean", "words"]


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One rule: its name, what it asks, what was measured, and the drawing of both."""

    outcome: RuleOutcome
    asked: str
    measured: str
    chart: Markup


@dataclass(frozen=True, slots=True)
class Panel:
    """Rules on one scale, whose ends it names. One that is `folded` holds those about a part or a
    guard, or without a number, that did not fail."""

    title: str
    ends: tuple[str, str]
    rows: list[RuleRow]
    folded: bool


def panels(verdict: Verdict) -> list[Panel]:
    """The rules by what they compare, each group on a scale of its own; those without a number
    (skipped, not measured) last, without a drawing."""
    groups: dict[tuple[Group, str | None, bool], list[RuleOutcome]] = {}
    for outcome in verdict.reasons:
        name = (_group(outcome), _opponent(outcome), _is_folded(outcome))
        groups.setdefault(name, []).append(outcome)
    order: list[Group] = ["difference", "ratio", "mean", "words"]
    return [
        _panel(*name, groups[name])
        for name in sorted(groups, key=lambda each: order.index(each[0]))
    ]


def _is_folded(outcome: RuleOutcome) -> bool:
    metric = outcome.rule.metric
    detail = _group(outcome) == "words" or metric.startswith(GUARD) or "/" in metric
    return detail and outcome.outcome != "failed"


def _group(outcome: RuleOutcome) -> Group:
    rule = outcome.rule
    if outcome.measured is None and outcome.observed is None:
        return "words"
    if rule.min_difference is not None or rule.max_difference is not None:
        return "difference"
    has_ratio = outcome.measured is not None and outcome.opponent
    if (rule.min_ratio is not None or rule.max_ratio is not None) and has_ratio:
        return "ratio"
    return "mean"


def _opponent(outcome: RuleOutcome) -> str | None:
    return outcome.rule.against if _group(outcome) in ("difference", "ratio") else None


def _panel(group: Group, against: str | None, folded: bool, outcomes: list[RuleOutcome]) -> Panel:
    reach = max(
        [_LEAST_REACH]
        + [
            abs(value)
            for outcome in outcomes
            for value in (
                *(outcome.interval or ()),
                outcome.observed,
                outcome.rule.min_difference,
                outcome.rule.max_difference,
            )
            if value is not None
        ]
    )
    scale, title, ends = {
        "difference": (
            charts.Scale(-reach, reach),
            f"Difference to {against}",
            (signed(-reach, 2), signed(reach, 2)),
        ),
        "ratio": (charts.Scale(0, 2), f"Times as much as {against}", ("0", "2 or more")),
        "mean": (charts.Scale(0, 1), "The final model by itself", ("0", "1")),
        "words": (charts.Scale(0, 1), "Rules without a number", ("", "")),
    }[group]
    return Panel(title, ends, [_row(group, scale, each) for each in outcomes], folded)


def _row(group: Group, scale: charts.Scale, outcome: RuleOutcome) -> RuleRow:
    rule, value, interval = outcome.rule, outcome.observed, outcome.interval
    allowed = (rule.min_difference, rule.max_difference)
    measured = ""
    if group == "difference":
        measured = "" if value is None else signed(value)
        if interval is not None:
            measured += f" ({signed(interval[0])} to {signed(interval[1])})"
    elif group == "ratio":
        assert outcome.measured is not None
        assert outcome.opponent
        value, interval = outcome.measured / outcome.opponent, None
        measured, allowed = f"{value:.2f} times", (rule.min_ratio, rule.max_ratio)
    elif group == "mean":
        value, interval = outcome.measured, None
        allowed = (rule.at_least, rule.at_most)
        digits = 1 if rule.metric == LENGTH_WORDS else 3
        measured = "" if value is None else f"{value:.{digits}f}"
    if outcome.noise is not None:
        measured += f", noise {signed(outcome.noise)}"
    if outcome.items is not None:
        measured += f", {outcome.items:,} items"
    label = f"{rule.metric}: {measured}; must be {bounds(rule)}; {outcome.outcome}"
    chart = Markup("") if group == "words" else charts.strip(scale, label, value, interval, allowed)
    return RuleRow(outcome, bounds(rule), measured, chart)
