"""One step of a run: observe, decide, save the status, start what is due. For every executor.

    attempts = executor.attempts(remembered)      what was tried, and how it stands
    plan                                          what is published; named in the status before use
    decide(plan, attempts)                        pure
    save(status)                                  before anything starts
    executor.start(planned, number)

The status is saved first, so that the number of an attempt is remembered before anything runs under
it. A step that is interrupted between the two leaves a Pending attempt, which the next step starts
under the same number: an executor's `start` is idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from selfalign.errors import TemporaryError
from selfalign.run.decide import Action, Await, Fail, Start, Succeed, decide
from selfalign.run.plan import Blocked, Planned, StagePlan
from selfalign.run.record import (
    AWAITING_APPROVAL,
    Attempt,
    RunStatus,
    StagePhase,
    StageState,
    of_stage,
    to_remember,
)
from selfalign.store.manifest import Manifest

ACTIVE_SECONDS = 20.0  # between two steps while an attempt is Active
APPROVAL_SECONDS = 20.0  # likewise while a person is to decide
# After a disruption the next attempt starts at once, unless one follows the other.
_DISRUPTED_SECONDS, _DISRUPTED_LIMIT_SECONDS = 2.0, 60.0


class Executor(Protocol):
    """Carries out attempts: processes on this machine, Jobs on a cluster, a fake in tests."""

    def attempts(self, remembered: Sequence[Attempt]) -> list[Attempt]:
        """Every attempt of the run as it stands now.

        Args:
            remembered: the attempts in the status that was saved last. Whatever carried them out
                may be gone; a start that was saved and never happened is still Pending.
        """
        ...

    def start(self, planned: Planned, number: int) -> None:
        """Start an attempt. Starting the same number again has no effect."""
        ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before another attempt at a failure that may pass: first, first x factor, ...,
    never more than the limit. A Job retries its pods by itself, so on a cluster they are long."""

    first_seconds: float = 30.0
    factor: float = 4.0
    limit_seconds: float = 600.0


@dataclass(slots=True)
class Driver:
    """Leads one run to its end, step by step.

    Attributes:
        plan: plans every stage as the store stands now.
        save: makes a status durable. What it raises ends the step before anything starts.
        heed: called with artifacts that the saved status names, before they are looked at again or
            made. Raises Condemned where gc is about to delete one.
        clock: the time; a fixed one in tests.
        observed: the attempts that the last step saw, also where it then failed to plan.
    """

    executor: Executor
    plan: Callable[[], list[StagePlan]]
    save: Callable[[RunStatus], None]
    max_attempts: int = 3
    backoff: Backoff = Backoff()
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    heed: Callable[[list[Planned]], None] = lambda _named: None
    observed: list[Attempt] = field(default_factory=list, init=False)

    def step(self, status: RunStatus, *, suspended: bool = False) -> tuple[RunStatus, float | None]:
        """Take one step.

        Args:
            status: as saved last.
            suspended: start nothing; attempts that are Active go on.

        Returns:
            The status that was saved, and the seconds until the next step is due; None when only
            an event can lead on.
        """
        attempts = self.observed = self.executor.attempts(status.attempts)
        # After the attempts: one that was seen Complete has published before manifests are read.
        status, plan = self._named(status, self.plan(), attempts)
        actions = _superseded(status, plan) or decide(
            plan, attempts, max_attempts=self.max_attempts
        )
        due, delays = ([], {}) if suspended else self._due(actions, attempts)
        known = {attempt.identity for attempt in attempts}
        pending = [
            Attempt(
                stage=s.planned.stage.name, key=s.planned.key, number=s.number, condition="Pending"
            )
            for s in due
            if (s.planned.stage.name, s.planned.key, s.number) not in known
        ]
        attempts = [*attempts, *pending]
        after = next_status(status, plan, attempts, actions, iso(self.clock()))
        if suspended and not after.finished:
            message = "suspended: no further stage starts until spec.suspend is false"
            after = after.model_copy(update={"reason": "Suspended", "message": message})
        elif delays and not after.finished:
            after = _delayed(after, attempts, delays)
        self.save(after)
        if after.finished:
            return after, None
        if due:
            self.heed([start.planned for start in due])
        for start in due:
            self.executor.start(start.planned, start.number)
        now = self.clock()  # planning and saving may have outlasted a delay
        waits = [max(0.0, (moment - now).total_seconds()) for moment in delays.values()]
        if due or any(a.condition == "Active" for a in attempts):
            waits.append(ACTIVE_SECONDS)
        if any(isinstance(action, Await) for action in actions):
            waits.append(APPROVAL_SECONDS)
        return after, min(waits, default=None)

    def _named(
        self, status: RunStatus, plan: list[StagePlan], attempts: list[Attempt]
    ) -> tuple[RunStatus, list[StagePlan]]:
        """The plan, once a saved status names every published artifact of it: gc keeps what an
        unfinished run names, and what it deleted before is seen by planning again."""
        while True:
            named = {(state.name, state.key) for state in status.stages}
            reused = [
                planned
                for planned in plan
                if isinstance(planned, Planned)
                and planned.manifest is not None
                and (planned.stage.name, planned.key) not in named
            ]
            if not reused:
                return status, plan
            status = next_status(status, plan, attempts, [], iso(self.clock()))
            self.save(status)
            self.heed(reused)
            plan = self.plan()

    def _due(
        self, actions: Iterable[Action], attempts: list[Attempt]
    ) -> tuple[list[Start], dict[str, datetime]]:
        """What may start now, and when the others may, by stage."""
        due: list[Start] = []
        delays: dict[str, datetime] = {}
        for action in actions:
            if not isinstance(action, Start):
                continue
            stage = action.planned.stage.name
            earliest = not_before(of_stage(attempts, stage, action.planned.key), self.backoff)
            if earliest is None or earliest <= self.clock():
                due.append(action)
            else:
                delays[stage] = earliest
        return due, delays


def not_before(attempts: list[Attempt], backoff: Backoff) -> datetime | None:
    """When the next attempt may start; None is at once.

    Args:
        attempts: at one artifact, by number.
    """
    if not attempts or attempts[-1].finished_at is None:
        return None
    ended = datetime.fromisoformat(attempts[-1].finished_at)
    if attempts[-1].cause != "disrupted":
        charged = sum(attempt.cause != "disrupted" for attempt in attempts)
        delay = min(backoff.first_seconds * backoff.factor ** (charged - 1), backoff.limit_seconds)
        return ended + timedelta(seconds=delay)
    streak = 0
    while streak < len(attempts) and attempts[-1 - streak].cause == "disrupted":
        streak += 1
    if streak == 1:
        return None
    delay = min(_DISRUPTED_SECONDS * 2 ** min(streak - 2, 10), _DISRUPTED_LIMIT_SECONDS)
    return ended + timedelta(seconds=delay)


def next_status(
    status: RunStatus,
    plan: list[StagePlan],
    attempts: list[Attempt],
    actions: list[Action],
    moment: str,
) -> RunStatus:
    """The status that follows from what was observed and decided. Pure."""
    succeeds = any(isinstance(action, Succeed) for action in actions)
    if succeeds:
        attempts = [_ended(a, moment) for a in attempts if a.condition != "Pending"]
    published = sum(planned.manifest is not None for planned in plan)
    current = next(
        (p for p in plan if isinstance(p, Planned) and p.manifest is None), plan[-1]
    ).stage.name
    after = status.model_copy(
        update={
            "phase": "Running",
            "remedy": None,
            "stage": current,
            "progress": f"{published}/{len(plan)}",
            "started_at": status.started_at or moment,
            "updated_at": moment,
            "stages": [_stage(status, planned, attempts) for planned in plan],
            "attempts": to_remember(attempts),
        }
    )
    failure = next((action for action in actions if isinstance(action, Fail)), None)
    if failure is not None:
        return failed(
            after,
            failure.reason,
            f"{failure.stage}: {failure.message}",
            failure.remedy,
            exit_code=failure.exit_code or 1,
            moment=moment,
            stage=failure.stage,
        )
    if succeeds:
        return _succeeded(after, plan[-1], moment)
    if any(isinstance(action, Await) for action in actions):
        told = "the gate passed the final model; a person decides whether it is promoted"
        return after.model_copy(update={"reason": AWAITING_APPROVAL, "message": told})
    return after.model_copy(update=_progress(current, attempts))


def failed(
    status: RunStatus,
    reason: str,
    message: str,
    remedy: str | None,
    *,
    exit_code: int,
    moment: str,
    stage: str | None = None,
) -> RunStatus:
    """The status of a run that has failed."""
    return status.model_copy(
        update={
            "phase": "Failed",
            "reason": reason,
            "message": message,
            "remedy": remedy,
            "exit_code": exit_code,
            "stage": stage or status.stage,
            "started_at": status.started_at or moment,
            "updated_at": moment,
            "completed_at": moment,
        }
    )


def reasons_of(promotion: Manifest) -> list[str]:
    """Why the gate passed a model or did not."""
    told = promotion.details.get("reasons")
    return [str(reason) for reason in told] if isinstance(told, list) else []


def iso(moment: datetime) -> str:
    """The time as Kubernetes writes it: ISO 8601, UTC, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _superseded(status: RunStatus, plan: list[StagePlan]) -> list[Action]:
    """The end of a run that waited for approval while the model that it was judged against was
    replaced: to be judged anew is a new run's work, not that of each one that still waits."""
    evaluated = [p.key for p in plan if isinstance(p, Planned) and p.stage.name == "evaluate"]
    if not status.awaits_approval or evaluated in ([], [status.key_of("evaluate")]):
        return []
    told = "another model was promoted, or rolled back to, while this one waited for approval"
    remedy = "run again: this model is then judged against the one that is current now"
    return [Fail("promote", "Superseded", told, remedy, TemporaryError.exit_code)]


_VERDICTS: dict[str, Literal["Promoted", "NotPromoted", "NoChange", "Rejected"]] = {
    "promoted": "Promoted",
    "refused": "NotPromoted",
    "no_change": "NoChange",
    "rejected": "Rejected",
}


def _succeeded(status: RunStatus, last: StagePlan, moment: str) -> RunStatus:
    verdict, message = None, "every stage that was asked for is published"
    if last.stage.name == "promote" and last.manifest is not None:
        details = last.manifest.details
        decision = details.get("decision", "promoted" if details.get("promoted") else "refused")
        verdict = _VERDICTS.get(str(decision), "NotPromoted")
        message = " ".join(reasons_of(last.manifest) or [verdict])
    return status.model_copy(
        update={
            "phase": "Succeeded",
            "reason": verdict or "Succeeded",
            "message": message,
            "verdict": verdict,
            "completed_at": moment,
        }
    )


def _delayed(status: RunStatus, attempts: list[Attempt], delays: dict[str, datetime]) -> RunStatus:
    stage, earliest = next(iter(delays.items()))
    last = [attempt for attempt in attempts if attempt.stage == stage][-1]
    before = last.message or "it ended without publishing its artifact"
    message = f"{stage}: the next attempt starts at {iso(earliest)}; the last one: {before}"
    return status.model_copy(
        update={"reason": "Waiting", "message": message, "remedy": last.remedy}
    )


def _progress(stage: str, attempts: list[Attempt]) -> dict[str, str | None]:
    mine = [attempt for attempt in attempts if attempt.stage == stage]
    if not mine:
        return {"reason": "Planning", "message": "the plan is being made"}
    last = max(mine, key=lambda attempt: attempt.number)
    if last.waiting:
        return {"reason": "Waiting", "message": f"{stage}: {last.waiting}", "remedy": last.remedy}
    before = [attempt.message for attempt in mine if attempt.message]
    again = f"; the last failure: {before[-1]}" if before else ""
    return {"reason": "Running", "message": f"{stage}: attempt {last.number} is running{again}"}


def _stage(status: RunStatus, planned: StagePlan, attempts: list[Attempt]) -> StageState:
    name = planned.stage.name
    if isinstance(planned, Blocked):
        return StageState(name=name)
    mine = of_stage(attempts, name, planned.key)
    last = mine[-1] if mine else None
    before = next((s for s in status.stages if (s.name, s.key) == (name, planned.key)), None)
    seconds = sum(attempt.seconds for attempt in mine)
    message = ""
    if last is not None and planned.manifest is None:
        message = last.waiting or last.message
    return StageState(
        name=name,
        phase=_phase(planned, last),
        key=planned.key,
        digest=None if planned.manifest is None else planned.manifest.digest,
        attempts=sum(attempt.cause != "disrupted" for attempt in mine),
        disruptions=sum(attempt.cause == "disrupted" for attempt in mine),
        done=last.done if last and last.total else before.done if before else None,
        total=last.total if last and last.total else before.total if before else None,
        seconds=round(seconds, 2) if seconds else None,
        message=message,
    )


def _phase(planned: Planned, last: Attempt | None) -> StagePhase:
    if planned.manifest is not None:
        return "Reused" if last is None else "Done"
    if last is None or (planned.approval is not None and last.condition == "Complete"):
        return "Pending"
    return "Running" if last.condition in ("Pending", "Active") else "Failed"


def _ended(attempt: Attempt, moment: str) -> Attempt:
    """Of a run that has succeeded, an attempt whose end nobody saw yet: its artifact is published,
    which is what an attempt is for."""
    if attempt.condition != "Active":
        return attempt
    return attempt.model_copy(
        update={"condition": "Complete", "waiting": "", "finished_at": moment}
    )
