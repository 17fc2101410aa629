"""A Job and its pods become an attempt: classified by exit code and condition."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from selfalign.errors import Condemned
from selfalign.run.drive import Backoff, not_before
from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.executors.kubernetes.job import attempts_of
from selfalign.run.executors.kubernetes.outcome import readable
from selfalign.run.executors.local import classify_exit
from selfalign.run.record import Attempt, to_remember

RUN: Resource = {"metadata": {"name": "toy", "uid": "uid-run"}}
NOW = "2026-11-01T02:00:00Z"
THEN = "2026-11-01T01:30:00Z"


def a_job(
    number: int = 1, *, stage: str = "align", kind: str | None = None, reason: str = "",
    message: str = "", completions: int = 1,
) -> Resource:  # fmt: skip
    conditions = []
    if kind:
        conditions = [
            {"type": "FailureTarget", "status": "True"},
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": THEN,
            },
        ]
    return {
        "metadata": {
            "name": f"toy-{stage}-{number}",
            "uid": f"uid-{stage}-{number}",
            "creationTimestamp": "2026-11-01T01:00:00Z",
            "ownerReferences": [{"uid": "uid-run", "controller": True}],
            "labels": {
                "selfalign.io/stage": stage,
                "selfalign.io/key": "k1",
                "selfalign.io/attempt": str(number),
            },
        },
        "spec": {"completions": completions},
        "status": {"conditions": conditions},
    }


def a_pod(
    job: Resource, code: int, message: str = "", *, at: str = THEN, reason: str = "Error",
    disrupted: bool = False, index: int | None = None, container: str = "stage",
) -> Resource:  # fmt: skip
    annotations = {} if index is None else {"batch.kubernetes.io/job-completion-index": str(index)}
    ended = {"exitCode": code, "message": message, "reason": reason, "finishedAt": at}
    return {
        "metadata": {
            "name": f"{job['metadata']['name']}-{code}",
            "ownerReferences": [{"uid": job["metadata"]["uid"]}],
            "annotations": annotations,
        },
        "status": {
            "conditions": [{"type": "DisruptionTarget", "status": "True"}] if disrupted else [],
            "containerStatuses": [{"name": container, "state": {"terminated": ended}}],
        },
    }


class Shown:
    """A cluster that shows these Jobs and pods."""

    namespace = "selfalign"

    def __init__(self, **kinds: list[Resource]) -> None:
        self._kinds = kinds

    def list(self, kind: str, selector: str = "", fields: str = "") -> list[Resource]:
        return self._kinds.get(kind, [])


def observe(remembered: list[Attempt], jobs: list[Resource], pods: list[Resource]) -> list[Attempt]:
    cluster: Any = Shown(jobs=jobs, pods=pods)
    return attempts_of(cluster, RUN, remembered, datetime.fromisoformat(NOW))


def seen(job: Resource, *pods: Resource, before: list[Attempt] | None = None) -> Attempt:
    (found,) = observe(before or [], [job], list(pods))
    return found


def failed(reason: str = "BackoffLimitExceeded", message: str = "", **options: int) -> Resource:
    return a_job(kind="Failed", reason=reason, message=message, **options)


def test_a_job_without_an_outcome_is_active_whatever_its_pods_did() -> None:
    job = a_job()
    job["status"]["conditions"] = [{"type": "FailureTarget", "status": "True"}]
    assert seen(job, a_pod(job, 2, "wrong")).condition == "Active"


def test_success_criteria_met_is_not_complete_yet() -> None:
    job = a_job()
    job["status"]["conditions"] = [
        {"type": "SuccessCriteriaMet", "status": "True"},
        {"type": "Complete", "status": "False"},
    ]
    assert seen(job).condition == "Active"


@pytest.mark.parametrize("code", [2, 3, 4])
def test_configuration_data_and_permission_errors_are_permanent(code: int) -> None:
    job = failed("PodFailurePolicy")
    found = seen(job, a_pod(job, code, "align.sampling: wrong\nremedy: correct it"))
    assert (found.cause, found.exit_code) == ("permanent", code)
    assert (found.message, found.remedy) == ("align.sampling: wrong", "correct it")


def test_the_exit_code_is_found_in_the_condition_when_the_pods_are_gone() -> None:
    message = (
        "Container stage for pod ns/p failed with exit code 3 matching FailJob rule at index 1"
    )
    found = seen(failed("PodFailurePolicy", message))
    assert (found.cause, found.exit_code) == ("permanent", 3)
    assert found.message == message


@pytest.mark.parametrize("code", [1, 69, 70, 71, 74, 75, 137])
def test_any_other_failure_may_pass(code: int) -> None:
    job = failed()
    assert seen(job, a_pod(job, code)).cause == "temporary"


def test_pods_of_another_job_of_the_same_name_say_nothing() -> None:
    job = failed()
    stranger = a_pod(job, 2, "of the Job before")
    stranger["metadata"]["ownerReferences"] = [{"uid": "another"}]
    assert seen(job, stranger).cause == "temporary"


def test_a_sidecar_s_exit_code_says_nothing() -> None:
    job = failed()
    assert seen(job, a_pod(job, 2, "proxy", container="istio-proxy")).cause == "temporary"


def test_a_deadline_is_charged_though_its_pods_were_stopped_by_a_signal() -> None:
    job = failed("DeadlineExceeded")
    found = seen(job, a_pod(job, 143))
    assert found.cause == "temporary"
    assert "deadline" in found.message


def test_a_container_killed_for_memory_says_so() -> None:
    job = failed()
    found = seen(job, a_pod(job, 137, "last log line", reason="OOMKilled"))
    assert found.cause == "temporary"
    assert "memory" in found.message
    assert "resources.limits.memory" in str(found.remedy)


def test_being_stopped_by_a_signal_is_a_disruption() -> None:
    job = failed()
    assert seen(job, a_pod(job, 143, "stopped")).cause == "disrupted"


def test_an_attempt_that_gc_is_in_the_way_of_costs_nothing() -> None:
    job = failed()
    assert seen(job, a_pod(job, Condemned.exit_code, "gc is at work")).cause == "disrupted"
    assert classify_exit(Condemned.exit_code) == "disrupted"


def test_an_evicted_pod_s_exit_code_is_no_failure_of_its_own() -> None:
    job = failed()
    evicted = a_pod(job, 137, disrupted=True)
    assert seen(job, evicted, a_pod(job, 143)).cause == "disrupted"
    assert seen(job, evicted, a_pod(job, 70)).cause == "temporary"


def test_others_that_were_stopped_do_not_hide_the_shard_that_failed() -> None:
    job = failed("MaxFailedIndexesExceeded", completions=3)
    found = seen(
        job,
        a_pod(job, 70, "engine died", index=1, at="2026-11-01T01:20:00Z"),
        a_pod(job, 143, "stopped", index=0, at="2026-11-01T01:21:00Z"),
    )
    assert (found.cause, found.exit_code) == ("temporary", 70)
    assert found.message == "shard 1: engine died"


def test_a_training_whose_node_was_drained_is_not_charged_for_its_peers_errors() -> None:
    job = a_job(stage="engrave", kind="Failed", reason="BackoffLimitExceeded", completions=2)
    known = {"stage": "engrave", "key": "k1", "number": 1, "condition": "Active"}
    before = [Attempt.model_validate({**known, "disrupted": True})]
    lost_peer = a_pod(job, 70, "connection closed by peer")
    assert seen(job, lost_peer, before=before).cause == "disrupted"
    assert seen(job, lost_peer).cause == "temporary"


def test_an_end_once_seen_stands_when_its_pods_are_gone() -> None:
    job = failed()
    first = seen(job, a_pod(job, 70, "engine died"))
    assert seen(job, before=[first]).message == "engine died"


def test_a_job_that_ran_and_is_gone_was_deleted_which_costs_nothing() -> None:
    (found,) = observe([seen(a_job())], [], [])
    assert (found.condition, found.cause) == ("Failed", "disrupted")
    assert found.finished_at == NOW


def test_a_job_thought_deleted_that_appears_after_all_is_active() -> None:
    gone = observe([seen(a_job())], [], [])
    assert seen(a_job(), before=gone).condition == "Active"


def test_an_announced_job_that_nobody_saw_is_still_pending() -> None:
    pending = Attempt(stage="align", key="k1", number=1, condition="Pending")
    assert observe([pending], [], []) == [pending]


def test_a_job_without_our_labels_is_no_attempt() -> None:
    job = a_job()
    job["metadata"]["labels"].pop("selfalign.io/key")
    assert observe([], [job], []) == []


def attempts(*causes: str | None, end: str = NOW) -> list[Attempt]:
    known = {"stage": "align", "key": "k1", "condition": "Failed", "finished_at": end}
    return [
        Attempt.model_validate({**known, "number": number, "cause": cause})
        for number, cause in enumerate(causes, start=1)
    ]


@pytest.mark.parametrize(
    ("causes", "seconds"),
    [
        (["temporary"], 30),
        (["temporary", "temporary"], 120),
        (["temporary"] * 9, 600),
        ([None], 30),
        (["disrupted"], None),
        (["disrupted", "disrupted"], 2),
        (["temporary", "disrupted", "disrupted", "disrupted"], 4),
        (["disrupted"] * 50, 60),
    ],
)
def test_what_may_pass_is_tried_again_later_and_later(
    causes: list[str | None], seconds: int | None
) -> None:
    earliest = not_before(attempts(*causes), Backoff())
    if seconds is None:
        assert earliest is None
    else:
        assert (earliest.isoformat()) == f"2026-11-01T02:{seconds // 60:02}:{seconds % 60:02}+00:00"


def test_the_status_remembers_every_charge_and_the_latest_disruptions() -> None:
    rows = to_remember(attempts(*["temporary"], *["disrupted"] * 40, *["temporary"]))
    kept = [row.number for row in rows]
    assert kept == [1, 37, 38, 39, 40, 41, 42]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("seeds/principles.txt:3: empty rule\nremedy: write it", None),
        (
            '{"event": "stage.progress", "done": 1}\n'
            + json.dumps({"event": "stage.failed", "error": "no space", "remedy": "free some"}),
            "no space; remedy: free some",
        ),
        (
            json.dumps({"exception": [{"exc_type": "KeyError", "exc_value": "'x'"}]}),
            "KeyError: 'x'",
        ),
        ("Traceback (most recent call last):\n  File x\nValueError: seven", "ValueError: seven"),
        ('{"event": "stage.progress", "done": 1}', ""),
        ("", ""),
    ],
)
def test_a_termination_message_becomes_one_line(written: str, told: str | None) -> None:
    expected = "seeds/principles.txt:3: empty rule; remedy: write it" if told is None else told
    assert readable(written) == expected


def test_of_a_long_message_the_end_is_told() -> None:
    told = readable("usage: x\n" * 200 + "error: ambiguous option")
    assert told.endswith("error: ambiguous option")
    assert len(told) <= 600
