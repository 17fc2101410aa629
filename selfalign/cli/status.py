"""`selfalign status`: what is done, what is running, what failed and why, what to do next."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from selfalign.cli.cluster_options import cluster_options, connect_to
from selfalign.cli.cluster_status import show_status
from selfalign.cli.options import json_option, new_console, open_from, print_json, store_options
from selfalign.errors import ConfigurationError
from selfalign.run.record import RunStatus, StageRecord, read_run, run_ids, status_to_show
from selfalign.store.base import Store
from selfalign.store.pointer import read_pointer

_STYLES = {
    "Done": "green", "Reused": "cyan", "Running": "yellow", "Failed": "red", "Pending": "dim",
    "Succeeded": "green", "Interrupted": "yellow",
}  # fmt: skip


@click.command("status", short_help="What is done, running or failed, and the next action.")
@click.argument("run_id", required=False)
@click.option(
    "--logs",
    "with_logs",
    is_flag=True,
    help="On a cluster: the last log lines of each pod under way, too.",
)
@store_options
@cluster_options
@json_option
def status_command(
    run_id: str | None,
    with_logs: bool,
    config_path: Path,
    overrides: tuple[str, ...],
    store_url: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    as_json: bool,
) -> None:
    """How a run stands (the latest one, unless RUN_ID names another), and what to do next.

    With --namespace, --context or --kubeconfig it is asked of that cluster: shards, attempts with
    their causes, why a pod waits. Otherwise the store's record is shown, on a cluster's store too.
    """
    if store_url is None and (namespace or context or kubeconfig):
        cluster = connect_to(namespace, context, kubeconfig)
        show_status(cluster, run_id, with_logs=with_logs, every=False, as_json=as_json)
        return
    store = open_from(config_path, overrides, store_url).store
    chosen = run_id or latest_run(store)
    read_run(store, chosen)
    status = status_to_show(store, chosen)
    current = read_pointer(store)
    action = next_action(status)
    if as_json:
        print_json(
            {
                **status.model_dump(),
                "next_action": action,
                "current": None if current is None else current.pointer.model.model_dump(),
            }
        )
        return
    console = new_console()
    style = _STYLES.get(status.phase, "")
    console.print(
        f"run {status.id}: [{style}]{status.phase}[/{style}], {status.updated_at}", highlight=False
    )
    console.print(_table(status.stages))
    if status.message:
        console.print(
            f"[bold]cause[/bold]  {escape(status.message)}", highlight=False, soft_wrap=True
        )
    console.print(f"[bold]next[/bold]   {escape(action)}", highlight=False, soft_wrap=True)
    if current is not None:
        console.print(
            f"[bold]current[/bold] model: {current.pointer.model.key}, since "
            f"{current.pointer.moved_at}",
            highlight=False,
        )


def latest_run(store: Store) -> str:
    """The newest run's id. Raises ConfigurationError when there is none."""
    ids = run_ids(store)
    if not ids:
        raise ConfigurationError(
            f"{store.url}: no run was made yet", remedy="start one: selfalign run --config FILE"
        )
    return ids[-1]


def next_action(status: RunStatus) -> str:
    """What a person should do now, in one line."""
    if status.phase == "Succeeded":
        return "look at it: selfalign report"
    if status.phase == "Running":
        return "wait; if nothing moves any more, run `selfalign run` again: it resumes"
    if status.phase == "Interrupted":
        return "run `selfalign run` again with the same configuration: it resumes"
    if status.remedy:
        return f"{status.remedy}; then run again"
    failed = [s for s in status.stages if s.phase == "Failed"]
    code = failed[-1].attempts[-1].exit_code if failed and failed[-1].attempts else None
    remedies = {
        2: "correct the configuration or the seeds, then run again",
        3: "restore or delete the artifact or file it names, then run again",
        4: "give this identity access to the store, then run again",
        69: "see that the store can be reached, then run again",
        71: "lower batch_size, max_length or gpu_memory_utilization, or use a larger GPU",
        74: "free disk space (TMPDIR, SELFALIGN_CACHE_DIR, the store), then run again",
    }
    return remedies.get(code or 0, "see the log of the run, then run again; finished work is kept")


def _table(stages: list[StageRecord]) -> Table:
    table = Table(
        "stage", "phase", "artifact", "progress", "attempts", "seconds", box=None, pad_edge=False
    )
    for record in stages:
        progress = ""
        if record.phase in ("Running", "Failed") and record.total:
            progress = f"{record.done:,}/{record.total:,} ({record.done / record.total:.0%})"
        style = _STYLES.get(record.phase, "")
        table.add_row(
            record.stage,
            f"[{style}]{record.phase}[/{style}]",
            f"{record.artifact} {record.key or ''}",
            progress,
            str(len(record.attempts) or ""),
            "" if record.seconds is None else f"{record.seconds:,.1f}",
        )
    return table
