"""`selfalign gate`: what the gate's rules can see, what they would have said, how refusals are told
apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from selfalign.cli.options import (
    Place,
    config_options,
    json_option,
    new_console,
    place_options,
    print_json,
)
from selfalign.cli.refusals import refusals_command
from selfalign.config import PromoteConfig
from selfalign.errors import ConfigurationError, DataError, SelfAlignError, printable
from selfalign.evaluation.explanations import bounds, short
from selfalign.evaluation.gate import Verdict, judge
from selfalign.evaluation.power import CHANGED_SHARE, POWER, RulePlan, counted_as
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.inputs import localise
from selfalign.load import load_config
from selfalign.run.record import read_run, run_ids, status_to_show
from selfalign.stages.preflight import gate_plan
from selfalign.store.artifact import read_file_as, read_manifest
from selfalign.store.base import Store
from selfalign.store.open import open_store


@click.group("gate")
def gate_group() -> None:
    """The rules that decide about promotion: before a night, and over past ones."""


gate_group.add_command(refusals_command)


@gate_group.command("plan")
@config_options
@json_option
def plan_command(config_path: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say, before training, what each rule can see with the evaluation files at hand.

    A rule against another model passes only where its interval lies within its bound. With few
    items that takes a large difference: the column "passes from" shows the smallest true
    difference that passes in four nights of five, when a tenth of the answers changed. A rule that
    could never pass is marked. A rule that could not be measured ends the command with exit code 2.
    """
    config = load_config(config_path, overrides).config
    planned = gate_plan(localise(config, open_store(config.store)))
    if as_json:
        print_json([_plan_row(row) for row in planned])
        return
    n = config.evaluate.samples
    table = Table("rule", "must be", "items", "passes from", "", box=None, pad_edge=False)
    for row in planned:
        table.add_row(
            escape(short(row.rule)),
            bounds(row.rule),
            str(row.items),
            "" if row.passes_from is None else f"{row.passes_from:+.3f}",
            f"[yellow]{row.warning}[/yellow]" if row.warning else "",
        )
    new_console().print(table)
    click.echo(
        f"passes from: the true difference that passes in {POWER:.0%} of nights, with "
        f"{CHANGED_SHARE:.0%} of the answers changed; intervals of "
        f"{config.evaluate.confidence * 100:g}%"
        + (f"; {n} answers to an item counted as {counted_as(1, n):.3g} items" if n > 1 else "")
        + "; against the anchor at the first promotion after it was set, later ones need more"
    )


def _plan_row(row: RulePlan) -> dict[str, Any]:
    return {
        "rule": row.rule.model_dump(exclude_none=True),
        "items": row.items,
        "passes_from": row.passes_from,
        "warning": row.warning,
    }


@gate_group.command("try")
@click.argument("run_id", metavar="RUN...", nargs=-1)
@place_options
@click.option("--all", "every", is_flag=True, help="Every run of the store.")
@json_option
def try_command(run_id: tuple[str, ...], every: bool, where: Place, as_json: bool) -> None:
    """Judge past nights anew, by the rules of --config and --set; nothing is changed.

    Reads the stored evaluation of each RUN and prints what today's rules say of it, beside what
    was said then. With --store and no configuration: by the default rules. A night that cannot be
    judged by these rules says why and does not stop the others; where none can be, the command
    fails.
    """
    if every == bool(run_id):
        raise click.UsageError("name runs, or give --all")
    opened = where.open()
    rules = PromoteConfig() if opened.loaded is None else opened.loaded.config.promote
    tried = list(_tried(opened.store, list(run_id) or run_ids(opened.store), rules))
    errors = [now for _, _, now in tried if isinstance(now, SelfAlignError)]
    if errors and not any(isinstance(now, Verdict) for _, _, now in tried):
        raise errors[0]
    if as_json:
        print_json([_tried_row(*row) for row in tried])
        return
    table = Table("run", "then", "by these rules", "why", box=None, pad_edge=False)
    for name, then, now in tried:
        decision = now.decision if isinstance(now, Verdict) else ""
        why = "no evaluation" if now is None else _explained(now)
        table.add_row(escape(name), then or "", decision, escape(printable(why)))
    new_console().print(table)


def _tried_row(name: str, then: str | None, now: Verdict | SelfAlignError | None) -> dict[str, Any]:
    verdict = now.model_dump() if isinstance(now, Verdict) else None
    error = now.message if isinstance(now, SelfAlignError) else None
    return {"run": name, "then": then, "now": verdict, "error": error}


def _explained(now: Verdict | SelfAlignError) -> str:
    return now.explanation if isinstance(now, Verdict) else f"cannot be judged: {now.message}"


def _tried(
    store: Store, runs: list[str], rules: PromoteConfig
) -> Iterator[tuple[str, str | None, Verdict | SelfAlignError | None]]:
    """Run, the verdict it had, and the verdict it would have or why it can have none."""
    known = run_ids(store)
    for name in runs:
        if name not in known:
            read_run(store, name)  # says so
        status = status_to_show(store, name)
        key = next((s.key for s in status.stages if s.name == "evaluate" and s.digest), None)
        try:
            manifest = read_manifest(store, "evaluation", key) if key else None
            if manifest is None:
                yield name, status.verdict, None
                continue
            summary = read_file_as(store, manifest, "summary.json", EvaluationSummary)
            now: Verdict | SelfAlignError = judge(summary, rules)
        except (ConfigurationError, DataError) as error:
            now = error
        yield name, status.verdict, now
