"""`selfalign` in processes of their own, forked from a server that has imported what stages import.

Such a process has its own memory, streams, signals and exit code, as `python -m selfalign` has; it
only spares the seconds that importing takes. The workers of its `run` are forked from it likewise.
What depends on how an interpreter starts (its arguments, its exit, broken pipes) is tested with
interpreters.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

PROJECT = Path(__file__).resolve().parent.parent
_HANGS_SECONDS = 600
_IMPORTED = [
    "torch", "peft", "transformers.trainer", "transformers.models.llama.modeling_llama",
    "scipy.stats", "selfalign.cli.main", "selfalign.run.stage", "selfalign.stages.train",
    "selfalign.stages.scoring", "tests.training.worlds", __name__,
]  # fmt: skip


def context() -> Any:
    """The context whose processes come from the one server of this process."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_IMPORTED)
    return found


class _Stream:
    """A file descriptor that the other process gets a copy of."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[object, ...]:
        return _received, (DupFd(self.number),)


def _received(stream: Any) -> int:
    number: int = stream.detach()
    return number


def start(
    arguments: tuple[str | Path, ...],
    streams: tuple[int, int, int],
    environment: dict[str, str],
    cwd: Path | None = None,
) -> BaseProcess:
    """Start a command with these descriptors as its input, output and errors."""
    words = ["selfalign", *map(str, arguments)]
    given = tuple(map(_Stream, streams))
    process: BaseProcess = context().Process(
        target=_run, args=(words, given, environment, cwd or Path.cwd())
    )
    process.start()
    return process


def selfalign(
    *arguments: str | Path, cwd: Path | None = None, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does."""
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as errors,
    ):
        given.write(stdin)
        given.seek(0)
        streams = (given.fileno(), out.fileno(), errors.fileno())
        whole = {**os.environ, "PYTHONPATH": str(PROJECT), **environment}  # also of its workers
        process = start(arguments, streams, whole, cwd)
        process.join(_HANGS_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"selfalign {arguments} hangs")
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read(), errors.read())


def _run(
    words: list[str], streams: tuple[int, int, int], environment: dict[str, str], cwd: Path
) -> None:
    """In the forked process: become the command."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = words
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if threads := environment.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    from selfalign.cli.main import main
    from selfalign.run.executors import workers

    given = {name: getattr(subprocess, name) for name in ("DEVNULL", "PIPE", "TimeoutExpired")}
    workers.subprocess = SimpleNamespace(Popen=_Worker, **given)  # type: ignore[assignment]
    main()


class _Worker:
    """What `run_workers` does with a `subprocess.Popen` of `python -m selfalign ...`."""

    stderr: IO[str]

    def __init__(self, command: list[str], *, env: dict[str, str], **_: Any) -> None:
        reader, writer = os.pipe()
        streams = (os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY), writer)
        self._process = multiprocessing.get_context("fork").Process(
            target=_run, args=(["selfalign", *command[3:]], streams, env, Path.cwd())
        )
        self._process.start()
        for stream in streams:
            os.close(stream)
        self.stderr = os.fdopen(reader, encoding="utf-8", errors="replace")
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("selfalign", timeout or 0)
        return code
