"""What a stage's Job must be like: the rules of running on a cluster."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from selfalign.config import RunConfig
from selfalign.deploy import releases
from selfalign.deploy.helm import HelmFailed, merge_values
from selfalign.errors import PERMANENT_EXIT_CODES, UNCHARGED_EXIT_CODES
from selfalign.pipeline import BY_NAME, STAGES
from tests.charts.conftest import (
    ROOT,
    Manifest,
    environment,
    job_of,
    of_kind,
    only,
    render,
    render_stage,
)

GPU_WORKLOADS = {"generate", "evaluate", "train"}
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def _pod(manifests: list[Manifest]) -> Manifest:
    pod: Manifest = job_of(manifests)["template"]["spec"]
    return pod


def _config(manifests: list[Manifest]) -> Any:
    annotations = job_of(manifests)["template"]["metadata"]["annotations"]
    return yaml.safe_load(annotations["selfalign.io/config"])


def _volume(pod: Manifest, name: str) -> Manifest:
    return next(volume for volume in pod["volumes"] if volume["name"] == name)


def _mount(pod: Manifest, name: str) -> Manifest:
    return next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == name)


def _bytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(Ki|Mi|Gi|Ti)?", quantity).groups()  # type: ignore[union-attr]
    return float(number) * 1024 ** ["", "Ki", "Mi", "Gi", "Ti"].index(unit or "")


def test_table_jobs_and_images_name_the_same_stages() -> None:
    names = {stage.name for stage in STAGES}
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.yaml")}
    images = {path.parent.name for path in (ROOT / "images").glob("*/Dockerfile")}
    assert jobs == names
    assert images == names | {"controller", "base-cpu", "base-generation", "base-training"}
    for path in (ROOT / "jobs").rglob("*.yaml"):
        values = yaml.safe_load(path.read_text("utf-8"))
        assert values.get("stage") == (path.stem if path.stem in names else None)


def test_template_is_a_suspended_cronjob_that_runs_the_stage_with_the_mounted_configuration(
    stage: str,
) -> None:
    cronjob = only(render_stage(stage), "CronJob")
    assert cronjob["metadata"]["name"] == f"selfalign-{stage}"
    assert cronjob["metadata"]["labels"]["selfalign.io/stage-template"] == stage
    assert cronjob["spec"]["suspend"] is True
    pod = _pod(render_stage(stage))
    (container,) = pod["containers"]
    command = {"name": "stage", "command": ["selfalign", stage]}
    command["args"] = ["--config", "/etc/selfalign/config.yaml"]
    assert command.items() <= container.items()
    mount = {"name": "config", "mountPath": "/etc/selfalign", "readOnly": True}
    assert _mount(pod, "config") == mount
    assert "selfalign.io/config" in str(_volume(pod, "config")["downwardAPI"])
    # Only the account of promote may move the pointer.
    account = "selfalign-promote" if stage == "promote" else "selfalign-stage"
    assert pod["serviceAccountName"] == account
    contract = {"SELFALIGN_LOG": "json", "SELFALIGN_CACHE_DIR": "/cache", "TMPDIR": "/scratch"}
    contract |= {"HOME": "/home/selfalign", "HF_HOME": "/cache/huggingface", "HF_HUB_OFFLINE": "1"}
    assert contract.items() <= environment(pod).items()


def test_failures_are_treated_by_their_kind(stage: str) -> None:
    job = job_of(render_stage(stage))
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["podReplacementPolicy"] == "Failed"
    disrupted, permanent, interrupted = job["podFailurePolicy"]["rules"]
    condition = {"type": "DisruptionTarget", "status": "True"}
    assert disrupted == {"action": "Ignore", "onPodConditions": [condition]}
    assert (permanent["action"], interrupted["action"]) == ("FailJob", "Ignore")
    assert tuple(permanent["onExitCodes"]["values"]) == PERMANENT_EXIT_CODES
    assert tuple(interrupted["onExitCodes"]["values"]) == UNCHARGED_EXIT_CODES
    assert permanent["onExitCodes"]["containerName"] == "stage"
    assert job["activeDeadlineSeconds"] > 0  # disruptions have no other bound
    # Only the controller may remove a Job, after it has recorded the outcome.
    assert "ttlSecondsAfterFinished" not in job


def test_sharded_stages_are_indexed_with_one_index_per_shard(stage: str) -> None:
    manifests = render_stage(stage)
    job = job_of(manifests)
    assert of_kind(manifests, "Service") == []
    if not BY_NAME[stage].sharded:
        one = {"completionMode": "NonIndexed", "completions": 1, "parallelism": 1}
        assert {**one, "backoffLimit": 2}.items() <= job.items()
        return
    shards = releases.stage_values(ROOT, stage, variant="gpu")["config"][stage]["num_shards"]
    several = {"completionMode": "Indexed", "completions": shards, "parallelism": shards}
    assert {**several, "backoffLimitPerIndex": 2, "maxFailedIndexes": 0}.items() <= job.items()
    assert "backoffLimit" not in job


def test_parallelism_can_be_capped_and_other_indexes_may_finish() -> None:
    manifests = render_stage("align", maxParallelism=2, maxFailedIndexes=None)
    job = job_of(manifests)
    assert (job["completions"], job["parallelism"]) == (4, 2)
    assert "maxFailedIndexes" not in job
    annotations = only(manifests, "CronJob")["metadata"]["annotations"]
    assert annotations["selfalign.io/max-parallelism"] == "2"


def test_a_queue_is_a_label_and_nothing_else() -> None:
    plain, queued = render_stage("align"), render_stage("align", queueName="nights")
    assert job_of(plain) == job_of(queued)
    labels = only(queued, "CronJob")["spec"]["jobTemplate"]["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "nights"


def test_gpus_are_those_the_configuration_uses_and_their_taint_is_tolerated(stage: str) -> None:
    values = releases.stage_values(ROOT, stage, variant="gpu")
    section = values.get("config", {}).get(stage, {})
    on_cpu = render_stage(stage, variant="cpu")
    assert "nvidia.com/gpu" not in str(_pod(on_cpu))
    assert "tolerations" not in _pod(on_cpu)
    config = _config(on_cpu)
    assert config.get(stage, {}).get("engine") is None
    pod = _pod(render_stage(stage))
    limits = pod["containers"][0]["resources"]["limits"]
    if BY_NAME[stage].workload not in GPU_WORKLOADS:
        assert "nvidia.com/gpu" not in limits
        return
    trains = BY_NAME[stage].workload == "train"
    used = section["num_processes"] if trains else section["engine"]["tensor_parallel_size"]
    assert limits["nvidia.com/gpu"] == values["gpus"] == used >= 1
    assert GPU_TAINT in pod["tolerations"]


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
def test_resources_cover_the_volumes_a_pod_may_fill(stage: str, variant: str) -> None:
    pod = _pod(render_stage(stage, variant=variant))
    resources = pod["containers"][0]["resources"]
    assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"])
    directories = [v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v]
    disk = sum(_bytes(d["sizeLimit"]) for d in directories if d.get("medium") != "Memory")
    memory = sum(_bytes(d["sizeLimit"]) for d in directories if d.get("medium") == "Memory")
    assert disk < _bytes(resources["limits"]["ephemeral-storage"])
    assert memory < _bytes(resources["limits"]["memory"])
    assert _mount(pod, "shm")["mountPath"] == "/dev/shm"
    assert _volume(pod, "shm")["emptyDir"]["medium"] == "Memory"


def test_training_nodes_meet_at_pod_zero_behind_a_headless_service_and_fail_together() -> None:
    manifests = render_stage("engrave", nodes=3, podDisruptionBudget={"minAvailable": 3})
    job, service, pod = job_of(manifests), only(manifests, "Service"), _pod(manifests)
    together = {"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimit": 0}
    assert together.items() <= job.items()
    assert "backoffLimitPerIndex" not in job
    headless = {"clusterIP": "None", "publishNotReadyAddresses": True}
    assert headless.items() <= service["spec"].items()
    assert service["spec"]["selector"].items() <= job["template"]["metadata"]["labels"].items()
    assert pod["subdomain"] == service["metadata"]["name"]
    env = environment(pod)
    assert env["SELFALIGN_NUM_NODES"] == "3"
    assert env["SELFALIGN_MASTER_PORT"] == str(service["spec"]["ports"][0]["port"])
    assert env["SELFALIGN_MASTER_ADDR"] == "$(SELFALIGN_JOB_NAME)-0.selfalign-engrave"
    # $(NAME) is expanded only when NAME stands before it.
    names = list(env)
    assert names.index("SELFALIGN_JOB_NAME") < names.index("SELFALIGN_MASTER_ADDR")
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    assert env["SELFALIGN_JOB_NAME"]["fieldRef"]["fieldPath"] == label
    align = job_of(render_stage("align"))["template"]["metadata"]["labels"]
    assert not service["spec"]["selector"].items() <= align.items()
    # A Job has no scale subresource, so a budget counts pods.
    budget = only(manifests, "PodDisruptionBudget")["spec"]
    assert (budget["minAvailable"], "maxUnavailable" in budget) == (3, False)
    assert budget["selector"]["matchLabels"] == service["spec"]["selector"]


def test_a_stage_reaches_names_and_the_store_only(stage: str) -> None:
    manifests = render_stage(stage)
    policy = only(manifests, "NetworkPolicy")["spec"]
    pods = job_of(manifests)["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= pods.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 443]
    # Pods that train together reach each other, and nobody else.
    policy = only(render_stage(stage, nodes=2), "NetworkPolicy")["spec"]
    peers = [{"podSelector": policy["podSelector"]}]
    assert policy["ingress"] == [{"from": peers}]
    assert {"to": peers} in policy["egress"]


def test_volumes_and_environment_take_any_source_and_models_are_read_only() -> None:
    image = {"image": {"reference": "registry.example.com/models/base:1"}}
    claim = {"persistentVolumeClaim": {"claimName": "cache"}}
    env = {"A": 1, "B": True, "C": {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}}
    pod = _pod(render_stage("align", models={"source": image}, cache={"source": claim}, env=env))
    assert _volume(pod, "models") == {"name": "models", **image}
    assert _mount(pod, "models") == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert _volume(pod, "cache") == {"name": "cache", **claim}
    expected = {"A": "1", "B": "true", "C": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    assert expected.items() <= environment(pod).items()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TMPDIR", "SELFALIGN_LOG"])
def test_a_variable_that_is_set_to_another_value_is_there_once(name: str) -> None:
    (container,) = _pod(render_stage("evaluate", env={name: "0"}))["containers"]
    assert [each["value"] for each in container["env"] if each["name"] == name] == ["0"]


def test_configuration_passes_through_unchanged() -> None:
    engine = {"kind": "vllm", "options": {"max_num_seqs": 512, "deep": {"er": [1, 2.5]}}}
    sampling = {"temperature": 0.0004, "top_p": 1.0}
    zeros = {"require_cited_rule": False, "min_answer_characters": 0}
    config = {"seed": 12345678, "align": {"engine": engine, "sampling": sampling, **zeros}}
    manifests = render("stage", "selfalign-align", {"stage": "align", "config": config})
    assert _config(manifests) == config


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
def test_sections_of_all_stages_make_a_valid_configuration(variant: Any) -> None:
    config: dict[str, Any] = {"base_model": {"path": "store:inputs/base_model/abc"}}
    for stage in STAGES:
        values = releases.stage_values(ROOT, stage.name, variant=variant)
        assert set(values.get("config") or {}) <= {stage.name}
        config = merge_values([config, values.get("config") or {}])
    RunConfig.model_validate(config)


def test_a_misspelt_release_is_refused_before_the_cluster_sees_it() -> None:
    with pytest.raises(HelmFailed, match=r"give the stage's file: -f jobs/<stage>\.yaml"):
        render("stage", "selfalign-x", {})
