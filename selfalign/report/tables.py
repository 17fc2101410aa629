"""What the report shows as tables and bars: the funnel, scores, citations, ablation, history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from selfalign.evaluation.scores import ALIGNED, CONTINUOUS, GUARD, GUARDS
from selfalign.evaluation.summary import Comparison, EvaluationSummary, MetricSummary, summarise
from selfalign.pipeline import STAGES
from selfalign.report import charts
from selfalign.report.collect import Citations, PastRun, Study
from selfalign.report.compare import RunView
from selfalign.report.words import is_sure, signed
from selfalign.store.manifest import Manifest, QuarantinedRow

SHOWN_QUARANTINED = 20  # rows per stage; `selfalign show ARTIFACT --dropped` shows all
SHOWN_DROPPED = 3  # texts per filter
SHOWN_KINDS = 24

ABLATED, WITH_ALL = "base_without_", "base_principled"  # variants

VARIANT_NAMES = {
    "base": "base, plain",
    "base_principled": "base + principles",
    "engraved": "engraved, plain",
    "final": "final, plain",
    "promoted": "promoted before, plain",
    "promoted_again": "promoted before, answers drawn again",
    "anchor": "anchor, plain",
}


@dataclass(frozen=True, slots=True)
class FunnelRow:
    """One stage's losses.

    Attributes:
        dropped: filter or quarantine, rows, share of what was read.
        samples: filter -> a few of the texts it dropped.
    """

    stage: str
    read: int
    kept: int
    dropped: list[tuple[str, int, float]]
    samples: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A metric: a row per variant, a column per kind."""

    metric: str
    kinds: list[str]
    rows: list[tuple[str, list[MetricSummary | None]]]
    scaled: bool


def variant_name(variant: str, principles: dict[int, str]) -> str:
    """How a person calls a variant."""
    if variant.startswith("base_without_"):
        number = variant.removeprefix("base_without_")
        name = {str(each): name for each, name in principles.items()}.get(number)
        return f"base + principles, without {number}{f' ({name})' if name else ''}"
    return VARIANT_NAMES.get(variant, variant)


def funnel(manifests: dict[str, Manifest]) -> list[FunnelRow]:
    """What each stage read, kept and dropped by filter."""
    rows = []
    for stage in STAGES:
        manifest = manifests.get(stage.writes)
        if manifest is None or stage.workload == "evaluate":
            continue
        counts = manifest.counts
        if not manifest.shards and not counts.read:  # promote reads no records
            continue
        lost = dict(counts.dropped)
        lost |= {f"quarantined: {reason}": n for reason, n in counts.quarantined.items()}
        dropped = sorted(lost.items(), key=lambda item: -item[1])
        rows.append(
            FunnelRow(
                stage.name,
                counts.read,
                counts.kept,
                [(name, count, count / max(counts.read, 1)) for name, count in dropped],
                manifest.dropped_samples(SHOWN_DROPPED),
            )
        )
    return rows


def quarantined(manifests: dict[str, Manifest]) -> list[tuple[str, int, list[QuarantinedRow]]]:
    """Stage, rows set aside, and the first of them."""
    found = ((m.stage, m.quarantined) for s in STAGES if (m := manifests.get(s.writes)))
    return [(stage, len(rows), rows[:SHOWN_QUARANTINED]) for stage, rows in found if rows]


def score_tables(summary: EvaluationSummary) -> list[ScoreTable]:
    """One table per metric, `heldout.aligned` first."""
    metrics = list(dict.fromkeys(row.metric for row in summary.metrics))
    metrics.sort(key=lambda metric: metric != ALIGNED)
    tables = []
    for metric in metrics:
        if metric in GUARDS:
            continue
        mine = [row for row in summary.metrics if row.metric == metric]
        kinds = sorted({row.kind for row in mine if row.kind is not None})
        cells = {(row.model, row.kind): row for row in mine}
        columns: list[str | None] = [None, *kinds]
        rows = [
            (model, [cells.get((model, kind)) for kind in columns])
            for model in summary.models
            if (model, None) in cells
        ]
        tables.append(ScoreTable(metric, ["all", *kinds], rows, metric not in CONTINUOUS))
    guarded = [
        (model, [summary.metric(model, name) for name in GUARDS])
        for model in summary.models
        if summary.metric(model, GUARDS[0])
    ]
    if guarded:
        kinds = [name.removeprefix(GUARD) for name in GUARDS]
        tables.append(ScoreTable("share of broken answers", kinds, guarded, scaled=True))
    return tables


Cell = tuple[str, float, bool]  # what it shows, how strong its colour is (-1 to 1), is it sure


@dataclass(frozen=True, slots=True)
class Heat:
    """A table of shares or differences, coloured by value."""

    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]


def rules_by_kind(found: Citations, principles: dict[int, str]) -> Heat:
    """Share of each kind's answers that cite a rule, the kinds with most answers first."""
    numbers = sorted(found.rules)
    rows: list[tuple[str, list[Cell | None]]] = []
    for kind, total in found.answers.most_common(SHOWN_KINDS):
        shares = [found.by_kind[kind][number] / total for number in numbers]
        rows.append((f"{kind} ({total:,})", [(f"{100 * s:.0f}", s, True) for s in shares]))
    return Heat([f"{number} {principles.get(number, '')}".strip() for number in numbers], rows)


def ablation(data: RunView, principles: dict[int, str]) -> Heat | None:
    """`heldout.aligned` of the base without a principle, less that with all of them; None where
    the evaluation left none out."""
    parts = [name for name in data.scores if name.startswith(ABLATED)]
    if not parts or data.summary is None or WITH_ALL not in data.scores:
        return None
    found = summarise(
        {name: data.scores[name] for name in (WITH_ALL, *parts)},
        confidence=data.summary.confidence,
        comparisons=[(name, WITH_ALL) for name in parts],
    )
    lines = [variant_name(name, principles).removeprefix("base + principles, ") for name in parts]
    return _left_out(lines, found.comparisons)


def study(found: Study) -> Heat:
    """What `selfalign ablate` found."""
    return _left_out(found.left_out, found.summary.comparisons)


def _left_out(lines: Sequence[str], rows: Sequence[Comparison]) -> Heat:
    """A row for each line that was left out, in the order in which they were compared."""
    pairs = list(dict.fromkeys((row.subject, row.against) for row in rows))
    kinds = list(dict.fromkeys(row.kind for row in rows))
    cells = {(row.subject, row.against, row.kind): row for row in rows}
    return Heat(
        [kind or "all" for kind in kinds],
        [
            (line, [_difference(cells.get((*pair, kind))) for kind in kinds])
            for line, pair in zip(lines, pairs, strict=True)
        ],
    )


def _difference(row: Comparison | None) -> Cell | None:
    if row is None or row.difference is None:
        return None
    return signed(row.difference, 2), 2 * row.difference, is_sure(row)


def nights(history: list[PastRun]) -> Markup | None:
    """The history as a picture; None for fewer than two scored runs."""
    finals = [past.final for past in history if past.final is not None]
    scored = [(final.metric, final.mean) for final in finals if final.mean is not None]
    if len(scored) < 2:
        return None
    metric, last = scored[-1]
    columns = [
        charts.Night(
            label=f"{past.status.id}: {past.status.reason or past.status.phase}"
            + ("" if past.final is None or past.final.mean is None else f", {past.final.mean:.3f}"),
            value=None if past.final is None else past.final.mean,
            interval=None
            if past.final is None or past.final.low is None or past.final.high is None
            else (past.final.low, past.final.high),
            promoted=past.status.verdict == "Promoted",
        )
        for past in history
    ]
    promoted = sum(column.promoted for column in columns)
    label = (
        f"{metric} of the final model over {len(columns)} runs, {promoted} of them promoted; "
        f"last {last:.3f}"
    )
    return charts.history(columns, label)
