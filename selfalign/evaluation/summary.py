"""From per-item scores to what the `evaluation` artifact says: means, paired differences.

Two models are compared on the items both were scored on, by item id. An item that only one of
them has is left out of the comparison, counted, and named in `notes`. Several answers to one item
are a cluster: they narrow an interval only as far as they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfalign.errors import DataError
from selfalign.evaluation import statistics
from selfalign.evaluation.pairwise import OrderBias, kappa, order_bias
from selfalign.evaluation.scores import (
    CONTINUOUS,
    JUDGE,
    JUDGED,
    LENGTH_WORDS,
    REFUSAL_AGREEMENT,
    WIN_RATE,
    ItemScore,
    metric_name,
    split_metric_name,
)
from selfalign.records import FrozenModel, record_seed
from selfalign.store.documents import StoredCount

# (subject, against): whom the report and the gate compare, where both were scored.
COMPARISONS: tuple[tuple[str, str], ...] = (
    ("final", "base"),
    ("final", "engraved"),
    ("final", "promoted"),
    ("final", "anchor"),
    ("engraved", "base"),
    ("promoted_again", "promoted"),
)

_Key = tuple[str, str | None]  # metric, kind
_Scored = dict[_Key, dict[str, "_Item"]]  # by item id


@dataclass(slots=True)
class _Item:
    """What one model scored on one item: a value and a text for each answer, by sample."""

    kind: str | None
    values: dict[int, float] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)

    def of(self, samples: Iterable[int]) -> list[float]:
        """The values of these samples."""
        return [self.values[sample] for sample in samples]


# Of what is read from a store: no arithmetic with these overflows.
_Number = Annotated[float, Field(ge=-1e12, le=1e12)]


class MetricSummary(FrozenModel):
    """One model's mean of one metric, overall (`kind` null) or over the items of one kind."""

    model: str
    metric: str
    kind: str | None
    n: StoredCount
    mean: _Number | None
    low: _Number | None
    high: _Number | None
    method: statistics.Method


class Comparison(FrozenModel):
    """Mean of (subject - against) over the `n` items both were scored on.

    `wins` and `losses` count items where the subject's value is higher or lower, `only_subject`
    and `only_against` the items left out because the other side lacks them, `changed` those whose
    text differs (null for a judge's metric). The two means are over the same `n` items. `p_holm`
    is the p-value as it counts among all comparisons of the evaluation.
    """

    subject: str
    against: str
    metric: str
    kind: str | None
    n: StoredCount
    subject_mean: _Number | None
    against_mean: _Number | None
    difference: _Number | None
    low: _Number | None
    high: _Number | None
    p_value: _Number | None
    p_holm: _Number | None = None
    wins: StoredCount
    losses: StoredCount
    only_subject: StoredCount
    only_against: StoredCount
    changed: StoredCount | None = None
    method: statistics.Method

    @model_validator(mode="after")
    def _has_what_an_interval_is_of(self) -> Comparison:
        means = (self.subject_mean, self.against_mean)
        if (self.difference is None) != (None in means):
            raise ValueError("a difference without its two means, or means without it")
        if (self.low is None) != (self.high is None) or (
            self.low is not None and self.difference is None
        ):
            raise ValueError("an interval without one end, or without its difference")
        return self


class JudgeSummary(FrozenModel):
    """How far the judge can be believed: its preference for a place, and, where people labelled
    pairs, Cohen's kappa with them. What it found is among the comparisons, and its agreement with
    the wording on refusals among the metrics; `refusals` is which of these two decides."""

    orders: tuple[OrderBias, ...]
    kappa: float | None = None
    refusals: Literal["judge", "wording"] | None = None


class EvaluationSummary(FrozenModel):
    """What an evaluation found. `confidence` is that of every interval in it but those against the
    anchor, which have `anchor_confidence` where it is set; `tasks` what the configuration gave data
    for, `choosing` the same on the held-out items that the gate's rules see, where these are others
    (`splits.py`)."""

    schema_version: Literal[1] = 1
    confidence: float = Field(gt=0, lt=1)
    models: tuple[str, ...]
    metrics: tuple[MetricSummary, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    judge: JudgeSummary | None = None
    choosing: EvaluationSummary | None = None
    anchor_confidence: float | None = Field(None, gt=0, lt=1)

    def confidence_against(self, model: str | None) -> float:
        """Of the intervals of differences from a model."""
        return (self.anchor_confidence if model == "anchor" else None) or self.confidence

    @property
    def deciding(self) -> EvaluationSummary:
        """What decides about the final model."""
        return self.choosing or self

    def metric_names(self) -> tuple[str, ...]:
        """Everything measured, as a gate rule may name it, overall before its kinds."""
        names = [metric_name(row.metric, row.kind) for row in self.metrics]
        names += [metric_name(row.metric, row.kind) for row in self.comparisons]
        return tuple(dict.fromkeys(names))

    def metric(self, model: str, name: str) -> MetricSummary | None:
        """One model's mean of a metric named as in `metric_names`; None when not measured."""
        key = (model, *split_metric_name(name))
        rows = (row for row in self.metrics if (row.model, row.metric, row.kind) == key)
        return next(rows, None)

    def comparison(self, subject: str, against: str, name: str) -> Comparison | None:
        """One comparison of a metric named as in `metric_names`; None when there is none."""
        key = (subject, against, *split_metric_name(name))
        rows = (
            row
            for row in self.comparisons
            if (row.subject, row.against, row.metric, row.kind) == key
        )
        return next(rows, None)


def summarise(
    scores: Mapping[str, Iterable[ItemScore]],
    *,
    confidence: float = 0.95,
    bootstrap_samples: int = 2000,
    seed: int = 0,
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    tasks: Sequence[str] = (),
    refusals: Literal["judge", "wording"] | None = None,
    anchor_confidence: float | None = None,
) -> EvaluationSummary:
    """Fold every model's scores; the models keep the mapping's order.

    The result depends on the values alone, not on the order the scores come in.

    Args:
        refusals: who decided which answers refuse, where there is a judge.
        anchor_confidence: of intervals against the anchor; None is `confidence`.

    Raises DataError where a model has two scores for one answer to an item, or two models disagree
    on an item's kind.
    """
    fold = _Fold(confidence, anchor_confidence or confidence, bootstrap_samples, seed)
    models: dict[str, _Scored] = {}
    judged: dict[tuple[str, str], list[ItemScore]] = {}
    agreed: list[ItemScore] = []
    for model, values in scores.items():
        alone = []
        for score in values:
            if score.against is None:
                alone.append(score)
            else:
                judged.setdefault((model, score.against), []).append(score)
        models[model] = _index(model, alone)
        agreed += alone if model == JUDGE else ()
    compared = tuple(
        fold.compare(subject, against, key, models[subject], models[against])
        for subject, against in comparisons
        if subject in models and against in models
        for key in _keys(models[subject], models[against])
        if key[0] != REFUSAL_AGREEMENT  # of the judge, not of a model
    )
    for (subject, against), values in judged.items():
        ours = _index(subject, values)
        theirs = _index(against, (replace(score, value=1 - score.value) for score in values))
        for key in _keys(ours):
            row = fold.compare(subject, against, key, ours, theirs)
            if key[0] == WIN_RATE:  # answers that the judge could not be shown count as missing
                answered = models[against].get((LENGTH_WORDS, key[1]), {})
                row = row.model_copy(update={"only_against": len(answered.keys() - ours[key])})
            compared += (row,)
    orders = tuple(order_bias(against, values) for (_, against), values in judged.items())
    told = JudgeSummary(orders=orders, kappa=kappa(agreed), refusals=refusals)
    return EvaluationSummary(
        confidence=confidence,
        models=tuple(models),
        metrics=tuple(
            fold.describe(model, key, scored[key])
            for model, scored in models.items()
            for key in _keys(scored)
        ),
        comparisons=_with_holm(compared),
        tasks=tuple(tasks),
        notes=tuple(note for row in compared for note in _left_out(row)),
        judge=told if orders or agreed or refusals else None,
        anchor_confidence=anchor_confidence,
    )


class _Fold:
    """How intervals are taken; every number's seed derives from its own name."""

    def __init__(
        self, confidence: float, anchor_confidence: float, bootstrap_samples: int, seed: int
    ) -> None:
        self._confidence, self._anchor_confidence = confidence, anchor_confidence
        self._bootstrap_samples = bootstrap_samples
        self._seed = seed

    def describe(self, model: str, key: _Key, scored: Mapping[str, _Item]) -> MetricSummary:
        values = [list(scored[item_id].values.values()) for item_id in sorted(scored)]
        if _binary(key, values):
            estimate = statistics.proportion(values, confidence=self._confidence)
        else:
            estimate = statistics.mean(
                [_mean(each) for each in values],
                confidence=self._confidence,
                bootstrap_samples=self._bootstrap_samples,
                seed=record_seed(self._seed, "mean", model, metric_name(*key)),
            )
        return MetricSummary(model=model, metric=key[0], kind=key[1], **asdict(estimate))

    def compare(
        self, subject: str, against: str, key: _Key, left: _Scored, right: _Scored
    ) -> Comparison:
        ours, theirs = left.get(key, {}), right.get(key, {})
        _check_kinds(subject, against, key, left, right)
        beside = {  # answer beside answer: an item without a common sample is left out
            item_id: both
            for item_id in sorted(ours.keys() & theirs.keys())
            if (both := sorted(ours[item_id].values.keys() & theirs[item_id].values.keys()))
        }
        ours_values = [ours[item_id].of(samples) for item_id, samples in beside.items()]
        their_values = [theirs[item_id].of(samples) for item_id, samples in beside.items()]
        found = statistics.paired_difference(
            ours_values,
            their_values,
            binary=_binary(key, [*ours_values, *their_values]),
            confidence=self._anchor_confidence if against == "anchor" else self._confidence,
            bootstrap_samples=self._bootstrap_samples,
            seed=record_seed(self._seed, "difference", subject, against, metric_name(*key)),
        )
        return Comparison(
            subject=subject,
            against=against,
            metric=key[0],
            kind=key[1],
            subject_mean=_mean([_mean(each) for each in ours_values]) if found.n else None,
            against_mean=_mean([_mean(each) for each in their_values]) if found.n else None,
            only_subject=len(ours) - len(beside),
            only_against=len(theirs) - len(beside),
            changed=None
            if key[0] in JUDGED
            else sum(ours[item_id].texts != theirs[item_id].texts for item_id in beside),
            **asdict(found),
        )


def _index(model: str, scores: Iterable[ItemScore]) -> _Scored:
    """By (metric, None) and, where the item has a kind, by (metric, kind) too; then item id."""
    indexed: _Scored = {}
    for score in sorted(scores, key=lambda score: (score.metric, score.item_id, score.sample)):
        overall = indexed.setdefault((score.metric, None), {})
        item = overall.setdefault(score.item_id, _Item(score.kind))
        if score.sample in item.values:
            raise DataError(
                f"{model}: {score.metric}: two scores for the item {score.item_id!r}, sample "
                f"{score.sample}",
                remedy="delete this evaluation's artifact and evaluate again",
            )
        item.values[score.sample] = score.value
        item.texts[score.sample] = score.text
        if score.kind is not None:
            indexed.setdefault((score.metric, score.kind), {})[score.item_id] = item
    return indexed


def _keys(*sides: _Scored) -> list[_Key]:
    """Metrics by name, each overall first and then by kind."""
    keys = {key for side in sides for key in side}
    return sorted(keys, key=lambda key: (key[0], key[1] is not None, key[1] or ""))


def _binary(key: _Key, values: Sequence[Sequence[float]]) -> bool:
    if key[0] in JUDGED:
        return True  # 1, 0 and 0.5 on both sides of a tie: a difference is 1, -1 or 0
    return key[0] not in CONTINUOUS and all(value in (0, 1) for each in values for value in each)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _with_holm(rows: Sequence[Comparison]) -> tuple[Comparison, ...]:
    tested = [index for index, row in enumerate(rows) if row.p_value is not None]
    adjusted = dict(
        zip(tested, statistics.holm([rows[index].p_value or 0.0 for index in tested]), strict=True)
    )
    return tuple(
        row.model_copy(update={"p_holm": adjusted.get(index)}) for index, row in enumerate(rows)
    )


def _check_kinds(subject: str, against: str, key: _Key, left: _Scored, right: _Scored) -> None:
    """An item counts under one kind on both sides, or the kinds' numbers would not add up."""
    if key[1] is not None:
        return
    ours, theirs = left.get(key, {}), right.get(key, {})
    for item_id in sorted(ours.keys() & theirs.keys()):
        if ours[item_id].kind != theirs[item_id].kind:
            raise DataError(
                f"{key[0]}: the item {item_id!r} is of kind {ours[item_id].kind!r} for {subject} "
                f"and of kind {theirs[item_id].kind!r} for {against}",
                remedy="evaluate both models on the same file",
            )


def _left_out(row: Comparison) -> Iterable[str]:
    if row.kind is not None:
        return  # said once, overall
    for count, having, lacking in (
        (row.only_subject, row.subject, row.against),
        (row.only_against, row.against, row.subject),
    ):
        if count:
            yield (
                f"{row.metric}: {count} item{'s' if count > 1 else ''} scored for {having} but "
                f"not for {lacking}, left out of {row.subject} against {row.against} "
                f"({row.n} compared)"
            )
