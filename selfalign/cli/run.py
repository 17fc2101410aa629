"""`selfalign run`: all stages on this machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from selfalign import __version__
from selfalign.cli.options import config_options, json_option, print_json
from selfalign.errors import ConfigurationError
from selfalign.identity import collect_inputs
from selfalign.inputs import localise
from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.records import now
from selfalign.run.plan import StagePlan
from selfalign.run.record import RunRecord, new_run_id, write_run
from selfalign.runner.display import RunConsole, RunDisplay, drop_output
from selfalign.runner.local import LocalRun, RunFailed
from selfalign.seeds import annotation_budget, load_seeds
from selfalign.stages.preflight import check_run
from selfalign.store.base import PreconditionFailed, Store
from selfalign.store.open import open_store
from selfalign.store.pointer import read_pointer, standing

_RUN_ID = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")  # fits a Job's name with its stage


@click.command("run", short_help="Run every stage on this machine; resume where it stopped.")
@config_options
@click.option("--run-id", default=None, metavar="ID", help="Name of the run.  [default: by time]")
@click.option(
    "--until",
    type=click.Choice([stage.name for stage in STAGES]),
    default=None,
    help="Stop after this stage.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Attempts per stage at failures that may pass.",
)
@json_option
def run_command(
    config_path: Path,
    overrides: tuple[str, ...],
    run_id: str | None,
    until: str | None,
    max_attempts: int,
    as_json: bool,
) -> int:
    """Run every stage on this machine, one worker process per shard.

    What is published already is reused, so running again with the same configuration resumes an
    interrupted run, and costs nothing after a finished one. Ctrl-C is safe at any moment.
    """
    config = load_config(config_path, overrides).config
    store = open_store(config.store)
    config = localise(config, store)
    seeds = load_seeds(config.seeds)
    check_run(config, seeds, until=until)
    inputs = collect_inputs(config)
    run_id = run_id or new_run_id()
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigurationError(
            f"--run-id {run_id!r} is not a run's name",
            remedy="use lower-case letters, digits and hyphens, at most 40 characters",
        )
    record = RunRecord(
        id=run_id,
        created_at=now(),
        code_version=__version__,
        config=config.model_dump(mode="json"),
        annotation_lines=annotation_budget(config.seeds.directory).total,
    )
    try:
        write_run(store, record)
    except PreconditionFailed:
        raise ConfigurationError(
            f"a run named {run_id!r} exists in {store.url}",
            remedy="leave --run-id out: a new run reuses everything the earlier one finished",
        ) from None
    directory = run_directory(store.url, run_id)
    console = RunConsole(stderr=as_json)
    console.print(
        f"run {run_id}, log in {directory / 'log.jsonl'}", highlight=False, soft_wrap=True
    )
    with RunDisplay(console) as display:
        run = LocalRun(
            run_id, config, inputs, store, directory, display,
            max_attempts=max_attempts, until=until,
        )  # fmt: skip
        try:
            plan = run.run()
        except RunFailed as failure:
            return _failed(console, failure, as_json)
    _succeeded(console, store, plan, run_id, as_json)
    return 0


def run_directory(store_url: str, run_id: str) -> Path:
    """Where a run's resolved configuration and log are: in a local store, else beside the user."""
    if "://" not in store_url:
        return Path(store_url) / "runs" / run_id
    return Path("selfalign-runs") / run_id


def _print_result(result: dict[str, Any]) -> None:
    """The result on stdout; the exit code tells it where nobody reads there any more."""
    try:
        print_json(result)
    except BrokenPipeError:
        drop_output(sys.stdout)


def _failed(console: Console, failure: RunFailed, as_json: bool) -> int:
    if as_json:
        _print_result(
            {
                "phase": "Failed",
                "stage": failure.stage,
                "reason": failure.reason,
                "error": failure.message,
                "remedy": failure.remedy,
                "exit_code": failure.exit_code,
            }
        )
    else:
        console.print(f"[red]failed[/red] in {failure.stage} ({failure.reason})", highlight=False)
        if failure.remedy:
            console.print(
                f"[green]remedy:[/green] {escape(failure.remedy)}",
                highlight=False,
                soft_wrap=True,
            )
        console.print(
            "what was finished is kept; put it right and run the same command again",
            highlight=False,
        )
    return failure.exit_code


def _succeeded(
    console: Console, store: Store, plan: list[StagePlan], run_id: str, as_json: bool
) -> None:
    promotion = plan[-1].manifest
    current = read_pointer(store)
    if as_json:
        _print_result(
            {
                "phase": "Succeeded",
                "run": run_id,
                # the gate's verdict; what is current may be another model since
                "promoted": None if promotion is None else promotion.details["promoted"],
                "current": None if current is None else current.pointer.model.model_dump(),
                "artifacts": {
                    p.stage.writes: {"key": p.key, "digest": p.manifest.digest}
                    for p in plan
                    if p.manifest is not None
                },
            }
        )
        return
    if promotion is not None:
        verdict = (
            standing(promotion.parents["final_model"].digest, current)
            if promotion.details["promoted"]
            else "not promoted"
        )
        console.print(f"[bold]{verdict}[/bold]", highlight=False, soft_wrap=True)
        for reason in promotion.details["reasons"]:
            console.print(f"  {reason}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"next: selfalign report --store {store.url}", highlight=False, soft_wrap=True)
