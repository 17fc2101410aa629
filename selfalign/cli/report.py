"""`selfalign report`: one HTML file of a run, to look at and to send."""

from __future__ import annotations

from pathlib import Path

import click
from pydantic import ValidationError

from selfalign.cli.options import Place, json_option, place_options, print_json
from selfalign.config import RunConfig
from selfalign.errors import SelfAlignError, printable
from selfalign.inputs import local_seeds
from selfalign.report.collect import ReportData, collect
from selfalign.report.render import render_report
from selfalign.report.tables import funnel
from selfalign.run.record import latest_run
from selfalign.seeds import annotation_lines, file_digests, load_seeds
from selfalign.seeds.files import PRINCIPLES
from selfalign.store.base import Store
from selfalign.store.files import os_errors, replacing


@click.command("report")
@click.argument("run_id", required=False)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    help="Where to write it.",
)
@place_options
@json_option
def report_command(run_id: str | None, out: Path, where: Place, as_json: bool) -> None:
    """Write the report of a run (the latest one, unless RUN_ID names another).

    With --namespace, --context or --kubeconfig: of the store of the platform there.
    """
    opened = where.open()
    data = collect(opened.store, run_id or latest_run(opened.store))
    principles, lines = _of_seeds(opened.store, data)
    if data.run.annotation_lines is None:  # the controller reads no seeds
        data.run = data.run.model_copy(update={"annotation_lines": lines})
    if as_json:
        print_json(_as_json(data))
        return
    html = render_report(data, principles)
    with os_errors("--out", "write"), replacing(out) as file:
        file.write(html.encode())
    click.echo(printable(f"wrote {out}"))


def _of_seeds(store: Store, data: ReportData) -> tuple[dict[int, str], int | None]:
    """Names of the principles and the number of lines that people wrote, where the seeds of the run
    can still be read, unchanged, from here."""
    aligned = data.manifests.get("aligned_responses")
    if aligned is None:
        return {}, None
    try:
        config = local_seeds(RunConfig.model_validate(data.run.config).seeds, store)
        found = file_digests(config.directory)[PRINCIPLES]
        if found != aligned.identity["seeds"][PRINCIPLES]:
            return {}, None
        seeds = load_seeds(config)
    except (SelfAlignError, ValidationError, KeyError):
        return {}, None
    names = {rule.number: rule.name for rule in seeds.principles}
    return names, sum(annotation_lines(config.directory).values())


def _as_json(data: ReportData) -> dict[str, object]:
    return {
        "run": data.run.id,
        "phase": data.status.phase,
        "annotation_lines": data.run.annotation_lines,
        "verdict": None if data.verdict is None else data.verdict.model_dump(),
        "current": None if data.current is None else data.current.model_dump(),
        "summary": None if data.summary is None else data.summary.model_dump(),
        "funnel": [
            {"stage": row.stage, "read": row.read, "kept": row.kept, "dropped": row.dropped}
            for row in funnel(data.manifests)
        ],
        "rules_cited": dict(data.citations.rules),
        "loss": data.losses,
        "stages": [stage.model_dump() for stage in data.status.stages],
    }
