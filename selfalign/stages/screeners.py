"""Other processes that screen candidates, while this one judges what they send back.

There is one for each further CPU that this process may use, at most `MOST_PROCESSES`: judging,
which one process does alone, takes about as long as screening. Small work is done here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from selfalign.errors import TemporaryError
from selfalign.filters.screening import Screen, Screened

MOST_PROCESSES = 4
WORTH_A_PROCESS = 20_000  # candidates; screening fewer takes as long as starting Python
_AHEAD = 2  # chunks for each process that wait to be screened or judged: bounds memory
_CGROUP = Path("/sys/fs/cgroup")

_Item = TypeVar("_Item")
_screen: Screen  # of a screening process


def num_screeners(num_candidates: int) -> int:
    """How many processes screen; 0: this one does."""
    if num_candidates < WORTH_A_PROCESS:
        return 0
    return min(available_cpus() - 1, MOST_PROCESSES)


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """CPUs that this process may use, by its affinity and its container's limit (cgroup 1 or 2)."""
    limits = [len(os.sched_getaffinity(0))]
    for quota, period in (
        ("cpu.max", "cpu.max"),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            allowed = (cgroup / quota).read_text().split()[0]
            limits.append(-(-int(allowed) // int((cgroup / period).read_text().split()[-1])))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return max(1, min(limit for limit in limits if limit > 0))


Screening = Callable[[Iterable[_Item]], Iterator[tuple[_Item, Screened]]]


@contextmanager
def screeners(
    screen: Screen, num_processes: int, texts_of: Callable[[_Item], list[str]]
) -> Iterator[Screening[_Item]]:
    """A function that screens items in their order, with the processes behind it.

    Raises TemporaryError when one of them dies.
    """
    if num_processes == 0:
        yield lambda items: ((item, screen.screen(texts_of(item))) for item in items)
        return

    def screened(items: Iterable[_Item]) -> Iterator[tuple[_Item, Screened]]:
        waiting: deque[tuple[_Item, Future[Screened]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(_screened, texts_of(item))))
            if len(waiting) > _AHEAD * num_processes:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()

    # Not forked: the store's client may have threads.
    pool = ProcessPoolExecutor(
        num_processes, multiprocessing.get_context("spawn"), _start, (screen,)
    )
    try:
        yield screened
    except BrokenProcessPool as error:
        raise TemporaryError(
            "curate: a process that screens candidates died, most likely for want of memory",
            remedy="give curate more memory (resources in jobs/curate.yaml); what is committed is "
            "kept",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(screen: Screen) -> None:
    global _screen
    _screen = screen
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its children, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _screened(texts: list[str]) -> Screened:
    return _screen.screen(texts)
