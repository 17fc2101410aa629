"""Why a Job makes no progress, and what to do, in one line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.executors.kubernetes.waiting import TERMINATING_TOO_LONG_SECONDS, why_waiting

NOW = datetime(2026, 11, 1, 3, 0, tzinfo=UTC)


def a_job(**changes: Any) -> Resource:
    return {
        "metadata": {
            "name": "toy-align-1",
            "uid": "u",
            "labels": {},
            **changes.pop("metadata", {}),
        },
        "spec": changes.pop("spec", {}),
        "status": changes.pop("status", {"active": 1}),
    }


def a_pod(phase: str = "Pending", *, name: str = "p1", **status: Any) -> Resource:
    return {"metadata": {"name": name}, "spec": {}, "status": {"phase": phase, **status}}


def waits(job: Resource, *pods: Resource, events: list[Resource] | None = None) -> str:
    found = why_waiting(job, list(pods), events or [], NOW)
    return "" if found is None else f"{found.reason}; {found.remedy or 'it passes by itself'}"


def test_running_pods_need_no_explanation() -> None:
    assert waits(a_job(), a_pod("Running")) == ""


def test_a_finished_job_waits_for_nothing() -> None:
    status = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert waits(a_job(status=status), a_pod()) == ""


def test_a_job_that_kueue_holds_names_its_queue_and_not_how_to_unsuspend_it() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "night"}
    told = waits(a_job(spec={"suspend": True}, metadata={"labels": labels}))
    assert told.startswith("queued in night")
    assert "suspend" not in told


def test_a_job_suspended_by_hand_says_how_to_go_on() -> None:
    assert '"suspend":false' in waits(a_job(spec={"suspend": True}))


def test_an_unschedulable_pod_says_the_scheduler_s_reason() -> None:
    condition = {
        "type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient gpu",
    }  # fmt: skip
    assert "insufficient gpu" in waits(a_job(), a_pod(conditions=[condition]))


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    container = {"image": "registry/align:1", "state": {"waiting": waiting}}
    told = waits(a_job(), a_pod(containerStatuses=[container]))
    assert "registry/align:1" in told
    assert "cannot be pulled" in told


def test_a_missing_secret_is_told() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}
    told = waits(a_job(), a_pod(containerStatuses=[{"state": {"waiting": waiting}}]))
    assert 'secret "x" not found' in told


def test_a_container_that_is_being_created_is_no_reason_yet() -> None:
    waiting = {"reason": "ContainerCreating"}
    assert waits(a_job(), a_pod(containerStatuses=[{"state": {"waiting": waiting}}])) == ""


def test_several_waiting_pods_are_counted() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "no node"}
    pods = [a_pod(name=f"p{i}", conditions=[condition]) for i in range(3)]
    assert waits(a_job(), *pods).split(";")[0].endswith("(and 2 more pods)")


def test_a_pod_that_is_terminating_for_ever_names_its_node_and_the_way_out() -> None:
    pod = a_pod("Running")
    pod["spec"]["nodeName"] = "node-7"
    late = NOW - timedelta(seconds=TERMINATING_TOO_LONG_SECONDS + 1)
    pod["metadata"]["deletionTimestamp"] = late.isoformat()
    told = waits(a_job(), pod)
    assert "node-7" in told
    assert "--force" in told
    pod["metadata"]["deletionTimestamp"] = NOW.isoformat()
    assert waits(a_job(), pod) == ""


def test_what_is_told_does_not_change_by_itself() -> None:
    """A text with an age in it would be a status write, hence an event, at every step."""
    pod = a_pod("Running")
    pod["metadata"]["deletionTimestamp"] = (NOW - timedelta(hours=1)).isoformat()
    later = why_waiting(a_job(), [pod], [], NOW + timedelta(minutes=5))
    assert why_waiting(a_job(), [pod], [], NOW) == later


def test_a_job_without_pods_says_what_its_events_say() -> None:
    job = a_job(status={})
    event = {"reason": "FailedCreate", "message": "exceeded quota: gpus", "lastTimestamp": "t"}
    assert "exceeded quota: gpus" in waits(job, events=[event])
    assert "kubectl describe job toy-align-1" in waits(job)


def test_a_job_whose_pods_have_ended_is_not_said_to_have_none() -> None:
    assert waits(a_job(status={"failed": 1})) == ""
    assert waits(a_job(status={"uncountedTerminatedPods": {"failed": ["x"]}})) == ""


def test_a_job_that_is_being_deleted_says_what_holds_it() -> None:
    metadata = {"deletionTimestamp": "2026-11-01T02:00:00Z", "finalizers": ["example.com/hold"]}
    assert "example.com/hold" in waits(a_job(metadata=metadata))


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("0/3 nodes: Insufficient nvidia.com/gpu", "GPUs"),
        ("0/3 nodes: untolerated taint {gpu: true}", "toleration"),
        ("0/3 nodes: Insufficient memory", "resources"),
    ],
)
def test_an_unschedulable_pod_says_what_to_do(message: str, remedy: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": message}
    assert remedy in waits(a_job(), a_pod(conditions=[condition])).split(";")[1]
