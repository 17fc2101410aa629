"""The platform: controller, nightly run, permissions, policies, alerts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from selfalign import __version__
from selfalign.deploy.manifests import VERSIONS, check
from tests.charts.conftest import ROOT, Manifest, environment, job_of, of_kind, only, pod_of

RenderPlatform = Callable[..., list[Manifest]]
CRD = ROOT / "charts/selfalign/files/alignmentruns.selfalign.io.yaml"

# Every permission has a reason; a new one is added here with its own.
CONTROLLER_MAY = {
    ("selfalign.io", "alignmentruns"): {"get", "list", "watch", "delete"},  # delete: TTL
    ("selfalign.io", "alignmentruns/status"): {"update"},
    ("selfalign.io", "alignmentruns/finalizers"): {"update"},  # blockOwnerDeletion
    ("batch", "jobs"): {"get", "list", "watch", "create"},  # get: adopt one's own on a conflict
    ("batch", "cronjobs"): {"list", "watch"},  # the stages' templates
    ("", "configmaps"): {"get", "create"},  # configuration of platform, stages and run
    ("", "pods"): {"list"},  # why pending, exit codes
    ("", "events"): {"create", "list", "patch"},  # list: a Job without pods (quota)
    ("coordination.k8s.io", "leases"): {"create", "get", "update"},
}
SUBMISSION_MAY = {
    ("selfalign.io", "alignmentruns"): {"create", "list"},  # list: refuse an overlap
    ("", "configmaps"): {"get"},
    ("", "events"): {"create", "patch"},  # patch: told once more
}


def _permissions(role: Manifest) -> dict[tuple[str, str], set[str]]:
    may: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                may.setdefault((group, resource), set()).update(rule["verbs"])
    return may


def test_one_controller_at_a_time(render_platform: RenderPlatform) -> None:
    deployment = only(render_platform(), "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert deployment["spec"]["selector"]["matchLabels"].items() <= (
        deployment["spec"]["template"]["metadata"]["labels"].items()
    )


def test_controller_is_probed_and_scraped_on_its_port(render_platform: RenderPlatform) -> None:
    manifests = render_platform()
    pod = pod_of(only(manifests, "Deployment"))
    assert pod is not None
    (container,) = pod["containers"]
    assert container["command"] == ["selfalign", "controller"]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    service = only(manifests, "Service")
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["ports"][0]["targetPort"] == "http"


def test_controller_has_no_permission_to_spare(render_platform: RenderPlatform) -> None:
    role = only(render_platform(), "Role", "selfalign-controller")
    assert _permissions(role) == CONTROLLER_MAY


def test_submission_has_no_permission_to_spare(render_platform: RenderPlatform) -> None:
    role = only(render_platform(), "Role", "selfalign-submit")
    assert _permissions(role) == SUBMISSION_MAY
    configmaps = next(rule for rule in role["rules"] if rule["resources"] == ["configmaps"])
    assert configmaps["resourceNames"] == ["selfalign-config"]


def test_the_lease_that_may_be_changed_is_the_controllers(render_platform: RenderPlatform) -> None:
    role = only(render_platform(), "Role", "selfalign-controller")
    rules = [rule for rule in role["rules"] if rule["resources"] == ["leases"]]
    unnamed = [rule["verbs"] for rule in rules if "resourceNames" not in rule]
    assert unnamed == [["create"]]  # a create has no name yet, for RBAC
    assert [r["resourceNames"] for r in rules if "resourceNames" in r] == [["selfalign-controller"]]


def test_permissions_are_namespaced_and_name_what_they_grant(everything: list[Manifest]) -> None:
    assert {m["kind"] for m in everything} & {"ClusterRole", "ClusterRoleBinding"} == set()
    for role in of_kind(everything, "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"]


def test_stages_have_no_permission_on_the_cluster_at_all(render_platform: RenderPlatform) -> None:
    manifests = render_platform()
    bound = {
        subject["name"]
        for binding in of_kind(manifests, "RoleBinding")
        for subject in binding["subjects"]
    }
    assert bound == {"selfalign-controller", "selfalign-submit"}
    accounts = {m["metadata"]["name"]: m for m in of_kind(manifests, "ServiceAccount")}
    assert set(accounts) == bound | {"selfalign-stage", "selfalign-promote"}
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())


def test_accounts_carry_their_own_cloud_identity(render_platform: RenderPlatform) -> None:
    manifests = render_platform(serviceAccounts={"stage": {"annotations": {"example.com/id": "x"}}})
    assert only(manifests, "ServiceAccount", "selfalign-stage")["metadata"]["annotations"] == {
        "example.com/id": "x"
    }
    assert "annotations" not in only(manifests, "ServiceAccount", "selfalign-promote")["metadata"]


def test_nightly_submission_never_overlaps_itself_and_gives_up_a_missed_start(
    render_platform: RenderPlatform,
) -> None:
    manifests = render_platform(nightly={"schedule": "30 2 * * *", "timeZone": "Europe/Berlin"})
    spec = only(manifests, "CronJob", "selfalign-nightly")["spec"]
    assert spec["schedule"] == "30 2 * * *"
    assert spec["timeZone"] == "Europe/Berlin"
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] > 0
    assert spec["suspend"] is False


def test_nightly_submission_is_bounded_and_refusals_are_not_retried(
    render_platform: RenderPlatform,
) -> None:
    job = job_of(render_platform(), "selfalign-nightly")
    assert job["activeDeadlineSeconds"] > 0
    assert job["podReplacementPolicy"] == "Failed"
    rules = job["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["selfalign", "submit", "--nightly"]
    assert rules[1]["onExitCodes"]["containerName"] == container["name"]


def test_nightly_can_be_paused_and_left_out(render_platform: RenderPlatform) -> None:
    paused = only(render_platform(nightly={"suspend": True}), "CronJob")
    assert paused["spec"]["suspend"] is True
    assert of_kind(render_platform(nightly={"enabled": False}), "CronJob") == []


def test_nightly_is_no_stage_template(render_platform: RenderPlatform) -> None:
    labels = str(only(render_platform(), "CronJob")["metadata"]["labels"])
    assert "selfalign.io/" not in labels


def test_platform_configuration_is_where_the_controller_looks(
    render_platform: RenderPlatform,
) -> None:
    config = {"store": "s3://bucket/x", "base_model": {"path": "/models/b", "revision": "1"}}
    manifests = render_platform(config=config)
    data = only(manifests, "ConfigMap", "selfalign-config")["data"]["config.yaml"]
    assert yaml.safe_load(data) == config


def test_store_settings_reach_stages_and_controller_by_one_map(
    render_platform: RenderPlatform, render_stage: Callable[..., list[Manifest]]
) -> None:
    manifests = render_platform(environment={"AWS_REGION": "eu-west-1", "SELFALIGN_S3_PART_MIB": 8})
    settings = only(manifests, "ConfigMap", "selfalign-environment")
    assert settings["data"] == {"AWS_REGION": "eu-west-1", "SELFALIGN_S3_PART_MIB": "8"}
    for pod in (
        pod_of(only(manifests, "Deployment")),
        pod_of(only(render_stage("align"), "CronJob")),
    ):
        assert pod is not None
        sources = pod["containers"][0]["envFrom"]
        assert sources[0]["configMapRef"]["name"] == "selfalign-environment"
        assert sources[1]["secretRef"] == {"name": "selfalign-store", "optional": True}


def test_controller_starts_anew_when_the_environment_changes(
    render_platform: RenderPlatform,
) -> None:
    def checksum(**environment: str) -> Any:
        template = only(render_platform(environment=environment), "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/environment"]

    assert checksum(A="1") != checksum(A="2")


def test_stage_pods_are_denied_everything_that_no_release_allows(
    render_platform: RenderPlatform, render_stage: Callable[..., list[Manifest]]
) -> None:
    deny = only(render_platform(), "NetworkPolicy", "selfalign-stages-deny")["spec"]
    assert deny["podSelector"]["matchExpressions"] == [
        {"key": "selfalign.io/stage", "operator": "Exists"}
    ]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    pods = job_of(render_stage("align"))["template"]["metadata"]["labels"]
    assert "selfalign.io/stage" in pods


def test_a_stage_reaches_names_and_the_store_only(
    render_stage: Callable[..., list[Manifest]], stage: str
) -> None:
    manifests = render_stage(stage)
    policy = only(manifests, "NetworkPolicy")["spec"]
    pods = job_of(manifests)["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= pods.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    ports = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 443]


def test_training_nodes_reach_each_other_and_nobody_else(
    render_stage: Callable[..., list[Manifest]],
) -> None:
    policy = only(render_stage("clone", nodes=2), "NetworkPolicy")["spec"]
    peers = [{"podSelector": policy["podSelector"]}]
    assert policy["ingress"] == [{"from": peers}]
    assert {"to": peers} in policy["egress"]


def test_controller_reaches_names_api_server_and_store_only(
    render_platform: RenderPlatform,
) -> None:
    policy = only(render_platform(), "NetworkPolicy", "selfalign-controller")["spec"]
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[53, 53], [443, 6443], [443]]
    assert policy["ingress"] == []
    scraped = render_platform(serviceMonitor={"enabled": True})
    policy = only(scraped, "NetworkPolicy", "selfalign-controller")["spec"]
    assert policy["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]


def test_alerts_are_on_time_since_the_last_success(render_platform: RenderPlatform) -> None:
    rule = only(render_platform(prometheusRule={"enabled": True}), "PrometheusRule")
    alerts = {alert["alert"]: alert for alert in rule["spec"]["groups"][0]["rules"]}
    assert alerts["SelfAlignNoSuccess"]["expr"] == (
        'time() - max(selfalign_last_success_timestamp_seconds{namespace="somewhere"}) > 129600'
    )
    assert "selfalign cluster status" in alerts["SelfAlignNoSuccess"]["annotations"]["description"]
    assert alerts["SelfAlignNoRun"]["for"] == "36h"
    assert "absent(" in alerts["SelfAlignControllerDown"]["expr"]


def test_prometheus_finds_the_controllers_service(render_platform: RenderPlatform) -> None:
    manifests = render_platform(serviceMonitor={"enabled": True, "labels": {"release": "p"}})
    monitor, service = only(manifests, "ServiceMonitor"), only(manifests, "Service")
    assert monitor["metadata"]["labels"]["release"] == "p"
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]


def test_nothing_of_other_projects_is_installed_unasked(render_platform: RenderPlatform) -> None:
    assert not [m for m in render_platform() if "monitoring.coreos.com" in m["apiVersion"]]


def test_the_resource_is_upgraded_by_helm_and_outlives_it(render_platform: RenderPlatform) -> None:
    installed = only(render_platform(), "CustomResourceDefinition")
    source = yaml.safe_load(CRD.read_text("utf-8"))
    assert installed["spec"] == source["spec"]
    assert installed["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert of_kind(render_platform(crd={"create": False}), "CustomResourceDefinition") == []


def test_kubectl_get_tells_the_story() -> None:
    version = yaml.safe_load(CRD.read_text("utf-8"))["spec"]["versions"][0]
    columns = [(c["name"], c.get("priority", 0)) for c in version["additionalPrinterColumns"]]
    assert columns == [
        ("Stage", 0), ("Progress", 0), ("Verdict", 0), ("Status", 0), ("Age", 0), ("Message", 1),
    ]  # fmt: skip
    assert version["subresources"] == {"status": {}}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"config": {"align": {"anything": 1}}, "maxAttempts": 2, "suspend": True}, None),
        ({"ttlSecondsAfterFinished": 0, "queueName": "nights"}, None),
        ({"maxAttempt": 2}, "'maxAttempt' was unexpected"),
        ({"maxAttempts": 0}, "less than the minimum"),
        ({"queueName": "Not A Name"}, "does not match"),
        ({"config": []}, "is not of type 'object'"),
    ],
)
def test_a_run_is_checked_when_it_is_created(spec: Manifest, problem: str | None) -> None:
    run = {
        "apiVersion": "selfalign.io/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "tonight", "labels": {"a": "b"}},
        "spec": spec,
    }
    problems = [str(found) for found in check(run, VERSIONS[0], ROOT)]
    assert problems == [] if problem is None else problem in problems[0]


def test_platform_finds_its_namespace_by_the_downward_api(render_platform: RenderPlatform) -> None:
    pod = pod_of(only(render_platform(), "Deployment"))
    assert pod is not None
    source = environment(pod)["SELFALIGN_NAMESPACE"]
    assert source == {"fieldRef": {"fieldPath": "metadata.namespace"}}


@pytest.mark.parametrize("chart", ["stage", "selfalign"])
def test_chart_versions_are_the_codes(chart: str) -> None:
    metadata = yaml.safe_load((ROOT / "charts" / chart / "Chart.yaml").read_text("utf-8"))
    assert metadata["version"] == metadata["appVersion"] == __version__
