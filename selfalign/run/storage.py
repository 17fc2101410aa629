"""How many bytes a run wrote, and how many its store holds in all."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import islice

from rich.filesize import decimal

from selfalign.errors import DataError
from selfalign.run.record import RunStatus
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Store

LISTED_OBJECTS = 20_000  # of a store, to tell its size: 20 pages of S3, some seconds


@dataclass(frozen=True, slots=True)
class Held:
    """What a store holds.

    Attributes:
        whole: whether every object is counted; else there are more than were to be listed.
    """

    bytes: int
    whole: bool

    def __str__(self) -> str:
        return f"{'' if self.whole else 'at least '}{decimal(self.bytes)}"


def written_bytes(store: Store, status: RunStatus) -> int:
    """Of the artifacts that the run made, as far as they can be read; reuse costs nothing."""
    written = 0
    for state in status.stages:
        if state.phase == "Done" and state.key:
            with contextlib.suppress(DataError):
                found = read_manifest(store, state.artifact, state.key)
                written += 0 if found is None else sum(entry.bytes for entry in found.entries)
    return written


def held_bytes(store: Store, most_objects: int = LISTED_OBJECTS) -> Held:
    """Of all objects, needed or not; of a store with more objects, of the first ones alone."""
    entries = store.entries("")
    counted = sum(entry.bytes for entry in islice(entries, most_objects))
    return Held(counted, whole=next(entries, None) is None)
