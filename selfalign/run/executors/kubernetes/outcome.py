"""From a Job and its pods to the Attempt that they are. Pure: plain dicts in.

A Job's outcome is its condition Complete or Failed with status True; SuccessCriteriaMet and
FailureTarget come earlier, while pods still end. A failed pod is not a failed Job.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from selfalign.errors import PERMANENT_EXIT_CODES, UNCHARGED_EXIT_CODES
from selfalign.pipeline import BY_NAME
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.cluster import Resource, annotations_of, is_true, labels_of
from selfalign.run.record import Attempt, Cause
from selfalign.telemetry import parse_event

# podFailurePolicy writes it into the condition; the pods may be gone by then
_EXIT_CODE = re.compile(r"exit code (\d+)")
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_MESSAGE_LIMIT = 600
_REMEDY = "; remedy: "


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """How the stage's container of one pod ended with an error."""

    index: str | None
    code: int
    message: str
    finished_at: str
    disrupted: bool

    @property
    def stopped(self) -> bool:
        """Whether it was stopped from outside: by a signal, an eviction or a gc at work."""
        return self.disrupted or self.code in UNCHARGED_EXIT_CODES

    def explain(self, *, sharded: bool) -> str:
        """One line for a person."""
        what = self.message or f"ended with exit code {self.code}; see its log"
        return f"shard {self.index}: {what}" if sharded and self.index is not None else what


def pods_of(job: Resource, pods: Iterable[Resource]) -> list[Resource]:
    """The pods that this very Job controls: by uid, because names are used again."""
    uid = job["metadata"]["uid"]
    return [
        pod
        for pod in pods
        if any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or [])
    ]


def attempt_of(job: Resource, pods: list[Resource], *, disrupted: bool = False) -> Attempt | None:
    """The attempt that a Job is; None for a Job without our labels.

    Args:
        pods: of this Job, for the exit code and the message of the container that failed.
        disrupted: whether one of its pods was seen disrupted before.
    """
    labels = labels_of(job)
    stage, key = labels.get(crd.STAGE_LABEL, ""), labels.get(crd.KEY_LABEL)
    number = labels.get(crd.ATTEMPT_LABEL, "")
    if stage not in BY_NAME or not key or not number.isdigit():
        return None
    status = job.get("status") or {}
    sharded = BY_NAME[stage].sharded
    attempt = Attempt(
        stage=stage,
        key=key,
        number=int(number),
        condition="Active",
        done=int(status.get("succeeded") or 0) if sharded else None,
        total=int(job["spec"].get("completions") or 1) if sharded else None,
        started_at=status.get("startTime") or job["metadata"]["creationTimestamp"],
        disrupted=disrupted or any(is_disrupted(pod) for pod in pods),
        gpus=_gpus(job),
    )
    ended = job_end(job)
    if ended is None:
        ends = failed_ends(pods)
        message = ends[-1].explain(sharded=sharded)[:_MESSAGE_LIMIT] if ends else ""
        return attempt.model_copy(update={"message": message})
    changes: dict[str, object] = {"condition": ended["type"]}
    changes["finished_at"] = ended.get("lastTransitionTime")
    if ended["type"] == "Failed":
        together = not sharded and int(job["spec"].get("completions") or 1) > 1
        cause, code, message = _failure(ended, pods, together=together, disrupted=attempt.disrupted)
        message, _, remedy = message.partition(_REMEDY)
        changes |= {
            "cause": cause,
            "exit_code": code,
            "message": message[:_MESSAGE_LIMIT],
            "remedy": remedy[:_MESSAGE_LIMIT] or None,
        }
    return attempt.model_copy(update=changes)


def _gpus(job: Resource) -> int:
    """GPUs that a Job's pods hold while all that may run at once do: extended resources that are
    called so (nvidia.com/gpu, amd.com/gpu, nvidia.com/mig-1g.10gb)."""
    each = sum(
        int(amount)
        for container in job["spec"].get("template", {}).get("spec", {}).get("containers") or []
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items()
        if ("/gpu" in name or "/mig-" in name) and str(amount).isdigit()
    )
    return each * int(job["spec"].get("parallelism") or 1)


def job_end(job: Resource) -> Resource | None:
    """The condition Complete or Failed that is true; None while the Job is active."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition.get("status") == "True":
            return dict(condition)
    return None


def is_disrupted(pod: Resource) -> bool:
    """Whether the pod was evicted, preempted or drained."""
    return is_true(pod, "DisruptionTarget")


def failed_ends(pods: Iterable[Resource]) -> list[ContainerEnd]:
    """The stage's containers that ended with an error, earliest first."""
    ends = []
    for pod in pods:
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (status.get("state") or {}).get("terminated") or {}
            if status["name"] != crd.STAGE_CONTAINER or not ended.get("exitCode"):
                continue
            message = readable(ended.get("message") or "")
            if ended.get("reason") == "OOMKilled":
                message = (
                    "killed for memory (OOMKilled); remedy: raise resources.limits.memory in the "
                    "stage's values, or lower batch_size or max_length"
                )
            ends.append(
                ContainerEnd(
                    index=annotations_of(pod).get(INDEX_ANNOTATION),
                    code=ended["exitCode"],
                    message=message,
                    finished_at=ended.get("finishedAt") or "",
                    disrupted=is_disrupted(pod),
                )
            )
    return sorted(ends, key=lambda end: end.finished_at)


def readable(message: str) -> str:
    """A termination message as one line: what a stage wrote, or the end of its log, where the last
    error event or the last line of a traceback says what was wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        event = parse_event(line)
        if event is not None and (event.get("error") or event.get("exception")):
            return _of_event(event)
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return lines[-1]
    text = "; ".join(line for line in lines if not line.startswith("{"))
    return text if len(text) <= _MESSAGE_LIMIT else f"... {text[4 - _MESSAGE_LIMIT :]}"


def _of_event(event: Resource) -> str:
    if event.get("error"):
        remedy = event.get("remedy")
        return f"{event['error']}{_REMEDY}{remedy}" if remedy else str(event["error"])
    trace = event["exception"]
    last = trace[-1] if isinstance(trace, list) and trace else {}
    return f"{last.get('exc_type', 'a bug')}: {last.get('exc_value', '')}"


def _failure(
    condition: Resource, pods: list[Resource], *, together: bool, disrupted: bool
) -> tuple[Cause, int | None, str]:
    """Cause, exit code and message of a failed Job.

    Args:
        together: whether its pods work as one, so that all fall when one does.
    """
    reason, message = condition.get("reason") or "", condition.get("message") or ""
    end = _decisive(failed_ends(pods), together=together)
    code = end.code if end else None
    if code is None and (found := _EXIT_CODE.search(message)):
        code = int(found[1])
    text = end.explain(sharded=not together) if end else message or reason
    evicted = end is not None and end.disrupted
    if code in PERMANENT_EXIT_CODES and not evicted:
        return "permanent", code, text
    if reason == "DeadlineExceeded":
        text = (
            f"it ran past its deadline{_REMEDY}raise deadlineSeconds in the stage's values, or use "
            "more shards"
        )
        return "temporary", code, text
    if end is not None and end.stopped:
        return "disrupted", code, text
    if together and disrupted:
        # The errors of the other pods follow from the eviction.
        return "disrupted", code, text
    return "temporary", code, text


def _decisive(ends: list[ContainerEnd], *, together: bool) -> ContainerEnd | None:
    """The end that explains the failure: a permanent error, else one that was not merely stopped.
    Of pods that work together it is the first, since the others followed, else the latest."""
    permanent = [end for end in ends if end.code in PERMANENT_EXIT_CODES and not end.disrupted]
    own = [end for end in ends if not end.stopped]
    candidates = permanent or own or ends
    if not candidates:
        return None
    return candidates[0] if together else candidates[-1]
