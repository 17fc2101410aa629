"""From a Job and its pods to how an attempt stands. Pure: plain dicts in.

A Job's outcome is its condition Complete or Failed with status True; SuccessCriteriaMet and
FailureTarget come earlier, while pods still end. A failed pod is not a failed Job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from selfalign.controller.cluster import Resource, annotations_of, labels_of
from selfalign.controller.names import ATTEMPT_LABEL, KEY_LABEL, STAGE_CONTAINER, STAGE_LABEL
from selfalign.errors import INTERRUPTED_EXIT_CODES, PERMANENT_EXIT_CODES
from selfalign.pipeline import BY_NAME
from selfalign.run.decide import Attempt, Cause

# podFailurePolicy writes it into the condition; the pods may be gone by then
_EXIT_CODE = re.compile(r"exit code (\d+)")
_INDEX = "batch.kubernetes.io/job-completion-index"
_MESSAGE_LIMIT = 600


@dataclass(frozen=True, slots=True)
class Observed:
    """An attempt and what `decide` need not know of it.

    Attributes:
        started_at: ISO 8601; None where nobody saw its start.
        finished_at: ISO 8601; None while it runs, or where nobody saw its end.
        disrupted: whether any of its pods was evicted, preempted or drained.
    """

    attempt: Attempt
    started_at: str | None = None
    finished_at: str | None = None
    disrupted: bool = False


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """How the stage's container of one pod ended."""

    index: str | None
    code: int
    reason: str
    message: str
    finished_at: str
    disrupted: bool


def pods_of(job: Resource, pods: Iterable[Resource]) -> list[Resource]:
    """The pods that this very Job controls: by uid, for names are used again."""
    uid = job["metadata"]["uid"]
    return [
        pod
        for pod in pods
        if any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or [])
    ]


def observe_job(job: Resource, pods: list[Resource], *, disrupted: bool) -> Observed | None:
    """How the attempt that a Job is stands; None for a Job without our labels.

    Args:
        pods: of this Job, for the exit code and the message of the container that failed.
        disrupted: whether an earlier look saw one of its pods disrupted.
    """
    labels = labels_of(job)
    stage, key = labels.get(STAGE_LABEL, ""), labels.get(KEY_LABEL)
    number = labels.get(ATTEMPT_LABEL, "")
    if stage not in BY_NAME or not key or not number.isdigit():
        return None
    disrupted = disrupted or any(is_disrupted(pod) for pod in pods)
    started = (job.get("status") or {}).get("startTime") or job["metadata"]["creationTimestamp"]
    ended = job_end(job)
    if ended is None:
        return Observed(Attempt(stage, key, int(number), "Active"), started, None, disrupted)
    finished = ended.get("lastTransitionTime")
    if ended["type"] == "Complete":
        return Observed(Attempt(stage, key, int(number), "Complete"), started, finished, disrupted)
    together = not BY_NAME[stage].sharded and int(job["spec"].get("completions") or 1) > 1
    cause, code, message = _failure(ended, pods, together=together, disrupted=disrupted)
    attempt = Attempt(stage, key, int(number), "Failed", cause, code, message[:_MESSAGE_LIMIT])
    return Observed(attempt, started, finished, disrupted)


def job_end(job: Resource) -> Resource | None:
    """The condition Complete or Failed that is true; None while the Job goes on."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition.get("status") == "True":
            return dict(condition)
    return None


def is_disrupted(pod: Resource) -> bool:
    """Whether the pod was evicted, preempted or drained: nobody's fault."""
    return any(
        condition.get("type") == "DisruptionTarget" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or []
    )


def failed_ends(pods: Iterable[Resource]) -> list[ContainerEnd]:
    """The stage's containers that ended with an error, earliest first."""
    ends = []
    for pod in pods:
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (status.get("state") or {}).get("terminated") or {}
            if status["name"] != STAGE_CONTAINER or not ended.get("exitCode"):
                continue
            ends.append(
                ContainerEnd(
                    index=annotations_of(pod).get(_INDEX),
                    code=ended["exitCode"],
                    reason=ended.get("reason") or "",
                    message=readable(ended.get("message") or ""),
                    finished_at=ended.get("finishedAt") or "",
                    disrupted=is_disrupted(pod),
                )
            )
    return sorted(ends, key=lambda end: end.finished_at)


def told(end: ContainerEnd, *, sharded: bool) -> str:
    """One line for a person."""
    what = end.message
    if end.reason == "OOMKilled":
        what = (
            "killed for memory (OOMKilled); remedy: raise resources.limits.memory in the stage's "
            "values, or lower batch_size or max_length"
        )
    if not what:
        what = f"ended with exit code {end.code}; see its log"
    return f"shard {end.index}: {what}" if sharded and end.index is not None else what


def readable(message: str) -> str:
    """A termination message as one line: what a stage wrote, or the end of its log, where an
    error says last what was wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and (event.get("error") or event.get("exception")):
            return _of_event(event)
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return lines[-1]
    text = "; ".join(line for line in lines if not line.startswith("{"))
    return text if len(text) <= _MESSAGE_LIMIT else f"... {text[4 - _MESSAGE_LIMIT :]}"


def _of_event(event: Resource) -> str:
    if event.get("error"):
        remedy = event.get("remedy")
        return f"{event['error']}; remedy: {remedy}" if remedy else str(event["error"])
    trace = event["exception"]
    last = trace[-1] if isinstance(trace, list) and trace else {}
    return f"{last.get('exc_type', 'a bug')}: {last.get('exc_value', '')}"


def _failure(
    condition: Resource, pods: list[Resource], *, together: bool, disrupted: bool
) -> tuple[Cause, int | None, str]:
    reason, message = condition.get("reason") or "", condition.get("message") or ""
    end = _telling(failed_ends(pods), together=together)
    code = end.code if end else None
    if code is None and (found := _EXIT_CODE.search(message)):
        code = int(found[1])
    said = told(end, sharded=not together) if end else message or reason
    evicted = end is not None and end.disrupted
    if code in PERMANENT_EXIT_CODES and not evicted:
        return "permanent", code, said
    if reason == "DeadlineExceeded":
        return "temporary", code, "it ran past its deadline (deadlineSeconds of the stage)"
    if end is not None and _nobodys_fault(end):
        return "disrupted", code, said
    if together and disrupted:
        # Pods that train together fall together: the others' errors follow from the eviction.
        return "disrupted", code, said
    return "temporary", code, said


def _nobodys_fault(end: ContainerEnd) -> bool:
    """Whether the container was stopped from outside, gently or, by an eviction, in any way."""
    return end.disrupted or end.code in INTERRUPTED_EXIT_CODES


def _telling(ends: list[ContainerEnd], *, together: bool) -> ContainerEnd | None:
    """The end that says most: a permanent error, else one that is not merely being stopped; of
    pods that work together the first, for the others followed from it, else the latest."""
    permanent = [end for end in ends if end.code in PERMANENT_EXIT_CODES and not end.disrupted]
    own = [end for end in ends if not _nobodys_fault(end)]
    candidates = permanent or own or ends
    if not candidates:
        return None
    return candidates[0] if together else candidates[-1]
