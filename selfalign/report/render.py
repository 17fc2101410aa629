"""The report: one self-contained HTML file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup
from rich.filesize import decimal

from selfalign import __version__
from selfalign.errors import printable
from selfalign.evaluation.answers import changes, marked
from selfalign.evaluation.explanations import judged
from selfalign.evaluation.scores import ALIGNED, GUARDS
from selfalign.evaluation.summary import Comparison
from selfalign.report import charts
from selfalign.report.collect import PUBLISHED_ANNOTATION, ReportData
from selfalign.report.rules import panels
from selfalign.report.tables import (
    ablation,
    funnel,
    nights,
    quarantined,
    rules_by_kind,
    score_tables,
    study,
    variant_name,
)
from selfalign.report.words import answers, refusals, sentences, signed
from selfalign.seeds import ANNOTATION_LIMIT

SHOWN_FIRST, SHOWN_PAIRS = 3, 12  # pairs of answers that got better, worse or other: open, in all
SHOWN_TOPICS = 20
LONGEST_SHOWN = 4000  # characters of a model's text


def render_report(data: ReportData, principles: dict[int, str]) -> str:
    """The HTML text.

    Args:
        principles: names of the rules by number, where they are known.
    """
    return _template().render(**_context(data, principles))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfalign", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": lambda value: f"{value:,}",
        "shown": lambda text: text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " …",
        "signed": signed,
    }
    return environment.get_template("report.html.j2")


def _budget(lines: int | None) -> str:
    if lines is None or lines < ANNOTATION_LIMIT:
        return f"the limit is {ANNOTATION_LIMIT}" + (", not reached" if lines is not None else "")
    return f"over the limit: fewer than {ANNOTATION_LIMIT} are asked for"


def _headline(data: ReportData) -> tuple[str, str]:
    """The verdict in a word or two, and the style sheet's class for it."""
    if data.verdict is None:
        failed = data.status.phase == "Failed"
        return ("Failed before a verdict", "no") if failed else ("No verdict yet", "")
    if data.request is not None:
        return "Passed the gate, awaits approval", ""
    if data.verdict.promote:
        return data.standing[0].upper() + data.standing[1:], (
            "yes" if data.standing == "promoted" else ""
        )
    if data.verdict.decision == "rejected":
        return "Rejected", "no"
    return ("No change", "") if data.verdict.decision == "no_change" else ("Not promoted", "no")


def _context(data: ReportData, principles: dict[int, str]) -> dict[str, Any]:
    opponent = "promoted" if any("promoted" in item.texts for item in data.items) else "base"
    found = changes(data.items, "final", opponent)
    comparisons = data.summary.comparisons if data.summary else ()
    total = sum(data.citations.rules.values())
    seconds = sum(stage.seconds or 0 for stage in data.status.stages)
    return {
        "version": __version__,
        "data": data,
        "run": data.run,
        "status": data.status,
        "manifests": data.manifests,
        "headline": _headline(data),
        "panels": panels(data.verdict) if data.verdict else [],
        "since": list(sentences(data.since)) if data.since else [],
        "tables": score_tables(data.summary) if data.summary else [],
        "judged": judged(data.summary) if data.summary else [],
        "comparisons": [r for r in comparisons if r.kind is None and r.metric not in GUARDS],
        "answers": found,
        "told": [answers(found), *refusals(found)],
        "groups": [
            (title, pairs[:SHOWN_FIRST], pairs[SHOWN_FIRST:SHOWN_PAIRS], len(pairs))
            for title, pairs in (
                ("Got worse", found.worse),
                ("Got better", found.better),
                ("Changed most, neither better nor worse", found.other),
            )
        ],
        "kinds": _kinds(comparisons, opponent),
        "marked": marked,
        "funnel": funnel(data.manifests),
        "quarantined": quarantined(data.manifests),
        "rules": [
            (number, principles.get(number, ""), count, count / total)
            for number, count in sorted(data.citations.rules.items())
        ],
        "principles": principles,
        "rule_heat": rules_by_kind(data.citations, principles),
        "topics": data.citations.topics.most_common(SHOWN_TOPICS),
        "curves": {
            stage: charts.line(
                [(row["step"], row["loss"]) for row in curve],
                f"loss of {stage}: {curve[0]['loss']:.3f} at step {curve[0]['step']:g}, "
                f"{curve[-1]['loss']:.3f} at step {curve[-1]['step']:g}",
            )
            for stage, curve in data.losses.items()
            if curve
        },
        "ablation": study(data.study) if data.study else ablation(data, principles),
        "nights": nights(data.history),
        "budget": _budget(data.run.annotation_lines),
        "published": PUBLISHED_ANNOTATION,
        "seconds": seconds,
        "written": decimal(data.bytes_written),
        "stored": str(data.held),
        "name": lambda variant: variant_name(variant, principles),
        "bar": charts.bar,
    }


def _kinds(comparisons: Iterable[Comparison], opponent: str) -> list[tuple[Comparison, Markup]]:
    """`heldout.aligned` by kind, the largest difference first, each with its drawing."""
    rows = [
        row
        for row in comparisons
        if (row.subject, row.against, row.metric) == ("final", opponent, ALIGNED)
        and row.kind is not None
        and row.difference is not None
    ]
    rows.sort(key=lambda row: (-abs(row.difference or 0), row.kind))
    return [
        (
            row,
            charts.strip(
                charts.Scale(-1, 1),
                f"{row.kind}: {signed(row.difference or 0, 2)}",
                row.difference,
                None if row.low is None or row.high is None else (row.low, row.high),
            ),
        )
        for row in rows
    ]
