"""`selfalign run`: all stages on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from selfalign import __version__
from selfalign.cli.options import config_options, json_option, print_json, run_directory
from selfalign.errors import ConfigurationError, printable
from selfalign.identity import collect_inputs
from selfalign.inputs import localise
from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.records import now
from selfalign.run.drive import reasons_of
from selfalign.run.executors.display import RunConsole, RunDisplay
from selfalign.run.executors.local import LocalRun
from selfalign.run.notify import check_targets
from selfalign.run.record import RunRecord, RunStatus, check_run_name, new_run_id, write_run
from selfalign.run.view import next_action
from selfalign.seeds import annotation_lines, load_seeds
from selfalign.stages.preflight import check_run
from selfalign.store.artifact import read_manifest
from selfalign.store.base import PreconditionFailed, Store
from selfalign.store.open import open_store
from selfalign.store.pointer import read_pointer, standing
from selfalign.telemetry import drop_output

AWAITS_APPROVAL = 10  # exit code: the gate passed, a person is to decide


@click.command("run")
@config_options
@click.option("--run-id", metavar="ID", help="Name of the run.  [default: by time]")
@click.option(
    "--until", type=click.Choice([stage.name for stage in STAGES]), help="Stop after this stage."
)
@click.option(
    "--max-attempts",
    type=click.IntRange(min=1),
    default=3,
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
    run_id = run_id or new_run_id()
    check_run_name(run_id)
    config = load_config(config_path, overrides).config
    store = open_store(config.store)
    config = localise(config, store)
    seeds = load_seeds(config.seeds)
    check_run(config, seeds, until=until)
    check_targets(config.notify)
    inputs = collect_inputs(config)
    record = RunRecord(
        id=run_id,
        created_at=now(),
        code_version=__version__,
        config=config.model_dump(mode="json"),
        annotation_lines=sum(annotation_lines(config.seeds.directory).values()),
    )
    try:
        write_run(store, record)
    except PreconditionFailed:
        raise ConfigurationError(
            f"a run named {run_id!r} exists in {store.url}",
            remedy="leave --run-id out: a new run reuses everything the earlier one finished",
        ) from None
    directory = run_directory(store.url, run_id)
    console = RunConsole(stderr=as_json, emoji=False)
    log_path = directory / "log.jsonl"
    console.print(f"run {run_id}, log in {log_path}", highlight=False, soft_wrap=True, markup=False)
    with RunDisplay(console) as display:
        run = LocalRun(run_id, config, inputs, store, directory, display, max_attempts, until=until)
        status = run.run()
    current = read_pointer(store)
    if as_json:
        _print_json(status, None if current is None else current.pointer.model.model_dump())
    elif status.phase == "Failed":
        _show_failure(console, status)
    elif status.awaits_approval:
        told = f"[bold]awaits approval[/bold]: {escape(status.message)}"
        console.print(told, highlight=False, soft_wrap=True)
        console.print(f"next: {next_action(status)}", soft_wrap=True, markup=False)
    else:
        _show_success(console, store, status)
    return AWAITS_APPROVAL if status.awaits_approval else status.exit_code or 0


def _print_json(status: RunStatus, current: dict[str, Any] | None) -> None:
    """The result on stdout; where nobody reads it any more, the exit code says it alone."""
    result: dict[str, Any] = {"phase": status.phase, "run": status.id}
    if status.phase == "Failed":
        result |= {
            "stage": status.stage,
            "reason": status.reason,
            "error": status.message,
            "remedy": status.remedy,
            "exit_code": status.exit_code,
        }
    elif status.awaits_approval:
        result |= {"reason": status.reason, "next_action": next_action(status)}
    else:
        # `promoted` is the gate's verdict; what is current may be another model since
        result |= {
            "promoted": None if status.verdict is None else status.verdict == "Promoted",
            "current": current,
            "artifacts": {
                s.artifact: {"key": s.key, "digest": s.digest} for s in status.stages if s.digest
            },
        }
    try:
        print_json(result)
    except BrokenPipeError:
        drop_output(sys.stdout)


def _show_failure(console: Console, status: RunStatus) -> None:
    console.print(f"[red]failed[/red] in {status.stage} ({status.reason})", highlight=False)
    if status.remedy:
        remedy = escape(status.remedy)
        console.print(f"[green]remedy:[/green] {remedy}", highlight=False, soft_wrap=True)
    console.print(
        "what was finished is kept; correct it and run the same command again", highlight=False
    )


def _show_success(console: Console, store: Store, status: RunStatus) -> None:
    promotion = next((s.key for s in status.stages if s.name == "promote" and s.digest), None)
    manifest = read_manifest(store, "promotion", promotion) if promotion else None
    if manifest is not None:
        verdict = (
            standing(manifest.parent_digest("final_model"), read_pointer(store))
            if manifest.details.get("promoted")
            else {"no_change": "no change", "rejected": "rejected"}.get(
                str(manifest.details.get("decision")), "not promoted"
            )
        )
        console.print(f"[bold]{verdict}[/bold]", highlight=False, soft_wrap=True)
        for reason in reasons_of(manifest):
            console.print(printable(f"  {reason}"), highlight=False, soft_wrap=True, markup=False)
    shown = f"next: selfalign report --store {shlex.quote(store.url)}"
    console.print(shown, highlight=False, soft_wrap=True, markup=False)
