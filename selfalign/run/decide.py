"""What to do next: a pure function of the plan and the attempts so far. No I/O, no clock.

It remembers nothing, so whoever calls it may be killed at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfalign.run.plan import Blocked, Planned, StagePlan
from selfalign.run.record import Attempt


@dataclass(frozen=True, slots=True)
class Start:
    """Start this attempt at a stage."""

    planned: Planned
    number: int


@dataclass(frozen=True, slots=True)
class Succeed:
    """Every stage is published: the run has succeeded."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has failed; no further attempt would help."""

    stage: str
    reason: str
    message: str
    remedy: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Await:
    """A person is to decide on the final model before this stage is started again."""

    planned: Planned


Action = Start | Succeed | Fail | Await


def decide(
    plan: Sequence[StagePlan], attempts: Iterable[Attempt], *, max_attempts: int
) -> list[Action]:
    """The actions that lead the run on. No action means: an attempt is Active, wait for it.

    Args:
        plan: every stage, in order.
        attempts: all that are known of this run, in any order; duplicates do no harm.
        max_attempts: charged attempts per artifact; disrupted attempts are free of charge.

    A stage is finished when its artifact is published, whatever became of the attempt that
    published it. An attempt that is Complete without a published artifact counts as a temporary
    failure, unless it asked for approval. A permanent failure of a stage that is not published
    fails the run at once.
    """
    if all(planned.manifest is not None for planned in plan):
        return [Succeed()]
    known = list(attempts)
    actions: list[Action] = []
    for planned in plan:
        if isinstance(planned, Blocked) or planned.manifest is not None:
            continue
        if planned.approval == "awaited":
            actions.append(Await(planned))
            continue
        of_stage = [a for a in known if a.stage == planned.stage.name]
        action = _decide_stage(planned, of_stage, max_attempts)
        if isinstance(action, Fail):
            return [action]
        if action is not None:
            actions.append(action)
    return actions


def _decide_stage(
    planned: Planned, of_stage: list[Attempt], max_attempts: int
) -> Start | Fail | None:
    stage = planned.stage.name
    mine = [attempt for attempt in of_stage if attempt.key == planned.key]
    if any(attempt.condition == "Active" for attempt in mine):
        return None
    pending = [attempt.number for attempt in mine if attempt.condition == "Pending"]
    if pending:
        return Start(planned, max(pending))
    permanent = [attempt for attempt in mine if attempt.cause == "permanent"]
    if permanent:
        worst = max(permanent, key=lambda a: a.number)
        return Fail(stage, "PermanentFailure", worst.message, worst.remedy, worst.exit_code)
    charged = {attempt.number for attempt in mine if attempt.cause != "disrupted"}
    if planned.approval == "given":  # the first that ended well did what it could: it asked
        asked = (attempt.number for attempt in mine if attempt.condition == "Complete")
        charged.discard(min(asked, default=0))
    if len(charged) >= max_attempts:
        last = max(mine, key=lambda a: a.number)
        message = last.message or "the attempt ended without publishing its artifact"
        message = f"{len(charged)} attempts failed; last: {message}"
        return Fail(stage, "AttemptsExhausted", message, last.remedy, last.exit_code)
    # A number names the stage's Job, so it is not used again for another key.
    return Start(planned, 1 + max((attempt.number for attempt in of_stage), default=0))
