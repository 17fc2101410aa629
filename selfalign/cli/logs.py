"""`selfalign logs`: what a stage's workers write, on this machine or on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from selfalign.cli.cluster import STAGE_NAME
from selfalign.cli.options import Place, place_options, run_directory
from selfalign.errors import ConfigurationError, printable
from selfalign.run.record import latest_run, read_run
from selfalign.telemetry import parse_event

if TYPE_CHECKING:
    from selfalign.run.executors.kubernetes.api import Cluster

_HIDDEN = ("event", "level", "timestamp", "run", "stage", "shard", "logger")


@click.command("logs")
@click.argument("stage", type=STAGE_NAME)
@click.option(
    "--run",
    metavar="NAME",
    help="Of which run.  [default: the newest that has not ended, else the newest]",
)
@click.option("--follow", "-f", is_flag=True, help="On a cluster: go on until its Job ends.")
@click.option(
    "--tail",
    "tail_lines",
    type=click.IntRange(min=1),
    metavar="LINES",
    help="The last lines only (on a cluster: of each pod).",
)
@place_options
def logs_command(
    stage: str, run: str | None, follow: bool, tail_lines: int | None, where: Place
) -> int:
    """The log of STAGE. Piped, it is JSON lines; on a terminal it is for people.

    With --namespace, --context or --kubeconfig it is the log of the stage's latest Job there, and
    with --follow the exit code is the stage's. Otherwise it is that of a run on this machine.
    """
    if where.on_cluster:
        cluster = where.connect()
        return _of_cluster(cluster, stage, run, follow, tail_lines)
    store = where.open().store
    chosen = run or latest_run(store)
    read_run(store, chosen)
    path = run_directory(store.url, chosen) / "log.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror}, so run {chosen} has no log on this machine",
            remedy="give -n NAMESPACE for a run on a cluster, or look where the run was started",
        ) from error
    show = printer()
    mine = [line for line in lines if _stage_of(line) == stage]
    for line in mine[-tail_lines:] if tail_lines else mine:
        show("", line)
    return 0


def follow_job(cluster: Cluster, job: str) -> int:
    """Show a Job's log until it ends; the exit code of its stage."""
    from selfalign.run.executors.kubernetes.logs import Follower

    return Follower(cluster, printer(), tell).to_the_end(job)


def tell(sentence: str) -> None:
    """A sentence about the Job, beside its log."""
    if sentence:
        click.echo(sentence, err=True)


def printer() -> Callable[[str, str], None]:
    """Prints a line of a log: as it is where a program reads, else for people."""
    if not sys.stdout.isatty():
        return lambda _shard, line: click.echo(line)
    return lambda shard, line: click.echo(printable(for_people(shard, line)))


def for_people(shard: str, line: str) -> str:
    """One line of a stage's JSON log: shard, time, event and values."""
    where = f"[{shard}] " if shard else ""
    event = parse_event(line)
    if event is None or "event" not in event:
        return where + line
    clock = str(event.get("timestamp", ""))[11:19]
    values = " ".join(f"{k}={v}" for k, v in event.items() if k not in _HIDDEN and v is not None)
    return f"{where}{clock} {event['event']:<20} {values}".rstrip()


def _of_cluster(
    cluster: Cluster, stage: str, run: str | None, follow: bool, tail_lines: int | None
) -> int:
    from selfalign.run.executors.kubernetes import logs
    from selfalign.run.executors.kubernetes.outcome import job_end
    from selfalign.run.executors.kubernetes.waiting import why_waiting

    found = logs.find_run(cluster, run)
    name = found["metadata"]["name"]
    job = logs.latest_job(cluster, found, stage)
    if job is None:
        raise ConfigurationError(
            f"run {name} has no Job of {stage}: the stage was reused, has not begun, or its Jobs "
            "have expired",
            remedy=f"see selfalign status {name} -n {cluster.namespace}",
        )
    if follow:
        return follow_job(cluster, job["metadata"]["name"])
    pods = logs.pods_of_job(cluster, job)
    show = printer()
    for pod in pods:
        for line in logs.tail(cluster, pod, tail_lines):
            show(logs.shard_of(pod), line)
    waiting = None if job_end(job) else why_waiting(job, pods, [], datetime.now(UTC))
    tell(waiting.reason if waiting else "")
    return 0


def _stage_of(line: str) -> str | None:
    event = parse_event(line)
    return None if event is None else event.get("stage")
