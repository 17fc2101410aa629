"""`selfalign cluster status`: stages, attempts with cause, why it waits, what to do next."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfalign.cli.cluster_options import cluster_options, connect_to
from selfalign.cli.options import json_option, new_console, print_json
from selfalign.controller.cluster import Cluster, name_of
from selfalign.controller.resources import phase_of, status_of
from selfalign.controller.view import RunView, StageView, find_run, look

_STYLES = {
    "Done": "green", "Reused": "cyan", "Running": "yellow", "Failed": "red", "Pending": "dim",
    "Succeeded": "green", "Waiting": "yellow",
}  # fmt: skip
_LOG_LINES = 10


@click.command("status", short_help="How a run stands, why it waits or failed, what to do.")
@click.argument("run", required=False)
@click.option(
    "--logs",
    "with_logs",
    is_flag=True,
    help=f"The last {_LOG_LINES} log lines of each pod under way, too.",
)
@click.option("--all", "every", is_flag=True, help="One line for each run instead.")
@cluster_options
@json_option
def cluster_status_command(
    run: str | None,
    with_logs: bool,
    every: bool,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    as_json: bool,
) -> None:
    """How RUN stands on the cluster (default: the newest that goes on, else the newest)."""
    cluster = connect_to(namespace, context, kubeconfig)
    show_status(cluster, run, with_logs=with_logs, every=every, as_json=as_json)


def show_status(
    cluster: Cluster, run: str | None, *, with_logs: bool, every: bool, as_json: bool
) -> None:
    """Print it."""
    if every:
        _show_all(cluster, as_json)
        return
    view = look(cluster, find_run(cluster, run), log_lines=_LOG_LINES if with_logs else 0)
    if as_json:
        print_json({"namespace": cluster.namespace, **view.as_json()})
    else:
        _show(new_console(), cluster.namespace, view)


def _show(console: Console, namespace: str, view: RunView) -> None:
    style = _STYLES.get(view.phase, "")
    started = f", started {view.started_at}" if view.started_at else ""
    ended = f", ended {view.completed_at}" if view.completed_at else ""
    verdict = f", {view.verdict}" if view.verdict else ""
    console.print(
        f"run {view.name} in {namespace}: [{style}]{view.phase}[/{style}]{verdict}, "
        f"{view.progress} stages{started}{ended}" if style else
        f"run {view.name} in {namespace}: {view.phase}{verdict}, {view.progress} stages"
        f"{started}{ended}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(_table(view.stages))
    for attempt in view.attempts:
        if attempt["cause"]:
            console.print(
                f"[dim]{attempt['stage']} attempt {attempt['number']}: {attempt['cause']}"
                f"{_code(attempt['exit_code'])}: {escape(attempt['message'])}[/dim]",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    for label, text in (("cause", view.message), ("next ", view.next_action)):
        if text:
            console.print(f"[bold]{label}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)
    for stage in view.stages:
        for line in stage.lines:
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(stages: list[StageView]) -> Table:
    table = Table("stage", "phase", "progress", "left", "attempts", "artifact", box=None,
                  pad_edge=False)  # fmt: skip
    for stage in stages:
        style = _STYLES.get(stage.phase, "")
        free = f" (+{stage.disruptions} free)" if stage.disruptions else ""
        table.add_row(
            stage.name,
            f"[{style}]{stage.phase}[/{style}]" if style else stage.phase,
            _progress(stage),
            _left(stage),
            f"{stage.attempts or ''}{free}",
            stage.key or "",
        )
    return table


def _progress(stage: StageView) -> str:
    parts = []
    if stage.progress is not None:
        progress = stage.progress
        total = f"/{progress.total:,}" if progress.total else ""
        parts.append(f"{progress.done:,}{total} {progress.unit}".rstrip())
    if stage.shards:
        parts.append(stage.shards)
    return ", ".join(parts)


def _left(stage: StageView) -> str:
    if stage.progress is None or stage.progress.eta_seconds is None:
        return ""
    minutes, seconds = divmod(round(stage.progress.eta_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _code(exit_code: int | None) -> str:
    return "" if exit_code is None else f" (exit code {exit_code})"


def _show_all(cluster: Cluster, as_json: bool) -> None:
    runs = sorted(
        cluster.list("alignmentruns"), key=lambda run: str(run["metadata"]["creationTimestamp"])
    )
    rows = [
        {
            "run": name_of(run),
            "phase": phase_of(run),
            "stage": status_of(run).get("stage", ""),
            "progress": status_of(run).get("progress", ""),
            "verdict": status_of(run).get("verdict") or "",
            "message": status_of(run).get("message", ""),
        }
        for run in runs
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("run", "phase", "stage", "progress", "verdict", "message", box=None,
                  pad_edge=False)  # fmt: skip
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    new_console().print(table)
