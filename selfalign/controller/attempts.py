"""A run's attempts: what its Jobs say, and what its status remembers of Jobs that are gone. Pure.

A Job that was running and is gone was deleted by somebody: a disruption, free of charge. An
absent Job never means "not started".
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from selfalign.controller.cluster import Resource
from selfalign.controller.outcome import Observed, observe_job, pods_of
from selfalign.controller.resources import status_of
from selfalign.run.decide import Attempt

# Before another try at a failure that may pass: 30 s, 2 min, 8 min, then 10 min. Inside an
# attempt the Job has tried `retries` times already, so a store that restarts is outlived.
RETRY_SECONDS, RETRY_FACTOR, RETRY_LIMIT_SECONDS = 30.0, 4, 600.0
# After a disruption at once, unless Jobs are deleted again and again.
DISRUPTED_SECONDS, DISRUPTED_LIMIT_SECONDS = 2.0, 60.0
_KEPT_DISRUPTIONS = 5
_MESSAGE_LIMIT = 600


def observe(
    run: Resource, jobs: Iterable[Resource], pods: list[Resource], moment: str
) -> list[Observed]:
    """Every attempt of the run, by stage and number.

    Args:
        jobs: the run's own.
        moment: the time now, as the end of attempts whose Job has vanished since the last look.
    """
    remembered = {_identity(o): o for o in map(_remembered, status_of(run).get("attempts") or [])}
    found: dict[tuple[str, str, int], Observed] = {}
    for job in jobs:
        seen = observe_job(job, pods_of(job, pods), disrupted=False)
        if seen is None:
            continue
        before = remembered.get(_identity(seen))
        if before is not None and before.disrupted and not seen.disrupted:
            seen = observe_job(job, pods_of(job, pods), disrupted=True) or seen
        if before is not None and _knows_more(before, seen):
            seen = before
        found[_identity(seen)] = seen
    for identity, before in remembered.items():
        found.setdefault(identity, _vanished(before, moment))
    return sorted(found.values(), key=_order)


def next_number(stage: str, attempts: Iterable[Observed]) -> int:
    """The number of a stage's next attempt: never used before in this run, whatever its key, for
    it names the Job."""
    return 1 + max((o.attempt.number for o in attempts if o.attempt.stage == stage), default=0)


def not_before(stage: str, key: str, attempts: Iterable[Observed]) -> datetime | None:
    """When a stage may be tried again; None is at once."""
    mine = sorted(
        (o for o in attempts if o.attempt.stage == stage and o.attempt.key == key), key=_order
    )
    if not mine or mine[-1].finished_at is None:
        return None
    ended = datetime.fromisoformat(mine[-1].finished_at)
    if mine[-1].attempt.cause != "disrupted":
        charged = sum(o.attempt.cause != "disrupted" for o in mine)
        delay = min(RETRY_SECONDS * RETRY_FACTOR ** (charged - 1), RETRY_LIMIT_SECONDS)
        return ended + timedelta(seconds=delay)
    streak = 0
    for seen in reversed(mine):
        if seen.attempt.cause != "disrupted":
            break
        streak += 1
    if streak == 1:
        return None
    delay = min(DISRUPTED_SECONDS * 2 ** min(streak - 2, 10), DISRUPTED_LIMIT_SECONDS)
    return ended + timedelta(seconds=delay)


def to_status(attempts: Iterable[Observed]) -> list[Resource]:
    """What the status remembers: all charged attempts, and the latest disruptions."""
    rows: list[Resource] = []
    disruptions: dict[tuple[str, str], int] = {}
    for seen in sorted(attempts, key=_order, reverse=True):
        group = (seen.attempt.stage, seen.attempt.key)
        if seen.attempt.cause == "disrupted":
            disruptions[group] = disruptions.get(group, 0) + 1
            if disruptions[group] > _KEPT_DISRUPTIONS:
                continue
        rows.append(_row(seen))
    return list(reversed(rows))


def _row(seen: Observed) -> Resource:
    attempt = seen.attempt
    row: Resource = {
        "stage": attempt.stage,
        "key": attempt.key,
        "number": attempt.number,
        "condition": attempt.condition,
    }
    if attempt.cause is not None:
        row |= {"cause": attempt.cause, "message": attempt.message[:_MESSAGE_LIMIT]}
    if attempt.exit_code is not None:
        row["exitCode"] = attempt.exit_code
    if seen.started_at is not None:
        row["startedAt"] = seen.started_at
    if seen.finished_at is not None:
        row["finishedAt"] = seen.finished_at
    if seen.disrupted:
        row["disrupted"] = True
    return row


def _remembered(row: Resource) -> Observed:
    attempt = Attempt(
        row["stage"], row["key"], row["number"], row["condition"],
        row.get("cause"), row.get("exitCode"), row.get("message", ""),
    )  # fmt: skip
    return Observed(
        attempt, row.get("startedAt"), row.get("finishedAt"), bool(row.get("disrupted"))
    )


def _vanished(before: Observed, moment: str) -> Observed:
    attempt = before.attempt
    if attempt.condition != "Active":
        return before
    gone = Attempt(
        attempt.stage, attempt.key, attempt.number, "Failed", "disrupted", None,
        "its Job was deleted",
    )  # fmt: skip
    return Observed(gone, before.started_at, moment, before.disrupted)


def _knows_more(before: Observed, seen: Observed) -> bool:
    """An end once seen stands: its pods, which said why, may be gone by the next look."""
    return before.attempt.condition == "Failed" and seen.attempt.condition == "Failed"


def _identity(seen: Observed) -> tuple[str, str, int]:
    return (seen.attempt.stage, seen.attempt.key, seen.attempt.number)


def _order(seen: Observed) -> tuple[str, int]:
    return (seen.attempt.stage, seen.attempt.number)
