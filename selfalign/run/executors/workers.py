"""Worker processes of one stage: `selfalign <stage>`, one for each shard.

Each worker writes JSON events to its stderr. They are copied to the run's log file and passed to a
callback, and the last error becomes the attempt's message.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from selfalign.telemetry import parse_event

EventSink = Callable[[dict[str, Any]], None]

_STOP_GRACE_SECONDS = 60.0  # a trainer finishes its step and saves a checkpoint
_TAIL_LINES = 20


@dataclass(slots=True)
class Worker:
    """A running process and what is known of it."""

    shard: int
    process: subprocess.Popen[str]
    failure: str = ""
    remedy: str | None = None
    tail: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """How a worker ended. `message` is what a person should read; empty on success."""

    shard: int
    exit_code: int
    message: str
    remedy: str | None = None


def run_workers(
    commands: Sequence[list[str]], log_file: IO[str], on_event: EventSink
) -> list[WorkerResult]:
    """Run one process for each command, all at once, and wait until every one has ended.

    An exception in here, also Interrupted, stops the workers with SIGTERM, gives them time
    to commit what they have, and is raised again. Their temporary files are removed at the end,
    also those of a worker that was killed: a training's checkpoints fill a disk in a few nights.
    """
    events: queue.Queue[tuple[Worker, str | None]] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="selfalign-", ignore_cleanup_errors=True) as scratch:
        environment = dict(os.environ, SELFALIGN_LOG="json", PYTHONUNBUFFERED="1", TMPDIR=scratch)
        if len(commands) > 1:
            # Several workers share the cores: each takes its part instead of all of them.
            cores = max((os.cpu_count() or 1) // len(commands), 1)
            environment.setdefault("OMP_NUM_THREADS", str(cores))
        workers: list[Worker] = []
        try:
            for shard, command in enumerate(commands):
                workers.append(_start(shard, command, events, environment))
            open_streams = len(workers)
            while open_streams:
                worker, line = events.get()
                if line is None:
                    open_streams -= 1
                else:
                    _handle(worker, line, log_file, on_event)
            return [_result(worker) for worker in workers]
        except BaseException:
            _stop(workers)
            raise


def stage_command(
    stage: str, config: str, *, shard: int, num_shards: int, key: str, run: str
) -> list[str]:
    """The command of one worker."""
    return [
        *(sys.executable, "-m", "selfalign", stage, "--config", config),
        *("--shard", str(shard), "--num-shards", str(num_shards)),
        *("--expect-key", key, "--run", run),
    ]


def _start(
    shard: int,
    command: list[str],
    events: queue.Queue[tuple[Worker, str | None]],
    environment: dict[str, str],
) -> Worker:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the runner alone, which stops them in order
    )
    worker = Worker(shard, process)
    threading.Thread(target=_read, args=(worker, events), daemon=True).start()
    return worker


def _read(worker: Worker, events: queue.Queue[tuple[Worker, str | None]]) -> None:
    assert worker.process.stderr is not None
    with worker.process.stderr as stream:
        for line in stream:
            events.put((worker, line.rstrip("\n")))
    worker.process.wait()
    events.put((worker, None))


def _handle(worker: Worker, line: str, log_file: IO[str], on_event: EventSink) -> None:
    event = parse_event(line)
    if event is not None:
        log_file.write(line + "\n")
    else:
        # a library's chatter or a traceback; the log stays one JSON object per line
        worker.tail = [*worker.tail[-_TAIL_LINES:], line]
        event = {"event": "stage.output", "line": line, "shard": worker.shard}
        log_file.write(json.dumps(event, ensure_ascii=False) + "\n")
    log_file.flush()
    event.setdefault("shard", worker.shard)
    if event.get("event") == "stage.failed":
        worker.failure = str(event.get("error", ""))
        worker.remedy = event.get("remedy")
    on_event(event)


def _result(worker: Worker) -> WorkerResult:
    code = worker.process.wait()
    if code == 0:
        return WorkerResult(worker.shard, 0, "")
    message = worker.failure or "\n".join(worker.tail[-3:])
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        message = message or f"killed by {name}{hint}"
    message = message or f"ended with exit code {code}"
    return WorkerResult(worker.shard, code, message, worker.remedy)


def _stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()
    deadline = time.monotonic() + _STOP_GRACE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
