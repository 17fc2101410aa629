"""OpenAI-compatible servers as processes, which a test may kill: vLLM's own, where it is installed,
and that of tests/engines/served.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.engines import served
from tests.forked import context

Kill = Callable[[], None]
PROJECT = Path(__file__).resolve().parents[2]
STARTS_WITHIN_SECONDS = 240
# Of the CPU build; on a GPU they change nothing.
_ENVIRONMENT = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}


@contextmanager
def vllm_serving(
    model: Path, max_length: int, log: Path, port: int | None = None
) -> Iterator[tuple[str, Kill]]:
    """Its URL, and what kills it."""
    port = port or free_port()
    arguments = {
        "--model": str(model),
        "--dtype": "float32",
        "--max-model-len": str(max_length),
        "--max-num-seqs": "8",
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    command = ["-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [word for pair in arguments.items() for word in pair]
    with _running(command, log, f"http://127.0.0.1:{port}/health") as kill:
        yield f"http://127.0.0.1:{port}/v1", kill


@contextmanager
def transformers_serving(
    model: Path, max_length: int, log: Path, port: int | None = None
) -> Iterator[tuple[str, Kill]]:
    """Its URL, and what kills it."""
    port = port or free_port()
    log.touch()  # this server writes to the test's own output
    process = context().Process(target=served.serve, args=(model, max_length, port))
    process.start()

    def kill() -> None:
        process.kill()
        process.join()

    try:
        _wait(f"http://127.0.0.1:{port}/version", process.is_alive, log)
        yield f"http://127.0.0.1:{port}/v1", kill
    finally:
        kill()


@contextmanager
def _running(command: list[str], log: Path, ready: str) -> Iterator[Kill]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=out,
            stderr=out,
            cwd=PROJECT,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )

    def kill() -> None:
        """SIGKILL to the server and to what it started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    try:
        _wait(ready, lambda: process.poll() is None, log)
        yield kill
    finally:
        kill()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _wait(url: str, alive: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_SECONDS
    while time.monotonic() < end:
        assert alive(), log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"no server within {STARTS_WITHIN_SECONDS} s\n{log.read_text()[-3000:]}")
