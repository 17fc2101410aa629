"""Logs and progress: structlog events on stderr, JSON unless a person is watching.

Event names are fixed: `stage.started`, `stage.progress`, `part.committed`, `shard.finished`,
`artifact.published`, `stage.failed`; the runner wraps any other line of a stage's output as
`stage.output`. `run`, `stage` and `shard` are bound once per process. The
local runner and `selfalign logs` read these lines back.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import IO, Any

import structlog

from selfalign.errors import hide_secrets, json_text

_PROGRESS_INTERVAL_SECONDS = 0.5
_VALUE_LIMIT = 4096  # characters of one value of an event

log: Any = structlog.get_logger("selfalign")


def configure_logging(*, json_lines: bool | None = None, level: str = "info") -> None:
    """Send events to stderr: JSON lines, or for people when stderr is a terminal.

    Args:
        json_lines: None decides by whether stderr is a terminal.
        level: the least severe level that is shown.
    """
    if json_lines is None:
        json_lines = not sys.stderr.isatty()
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=json_text)
        if json_lines
        else structlog.dev.ConsoleRenderer(
            pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Before `_shorten`: what the renderer formats itself nobody hides secrets in.
            _traceback if json_lines else structlog.processors.format_exc_info,
            _shorten,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(_CurrentStderr()),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


def parse_event(line: str) -> dict[str, Any] | None:
    """The event that a line of a log holds; None for a library's chatter or a traceback."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def no_progress_bars() -> None:
    """Turn the bars of libraries off in this process and its children. Call before imports."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


class _CurrentStderr:
    """Whatever sys.stderr is when an event is written; it may be replaced and closed meanwhile."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def drop_output(stream: IO[str]) -> None:
    """Discard what is buffered and all that follows, because nobody reads the stream any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def bind(**values: object) -> None:
    """Bind names to every later event of this process."""
    structlog.contextvars.bind_contextvars(**values)


# Locals hold whatever a run or a model brought: they are not for logs.
_traceback = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
)


def _shorten(_logger: object, _method: str, event: Any) -> Any:
    """Hide secrets and cut long values, so that no input makes a log line of megabytes."""
    return {name: _short(value) for name, value in event.items()}


def _short(value: Any) -> Any:
    if isinstance(value, str):
        text = hide_secrets(value)  # before the cut, which may go through a secret
        if len(text) <= _VALUE_LIMIT:
            return text
        half = _VALUE_LIMIT // 2  # a traceback's last line says most
        return f"{text[:half]}... ({len(value)} characters) ...{text[-half:]}"
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


class Progress:
    """Counts records and says how it goes, at most twice a second.

    Args:
        unit: what is counted, e.g. "prompts".
        total: how many there will be; None when it is not known.
    """

    def __init__(self, unit: str, total: int | None) -> None:
        self.unit = unit
        self.total = total
        self.done = 0
        self._reused = 0
        self._started = time.monotonic()
        self._last = 0.0

    def skip(self, count: int) -> None:
        """Count work that an earlier attempt did; it does not enter the rate."""
        self._reused += count
        self.advance(count)

    def advance(self, count: int = 1, **values: object) -> None:
        """Count work that is done."""
        self.done += count
        moment = time.monotonic()
        if moment - self._last >= _PROGRESS_INTERVAL_SECONDS:
            self._last = moment
            self._emit(moment, values)

    def finish(self) -> None:
        """Say the final count."""
        self._emit(time.monotonic(), {})

    def _emit(self, moment: float, values: dict[str, object]) -> None:
        elapsed = max(moment - self._started, 1e-9)
        rate = (self.done - self._reused) / elapsed
        left = None if self.total is None else max(self.total - self.done, 0)
        log.info(
            "stage.progress",
            unit=self.unit,
            done=self.done,
            total=self.total,
            per_second=round(rate, 2),
            eta_seconds=None if left is None or rate <= 0 else round(left / rate, 1),
            **values,
        )
