"""Shows a local run to a person: bars on a terminal, one line per event when piped."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from selfalign.run.plan import Planned
from selfalign.telemetry import drop_output

_PLAIN_INTERVAL_SECONDS = 15.0


class RunConsole(Console):
    """A console whose reader may go away; the run goes on and nothing more is shown."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output(self.file)


class RunDisplay:
    """Shows the stages of a local run as they work."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._shards: dict[int, tuple[int, int | None, float]] = {}
        self._last_plain = 0.0

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def stage_reused(self, planned: Planned) -> None:
        self._line(planned.stage.name, f"reused   {planned.stage.writes} {planned.key}")

    def stage_started(self, planned: Planned, attempt: int, num_shards: int) -> None:
        self._shards = {}
        self._last_plain = time.monotonic()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(planned.stage.name, total=None, rate="")
        again = f", attempt {attempt}" if attempt > 1 else ""
        shards = f", {num_shards} shards" if num_shards > 1 else ""
        self._line(
            planned.stage.name, f"started  {planned.stage.writes} {planned.key}{again}{shards}"
        )

    def event(self, stage: str, event: dict[str, Any]) -> None:
        if event.get("event") != "stage.progress" or self._task is None:
            return
        self._shards[event.get("shard", 0)] = (
            event.get("done", 0),
            event.get("total"),
            float(event.get("per_second") or 0.0),
        )
        done = sum(done for done, _, _ in self._shards.values())
        totals = [total for _, total, _ in self._shards.values()]
        total = sum(t for t in totals if t is not None) if None not in totals else None
        rate = sum(rate for _, _, rate in self._shards.values())
        unit = event.get("unit", "")
        text = f"{rate:,.1f} {unit}/s"
        if "loss" in event:
            text += f", loss {event['loss']}"
        self._progress.update(self._task, completed=done, total=total, rate=text)
        if (
            not self._console.is_terminal
            and time.monotonic() - self._last_plain > _PLAIN_INTERVAL_SECONDS
        ):
            self._last_plain = time.monotonic()
            eta = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
            self._line(stage, f"{done:,}/{total or '?'} {unit}, {text}{eta}")

    def stage_finished(self, planned: Planned, seconds: float) -> None:
        self._line(planned.stage.name, f"done     in {seconds:,.1f} s")

    def attempt_failed(self, stage: str, attempt: int, message: str, again: bool) -> None:
        what = "failed, will be tried again" if again else "failed"
        self._line(stage, f"attempt {attempt} {what}: {message}", style="red")

    def not_told(self, target: str, why: str) -> None:
        self._line("notify", f"{target}: no notice was taken: {why}", style="red")

    def waiting(self, message: str) -> None:
        self._line("waiting", message)

    def _line(self, stage: str, text: str, style: str = "") -> None:
        self._console.print(
            f"[bold]{stage:<10}[/bold] {escape(text)}",
            style=style or None,
            highlight=False,
            soft_wrap=True,
        )
