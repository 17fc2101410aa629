"""Start processes that work on one store at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Racers:
    """Processes that have opened their stores and wait for `go`."""

    def __init__(self, group: subprocess.Popen[str], number: int) -> None:
        assert group.stdout is not None
        self._group = group
        self._number = number
        ready = [group.stdout.readline().split() for _ in range(number)]
        self.pids = [pid for _, pid in sorted((int(index), int(pid)) for index, pid in ready)]

    def go(self) -> None:
        """Let them all act."""
        self._group.stdin.write("!" * self._number)
        self._group.stdin.flush()

    @property
    def running(self) -> bool:
        """Whether one of them still acts."""
        return self._group.poll() is None

    def results(self) -> list[str]:
        """What each printed, once all have ended; "" for one that was killed or failed."""
        lines = self._group.communicate()[0].splitlines()
        said = dict(line.split(" ", 1) for line in lines)
        return [said.get(str(index), "") for index in range(self._number)]

    def kill(self) -> None:
        """SIGKILL for all."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def racers(*commands: tuple[str, ...]) -> Iterator[Racers]:
    """One process per command (see `racer.py`), each ready and waiting."""
    group = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("racer.py")), json.dumps(commands)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    processes = Racers(group, len(commands))
    try:
        yield processes
    finally:
        if processes.running:
            processes.kill()
        group.communicate()


def race(*commands: tuple[str, ...]) -> list[str]:
    """Start, let go, and collect."""
    with racers(*commands) as processes:
        processes.go()
        return processes.results()
