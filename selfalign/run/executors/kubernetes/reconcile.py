"""One step of one AlignmentRun: read it, drive it, write its status. Level-triggered.

Killed at any point it loses nothing: the store says what is finished, Jobs and status say what was
tried. The status is written before a Job is created, under the version that was read. Of two
controllers that decide at once, one gets a Conflict and starts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from selfalign import __version__
from selfalign.config import RunConfig
from selfalign.errors import (
    ConfigurationError,
    PermanentError,
    SelfAlignError,
    StoreDenied,
    hide_secrets,
    printable,
)
from selfalign.records import digest
from selfalign.run.drive import Driver, failed, iso
from selfalign.run.executors.kubernetes import configuration, crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    ClusterUnavailable,
    Conflict,
    Gone,
    Resource,
    is_terminating,
    is_true,
    labels_of,
    name_of,
)
from selfalign.run.executors.kubernetes.job import JobExecutor
from selfalign.run.plan import Planned, StagePlan, heed_gc, plan_from_store
from selfalign.run.record import (
    AWAITING_APPROVAL,
    Attempt,
    RunRecord,
    RunStatus,
    check_run_name,
    read_run,
    to_remember,
    write_run,
    write_status,
)
from selfalign.stages.approval import read_decision
from selfalign.store.artifact import read_manifest
from selfalign.store.base import PreconditionFailed, Store
from selfalign.store.manifest import Manifest
from selfalign.telemetry import log

OWED_SECONDS = 30.0  # between two looks at a run that may be deleted once its notice is taken
QUEUED_SECONDS = 10.0  # between two looks of a run that waits for its turn
_AT_ONCE_SECONDS = 0.2
# After this long a manifest is read again, so that an artifact deleted on purpose is noticed.
_REMEMBER_SECONDS = 3600.0
_REMEMBERED_MANIFESTS = 500
# A decision older than this starts nothing. It bounds how late a controller that was suspended can
# create a Job that another one has created, seen end and forgotten meanwhile.
_STALE_SECONDS = 60.0
_EVENT_LIMIT = 1000  # characters; the API allows 1024


class NightlyOverlap(ConfigurationError):
    """A nightly run is refused because the one before has not ended."""


@dataclass(slots=True)
class Reconciler:
    """Brings one run at a time closer to its end.

    Attributes:
        monotonic: seconds, for what is remembered.
        on_attempt_ended: called with each attempt that was seen to end.
        is_owed: whether somebody is still to be told how a run ended, before it may be deleted.
    """

    cluster: Cluster
    open_store: Callable[[str], Store]
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    on_attempt_ended: Callable[[Attempt], None] = lambda _attempt: None
    is_owed: Callable[[Resource], bool] = lambda _run: False
    _manifests: dict[tuple[str, str, str], tuple[float, Manifest]] = field(default_factory=dict)
    _recorded: dict[str, tuple[Store, RunStatus]] = field(default_factory=dict)  # by run's name

    def reconcile(self, name: str) -> float | None:
        """Take one step of a run; the seconds until the next one is due, or None to wait for an
        event. Raises SelfAlignError where API server or store fail or refuse; to be tried again,
        always."""
        try:
            run = self.cluster.get(crd.PLURAL, name)
        except Gone:
            self._was_deleted(name)
            return None
        if is_terminating(run):
            return None
        if crd.is_finished(run):
            return self._expire(run)
        try:
            return _Step(self, run, crd.status_of(run)).take()
        except Conflict:
            return _AT_ONCE_SECONDS
        except Gone:
            return None

    def plan(self, config: RunConfig) -> list[StagePlan]:
        """Plan every stage as the store stands now. Manifests come without their entries."""
        store = self.open_store(config.store)
        inputs = configuration.declared_inputs(config, store)
        return plan_from_store(config, inputs, store, partial(self._manifest, store))

    def heed(self, config: RunConfig, named: list[Planned]) -> None:
        """Forget what is remembered of these artifacts; they are read again. Raises Condemned."""
        store = self.open_store(config.store)
        for planned in named:
            self._manifests.pop((store.url, planned.stage.writes, planned.key), None)
        heed_gc(store, named)

    def note_decision(self, run: Resource, config: RunConfig, status: RunStatus) -> Resource:
        """Annotate a run with what a person decided on its model, who and when; returns it.

        A decision that cannot be read or noted is logged. Raises ClusterUnavailable, Gone.
        """
        promotion = status.key_of("promote")
        if config.promote.approval != "manual" or promotion is None:
            return run
        try:
            decision = read_decision(self.open_store(config.store), promotion)
            if decision is None:
                return run
            told = {
                crd.DECISION_ANNOTATION: "approved" if decision.approved else "rejected",
                crd.DECIDED_BY_ANNOTATION: decision.by,
                crd.DECIDED_AT_ANNOTATION: decision.at,
            }
            return self.cluster.patch(crd.PLURAL, name_of(run), {"metadata": {"annotations": told}})
        except (ClusterUnavailable, Gone):
            raise
        except SelfAlignError as error:
            log.warning("decision.not_noted", run=name_of(run), error=error.message)
            return run

    def record(self, run: Resource, config: RunConfig, status: RunStatus) -> None:
        """Write the run's record in the store. A store that fails is logged."""
        name = name_of(run)
        try:
            store = self.open_store(config.store)
            if name not in self._recorded:
                _ensure_run_record(store, run, config)
            write_status(store, status)
        except SelfAlignError as error:
            log.warning("record.failed", run=name, error=error.message)
            return
        self._recorded[name] = (store, status)
        if status.finished:
            del self._recorded[name]

    def emit(self, run: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        """Create an Event on the run."""
        emit(self.cluster, run, reason, message, warning, iso(self.clock()))

    def _manifest(self, store: Store, artifact: str, key: str) -> Manifest | None:
        name = (store.url, artifact, key)
        known = self._manifests.get(name)
        if known is not None and self.monotonic() - known[0] < _REMEMBER_SECONDS:
            return known[1]
        found = read_manifest(store, artifact, key)
        if found is None:
            self._manifests.pop(name, None)
            return None
        if len(self._manifests) >= _REMEMBERED_MANIFESTS:
            self._manifests.clear()
        # shards name every part: hundreds of such manifests would fill the memory
        slim = found.model_copy(update={"shards": [], "files": [], "identity": {}})
        self._manifests[name] = (self.monotonic(), slim)
        return slim

    def _expire(self, run: Resource) -> float | None:
        ttl = crd.parse_spec(run).ttl_seconds_after_finished
        completed = (run.get("status") or {}).get("completedAt")
        if ttl is None or not completed:
            return None
        left = ttl - (self.clock() - datetime.fromisoformat(completed)).total_seconds()
        if left > 0:
            return left
        if self.is_owed(run):
            return OWED_SECONDS
        log.info("run.expired", run=name_of(run))
        self.cluster.delete(crd.PLURAL, name_of(run), uid=run["metadata"]["uid"])
        return None

    def _was_deleted(self, name: str) -> None:
        """The AlignmentRun is gone: where it was under way, its record says so."""
        store, status = self._recorded.pop(name, (None, None))
        if store is None or status is None:
            return
        changes = {
            "phase": "Interrupted",
            "message": "the AlignmentRun was deleted; finished artifacts are kept",
            "updated_at": iso(self.clock()),
        }
        try:
            write_status(store, status.model_copy(update=changes))
        except SelfAlignError as error:
            log.warning("record.failed", run=name, error=error.message)


@dataclass(slots=True)
class _Step:
    """One step of one run; `run` and `status` are as last read or written, so that the next write
    has the right version."""

    by: Reconciler
    run: Resource
    status: RunStatus
    config: RunConfig | None = None
    driver: Driver | None = None
    began: float = field(init=False)
    told: tuple[str, str] = field(init=False)  # before this step

    def __post_init__(self) -> None:
        self.began = self.by.monotonic()
        self.told = (self.status.reason, self.status.message)

    def take(self) -> float | None:
        """Take the step. Whatever goes wrong ends the run or is explained in its status."""
        try:
            return self._take()
        except (ClusterUnavailable, Conflict, Gone):
            raise
        except PermanentError as error:
            if not isinstance(error, StoreDenied):
                self._fail(error)
                return None
            self._explain(type(error).__name__, error.message, error.remedy)
            raise
        except SelfAlignError as error:
            self._explain(type(error).__name__, error.message, error.remedy)
            raise
        except Exception as error:
            message = printable(hide_secrets(f"{type(error).__name__}: {error}"))[:300]
            self._explain("InternalError", message, "report this bug; it is tried again")
            raise

    def _take(self) -> float | None:
        check_run_name(name_of(self.run))
        spec = crd.parse_spec(self.run)
        if not is_true(self.run, "Accepted"):
            self._refuse_overlap()
        self.config = configuration.pinned_config(self.by.cluster, self.run, spec)
        if not spec.suspend and not _has_a_turn(self.run) and (ahead := self._ahead()):
            message = f"waits for its turn: {ahead}"
            self.save(self._changed(reason="Queued", message=message, remedy=None))
            return QUEUED_SECONDS
        executor = JobExecutor(
            self.by.cluster, self.run, spec, self.config, self.by.clock(), self._is_stale
        )
        self.driver = Driver(
            executor,
            plan=lambda: self.by.plan(self.config) if self.config else [],
            save=self.save,
            max_attempts=spec.max_attempts,
            clock=self.by.clock,
            heed=lambda named: self.by.heed(self.config, named) if self.config else None,
        )
        status, wait_seconds = self.driver.step(self.status, suspended=spec.suspend)
        return spec.ttl_seconds_after_finished if status.finished else wait_seconds

    def save(self, status: RunStatus) -> None:
        """Write the status where it is news. Raises Conflict, Gone.

        A run that has ended is not reconciled again, so its record in the store, and what a person
        decided, are written first.
        """
        before, stored = self.status, self.run.get("status") or {}
        body = crd.to_resource_status(
            status,
            stored,
            accepted=self.config is not None or bool(status.stages),
            generation=self.run["metadata"].get("generation", 1),
            moment=iso(self.by.clock()),
        )
        if body == stored:
            return
        if status.finished and self.config is not None:
            self.run = self.by.note_decision(self.run, self.config, status)
            self.by.record(self.run, self.config, status)
        self.run = self.by.cluster.patch_status(self.run, body)
        self.status, self.began = status, self.by.monotonic()
        if not status.finished and self.config is not None:
            self.by.record(self.run, self.config, status)
        self._tell(before, status)

    def _is_stale(self) -> bool:
        return self.by.monotonic() - self.began > _STALE_SECONDS

    def _refuse_overlap(self) -> None:
        """Raise NightlyOverlap for a nightly run while another one is running."""
        if crd.NIGHTLY_LABEL not in labels_of(self.run):
            return
        other = running_nightly(self.by.cluster, besides=self.run)
        if other is not None:
            raise overlap(name_of(other), name_of(self.run))

    def _ahead(self) -> str:
        """Why this run may not begin yet; empty when it may. Nightly runs begin first."""
        others = self.by.cluster.list(crd.PLURAL)
        unfinished = [run for run in others if not crd.is_finished(run)]
        active = [run for run in unfinished if _has_a_turn(run)]
        started = [run for run in active if crd.phase_of(run) != AWAITING_APPROVAL]
        policy = configuration.policy_in(configuration.read_platform(self.by.cluster))
        free = policy.max_active_runs - len(started)
        waiting = [run for run in unfinished if run not in active and not _rests(run)]
        before = [run for run in waiting if _turn(run) < _turn(self.run)]
        if len(before) < free:
            return ""
        names = ", ".join(sorted(name_of(run) for run in started)[:5])
        return f"{len(started)} runs are active ({names}), {len(before)} wait before it"

    def _changed(self, **changes: object) -> RunStatus:
        changes["updated_at"] = iso(self.by.clock())
        if self.driver is not None:
            # A Job that was seen to fail may be gone when the plan can be made again.
            changes["attempts"] = to_remember(self.driver.observed)
        return self.status.model_copy(update=changes)

    def _explain(self, reason: str, message: str, remedy: str | None) -> None:
        """Say why the run does not move; it is tried again."""
        self.save(self._changed(reason=reason, message=message, remedy=remedy))
        if self.told != (reason, message):
            self.by.emit(self.run, reason, crd.one_line(self.status), warning=True)

    def _fail(self, error: SelfAlignError) -> None:
        self.save(
            failed(
                self.status,
                type(error).__name__,
                error.message,
                error.remedy,
                exit_code=error.exit_code,
                moment=iso(self.by.clock()),
            )
        )

    def _tell(self, before: RunStatus, after: RunStatus) -> None:
        """Emit Events for what is new in a status that was written."""
        name = name_of(self.run)
        known = {attempt.identity: attempt.condition for attempt in before.attempts}
        for attempt in after.attempts:
            was = known.get(attempt.identity)
            if was in (None, "Pending") and attempt.condition != "Pending":  # its Job was seen
                job = crd.job_name(name, attempt.stage, attempt.number)
                self.by.emit(self.run, "StageStarted", f"{attempt.stage}: starts as Job {job}")
            if attempt.condition == was or attempt.condition not in ("Complete", "Failed"):
                continue
            self.by.on_attempt_ended(attempt)
            if attempt.condition == "Failed":
                message = f"{attempt.stage}: attempt {attempt.number}: {attempt.message}"
                self.by.emit(self.run, "AttemptFailed", message, warning=True)
        if after.reason == AWAITING_APPROVAL != before.reason:
            self.by.emit(self.run, after.reason, after.message)
        if after.finished:
            log.info("run.finished", run=name, phase=after.phase, reason=after.reason)
            well = after.phase == "Succeeded"
            reason = "RunSucceeded" if well else after.reason
            self.by.emit(self.run, reason, crd.one_line(after), warning=not well)


def running_nightly(cluster: Cluster, besides: Resource | None = None) -> Resource | None:
    """A nightly run that has not ended.

    Args:
        besides: a nightly run that is not counted, nor those that it goes before: of two that were
            created, the accepted one goes first, of two new ones the earlier.
    """
    for other in cluster.list(crd.PLURAL, crd.NIGHTLY_LABEL):
        if crd.is_finished(other) or is_terminating(other) or _rests(other):
            continue
        if besides is None:
            return other
        if other["metadata"]["uid"] == besides["metadata"]["uid"]:
            continue
        if is_true(other, "Accepted") or _turn(other) < _turn(besides):
            return other
    return None


def overlap(running: str, refused: str) -> NightlyOverlap:
    """Why a nightly run is refused, and what to do."""
    return NightlyOverlap(
        f"the nightly run {running} has not ended, so {refused} is refused",
        remedy=f"see why: selfalign status {running} -n NAMESPACE; to give it up: kubectl delete "
        f"alignmentrun {running}",
    )


def _turn(run: Resource) -> tuple[bool, str, str]:
    metadata = run["metadata"]
    nightly = crd.NIGHTLY_LABEL in labels_of(run)
    return (not nightly, metadata["creationTimestamp"], metadata["name"])


def _has_a_turn(run: Resource) -> bool:
    """Whether it has begun. One that was suspended after that takes its turn again, unless what it
    started is still at work: else runs that were begun one after the other could go on together."""
    status = run.get("status") or {}
    if any(attempt.get("condition") == "Active" for attempt in status.get("attempts") or []):
        return True
    return bool(status.get("startedAt")) and crd.phase_of(run) not in ("Suspended", "Queued")


def _rests(run: Resource) -> bool:
    """Whether only a person can lead it on, so that it holds up no other run."""
    return (run.get("spec") or {}).get("suspend") is True or crd.phase_of(run) == AWAITING_APPROVAL


def _ensure_run_record(store: Store, run: Resource, config: RunConfig) -> None:
    record = RunRecord(
        id=name_of(run),
        created_at=run["metadata"]["creationTimestamp"],
        code_version=__version__,
        config=config.model_dump(mode="json"),
    )
    try:
        write_run(store, record)
    except PreconditionFailed:
        # An earlier run of this name, or this one before a restart of the controller.
        try:
            same = read_run(store, record.id).created_at == record.created_at
        except PermanentError:  # another version wrote it
            same = False
        if not same:
            store.write(f"runs/{record.id}/run.json", record.to_bytes())


def emit(
    cluster: Cluster, run: Resource, reason: str, message: str, warning: bool, moment: str
) -> None:
    """Create an Event on a run. An API server that fails is logged.

    The Event's name follows from what it says, so that a controller that starts anew does not
    repeat it: the count goes up instead.
    """
    metadata, message = run["metadata"], message[:_EVENT_LIMIT]
    name = f"{metadata['name']}.{digest([metadata['uid'], reason, message])[:16]}"
    about = {key: metadata[key] for key in ("name", "namespace", "uid")}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {"apiVersion": run["apiVersion"], "kind": run["kind"], **about},
        "reason": reason,
        "message": message,
        "type": "Warning" if warning else "Normal",
        "source": {"component": crd.MANAGER},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
    try:
        try:
            cluster.create("events", event)
        except Conflict:
            cluster.patch("events", name, {"lastTimestamp": moment, "count": 2})
    except (SelfAlignError, Gone) as error:
        log.warning("event.failed", run=name_of(run), reason=reason, error=str(error)[:500])
