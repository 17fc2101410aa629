"""What a gate's rules can see with so many items, before anything is trained.

A rule with a margin passes a model whose interval lies above the margin. With few items the
interval of two equal models is wider than the margin, and then the rule refuses nearly everyone;
this says so, and from which true difference on it passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import scipy  # its modules load at their first use: a second that most stages spare

from selfalign.config import GateRule, PromoteConfig
from selfalign.errors import ConfigurationError
from selfalign.evaluation import scores
from selfalign.evaluation.rules import EVERY_KIND, for_each_kind, one_sided, rules_of
from selfalign.evaluation.scores import source_of, split_metric_name
from selfalign.evaluation.statistics import score_interval

CHANGED_SHARE = 0.1  # of the items' values, between two nights: an assumption, said where used
DECIDED_SHARE = 0.5  # of pairs in which a judge prefers one answer in both orders: likewise
SAMPLES_CORRELATION = 0.5  # of the changes in several answers to one item: likewise
POWER = 0.8  # of nights in which a rule passes


@dataclass(frozen=True, slots=True)
class RulePlan:
    """What a rule can see.

    Attributes:
        items: how many items have its metric.
        passes_from: the smallest true difference that passes in POWER of nights, with
            CHANGED_SHARE of the values changed (of a judge: DECIDED_SHARE of the pairs decided);
            None where nothing statistical is asked.
        warning: a sentence where a model that is equal to its opponent could not pass, or none.
    """

    rule: GateRule
    items: int
    passes_from: float | None
    warning: str | None


def plan_rules(
    config: PromoteConfig,
    sizes: Mapping[str, int],
    tasks: Sequence[str],
    confidence: float,
    samples: int = 1,
) -> tuple[RulePlan, ...]:
    """Every rule, one for each kind where it says so.

    Args:
        sizes: items by metric and by metric/kind, as the evaluation files have them.
        tasks: what the configuration gives data for.
        samples: answers to each held-out prompt.

    Raises:
        ConfigurationError: a rule that could not be measured, or, on refusals, only from one side.
    """
    return tuple(
        _plan(rule, sizes[rule.metric], confidence, samples)
        for given in rules_of(config, tasks)
        for rule in _named(given, sizes)
    )


def _named(rule: GateRule, sizes: Mapping[str, int]) -> Iterator[GateRule]:
    metric, kind = split_metric_name(rule.metric)
    if source_of(metric) is None:
        raise ConfigurationError(
            f"promote.rules: unknown metric {rule.metric!r}; known are "
            f"{', '.join(scores.SOURCES)} and harness.<task>.<metric>",
            remedy="name one of these; a part of a metric is spelt metric/kind",
        )
    kinds = [name for name in sizes if name.startswith(f"{metric}/")]
    if not sizes.get(metric):
        raise ConfigurationError(
            f"promote.rules: {rule.metric!r} cannot be measured: {source_of(metric)} has no item "
            "for it, and a rule that cannot be measured fails",
            remedy=_remedy(metric, sizes),
        )
    if why := one_sided(metric, [name for name, items in sizes.items() if items]):
        raise ConfigurationError(
            f"promote.rules: {rule.metric!r}: {why}", remedy="add items with the other `refusal`"
        )
    if rule.metric == metric + EVERY_KIND:
        yield from for_each_kind(rule, sizes)
    elif kind is None or rule.metric in sizes:
        yield rule
    else:
        found = ", ".join(sorted(split_metric_name(name)[1] or "" for name in kinds))
        raise ConfigurationError(
            f"promote.rules: {rule.metric!r}: {source_of(metric)} has no items of kind {kind!r}; "
            f"it has {found or 'no kinds'}",
            remedy="name one of these, or the metric alone",
        )


def _remedy(metric: str, sizes: Mapping[str, int]) -> str:
    if metric in (scores.REFUSAL_MUST, scores.REFUSAL_MUST_NOT):
        return (
            'add items with "refusal": "must" and with "must_not" to it, or list promote.rules '
            "without this one"
        )
    near = [name for name in sizes if name.startswith(scores.HARNESS)]
    if near and metric.startswith(scores.HARNESS):
        return f"its metrics are {', '.join(near)}: name one of these"
    return f"set {source_of(metric)}, or list promote.rules without this one"


def counted_as(items: int, samples: int) -> float:
    """As how many items with one answer each they count, with several answers to an item."""
    return items * samples / (1 + (samples - 1) * SAMPLES_CORRELATION)


def _plan(rule: GateRule, items: int, confidence: float, samples: int) -> RulePlan:
    metric, _ = split_metric_name(rule.metric)
    is_share = metric not in scores.CONTINUOUS and not metric.startswith(scores.HARNESS)
    if is_share and ((rule.at_least or 0) > 1 or (rule.at_most is not None and rule.at_most < 0)):
        return RulePlan(rule, items, None, "can never pass: a share is between 0 and 1")
    if metric in scores.CONTINUOUS or (rule.min_difference is None and rule.max_difference is None):
        return RulePlan(rule, items, None, None)
    z = float(scipy.stats.norm.isf((1 - confidence) / 2))
    if rule.min_difference is None:
        assert rule.max_difference is not None
        bound, passes = -rule.max_difference, None  # of (opponent - final)
    else:
        bound = rule.min_difference
        drawn = samples if source_of(metric) in ("evaluate.heldout", "evaluate.judge") else 1
        share = DECIDED_SHARE if metric in scores.JUDGED else CHANGED_SHARE
        passes = _passes_from(bound, counted_as(items, drawn), confidence, share)
    best = (items - z * z) / (items + z * z)
    warning = None
    if best <= bound:
        warning = f"can never pass with {items} items, whatever the model answers"
    elif bound < 0 and -z * z / (items + z * z) <= bound:
        needed = math.floor(z * z * (1 + bound) / -bound) + 1
        warning = f"even identical answers fail with {items} items; it takes {needed}"
    return RulePlan(rule, items, passes, warning)


def _passes_from(bound: float, items: float, confidence: float, share: float) -> float | None:
    """The true difference at which the lower end lies above `bound` in POWER of nights."""
    spread = float(scipy.stats.norm.ppf(POWER))

    def room(difference: float) -> float:
        changed = max(share, abs(difference))
        wins, losses = items * (changed + difference) / 2, items * (changed - difference) / 2
        low, _ = score_interval(wins, losses, items, confidence)
        error = math.sqrt(max(changed - difference**2, 0.0) / items)
        return low - spread * error - bound

    if room(1.0) <= 0:
        return None
    return float(scipy.optimize.brentq(room, -1.0, 1.0, xtol=1e-4)) if room(-1.0) < 0 else -1.0
