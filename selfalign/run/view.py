"""What people read of a run, here or on a cluster: how it stands, why, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfalign.errors import printable
from selfalign.run.record import RunStatus, StageState
from selfalign.telemetry import parse_event

if TYPE_CHECKING:
    from rich.console import Console

REUSES = "a new run reuses what is finished"
REMEDIES = {  # by exit code, where an error brought no remedy of its own
    2: "correct the configuration or the seeds",
    3: "restore or delete the artifact or file it names",
    4: "give this identity, or the stage's service account, access to the store",
    69: "see that the store can be reached",
    71: "lower batch_size, max_length or gpu_memory_utilization, or use a larger GPU",
    74: "free disk space (TMPDIR, SELFALIGN_CACHE_DIR, the store), or raise the sizes of cache and "
    "scratch in the stage's values",
}
_STYLES = {
    "Done": "green",
    "Reused": "cyan",
    "Running": "yellow",
    "Failed": "red",
    "Pending": "dim",
    "Succeeded": "green",
    "Interrupted": "yellow",
    "Waiting": "yellow",
    "AwaitingApproval": "yellow",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a stage, added up over its workers; `eta_seconds` is the slowest's."""

    done: int
    total: int | None
    unit: str
    per_second: float
    eta_seconds: float | None


def word(status: RunStatus) -> str:
    """One word for how a run stands."""
    return status.phase if status.phase != "Running" else status.reason or "Pending"


def next_action(status: RunStatus, namespace: str | None = None) -> str:
    """What a person should do now, in one line.

    Args:
        namespace: of the cluster where the run is; None is this machine.
    """
    where = f" -n {namespace}" if namespace else ""
    run = shlex.quote(status.id)
    again = f"submit a new run ({REUSES})" if namespace else f"run again ({REUSES})"
    if status.phase == "Succeeded":
        return f"look at it: selfalign report {run}{where}"
    if status.phase == "Interrupted":
        same = "run `selfalign run` again with the same configuration: it resumes"
        return again if namespace else same
    if status.phase == "Failed":
        remedy = status.remedy or REMEDIES.get(status.exit_code or 0, "see the log of its stage")
        return f"{remedy}; then {again}"
    if status.awaits_approval:
        then = "" if namespace else "; then `selfalign run` again, which carries it out"
        return (
            f"selfalign report {run}{where}; selfalign approve {run}{where}, or selfalign reject "
            f"{run}{where} --reason WHY{then}"
        )
    if status.remedy:
        return status.remedy
    if not namespace:
        return "wait; if nothing moves any more, run `selfalign run` again: it resumes"
    if not status.reason:
        return (
            "wait; if it stays so the controller is not running: kubectl get deployment "
            f"selfalign-controller{where}"
        )
    if status.reason == "Suspended":
        patch = '\'{"spec":{"suspend":false}}\''
        return f"to go on: kubectl patch alignmentrun {run}{where} --type merge -p {patch}"
    if status.reason == "Running":
        return f"wait; to watch it: selfalign logs {status.stage} --run {run}{where} --follow"
    return "wait; it goes on by itself"


def progress_of(logs: Iterable[list[str]]) -> Progress | None:
    """Add up what workers said last of their progress; None when none said anything."""
    latest = [event for lines in logs if (event := _last_progress(lines)) is not None]
    return added_up(latest) if latest else None


def added_up(latest: Sequence[Mapping[str, Any]]) -> Progress:
    """The progress of a stage, from the last progress event of each worker, at least of one."""
    totals = [event.get("total") for event in latest]
    etas = [event["eta_seconds"] for event in latest if event.get("eta_seconds") is not None]
    return Progress(
        done=sum(event.get("done") or 0 for event in latest),
        total=None if None in totals else sum(total or 0 for total in totals),
        unit=latest[0].get("unit") or "",
        per_second=round(sum(event.get("per_second") or 0.0 for event in latest), 2),
        eta_seconds=max(etas, default=None),
    )


def show_status(
    console: Console, status: RunStatus, action: str, where: str, progress: Mapping[str, Progress]
) -> None:
    """Print a run: its stages, failed attempts, cause and next action.

    Args:
        where: the namespace or the store's URL.
        progress: by stage, where its workers were asked.
    """
    from rich.markup import escape

    phase = word(status)
    started = f", started {escape(status.started_at)}" if status.started_at else ""
    ended = f", ended {escape(status.completed_at)}" if status.completed_at else ""
    verdict = f", {status.verdict}" if status.verdict else ""
    _line(
        console,
        f"run {escape(status.id)} in {escape(where)}: {_styled(phase)}{verdict}, "
        f"{escape(status.progress) or 'no'} stages{started}{ended}",
    )
    console.print(_table(status.stages, progress))
    for attempt in status.attempts:
        if attempt.cause:
            code = "" if attempt.exit_code is None else f" (exit code {attempt.exit_code})"
            what = f"{escape(attempt.stage)} attempt {attempt.number}: {attempt.cause}{code}"
            _line(console, f"[dim]{what}: {escape(attempt.message)}[/dim]")
    if status.message:
        label = "result" if status.phase == "Succeeded" else "cause "
        _line(console, f"[bold]{label}[/bold] {escape(status.message)}")
    _line(console, f"[bold]next[/bold]   {escape(action)}")


def _table(stages: list[StageState], progress: Mapping[str, Progress]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    columns = ("stage", "phase", "artifact", "progress", "left", "attempts", "seconds")
    table = Table(*columns, box=None, pad_edge=False)
    for state in stages:
        live = progress.get(state.name)
        free = f" (+{state.disruptions} free)" if state.disruptions else ""
        table.add_row(
            state.name,
            _styled(state.phase),
            escape(printable(f"{state.artifact} {state.key or ''}")),
            _progress(state, live),
            _duration(live.eta_seconds) if live and live.eta_seconds is not None else "",
            f"{state.attempts or ''}{free}",
            "" if state.seconds is None else f"{state.seconds:,.1f}",
        )
    return table


def _progress(state: StageState, live: Progress | None) -> str:
    if live is not None:
        total = f"/{live.total:,}" if live.total else ""
        shards = f", {state.done or 0}/{state.total} shards" if state.total else ""
        return f"{live.done:,}{total} {live.unit}".rstrip() + shards
    if state.phase in ("Running", "Failed") and state.total:
        done = state.done or 0
        return f"{done:,}/{state.total:,} ({done / state.total:.0%})"
    return ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _styled(phase: str) -> str:
    style = _STYLES.get(phase)
    return f"[{style}]{phase}[/{style}]" if style else phase


def _line(console: Console, text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, emoji=False)


def _last_progress(lines: list[str]) -> dict[str, Any] | None:
    for line in reversed(lines):
        if '"stage.progress"' in line and (event := parse_event(line)) is not None:
            return event
    return None
