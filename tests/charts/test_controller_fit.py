"""Charts and controller fit: the Jobs it makes of the templates, the status it writes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from selfalign.config import RunConfig
from selfalign.pipeline import BY_NAME
from selfalign.run.executors.kubernetes import crd as names
from selfalign.run.executors.kubernetes.configuration import Policy
from selfalign.run.executors.kubernetes.crd import AlignmentRunSpec, to_resource_status
from selfalign.run.executors.kubernetes.job import build_job
from selfalign.run.record import RunStatus
from tests.charts.conftest import (
    CRD,
    VERSIONS,
    Manifest,
    check,
    environment,
    of_kind,
    only,
    render_platform,
    render_stage,
)
from tests.run.kubernetes.worlds import full_status

RUN: Manifest = {
    "apiVersion": "selfalign.io/v1alpha1",
    "kind": "AlignmentRun",
    "metadata": {"name": "r" * 40, "namespace": "nights", "uid": "1", "generation": 1},
    "spec": {},
}


def _job(manifests: list[Manifest], stage: str, **spec: Any) -> Manifest:
    asked = AlignmentRunSpec.model_validate(spec)
    template = only(manifests, "CronJob")
    return build_job(
        template,
        run=RUN,
        spec=asked,
        config=RunConfig.model_validate({"seed": 7, "base_model": {"path": "store:base"}}),
        stage=stage,
        key="a" * 20,
        number=9999,
        num_shards=6,
    )


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
def test_the_controllers_job_of_every_template_is_valid(stage: str, variant: str) -> None:
    job = _job(render_stage(stage, variant=variant), stage, queueName="nights", priority="low")
    for version in VERSIONS:
        assert check(job, version) == []
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["--config", "/etc/selfalign/config.yaml"]
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert yaml.safe_load(annotations[names.CONFIG_ANNOTATION])["seed"] == 7
    assert container["args"][2:4] == ["--run", "r" * 40]
    if BY_NAME[stage].sharded:
        assert job["spec"]["completions"] == 6
    # https://kubernetes.io/docs/concepts/workloads/controllers/job/: `<job>-<index>` names a host
    assert len(f"{job['metadata']['name']}-{job['spec']['completions'] - 1}") <= 63


def test_services_policies_and_budgets_select_the_controllers_pods() -> None:
    budget = {"minAvailable": 2}
    manifests = render_stage("engrave", nodes=2, podDisruptionBudget=budget)
    pods = _job(manifests, "engrave")["spec"]["template"]["metadata"]["labels"].items()
    assert only(manifests, "Service")["spec"]["selector"].items() <= pods
    policy, protected = only(manifests, "NetworkPolicy"), only(manifests, "PodDisruptionBudget")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pods
    assert protected["spec"]["selector"]["matchLabels"].items() <= pods


def test_training_nodes_of_a_run_meet_at_its_own_pod_zero() -> None:
    job = _job(render_stage("clone", nodes=2), "clone")
    pod = job["spec"]["template"]["spec"]
    address = environment(pod)["SELFALIGN_MASTER_ADDR"]
    assert address == f"{job['metadata']['name']}-0.selfalign-clone"
    assert [e["name"] for e in pod["containers"][0]["env"]].count("SELFALIGN_MASTER_ADDR") == 1


def test_names_that_both_spell_are_the_same() -> None:
    manifests = render_stage("align", queueName="nights", maxParallelism=2)
    cronjob, platform = only(manifests, "CronJob"), render_platform()
    assert cronjob["metadata"]["labels"][names.TEMPLATE_LABEL] == "align"
    assert cronjob["metadata"]["annotations"][names.MAX_PARALLELISM_ANNOTATION] == "2"
    template = cronjob["spec"]["jobTemplate"]
    assert template["metadata"]["labels"][names.KUEUE_QUEUE_LABEL] == "nights"
    assert template["spec"]["template"]["metadata"]["labels"][names.STAGE_LABEL] == "align"
    pod = template["spec"]["template"]
    (volume,) = (v for v in pod["spec"]["volumes"] if v["name"] == "config")
    annotation = {"fieldPath": f"metadata.annotations['{names.CONFIG_ANNOTATION}']"}
    item = {"path": names.CONFIG_FILE, "fieldRef": annotation}
    assert volume["downwardAPI"]["items"] == [item]
    assert yaml.safe_load(pod["metadata"]["annotations"][names.CONFIG_ANNOTATION])
    files = only(platform, "ConfigMap", names.PLATFORM_CONFIG)["data"]
    assert set(files) == {names.CONFIG_FILE, names.POLICY_FILE}
    Policy.model_validate(yaml.safe_load(files[names.POLICY_FILE]))
    assert {a["metadata"]["name"] for a in of_kind(platform, "Deployment")} == {names.MANAGER}
    crd = yaml.safe_load(CRD.read_text("utf-8"))["spec"]
    assert (crd["group"], crd["names"]["kind"]) == (names.GROUP, names.KIND)
    assert (crd["names"]["plural"], crd["versions"][0]["name"]) == (names.PLURAL, names.VERSION)


def test_the_resource_and_the_controller_know_the_same_spec() -> None:
    version = yaml.safe_load(CRD.read_text("utf-8"))["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    fields = AlignmentRunSpec.model_fields.items()
    assert set(spec) == {field.alias or name for name, field in fields}


def test_the_resource_keeps_every_field_the_controller_writes() -> None:
    # A field that the schema does not name would be dropped by the API server, silently.
    moment = "2026-01-01T00:00:00Z"
    status = to_resource_status(
        full_status("r" * 40), {}, accepted=True, generation=1, moment=moment
    )
    assert check({**RUN, "status": status}) == []
    fields = {to_camel(name) for name in RunStatus.model_fields} - {"id", "phase", "updatedAt"}
    assert fields <= set(status)
