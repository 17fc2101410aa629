"""Shows a local run to a person: bars on a terminal, one line per event when piped."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from selfalign.run.plan import Planned
from selfalign.run.view import Progress
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
        self._bars = Bars(
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
        self._last_plain = 0.0

    def __enter__(self) -> RunDisplay:
        self._bars.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bars.stop()

    def stage_reused(self, planned: Planned) -> None:
        self._line(planned.stage.name, f"reused   {planned.stage.writes} {planned.key}")

    def stage_started(self, planned: Planned, attempt: int, num_shards: int) -> None:
        self._last_plain = time.monotonic()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(planned.stage.name, total=None, rate="")
        again = f", attempt {attempt}" if attempt > 1 else ""
        shards = f", {num_shards} shards" if num_shards > 1 else ""
        self._line(
            planned.stage.name, f"started  {planned.stage.writes} {planned.key}{again}{shards}"
        )

    def progress(self, stage: str, progress: Progress, loss: float | None) -> None:
        if self._task is None:
            return
        done, total, rate = progress.done, progress.total, progress.per_second
        text = f"{rate:,.1f} {progress.unit}/s"
        if loss is not None:
            text += f", loss {loss}"
        self._bars.update(self._task, completed=done, total=total, rate=text)
        if (
            not self._console.is_terminal
            and time.monotonic() - self._last_plain > _PLAIN_INTERVAL_SECONDS
        ):
            self._last_plain = time.monotonic()
            eta = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
            self._line(stage, f"{done:,}/{total or '?'} {progress.unit}, {text}{eta}")

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
