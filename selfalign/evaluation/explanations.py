"""A rule's outcome in sentences, each with its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from selfalign.config import GateRule
from selfalign.evaluation import scores
from selfalign.evaluation.pairwise import OrderBias
from selfalign.evaluation.refusal_judge import LOW_AGREEMENT, disputed
from selfalign.evaluation.scores import metric_name
from selfalign.evaluation.summary import Comparison, EvaluationSummary, MetricSummary

SUBJECT = "final"


def short(rule: GateRule) -> str:
    """How a list of failures names a rule."""
    return rule.metric if rule.against is None else f"{rule.metric} against {rule.against}"


def bounds(rule: GateRule) -> str:
    """What a rule asks for, in short."""
    parts = []
    if (low := rule.min_difference) is not None:
        parts.append("better" if low == 0 else f"above {low:+g}")
    for name, value in (
        ("below {:+g}", rule.max_difference),
        ("at least {:g} times", rule.min_ratio),
        ("at most {:g} times", rule.max_ratio),
        ("at least {:g}", rule.at_least),
        ("at most {:g}", rule.at_most),
    ):
        if value is not None:
            parts.append(name.format(value))
    return ", ".join(parts)


def absolute(rule: GateRule, found: MetricSummary) -> str:
    """Of a bound on the final model's own mean."""
    assert found.mean is not None
    return (
        f"{metric_name(found.metric, found.kind)}: {found.model} {found.mean:.3f} on "
        f"{_items(found.n)}, {_floor_and_ceiling(rule, found.mean)}."
    )


def _floor_and_ceiling(rule: GateRule, mean: float) -> str:
    parts = []
    if rule.at_least is not None:
        side = "within" if mean >= rule.at_least else "below"
        parts.append(f"{side} its floor of {rule.at_least:g}")
    if rule.at_most is not None:
        side = "within" if mean <= rule.at_most else "above"
        parts.append(f"{side} its ceiling of {rule.at_most:g}")
    return " and ".join(parts)


def compared(rule: GateRule, found: Comparison, confidence: float, noise: float | None) -> str:
    """Of a bound on a paired difference or a ratio."""
    sentences = [_means(rule, found)]
    if found.low is None or found.high is None:
        sentences.append("One item gives no interval; many more are needed.")
    elif rule.min_difference is not None or rule.max_difference is not None:
        sentences += [_interval(confidence, found), _missed(rule, found) or _reached(rule)]
    if rule.min_ratio is not None or rule.max_ratio is not None:
        sentences.append(_ratio(rule, found))
    if (rule.at_least, rule.at_most) != (None, None):
        assert found.subject_mean is not None
        sentences.append(f"{SUBJECT} is {_floor_and_ceiling(rule, found.subject_mean)}.")
    if noise is not None:
        sentences.append(f"The promoted model, scored twice, differs from itself by {noise:+.3f}.")
    return " ".join((*sentences, *_left_out(rule, found)))


def judged(summary: EvaluationSummary) -> list[str]:
    """What the judge found, and how far it can be believed."""
    if summary.judge is None:
        return []
    told = [sentence for bias in summary.judge.orders for sentence in _judged(summary, bias)]
    if (found := summary.metric(scores.JUDGE, scores.AGREEMENT)) and found.mean is not None:
        chance = summary.judge.kappa
        told.append(
            f"It agrees with people on {found.mean:.0%} of {found.n} labelled pairs"
            + ("." if chance is None else f" (Cohen's kappa {chance:.2f}).")
        )
    return [*told, *_refusals(summary)]


def _refusals(summary: EvaluationSummary) -> Iterator[str]:
    """Who decides which answers refuse, and how far the other agrees, model by model."""
    rows = [
        row
        for row in summary.metrics
        if (row.metric, row.kind) == (scores.REFUSAL_AGREEMENT, None) and row.mean is not None
    ]
    if summary.judge is None or not rows:
        return
    decides, other = (
        ("judge", "wording") if summary.judge.refusals == "judge" else ("wording", "judge")
    )
    shares = ", ".join(f"{row.model} {row.mean:.0%} of {row.n}" for row in rows)
    yield f"Whether an answer refuses is decided by the {decides}; the {other} agrees on: {shares}."
    if torn := disputed(summary):
        yield (
            f"That is below {LOW_AGREEMENT:.0%} for {', '.join(row.model for row in torn)}: one of "
            "the two is wrong there, so read some of these answers before you trust the refusals."
        )


def _judged(summary: EvaluationSummary, bias: OrderBias) -> Iterator[str]:
    found, alike, length = (
        summary.comparison(SUBJECT, bias.against, name)
        for name in (scores.WIN_RATE, scores.WIN_RATE_SAME_LENGTH, scores.LENGTH_WORDS)
    )
    if found is None or found.subject_mean is None:
        return
    said = f"Against {bias.against} the judge gives {SUBJECT} a win rate of {_rate(found)}"
    said += f": {found.wins} wins, {found.losses} losses on {_items(found.n)}."
    if alike is not None and alike.subject_mean is not None:
        said += f" Among answers of about the same length it is {_rate(alike)}."
    if length is not None and length.difference is not None:
        said += f" Its answers differ by {length.difference:+.1f} words in the mean."
    yield said
    if bias.disagree is not None:
        lean = "" if bias.chose_a is None else f', of these for "A" both times {bias.chose_a:.0%}'
        yield (
            f"The two orders of showing them disagree in {bias.disagree:.0%} of {bias.asked} "
            f"pairs that differ{lean}. Each of these is a tie."
        )
    rows = [
        (row.subject_mean, row)
        for row in summary.comparisons
        if (row.subject, row.against, row.metric)
        == (SUBJECT, bias.against, scores.WIN_RATE_PRINCIPLE)
        and row.kind is not None
        and row.subject_mean is not None
    ]
    if rows:
        rows.sort(key=lambda each: each[0])
        rates = "; ".join(f"{row.kind} {_rate(row)} of {row.n}" for _, row in rows)
        yield f"By principle, the lowest win rate against {bias.against} first: {rates}."


def _rate(found: Comparison) -> str:
    """A win rate with its interval, from the interval of P(win) - P(loss)."""
    if found.low is None or found.high is None:
        return f"{found.subject_mean:.3f}"
    low, high = (1 + found.low) / 2, (1 + found.high) / 2
    return f"{found.subject_mean:.3f} [{low:.3f}, {high:.3f}]"


def _items(n: int) -> str:
    return f"{n} item{'' if n == 1 else 's'}"


def _means(rule: GateRule, found: Comparison) -> str:
    digits = 1 if found.metric == scores.LENGTH_WORDS else 3
    return (
        f"{metric_name(found.metric, found.kind)}: {SUBJECT} {found.subject_mean:.{digits}f}, "
        f"{rule.against} {found.against_mean:.{digits}f} on {_items(found.n)}, "
        f"a difference of {found.difference:+.{digits}f}."
    )


def _interval(confidence: float, found: Comparison) -> str:
    return (
        f"Its {confidence * 100:g}% interval is [{found.low:+.4f}, {found.high:+.4f}] "
        f"(p = {found.p_value:.2g})."
    )


def _reached(rule: GateRule) -> str:
    claims = []
    if (low := rule.min_difference) is not None:
        claim = f"not worse by {-low:g} or more" if low < 0 else f"better by more than {low:g}"
        claims.append(f"Its lower end is above {low:g}: {'better' if low == 0 else claim}.")
    if (high := rule.max_difference) is not None:
        claims.append(f"Its upper end is below {high:g}: not more by {high:g}.")
    return " ".join(claims)


def _missed(rule: GateRule, found: Comparison) -> str:
    """Which end of the interval misses its bound; nothing where both hold."""
    assert found.difference is not None
    assert found.low is not None
    assert found.high is not None
    if rule.min_difference is not None and not found.low > rule.min_difference:
        said = f"Its lower end is not above {rule.min_difference:g}"
        room, half = found.difference - rule.min_difference, found.difference - found.low
    elif rule.max_difference is not None and not found.high < rule.max_difference:
        said = f"Its upper end is not below {rule.max_difference:g}"
        room, half = rule.max_difference - found.difference, found.high - found.difference
    else:
        return ""
    if room <= 0:
        return f"{said}, and neither is the difference itself: more items would not help."
    # An interval narrows with the square root of the number of items.
    factor = min(half / room, 1e9)  # the room may be as small as a rounding error
    needed = max(math.ceil(found.n * factor**2), found.n + 1)
    return f"{said}: too uncertain. A difference of this size would need roughly {_items(needed)}."


def _ratio(rule: GateRule, found: Comparison) -> str:
    low = "" if rule.min_ratio is None else f"at least {rule.min_ratio:g}"
    high = "" if rule.max_ratio is None else f"at most {rule.max_ratio:g}"
    bounds = " and ".join(filter(None, (low, high)))
    if not found.against_mean:
        return f"{rule.against} has the mean 0, so no ratio can be taken; it must be {bounds}."
    assert found.subject_mean is not None
    ratio = found.subject_mean / found.against_mean
    return f"That is {ratio:.2f} times as much; it must be {bounds}."


def _left_out(rule: GateRule, found: Comparison) -> tuple[str, ...]:
    if not found.only_subject and not found.only_against:
        return ()
    return (
        f"Left out: {found.only_subject} scored for {SUBJECT} only and {found.only_against} for "
        f"{rule.against} only.",
    )
