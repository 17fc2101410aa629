"""The report: one self-contained HTML file, no script, nothing fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jinja2
from rich.filesize import decimal

from selfalign import __version__
from selfalign.errors import printable
from selfalign.evaluation.scores import ALIGNED, CONTINUOUS, GUARD, GUARDS, LENGTH_WORDS
from selfalign.evaluation.summary import EvaluationSummary, MetricSummary
from selfalign.pipeline import STAGES
from selfalign.report import charts
from selfalign.report.collect import PUBLISHED_ANNOTATION, ReportData
from selfalign.seeds import ANNOTATION_LIMIT, AnnotationBudget
from selfalign.store.manifest import Manifest, QuarantinedRow

SHOWN_QUARANTINED = 20  # rows per stage; `selfalign show ARTIFACT --dropped` shows all

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
    """One stage's losses."""

    stage: str
    read: int
    kept: int
    dropped: list[tuple[str, int, float]]  # filter or quarantine, rows, share of what was read


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
        number = int(variant.removeprefix("base_without_"))
        name = principles.get(number)
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


def render_report(data: ReportData, principles: dict[int, str]) -> str:
    """The HTML text.

    Args:
        principles: names of the rules by number, where they are known.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfalign", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    template = environment.get_template("report.html.j2")
    return template.render(**_context(data, principles))


def _budget(lines: int | None) -> str:
    if lines is None or AnnotationBudget({"all": lines}).is_kept:
        return f"the limit is {ANNOTATION_LIMIT}" + (", not reached" if lines is not None else "")
    return f"over the limit: fewer than {ANNOTATION_LIMIT} are asked for"


def _context(data: ReportData, principles: dict[int, str]) -> dict[str, Any]:
    total = sum(data.rules.values())
    return {
        "version": __version__,
        "run": data.run,
        "status": data.status,
        "manifests": data.manifests,
        "verdict": data.verdict,
        "standing": data.standing,
        "summary": data.summary,
        "tables": score_tables(data.summary) if data.summary else [],
        "comparisons": [
            row
            for row in (data.summary.comparisons if data.summary else ())
            if row.kind is None and row.metric not in GUARDS
        ],
        "length_metric": LENGTH_WORDS,
        "funnel": funnel(data.manifests),
        "quarantined": quarantined(data.manifests),
        "rules": [
            (number, principles.get(number, ""), count, count / total)
            for number, count in sorted(data.rules.items())
        ],
        "responses": data.responses,
        "losses": {
            stage: charts.line(
                [(row["step"], row["loss"]) for row in curve], x_label="step", y_label="loss"
            )
            for stage, curve in data.losses.items()
        },
        "answers": data.answers,
        "history": data.history,
        "budget": _budget(data.run.annotation_lines),
        "published": PUBLISHED_ANNOTATION,
        "seconds": sum(stage.seconds or 0 for stage in data.status.stages),
        "written": decimal(data.bytes_written),
        "stored": decimal(data.bytes_in_store),
        "name": lambda variant: variant_name(variant, principles),
        "share_bar": charts.share_bar,
        "interval": charts.interval,
    }
