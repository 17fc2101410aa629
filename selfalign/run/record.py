"""Runs in the store: `runs/<id>/run.json` says what a run is, `status.json` how it stands.

The truth about stages is in their manifests; a run's objects are an index for people, which
status, report and history read and which may be lost.
"""

from __future__ import annotations

import math
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from selfalign.errors import ConfigurationError, DataError
from selfalign.store.base import NotFound, Store
from selfalign.store.documents import StoredModel, decode_json, parse_document

_READERS = 16  # at once
Phase = Literal["Running", "Succeeded", "Failed", "Interrupted"]


class RunRecord(StoredModel):
    """What was asked for. Written once."""

    id: str
    created_at: str
    code_version: str
    config: dict[str, Any]
    annotation_lines: int | None = None


class AttemptRecord(StoredModel):
    """One try at a stage, as it is told to people."""

    number: int
    condition: str
    started_at: str
    finished_at: str | None = None
    exit_code: int | None = None
    cause: str | None = None
    message: str = ""


class StageRecord(StoredModel):
    """How a stage of the run stands."""

    stage: str
    artifact: str
    key: str | None = None
    digest: str | None = None
    phase: Literal["Pending", "Running", "Reused", "Done", "Failed"] = "Pending"
    done: int = 0
    total: int | None = None
    attempts: list[AttemptRecord] = Field(default_factory=list)
    seconds: float | None = None


class RunStatus(StoredModel):
    """How a run stands. Overwritten as it goes on."""

    id: str
    phase: Phase
    updated_at: str
    reason: str = ""
    message: str = ""
    remedy: str | None = None
    verdict: str | None = None
    stages: list[StageRecord] = Field(default_factory=list)


def new_run_id() -> str:
    """A fresh id that sorts by time and fits an object's name on a cluster."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def write_run(store: Store, record: RunRecord) -> None:
    """Create the run. Raises PreconditionFailed when the id is taken."""
    store.write(f"runs/{record.id}/run.json", record.to_bytes(), if_absent=True)


def write_status(store: Store, status: RunStatus) -> None:
    """Overwrite the run's status."""
    store.write(f"runs/{status.id}/status.json", status.to_bytes())


def read_run(store: Store, run_id: str) -> RunRecord:
    """The run.

    Raises ConfigurationError, naming the runs there are, when there is none, and DataError when
    its record cannot be read.
    """
    name = f"runs/{run_id}/run.json"
    try:
        return parse_document(
            f"{store.url}/{name}",
            store.read(name),
            RunRecord,
            remedy=f"delete {name}: it is an index for people, no artifact is lost with it; if "
            "another version of selfalign wrote it, use that one",
        )
    except NotFound:
        known = run_ids(store)[-5:]
        raise ConfigurationError(
            f"no run {run_id!r} in {store.url}",
            remedy=f"the latest runs are {', '.join(known)}" if known else "no run was made yet",
        ) from None


def read_status(store: Store, run_id: str) -> RunStatus | None:
    """The run's status, or None when none was written."""
    name = f"runs/{run_id}/status.json"
    try:
        return parse_document(f"{store.url}/{name}", store.read(name), RunStatus)
    except (NotFound, DataError):
        return None


def status_to_show(store: Store, run_id: str) -> RunStatus:
    """The run's status, or one that says that none can be read: then nothing moves it either."""
    return read_status(store, run_id) or RunStatus(
        id=run_id,
        phase="Interrupted",
        updated_at="",
        reason="NoStatus",
        message=f"no readable runs/{run_id}/status.json: the run has only begun, or ended before "
        "it could write one",
    )


def run_ids(store: Store) -> list[str]:
    """Ids of all runs in the order of their creation, oldest first.

    A record that cannot be read comes last: whoever asks for the latest run hears of it.
    """
    keys = [key for key in store.list("runs/") if key.endswith("/run.json")]
    # one small object for each run: over a year of nights, waiting for one after the other is felt
    with ThreadPoolExecutor(_READERS) as readers:
        created = list(readers.map(lambda key: _created(store, key), keys))
    ids = [key.split("/")[1] for key in keys]
    found = ((when, each) for when, each in zip(created, ids, strict=True) if when is not None)
    return [run_id for _, run_id in sorted(found)]


def _created(store: Store, key: str) -> float | None:
    """When a run was created; of the record no more is read, for other versions wrote some.

    None where it was removed meanwhile.
    """
    try:
        return datetime.fromisoformat(decode_json(store.read(key))["created_at"]).timestamp()
    except NotFound:
        return None
    except (ValueError, TypeError, KeyError, OverflowError):
        return math.inf
