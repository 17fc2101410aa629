"""A run's status: what `kubectl get alignmentruns` tells. Pure; an index, never the truth."""

from __future__ import annotations

from dataclasses import dataclass, field

from selfalign.controller.attempts import to_status
from selfalign.controller.cluster import Resource, name_of
from selfalign.controller.names import job_name
from selfalign.controller.outcome import Observed
from selfalign.controller.resources import ConditionType, status_of, with_condition
from selfalign.errors import SelfAlignError
from selfalign.run.decide import Action, Fail, Succeed
from selfalign.run.plan import StagePlan

_MESSAGE_LIMIT = 900  # an Event's message ends at 1 KiB
REUSES = "a new run reuses what is finished"


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at a run saw and decided.

    Attributes:
        waiting: stage -> why it makes no progress.
        troubles: stage -> what went wrong inside an attempt that goes on.
        parts: stage -> committed parts, where they were counted.
    """

    plan: list[StagePlan]
    attempts: list[Observed]
    actions: list[Action]
    waiting: dict[str, str]
    suspended: bool
    troubles: dict[str, str] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)

    def of_stage(self, planned: StagePlan) -> list[Observed]:
        """The attempts at what a stage makes now, by number."""
        return [
            seen
            for seen in self.attempts
            if (seen.attempt.stage, seen.attempt.key)
            == (planned.stage.name, getattr(planned, "key", None))
        ]


class _Conditions:
    """A status whose conditions are set one after the other."""

    def __init__(self, run: Resource, status: Resource, moment: str) -> None:
        self.status = {**status, "observedGeneration": _generation(run)}
        self._generation = _generation(run)
        self._moment = moment

    def put(self, kind: ConditionType, value: bool, reason: str, message: str) -> None:
        self.status = with_condition(
            self.status, kind, value, reason, message[:_MESSAGE_LIMIT],
            generation=self._generation, moment=self._moment,
        )  # fmt: skip

    def progressing(self, reason: str, message: str) -> Resource:
        """The run goes on."""
        self.put("Progressing", True, reason, message)
        self.put("Succeeded", False, reason, message)
        return {**self.status, "message": message[:_MESSAGE_LIMIT]}

    def ended(self, reason: str, message: str, *, well: bool) -> Resource:
        """The run has ended."""
        self.put("Progressing", False, "Succeeded" if well else reason, message)
        self.put("Succeeded", well, reason, message)
        self.put("Failed", not well, reason, message)
        return {
            **self.status, "message": message[:_MESSAGE_LIMIT], "completedAt": self._moment,
        }  # fmt: skip


def next_status(run: Resource, seen: Observation, moment: str) -> Resource:
    """The status that follows from an observation."""
    old = status_of(run)
    published = sum(planned.manifest is not None for planned in seen.plan)
    current = next(
        (p for p in seen.plan if p.manifest is None and getattr(p, "key", None) is not None), None
    )
    rows = {row["name"]: row for row in old.get("stages") or []}
    conditions = _Conditions(
        run,
        {
            **old,
            "startedAt": old.get("startedAt") or moment,
            "stage": current.stage.name if current else seen.plan[-1].stage.name,
            "progress": f"{published}/{len(seen.plan)}",
            "stages": [_stage(run, p, seen, rows.get(p.stage.name, {})) for p in seen.plan],
            "attempts": to_status(seen.attempts),
        },
        moment,
    )
    conditions.put("Accepted", True, "Valid", "the configuration is valid")
    failure = next((action for action in seen.actions if isinstance(action, Fail)), None)
    if any(isinstance(action, Succeed) for action in seen.actions):
        return _succeeded(conditions, seen)
    if failure is not None:
        message = f"{failure.stage}: {failure.message}; {REUSES}"
        conditions.status["stage"] = failure.stage
        return conditions.ended(failure.reason, message, well=False)
    return conditions.progressing(*_progress(run, seen, current))


def failed_status(run: Resource, error: SelfAlignError, moment: str) -> Resource:
    """The status of a run whose own configuration or data are wrong."""
    conditions = _Conditions(run, status_of(run), moment)
    reason, message = type(error).__name__, one_line(error)
    if not status_of(run).get("stages"):
        conditions.put("Accepted", False, reason, message)
    return conditions.ended(reason, message, well=False)


def waiting_status(run: Resource, error: SelfAlignError, moment: str) -> Resource:
    """The status of a run that cannot be looked at, or led on, for a while."""
    conditions = _Conditions(run, status_of(run), moment)
    return conditions.progressing(type(error).__name__, one_line(error))


def one_line(error: SelfAlignError) -> str:
    """Message and remedy in one line."""
    message = "; ".join(line.strip() for line in error.message.splitlines() if line.strip())
    return f"{message}; remedy: {error.remedy}" if error.remedy else message


def _succeeded(conditions: _Conditions, seen: Observation) -> Resource:
    promotion = seen.plan[-1].manifest
    promoted = bool(promotion and promotion.details.get("promoted"))
    verdict = "Promoted" if promoted else "NotPromoted"
    reasons = (promotion.details.get("reasons") if promotion else None) or []
    message = "; ".join(["promoted" if promoted else "not promoted", *reasons])
    status = conditions.ended(verdict, message, well=True)
    return {**status, "verdict": verdict}


def _progress(run: Resource, seen: Observation, current: StagePlan | None) -> tuple[str, str]:
    if seen.suspended:
        return "Suspended", "suspended: nothing new is started; set spec.suspend to false"
    if current is None:
        return "Planning", "waiting for the store"
    name = current.stage.name
    if name in seen.waiting:
        return "Waiting", f"{name}: {seen.waiting[name]}"
    mine = seen.of_stage(current)
    active = [o for o in mine if o.attempt.condition == "Active"]
    before = [o.attempt.message for o in mine if o.attempt.condition == "Failed"]
    trouble = seen.troubles.get(name) or (before[-1] if before else "")
    again = f"; before: {trouble}" if trouble else ""
    number = (active or mine)[-1].attempt.number if mine else 1
    return "Running", f"{name} runs in Job {job_name(name_of(run), name, number)}{again}"


def _stage(run: Resource, planned: StagePlan, seen: Observation, old: Resource) -> Resource:
    name = planned.stage.name
    mine = seen.of_stage(planned)
    last = mine[-1] if mine else None
    charged = sum(o.attempt.cause != "disrupted" for o in mine)
    row: Resource = {"name": name, "phase": _phase(planned, last), "attempts": charged}
    if getattr(planned, "key", None) is not None:
        row["key"] = getattr(planned, "key", None)
    if planned.manifest is not None:
        row["digest"] = planned.manifest.digest
    if last is not None:
        row["job"] = job_name(name_of(run), name, last.attempt.number)
    done = seen.parts.get(
        name, old.get("done") if old.get("key") == getattr(planned, "key", None) else None
    )
    if done and planned.manifest is None:
        row["done"] = done
    message = seen.waiting.get(name) or seen.troubles.get(name)
    if not message and last is not None and planned.manifest is None:
        message = last.attempt.message
    if message:
        row["message"] = message[:_MESSAGE_LIMIT]
    return row


def _phase(planned: StagePlan, last: Observed | None) -> str:
    if planned.manifest is not None:
        return "Reused" if last is None else "Done"
    if last is None:
        return "Pending"
    return "Failed" if last.attempt.condition == "Failed" else "Running"


def _generation(run: Resource) -> int:
    return int(run["metadata"].get("generation") or 0)
