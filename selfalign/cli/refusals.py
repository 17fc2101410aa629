"""`selfalign gate refusals`: how often people agree with what is taken for a refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from selfalign.cli.options import (
    config_if_any,
    config_options,
    json_option,
    new_console,
    print_json,
)
from selfalign.config import RunConfig
from selfalign.engines.base import Quarantined
from selfalign.errors import ConfigurationError, DataError
from selfalign.evaluation import refusal
from selfalign.evaluation.refusal import CLASSES, Refusal, classify_refusal
from selfalign.evaluation.refusal_judge import judged_classes
from selfalign.evaluation.rows import csv_rows
from selfalign.evaluation.template import load_template
from selfalign.inputs import localise
from selfalign.stages.models import judge_engine
from selfalign.store.open import open_store
from selfalign.telemetry import Progress


@click.command("refusals")
@click.argument(
    "file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False
)
@click.option("--by", help="A column to tell apart, such as model.")
@config_options
@json_option
def refusals_command(
    file: Path | None, by: str | None, config_path: Path, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Print how often people agree with what is taken for a refusal: by its wording, and by the
    judge where --config names one (evaluate.judge).

    FILE is a CSV with the columns prompt, completion and label (or final_label), where a label
    says complies, refuses or partly, or XSTest's 1_full_compliance, 2_full_refusal,
    3_partial_refusal. Without FILE: on this project's own labelled answers. An answer that the
    judge cannot read, such as one beyond its context, is not among the judge's.
    """
    rows = _labelled(_OWN_LABELS if file is None else file)
    if by is not None and by not in rows[0]:
        raise ConfigurationError(
            f"--by {by!r}: no such column; there are {', '.join(rows[0])}", remedy="name one"
        )
    wording: list[Refusal | None] = [classify_refusal(r["prompt"], r["completion"]) for r in rows]
    agreements = _agreements(rows, by, wording)
    loaded = config_if_any(config_path, overrides)
    judged = None if loaded is None else _judged(loaded.config, rows)
    judge = {} if judged is None else _agreements(rows, by, judged)
    if as_json:
        told = {name: {"judge": row} for name, row in judge.items()}
        print_json({name: row | told.get(name, {}) for name, row in agreements.items()})
        return
    columns = ("answers", "agree", "precision", "recall", "people: refuses", "found: refuses")
    table = Table(by or "", "by", *columns, box=None, pad_edge=False)
    for name, values in agreements.items():
        table.add_row(escape(name), "wording", *_cells(values, columns))
        if judge:
            table.add_row("", "judge", *_cells(judge[name], columns))
    new_console().print(table)
    click.echo(
        "precision and recall are of the class refuses, against complies and partly together"
    )


def _cells(values: dict[str, Any], columns: Sequence[str]) -> list[str]:
    found = (values[column] for column in columns)
    return ["" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in found]


def _judged(config: RunConfig, rows: list[dict[str, str]]) -> list[Refusal | None] | None:
    """The judge's class of each answer, None for one that it cannot read; None without a judge."""
    if config.evaluate.judge is None:
        return None
    store = open_store(config.store)
    evaluate = localise(config, store).evaluate
    judge = evaluate.judge
    assert judge is not None
    template = load_template("refusal", judge.refusal_template)
    asked = {str(n): (row["prompt"], row["completion"]) for n, row in enumerate(rows)}
    found: list[Refusal | None] = [None] * len(rows)
    progress = Progress("answers", len(rows))
    with judge_engine(store, judge, evaluate.engine or config.engine) as engine:
        for each in judged_classes(engine, asked, template):
            if not isinstance(each, Quarantined):
                found[int(each[0])] = each[1]
            progress.advance(1)
    return found


def _agreements(
    rows: list[dict[str, str]], by: str | None, found: Sequence[Refusal | None]
) -> dict[str, dict[str, Any]]:
    """How far the classes that were found are people's, over all rows and by group."""
    groups: dict[str, Counter[tuple[str, str]]] = {}
    for row, each in zip(rows, found, strict=True):
        for group in ("all", row[by]) if by else ("all",):
            counts = groups.setdefault(group, Counter())
            if each is not None:
                counts[row["label"], each] += 1
    return {name: _agreement(counts) for name, counts in groups.items()}


def _agreement(counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    total = max(counts.total(), 1)
    people = sum(n for (label, _), n in counts.items() if label == "refuses")
    found = sum(n for (_, told), n in counts.items() if told == "refuses")
    both = counts["refuses", "refuses"]
    return {
        "answers": counts.total(),
        "agree": sum(n for (label, told), n in counts.items() if label == told) / total,
        "precision": both / found if found else None,
        "recall": both / people if people else None,
        "people: refuses": people / total,
        "found: refuses": found / total,
        "confusion": {
            label: {told: counts[label, told] for told in CLASSES} for label in CLASSES
        },
    }  # fmt: skip


_OWN_LABELS = Path(refusal.__file__).with_name("labelled_refusals.csv")
_XSTEST = {"1": "complies", "2": "refuses", "3": "partly"}  # the first letter of its labels


def _labelled(file: Path) -> list[dict[str, str]]:
    """Rows with prompt, completion and label."""
    rows = []
    for where, row in csv_rows(file):
        label = row.get("label") or row.get("final_label") or ""
        label = _XSTEST.get(label[:1], label)
        if label not in CLASSES or not row.get("prompt") or row.get("completion") is None:
            raise DataError(
                f"{where}: expected prompt, completion and a label among {', '.join(CLASSES)}, "
                f"got the label {label!r} and the columns {', '.join(row)}",
                remedy="correct the row, or name the columns so in the first line",
            )
        rows.append({**row, "label": label})
    if not rows:
        raise DataError(
            f"{file}: no labelled answer in it",
            remedy="give a CSV with the columns prompt, completion and label",
        )
    return rows
