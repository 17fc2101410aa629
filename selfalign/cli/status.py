"""`selfalign status`: what is done, what runs or failed and why, what to do next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal
from rich.markup import escape

from selfalign.cli.options import Place, json_option, new_console, place_options, print_json
from selfalign.errors import printable
from selfalign.run.record import RunStatus, latest_run, read_run, status_to_show
from selfalign.run.storage import held_bytes, written_bytes
from selfalign.run.view import Progress, next_action, progress_of, show_status, word
from selfalign.store.pointer import read_pointer

if TYPE_CHECKING:
    from selfalign.run.executors.kubernetes.api import Cluster
    from selfalign.run.executors.kubernetes.cluster import Resource

_LOG_LINES = 10
_PROGRESS_LINES, _PROGRESS_PODS = 20, 16  # of a log, and pods, that are read for the progress


@click.command("status")
@click.argument("run_id", required=False)
@click.option(
    "--logs",
    "with_logs",
    is_flag=True,
    help=f"On a cluster: the last {_LOG_LINES} log lines of each pod that works, too.",
)
@place_options
@json_option
def status_command(run_id: str | None, with_logs: bool, where: Place, as_json: bool) -> None:
    """How a run stands (the latest one, unless RUN_ID names another), and what to do next.

    With --namespace, --context or --kubeconfig it is asked of that cluster: shards, attempts with
    their causes, why a pod waits. Otherwise the store's record is shown, on a cluster's store too.
    """
    if where.on_cluster:
        cluster = where.connect()
        _show_on_cluster(cluster, run_id, with_logs, as_json)
        return
    store = where.open().store
    chosen = run_id or latest_run(store)
    run = read_run(store, chosen)
    status = status_to_show(store, chosen)
    found = read_pointer(store)
    current = None if found is None else found.pointer
    action = next_action(status, "NAMESPACE" if run.on_cluster else None)
    written, held = written_bytes(store, status), held_bytes(store)
    if as_json:
        model = None if current is None else current.model.model_dump()
        sizes = {"bytes_written": written, "bytes_in_store": held.bytes}
        sizes["bytes_in_store_is_all"] = held.whole
        print_json({**status.model_dump(), "next_action": action, "current": model, **sizes})
        return
    console = new_console()
    show_status(console, status, action, store.url, {})
    console.print(
        f"[bold]size[/bold]   {decimal(written)} written by this run, {held} in the store",
        highlight=False,
    )
    if current is not None:
        console.print(
            f"[bold]current[/bold] model: {current.model.key}, since "
            + escape(printable(current.moved_at)),
            highlight=False,
        )


def _show_on_cluster(cluster: Cluster, name: str | None, with_logs: bool, as_json: bool) -> None:
    from selfalign.run.executors.kubernetes import logs
    from selfalign.run.executors.kubernetes.crd import status_of
    from selfalign.run.executors.kubernetes.job import attempts_of

    run = logs.find_run(cluster, name)
    status = status_of(run)
    attempts = attempts_of(cluster, run, status.attempts, datetime.now(UTC))
    active = {a.stage: a for a in attempts if a.condition == "Active" and not status.finished}
    stages = [
        s.model_copy(update={"done": active[s.name].done, "total": active[s.name].total})
        if s.name in active
        else s
        for s in status.stages
    ]
    status = status.model_copy(update={"attempts": attempts, "stages": stages})
    lines = {stage: _stage_logs(cluster, run, stage) for stage in active}
    progress = {s: found for s, log in lines.items() if (found := progress_of(log)) is not None}
    shown = [line for log in lines.values() for pod in log for line in pod[-_LOG_LINES:]]
    action = next_action(status, cluster.namespace)
    if as_json:
        print_json(_as_json(cluster, status, action, progress, shown if with_logs else []))
        return
    console = new_console()
    show_status(console, status, action, cluster.namespace, progress)
    for line in shown if with_logs else []:
        console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


def _as_json(
    cluster: Cluster,
    status: RunStatus,
    action: str,
    progress: dict[str, Progress],
    lines: list[str],
) -> dict[str, Any]:
    from dataclasses import asdict

    stages = [
        {**s.model_dump(), "progress": asdict(progress[s.name]) if s.name in progress else None}
        for s in status.stages
    ]
    dump = {**status.model_dump(), "stages": stages, "phase": word(status)}
    return {"namespace": cluster.namespace, **dump, "next_action": action, "lines": lines}


def _stage_logs(cluster: Cluster, run: Resource, stage: str) -> list[list[str]]:
    """The last lines of each pod of a stage's latest Job."""
    from selfalign.run.executors.kubernetes import logs

    job = logs.latest_job(cluster, run, stage)
    pods = [] if job is None else logs.pods_of_job(cluster, job)[:_PROGRESS_PODS]
    return [list(logs.tail(cluster, pod, _PROGRESS_LINES)) for pod in pods]
