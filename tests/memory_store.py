"""A bucket in memory, and the store that a process sees of it.

It stands under the same contract suite as the real stores (`tests/store/test_check.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from selfalign.store.base import Entry, NotFound, PreconditionFailed

START = datetime(2026, 1, 1, 1, 0, tzinfo=UTC)


@dataclass
class Bucket:
    """Objects with the time of their last write, how often each was written, and a clock."""

    now: datetime = START
    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clock(self) -> datetime:
        return self.now


class MemoryStore:
    """The bucket as one process sees it.

    Args:
        turn: called before each call; what it raises is raised.
    """

    url = "memory"

    def __init__(
        self, bucket: Bucket | None = None, turn: Callable[[], None] | None = None
    ) -> None:
        self.bucket = bucket or Bucket()
        self.turn = turn or (lambda: None)

    def read(self, key: str) -> bytes:
        return self.read_versioned(key)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        self.turn()
        if key not in self.bucket.objects:
            raise NotFound(key)
        return self.bucket.objects[key][0], str(self.bucket.versions[key])

    def write(
        self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None
    ) -> str:
        self.turn()
        with self.bucket.lock:
            there, last = key in self.bucket.objects, self.bucket.versions.get(key, 0)
            if (if_absent and there) or (
                if_version is not None and (not there or str(last) != if_version)
            ):
                raise PreconditionFailed(key)
            self.bucket.objects[key] = (data, self.bucket.now)
            self.bucket.versions[key] = last + 1
            return str(last + 1)

    def upload(self, source: Path, key: str) -> None:
        self.write(key, source.read_bytes())

    def download(self, key: str, target: Path) -> None:
        target.write_bytes(self.read(key))

    def copy(self, source: str, key: str) -> None:
        self.write(key, self.read(source))

    def exists(self, key: str) -> bool:
        self.turn()
        return key in self.bucket.objects

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        self.turn()
        found = sorted(item for item in self.bucket.objects.items() if item[0].startswith(prefix))
        return iter([Entry(key, len(data), written) for key, (data, written) in found])

    def delete(self, key: str) -> None:
        self.turn()
        self.bucket.objects.pop(key, None)
