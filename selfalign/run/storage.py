"""How many bytes a run wrote, and how many its store holds in all."""

from __future__ import annotations

import contextlib

from selfalign.errors import DataError
from selfalign.run.record import RunStatus
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Store


def written_bytes(store: Store, status: RunStatus) -> int:
    """Of the artifacts that the run made, as far as they can be read; reuse costs nothing."""
    written = 0
    for state in status.stages:
        if state.phase == "Done" and state.key:
            with contextlib.suppress(DataError):
                found = read_manifest(store, state.artifact, state.key)
                written += 0 if found is None else sum(entry.bytes for entry in found.entries)
    return written


def total_bytes(store: Store) -> int:
    """Of every object, also those that no run needs any more."""
    return sum(entry.bytes for entry in store.entries(""))
