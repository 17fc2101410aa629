"""A run's record in the store, for people: `selfalign status` and `report` read it.

The truth stays in manifests and Jobs; losing these objects loses nothing.
"""

from __future__ import annotations

import threading
from datetime import datetime

from selfalign import __version__
from selfalign.config import RunConfig
from selfalign.controller.cluster import Resource, name_of
from selfalign.controller.outcome import Observed
from selfalign.controller.planner import Planner
from selfalign.controller.resources import condition, is_true, status_of
from selfalign.errors import DataError, SelfAlignError
from selfalign.pipeline import BY_NAME
from selfalign.run.record import (
    AttemptRecord,
    Phase,
    RunRecord,
    RunStatus,
    StageRecord,
    read_run,
    write_run,
    write_status,
)
from selfalign.store.base import PreconditionFailed, Store
from selfalign.telemetry import log


class RunIndex:
    """Writes `runs/<name>/run.json` once and `status.json` as the run goes on."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._lock = threading.Lock()
        self._known: set[str] = set()  # uids of runs whose record is written
        self._last: dict[str, tuple[Store, RunStatus]] = {}  # by name of unfinished runs

    def record(
        self, run: Resource, config: RunConfig, attempts: list[Observed], moment: str
    ) -> None:
        """Write how the run stands, if that is news. A store that fails is told in the log."""
        status = run_status(run, attempts, moment)
        with self._lock:
            before = self._last.get(status.id)
        if before is not None and _same(before[1], status):
            return
        try:
            store = self._planner.store(config)
            self._ensure_record(store, run, config)
            write_status(store, status)
        except SelfAlignError as error:
            log.warning("index.failed", run=status.id, error=error.message)
            return
        with self._lock:
            if status.phase == "Running":
                self._last[status.id] = (store, status)
            else:
                self._last.pop(status.id, None)

    def deleted(self, name: str, moment: str) -> None:
        """The AlignmentRun is gone: where it was under way, say that it was interrupted."""
        with self._lock:
            before = self._last.pop(name, None)
        if before is None:
            return
        store, status = before
        message = "the AlignmentRun was deleted; finished artifacts are kept"
        changes = {"phase": "Interrupted", "updated_at": moment, "message": message}
        try:
            write_status(store, status.model_copy(update=changes))
        except SelfAlignError as error:
            log.warning("index.failed", run=name, error=error.message)

    def _ensure_record(self, store: Store, run: Resource, config: RunConfig) -> None:
        uid = run["metadata"]["uid"]
        with self._lock:
            if uid in self._known:
                return
        record = RunRecord(
            id=name_of(run),
            created_at=run["metadata"]["creationTimestamp"],
            code_version=__version__,
            config=config.model_dump(mode="json"),
            annotation_lines=self._planner.annotation_lines(config),
        )
        try:
            write_run(store, record)
        except PreconditionFailed:
            # An earlier run of this name, or this one before a restart of the controller.
            if _created_at(store, record.id) != record.created_at:
                store.write(f"runs/{record.id}/run.json", record.to_bytes())
        with self._lock:
            self._known.add(uid)


def _created_at(store: Store, run_id: str) -> str:
    try:
        return read_run(store, run_id).created_at
    except DataError:  # written by another version
        return ""


def run_status(run: Resource, attempts: list[Observed], moment: str) -> RunStatus:
    """The run's status on the cluster as the store's record of it. Pure."""
    status = status_of(run)
    phase: Phase = "Running"
    if is_true(run, "Succeeded"):
        phase = "Succeeded"
    elif is_true(run, "Failed"):
        phase = "Failed"
    progressing = condition(run, "Progressing") or {}
    return RunStatus(
        id=name_of(run),
        phase=phase,
        updated_at=moment,
        reason=progressing.get("reason", ""),
        message=status.get("message", ""),
        verdict=status.get("verdict"),
        stages=[_stage(row, attempts) for row in status.get("stages") or []],
    )


def _stage(row: Resource, attempts: list[Observed]) -> StageRecord:
    mine = [
        o for o in attempts if (o.attempt.stage, o.attempt.key) == (row["name"], row.get("key"))
    ]
    return StageRecord(
        stage=row["name"],
        artifact=BY_NAME[row["name"]].writes,
        key=row.get("key"),
        digest=row.get("digest"),
        phase=row["phase"],
        done=row.get("done", 0),
        total=row.get("total"),
        attempts=[_attempt(seen) for seen in mine],
        seconds=_seconds(mine),
    )


def _seconds(attempts: list[Observed]) -> float | None:
    ended = [o for o in attempts if o.started_at and o.finished_at]
    if not ended:
        return None
    return sum(
        (
            datetime.fromisoformat(o.finished_at or "") - datetime.fromisoformat(o.started_at or "")
        ).total_seconds()
        for o in ended
    )


def _attempt(seen: Observed) -> AttemptRecord:
    attempt = seen.attempt
    return AttemptRecord(
        number=attempt.number,
        condition=attempt.condition,
        started_at=seen.started_at or "",
        finished_at=seen.finished_at,
        exit_code=attempt.exit_code,
        cause=attempt.cause,
        message=attempt.message,
    )


def _same(before: RunStatus, after: RunStatus) -> bool:
    return before.model_copy(update={"updated_at": after.updated_at}) == after
