"""Why an active Job makes no progress, and what to do about it. Pure.

The texts name moments, never ages. A text that changes by itself would be written to the status,
and become an Event, at every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from selfalign.run.executors.kubernetes.cluster import (
    Resource,
    container_statuses,
    is_terminating,
    labels_of,
    name_of,
)
from selfalign.run.executors.kubernetes.crd import KUEUE_QUEUE_LABEL
from selfalign.run.executors.kubernetes.outcome import job_end

TERMINATING_TOO_LONG_SECONDS = 600  # beyond any grace period in use: the node's kubelet is gone
_IMAGE_REMEDY = (
    "correct image.registry, image.name, image.tag or image.pullSecrets in the stage's values "
    "and run make deploy-stage"
)
_CONTAINER_WAITS = {
    "ErrImagePull": ("the image cannot be pulled", _IMAGE_REMEDY),
    "ImagePullBackOff": ("the image cannot be pulled", _IMAGE_REMEDY),
    "InvalidImageName": ("the image's name is not valid", _IMAGE_REMEDY),
    "ErrImageNeverPull": (
        "the image is not on the node and its pull policy is Never",
        "load the image onto the node, or set image.pullPolicy to IfNotPresent",
    ),
    "CreateContainerConfigError": (
        "a ConfigMap or Secret is missing",
        "create the object that is named; the pod then starts by itself",
    ),
    "CreateContainerError": ("the container cannot be created", "see `kubectl describe pod`"),
    "RunContainerError": ("the container cannot be started", "see `kubectl describe pod`"),
}


class Waiting(NamedTuple):
    """Why nothing moves, and what a person can do; the remedy is None where it passes by itself."""

    reason: str
    remedy: str | None = None


def why_waiting(
    job: Resource, pods: list[Resource], events: Iterable[Resource], moment: datetime
) -> Waiting | None:
    """Why an active Job makes no progress; None when its pods run.

    Args:
        pods: of this Job.
        events: on this Job; they say why it has no pods.
    """
    if job_end(job) is not None:
        return None
    name = name_of(job)
    if is_terminating(job):
        finalizers = ", ".join(job["metadata"].get("finalizers") or []) or "its pods"
        since = job["metadata"]["deletionTimestamp"]
        return Waiting(f"Job {name} is terminating since {since}, waits for {finalizers}")
    if job["spec"].get("suspend"):
        queue = labels_of(job).get(KUEUE_QUEUE_LABEL)
        if queue:
            return Waiting(
                f"queued in {queue}: Kueue has not admitted it",
                f"wait for quota in the queue, or see `kubectl describe job {name}`",
            )
        patch = f'kubectl patch job {name} -p \'{{"spec":{{"suspend":false}}}}\''
        return Waiting(f"Job {name} is suspended", patch)
    reasons = [reason for pod in pods if (reason := _pod_waits(pod, moment))]
    if reasons:
        more = f" (and {len(reasons) - 1} more pods)" if len(reasons) > 1 else ""
        return Waiting(reasons[0].reason + more, reasons[0].remedy)
    return None if has_pods(job) or pods else _no_pods(name, events)


def has_pods(job: Resource) -> bool:
    """Whether the Job has or had pods, as it counts them itself."""
    status = job.get("status") or {}
    counted = sum(int(status.get(name) or 0) for name in ("active", "succeeded", "failed"))
    return bool(counted or status.get("uncountedTerminatedPods"))


def _no_pods(name: str, events: Iterable[Resource]) -> Waiting:
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    if not refused:
        return Waiting("no pod yet", f"if it stays so, see `kubectl describe job {name}`")
    latest = max(refused, key=lambda event: event.get("lastTimestamp") or "")
    message = str(latest.get("message", "")).strip()
    remedy = "correct what the message names in the stage's values and run make deploy-stage"
    if "exceeded quota" in message:
        remedy = "free some of the namespace's quota or raise it; the Job then starts by itself"
    return Waiting(f"no pod may be created: {message}", remedy)


def _pod_waits(pod: Resource, moment: datetime) -> Waiting | None:
    deleted = pod["metadata"].get("deletionTimestamp")
    if deleted:
        return _terminating(pod, deleted, moment)
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return None
    for container in container_statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        found = _CONTAINER_WAITS.get(waiting.get("reason", ""))
        if found:
            what, remedy = found
            image = f" ({container['image']})" if "image" in what and container.get("image") else ""
            said = waiting.get("message") or waiting.get("reason")
            return Waiting(f"pod {name_of(pod)}: {what}{image}: {said}", remedy)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = str(condition.get("message", "")).strip()
            return Waiting(f"pod {name_of(pod)} is unschedulable: {message}", _schedule(message))
    return None


def _schedule(message: str) -> str:
    if "nvidia.com/gpu" in message or "amd.com/gpu" in message:
        return "add a node with free GPUs, or lower gpus in the stage's values"
    if "taint" in message:
        return "add a toleration in the stage's values, or remove the taint from a node"
    return "add a node that fits, or lower resources in the stage's values"


def _terminating(pod: Resource, deleted: str, moment: datetime) -> Waiting | None:
    age = (moment - datetime.fromisoformat(deleted)).total_seconds()
    if age <= TERMINATING_TOO_LONG_SECONDS:
        return None
    node = (pod.get("spec") or {}).get("nodeName", "its node")
    return Waiting(
        f"pod {name_of(pod)} is terminating since {deleted}: {node} does not answer",
        f"once the node is surely down: kubectl delete pod {name_of(pod)} --force",
    )
