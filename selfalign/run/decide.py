"""What to do next: a pure function of what is published and what was tried. No I/O, no clock.

The local runner and the cluster's controller both observe, call `decide`, and apply what it
returns; any of them may be killed at any time, since nothing is remembered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Condition = Literal["Active", "Complete", "Failed"]
Cause = Literal["permanent", "temporary", "disrupted"]


@dataclass(frozen=True, slots=True)
class StageState:
    """What the store says about a stage. `key` is None while its parents are not published."""

    stage: str
    key: str | None
    published: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a stage: a subprocess group here, a Job on a cluster.

    `cause` is set where the condition is Failed; `message` is what a person should read.
    """

    stage: str
    key: str
    number: int
    condition: Condition
    cause: Cause | None = None
    exit_code: int | None = None
    message: str = ""
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start this attempt at a stage."""

    stage: str
    key: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for this stage until something changes."""

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Succeed:
    """Every stage is published: the run has succeeded."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has failed; no attempt would help."""

    stage: str
    reason: str
    message: str
    remedy: str | None = None


Action = Start | Wait | Succeed | Fail


def decide(
    stages: Sequence[StageState], attempts: Iterable[Attempt], *, max_attempts: int
) -> list[Action]:
    """The actions that lead on from here.

    Args:
        stages: in pipeline order.
        attempts: all that are known, of this run, in any order; duplicates do no harm.
        max_attempts: charged attempts per stage; disruptions are free of charge.

    A stage is finished when its artifact is published, whatever became of the attempt that
    published it. An attempt that is Complete without a published artifact counts as a temporary
    failure. A permanent failure of a stage not published fails the run at once.
    """
    if all(state.published for state in stages):
        return [Succeed()]
    known = set(attempts)
    actions: list[Action] = []
    for state in stages:
        if state.published or state.key is None:
            continue
        mine = [a for a in known if a.stage == state.stage and a.key == state.key]
        action = _decide_stage(state.stage, state.key, mine, max_attempts)
        if isinstance(action, Fail):
            return [action]
        actions.append(action)
    return actions


def _decide_stage(
    stage: str, key: str, attempts: list[Attempt], max_attempts: int
) -> Start | Wait | Fail:
    if any(attempt.condition == "Active" for attempt in attempts):
        return Wait(stage, "an attempt is running")
    permanent = [a for a in attempts if a.cause == "permanent"]
    if permanent:
        worst = max(permanent, key=lambda a: a.number)
        return Fail(stage, "PermanentFailure", worst.message, worst.remedy)
    charged = {a.number for a in attempts if a.cause != "disrupted"}
    if len(charged) >= max_attempts:
        last = max(attempts, key=lambda a: a.number)
        message = last.message or "the attempt ended without publishing its artifact"
        message = f"{len(charged)} attempts failed; last: {message}"
        return Fail(stage, "AttemptsExhausted", message, last.remedy)
    return Start(stage, key, 1 + max((a.number for a in attempts), default=0))
