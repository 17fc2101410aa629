"""The store seam: objects under string keys, with conditional writes.

Two backends, `local` and `s3`, hold to the same contract (`tests/store/test_contract.py`):
a write is atomic (a reader sees the whole object or none), conditions are honoured, listings
are never used to infer completion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from selfalign.errors import DataError

MAX_READ_BYTES = 256 << 20  # what may be read into memory; `download` streams larger objects


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing: its key, its size, and when it was written last (UTC)."""

    key: str
    bytes: int
    modified: datetime


class PreconditionFailed(Exception):
    """A conditional write found another state than it asked for. Expected; handled by callers."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: the object exists already or is not the version expected")
        self.key = key


class NotFound(Exception):
    """No object under this key. Expected; callers turn it into an error that names a remedy."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: no such object")
        self.key = key


def too_large(where: str) -> DataError:
    """The error for an object that `read` does not take."""
    return DataError(
        f"{where}: larger than {MAX_READ_BYTES} bytes",
        remedy="the object is damaged or forged: delete it",
    )


class Store(Protocol):
    """Objects under `/`-separated keys relative to one root.

    Every method raises StoreDenied, StoreUnavailable or StorageFull where that is the cause.
    """

    @property
    def url(self) -> str:
        """The root, as a person would write it; never holds credentials."""
        ...

    def read(self, key: str) -> bytes:
        """The whole object. Raises NotFound, DataError beyond `MAX_READ_BYTES`."""
        ...

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """As `read`, and the object's version (opaque; for `if_version`)."""
        ...

    def write(
        self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None
    ) -> str:
        """Write atomically, return the new version.

        Raises PreconditionFailed when `if_absent` and the object exists, or when `if_version`
        is given and is not the current version (or the object is absent).
        """
        ...

    def upload(self, source: Path, key: str) -> None:
        """Copy a local file to `key`, streaming; atomic, unconditional."""
        ...

    def download(self, key: str, target: Path) -> None:
        """Copy the object to a local file, streaming; `target` appears whole or not at all."""
        ...

    def copy(self, source: str, key: str) -> None:
        """Copy an object inside the store, whatever its size, without moving its bytes through
        this process where the backend can; atomic, unconditional. Raises NotFound."""
        ...

    def exists(self, key: str) -> bool:
        """Whether an object is there (strongly consistent)."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix` (a string, not a folder), in lexicographic order."""
        ...

    def entries(self, prefix: str) -> Iterator[Entry]:
        """As `list`, with the size and age of each object."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is absent."""
        ...
