"""A stage's template becomes the Job of one attempt."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError
from selfalign.pipeline import STAGES
from selfalign.run.executors.kubernetes.cluster import Resource, is_left_over, is_owned_by
from selfalign.run.executors.kubernetes.crd import AlignmentRunSpec, job_name
from selfalign.run.executors.kubernetes.job import build_job
from selfalign.run.record import check_run_name

from .worlds import arguments, template

RUN: Resource = {
    "apiVersion": "selfalign.io/v1alpha1",
    "kind": "AlignmentRun",
    "metadata": {"name": "toy", "namespace": "selfalign", "uid": "uid-1"},
}
SPEC = AlignmentRunSpec()


def build(
    source: Resource, stage: str = "align", *, spec: AlignmentRunSpec = SPEC, shards: int = 3
) -> Resource:
    key = "0123456789abcdef0123"
    return build_job(
        source,
        run=RUN,
        spec=spec,
        config=RunConfig.model_validate({"seed": 7, "base_model": {"path": "store:base"}}),
        stage=stage,
        key=key,
        number=2,
        num_shards=shards,
    )


def test_the_job_is_named_labelled_and_owned_after_run_stage_and_attempt() -> None:
    job = build(template("align"))
    assert job["metadata"]["name"] == "toy-align-2"
    assert job["metadata"]["namespace"] == "selfalign"
    expected = {
        "selfalign.io/run": "toy",
        "selfalign.io/stage": "align",
        "selfalign.io/attempt": "2",
        "selfalign.io/key": "0123456789abcdef0123",
        "app.kubernetes.io/managed-by": "selfalign-controller",
        "app.kubernetes.io/name": "selfalign-stage",
    }
    assert job["metadata"]["labels"] == expected
    assert job["spec"]["template"]["metadata"]["labels"] == expected
    assert is_owned_by(job, RUN)
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("AlignmentRun", "uid-1", True)


@pytest.mark.parametrize("volume", [{"downwardAPI": {"items": []}}, {"configMap": {"name": "x"}}])
def test_the_stage_is_told_its_run_key_and_shards_and_mounts_the_run_s_configuration(
    volume: Resource,
) -> None:
    job = build(template("align", volumes=[{"name": "config", **volume}]))
    assert arguments(job) == {
        "--config": "/etc/selfalign/config.yaml",
        "--run": "toy",
        "--expect-key": "0123456789abcdef0123",
        "--num-shards": "3",
    }
    pod = job["spec"]["template"]
    assert "seed: 7" in pod["metadata"]["annotations"]["selfalign.io/config"]
    field = {"fieldPath": "metadata.annotations['selfalign.io/config']"}
    file = {"path": "config.yaml", "fieldRef": field}
    assert pod["spec"]["volumes"] == [{"name": "config", "downwardAPI": {"items": [file]}}]


def test_a_stage_that_is_not_sharded_keeps_its_template_s_pods() -> None:
    source = template("engrave")
    source["spec"]["jobTemplate"]["spec"] |= {"completions": 2, "parallelism": 2}
    job = build(source, "engrave")
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    assert "--num-shards" not in arguments(job)


def test_a_sharded_stage_is_an_indexed_job_with_bounded_parallelism() -> None:
    source = template("align")
    source["metadata"]["annotations"] = {"selfalign.io/max-parallelism": "2"}
    source["spec"]["jobTemplate"]["spec"]["maxFailedIndexes"] = 9
    spec = build(source, shards=5)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 5, 2)
    # The API server refuses a Job with more failed indexes than indexes.
    assert spec["maxFailedIndexes"] == 5


@pytest.mark.parametrize("limit", ["0", "many", "-1"])
def test_a_wrong_limit_of_parallelism_is_refused_with_its_value(limit: str) -> None:
    source = template("align")
    source["metadata"]["annotations"] = {"selfalign.io/max-parallelism": limit}
    with pytest.raises(ConfigurationError, match=f"max-parallelism is '{limit}'"):
        build(source)


def test_a_queue_labels_the_job_alone_and_never_touches_suspend() -> None:
    job = build(template("align"), spec=AlignmentRunSpec(queueName="night"))
    queue = "kueue.x-k8s.io/queue-name"
    assert job["metadata"]["labels"][queue] == "night"
    assert queue not in job["spec"]["template"]["metadata"]["labels"]
    assert "suspend" not in job["spec"]


def test_a_priority_reaches_the_pods() -> None:
    job = build(template("align"), spec=AlignmentRunSpec(priority="nightly"))
    assert job["spec"]["template"]["spec"]["priorityClassName"] == "nightly"


def test_pods_that_train_together_meet_at_pod_zero() -> None:
    source = template("engrave", subdomain="selfalign-engrave")
    (container,) = source["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    container["env"] = [
        {"name": "SELFALIGN_MASTER_ADDR", "value": "by-hand"},
        {"name": "SELFALIGN_NUM_NODES", "value": "2"},
    ]
    job = build(source, "engrave")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [
        {"name": "SELFALIGN_NUM_NODES", "value": "2"},
        {"name": "SELFALIGN_MASTER_ADDR", "value": "toy-engrave-2-0.selfalign-engrave"},
    ]


def test_the_template_is_not_changed() -> None:
    source = template("align")
    before = copy.deepcopy(source)
    build(source)
    assert source == before


def test_the_spec_digest_follows_the_spec() -> None:
    def digest(**changes: Any) -> str:
        annotations: dict[str, str] = build(template("align", **changes))["metadata"]["annotations"]
        return annotations["selfalign.io/spec-digest"]

    assert digest() == digest()
    assert digest() != digest(nodeSelector={"gpu": "h100"})


@pytest.mark.parametrize("missing", ["containers", "volumes"])
def test_a_cronjob_that_is_no_stage_template_is_refused(missing: str) -> None:
    with pytest.raises(ConfigurationError, match="selfalign-align has no") as caught:
        build(template("align", **{missing: []}))
    assert "charts/stage" in str(caught.value)


def test_ownership_goes_by_uid_and_tells_left_overs_from_others() -> None:
    job = build(template("align"))
    anew = {**RUN, "metadata": {**RUN["metadata"], "uid": "uid-2"}}
    assert not is_owned_by(job, anew)
    assert is_left_over(job, anew)
    orphan = {**job, "metadata": {**job["metadata"], "ownerReferences": []}}
    assert not is_left_over(orphan, anew)
    going = {**orphan, "metadata": {**orphan["metadata"], "deletionTimestamp": "now"}}
    assert is_left_over(going, anew)


def test_the_longest_run_name_leaves_room_for_jobs_and_their_pods() -> None:
    name = "n" * 40
    check_run_name(name)
    for stage in STAGES:
        # an Indexed Job's last pod is called <job>-<index>
        assert len(f"{job_name(name, stage.name, 9999)}-9999") <= 63


@pytest.mark.parametrize("name", ["n" * 41, "Toy", "a.b", "-a", "a-", ""])
def test_a_name_that_would_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="at most 40"):
        check_run_name(name)
