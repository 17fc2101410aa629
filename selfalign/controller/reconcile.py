"""One AlignmentRun, from what is observed to what is applied. Level-triggered.

Reads the run, its Jobs and pods, the stage templates and the store's manifests; calls the pure
`decide`; writes the run's status, then creates Jobs. Killed at any point it loses nothing: the
store says what is finished, Jobs and status what was tried.

The status is written before a Job is created, under the version that was read: of two controllers
that decide at once one gets a Conflict and starts nothing, and the number of an attempt that
anybody may have started is never used again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from selfalign.config import RunConfig
from selfalign.controller.attempts import next_number, not_before, observe, to_status
from selfalign.controller.cluster import (
    Cluster,
    ClusterDenied,
    ClusterRejected,
    ClusterUnavailable,
    Conflict,
    Gone,
    Resource,
    is_going,
    name_of,
)
from selfalign.controller.configuration import LeftOver, pinned_config, stage_template
from selfalign.controller.events import Recorder
from selfalign.controller.index import RunIndex
from selfalign.controller.job import build_job, is_left_over, is_owned_by
from selfalign.controller.observe import Look, check_acceptable, look_at
from selfalign.controller.outcome import Observed
from selfalign.controller.planner import Planner
from selfalign.controller.resources import (
    AlignmentRunSpec,
    is_finished,
    is_true,
    parse_spec,
    status_of,
)
from selfalign.controller.status import (
    Observation,
    failed_status,
    next_status,
    one_line,
    waiting_status,
)
from selfalign.errors import ConfigurationError, DataError, SelfAlignError
from selfalign.run.decide import Action, Attempt, Fail, StageState, Start, decide
from selfalign.run.plan import StagePlan
from selfalign.telemetry import log

LOOK_AGAIN_SECONDS = 20.0  # while a stage runs: its pods and parts change without an event
_AT_ONCE_SECONDS = 0.2


@dataclass(slots=True)
class Reconciler:
    """Brings one run at a time closer to its end. Safe to use from several threads, as long as
    each run is in one thread at a time.

    Attributes:
        clock: the time; a fixed one in tests.
        on_attempt_ended: told of each attempt that was seen to end.
    """

    cluster: Cluster
    planner: Planner
    index: RunIndex
    recorder: Recorder
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    on_attempt_ended: Callable[[Attempt], None] = lambda _attempt: None

    def reconcile(self, name: str) -> float | None:
        """Observe a run, decide, apply.

        Returns:
            Seconds until it should be looked at again; None waits for an event.

        Raises:
            SelfAlignError: API server or store fail or refuse; to be tried again, always.
        """
        moment = iso(self.clock())
        try:
            run = self.cluster.get("alignmentruns", name)
        except Gone:
            self.index.deleted(name, moment)
            return None
        if is_going(run):
            return None
        if is_finished(run):
            return self._expire(run)
        try:
            return _Round(self, run, status_of(run), moment).advance()
        except Conflict:
            return _AT_ONCE_SECONDS
        except Gone:
            return None

    def _expire(self, run: Resource) -> float | None:
        ttl = parse_spec(run).ttl_seconds_after_finished
        completed = status_of(run).get("completedAt")
        if ttl is None or not completed:
            return None
        left = ttl - (self.clock() - datetime.fromisoformat(completed)).total_seconds()
        if left > 0:
            return left
        log.info("run.expired", run=name_of(run))
        self.cluster.delete("alignmentruns", name_of(run), uid=run["metadata"]["uid"])
        return None


@dataclass(slots=True)
class _Round:
    """One look at one run, and what follows from it.

    Attributes:
        run: as last read or written, so that the next write has the right version.
        stored: its status, as last read or written.
        config: once it is known.
    """

    by: Reconciler
    run: Resource
    stored: Resource
    moment: str
    config: RunConfig | None = None
    attempts: list[Observed] = field(default_factory=list)

    def advance(self) -> float | None:
        """Do it. Raises SelfAlignError, Conflict, Gone."""
        try:
            return self._advance()
        except ClusterUnavailable:
            raise
        except (ConfigurationError, DataError) as error:
            self._end(failed_status(self.run, error, self.moment), error)
            return None
        except SelfAlignError as error:
            # Not the run's fault, so never its end: say it, and try again.
            seen = {**status_of(self.run), "attempts": to_status(self.attempts)}
            run = {**self.run, "status": seen} if self.attempts else self.run
            self._write(waiting_status(run, error, self.moment))
            self._record()
            self.by.recorder.emit(self.run, type(error).__name__, one_line(error), warning=True)
            raise

    def _advance(self) -> float | None:
        spec = parse_spec(self.run)
        if not is_true(self.run, "Accepted"):
            check_acceptable(self.by.cluster, self.run)
        config = self.config = pinned_config(self.by.cluster, self.run, spec)
        look = look_at(self.by.cluster, self.run, self.by.clock())
        self.attempts = known = observe(self.run, look.jobs, look.pods, self.moment)
        # After the Jobs: one that was seen Complete has published before manifests are read.
        plan = self.by.planner.plan(config)
        states = [
            StageState(p.stage.name, getattr(p, "key", None), p.manifest is not None) for p in plan
        ]
        actions = decide(states, [o.attempt for o in known], max_attempts=spec.max_attempts)
        starts, delays = ([], []) if spec.suspend else self._due(actions, known, look)
        bodies = [self._build(spec, config, start) for start in starts]
        begun = [Observed(Attempt(s.stage, s.key, s.attempt, "Active")) for s in starts]
        self.attempts = [*known, *begun]
        seen = Observation(
            plan, self.attempts, actions, look.waiting, spec.suspend, look.troubles,
            self._parts(config, plan),
        )  # fmt: skip
        before = self.run
        self._write(next_status(self.run, seen, self.moment))
        self._tell(known, actions, before)
        for body, start in zip(bodies, starts, strict=True):
            self._create(body, start)
        if is_finished(self.run):
            return spec.ttl_seconds_after_finished
        self._record()  # last: the next stage does not wait for it
        active = any(o.attempt.condition == "Active" for o in self.attempts)
        reasons = [LOOK_AGAIN_SECONDS] if active else []
        return min([*reasons, *delays], default=None)

    def _due(
        self, actions: list[Action], known: list[Observed], look: Look
    ) -> tuple[list[Start], list[float]]:
        """What to start now, under numbers of their own, and in how many seconds the others."""
        now = self.by.clock()
        due: list[Start] = []
        delays: list[float] = []
        for action in actions:
            if not isinstance(action, Start):
                continue
            earliest = not_before(action.stage, action.key, known)
            if earliest is None or earliest <= now:
                due.append(replace(action, attempt=next_number(action.stage, known)))
                continue
            delays.append((earliest - now).total_seconds())
            last = [o.attempt for o in known if o.attempt.stage == action.stage][-1]
            what = last.message or "it ended without publishing its artifact"
            look.waiting[action.stage] = f"next attempt at {iso(earliest)}; before: {what}"
        return due, delays

    def _build(self, spec: AlignmentRunSpec, config: RunConfig, start: Start) -> Resource:
        template = stage_template(self.by.cluster, start.stage)
        shards = getattr(config, start.stage).num_shards
        return build_job(template, run=self.run, spec=spec, start=start, num_shards=shards)

    def _parts(self, config: RunConfig, plan: list[StagePlan]) -> dict[str, int]:
        under_way = {o.attempt.key for o in self.attempts if o.attempt.condition == "Active"}
        return {
            planned.stage.name: self.by.planner.committed_parts(config, planned)
            for planned in plan
            if planned.stage.sharded
            and planned.manifest is None
            and getattr(planned, "key", None) in under_way
        }

    def _create(self, body: Resource, start: Start) -> None:
        name, run = name_of(body), name_of(self.run)
        try:
            self.by.cluster.create("jobs", body)
        except Conflict:
            self._adopt(name, start)
            return
        except (ClusterDenied, ClusterRejected):
            self._forget(start)  # the API server answered: there is no such Job
            raise
        log.info("job.created", run=run, job=name, stage=start.stage, key=start.key)
        self.by.recorder.emit(self.run, "StageStarted", f"{start.stage}: started Job {name}")

    def _adopt(self, name: str, start: Start) -> None:
        """A Job of this name exists: it is ours if this very run owns it, by uid."""
        try:
            found = self.by.cluster.get("jobs", name)
        except Gone:
            return  # deleted meanwhile; the next look finds out
        if is_owned_by(found, self.run):
            log.info("job.adopted", run=name_of(self.run), job=name)
            return
        self._forget(start)
        if is_left_over(found, self.run):
            raise LeftOver(f"Job {name} of an earlier run of this name is being deleted")
        raise ConfigurationError(
            f"Job {name} exists and belongs to something else",
            remedy=f"delete it (kubectl delete job {name}), or give the run another name",
        )

    def _forget(self, start: Start) -> None:
        """Take back the announcement of an attempt that surely was not started."""
        self.attempts = [o for o in self.attempts if not _is(o, start)]
        status = {**status_of(self.run), "attempts": to_status(self.attempts)}
        self.run = {**self.run, "status": status}

    def _write(self, status: Resource) -> None:
        """Write the status where it is news. Raises Conflict, Gone."""
        self.run = {**self.run, "status": status}
        if is_finished(self.run):
            self._record()  # before: nobody looks at a finished run again
        if status != self.stored:
            self.run = self.by.cluster.replace_status(self.run)
            self.stored = status

    def _record(self) -> None:
        """Keep the record in the store up to date, for people."""
        if self.config is not None:
            self.by.index.record(self.run, self.config, self.attempts, self.moment)

    def _end(self, status: Resource, error: SelfAlignError) -> None:
        self._write(status)
        self.by.recorder.emit(self.run, type(error).__name__, one_line(error), warning=True)
        log.info("run.failed", run=name_of(self.run), error=error.message)

    def _tell(self, known: list[Observed], actions: list[Action], before: Resource) -> None:
        """Say what this look has found, once it is written."""
        rows = status_of(before).get("attempts") or []
        ended = {(r["stage"], r["key"], r["number"]) for r in rows if r["condition"] != "Active"}
        for attempt in (o.attempt for o in known):
            identity = (attempt.stage, attempt.key, attempt.number)
            if attempt.condition == "Active" or identity in ended:
                continue
            self.by.on_attempt_ended(attempt)
            if attempt.condition == "Failed":
                message = f"{attempt.stage}: attempt {attempt.number}: {attempt.message}"
                self.by.recorder.emit(self.run, "AttemptFailed", message, warning=True)
        message = status_of(self.run).get("message", "")
        if is_true(self.run, "Succeeded"):
            log.info("run.succeeded", run=name_of(self.run))
            self.by.recorder.emit(self.run, "RunSucceeded", message)
        for action in actions:
            if isinstance(action, Fail):
                log.info("run.failed", run=name_of(self.run), reason=action.reason)
                self.by.recorder.emit(self.run, action.reason, message, warning=True)


def iso(moment: datetime) -> str:
    """The time as Kubernetes writes it: ISO 8601, UTC, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _is(seen: Observed, start: Start) -> bool:
    attempt = seen.attempt
    return (attempt.stage, attempt.key, attempt.number) == (start.stage, start.key, start.attempt)
