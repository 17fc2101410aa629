"""The platform: controller, nightly run, what runs may do, permissions, policies, alerts."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from selfalign import __version__
from selfalign.config import RunConfig
from tests.charts.conftest import (
    CRD,
    ROOT,
    Manifest,
    check,
    environment,
    job_of,
    of_kind,
    only,
    pod_of,
    render_platform,
    render_stage,
)

READ = "get list watch"
# Every permission has a reason; a new one is added here with its own.
VIEWER_MAY = {
    "selfalign.io/alignmentruns": READ,
    "batch/jobs": READ,
    "/pods": READ,
    "/events": READ,
    "/pods/log": "get",
    "/configmaps selfalign-config": "get",  # where the store is
}
PERMISSIONS = {
    "controller": {
        "selfalign.io/alignmentruns": "get list watch patch delete",  # decisions, TTL
        "selfalign.io/alignmentruns/status": "patch",
        "selfalign.io/alignmentruns/finalizers": "update",  # blockOwnerDeletion
        "batch/jobs": "get list watch create",  # get: adopt one's own on a conflict
        "batch/cronjobs": "list watch",  # the stages' templates
        "/configmaps selfalign-config": "get",
        "apps/controllerrevisions": "get create",  # each run's configuration as it was pinned
        "/pods": "list",  # why pending, exit codes
        "/events": "create list patch",  # list: a Job without pods (quota)
    },
    "submit": {
        # list: refuse an overlap; label-nightly: templates/admission.yaml
        "selfalign.io/alignmentruns": "create list label-nightly",
        "/configmaps selfalign-config": "get",
        "/events": "create patch",  # patch: the same refusal once more
    },
    "viewer": VIEWER_MAY,
    "run-creator": {**VIEWER_MAY, "selfalign.io/alignmentruns": f"{READ} create patch delete"},
}


@pytest.mark.parametrize("role", PERMISSIONS)
def test_no_role_has_a_permission_to_spare(role: str) -> None:
    may: dict[str, list[str]] = {}
    for rule in only(render_platform(), "Role", f"selfalign-{role}")["rules"]:
        for resource in rule["resources"]:
            what = f"{rule['apiGroups'][0]}/{resource} {' '.join(rule.get('resourceNames', []))}"
            may.setdefault(what.strip(), []).extend(rule["verbs"])
    assert {what: " ".join(verbs) for what, verbs in may.items()} == PERMISSIONS[role]


def test_the_controller_may_change_one_deployment_and_only_where_it_is_to_roll_it() -> None:
    manifests = render_platform(serving={"kind": "vllm"})
    rules = only(manifests, "Role", "selfalign-controller")["rules"]
    assert [rule for rule in rules if rule["resources"] == ["deployments"]] == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments"],
            "resourceNames": ["selfalign-serving"],
            "verbs": ["get", "patch"],
        }
    ]
    pod = pod_of(only(manifests, "Deployment"))
    assert pod["containers"][0]["args"] == ["--serving=vllm"]


def test_the_controller_may_change_the_one_inference_service_that_is_named() -> None:
    manifests = render_platform(serving={"kind": "kserve", "kserve": {"name": "aligned"}})
    rules = only(manifests, "Role", "selfalign-controller")["rules"]
    served = [r for r in rules if {"deployments", "inferenceservices"} & set(r["resources"])]
    assert served == [
        {
            "apiGroups": ["serving.kserve.io"],
            "resources": ["inferenceservices"],
            "resourceNames": ["aligned"],
            "verbs": ["get", "patch"],
        }
    ]
    pod = pod_of(only(manifests, "Deployment"))
    assert pod["containers"][0]["args"] == ["--serving=kserve", "--serving-name=aligned"]


def test_the_webhooks_address_and_key_come_from_a_secret_and_are_reached() -> None:
    webhook = {"secretName": "hook", "ports": [8443], "cidrs": ["192.0.2.0/24"]}
    manifests = render_platform(serving={"kind": "webhook", "webhook": webhook})
    pod = pod_of(only(manifests, "Deployment"))
    assert pod is not None
    found = environment(pod)
    for name, key in (("URL", "url"), ("KEY", "key")):
        secret = {"name": "hook", "key": key, "optional": True}
        assert found[f"SELFALIGN_WEBHOOK_{name}"] == {"secretKeyRef": secret}
    policy = only(manifests, "NetworkPolicy", "selfalign-controller")["spec"]
    assert policy["egress"][-1] == {
        "ports": [{"port": 8443, "protocol": "TCP"}],
        "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
    }
    rules = only(manifests, "Role", "selfalign-controller")["rules"]
    assert not [rule for rule in rules if "secrets" in rule["resources"]]


def test_only_controller_and_submission_are_bound_and_each_account_has_its_own_identity() -> None:
    identity = {"annotations": {"example.com/id": "x"}}
    manifests = render_platform(serviceAccounts={"stage": identity})
    bindings = of_kind(manifests, "RoleBinding")
    bound = {subject["name"] for binding in bindings for subject in binding["subjects"]}
    assert bound == {"selfalign-controller", "selfalign-submit"}
    accounts = {m["metadata"]["name"]: m for m in of_kind(manifests, "ServiceAccount")}
    assert set(accounts) == bound | {"selfalign-stage", "selfalign-promote"}
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    assert identity.items() <= accounts["selfalign-stage"]["metadata"].items()
    assert "annotations" not in accounts["selfalign-promote"]["metadata"]
    roles = of_kind(render_platform(rbac={"people": {"create": False}}), "Role")
    assert {role["metadata"]["name"] for role in roles} == bound


def test_one_controller_at_a_time_probed_and_scraped_on_its_port() -> None:
    manifests = render_platform()
    deployment, service = only(manifests, "Deployment"), only(manifests, "Service")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["selfalign", "controller"]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert service["spec"]["selector"].items() <= labels
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    memory = {kind: sizes["memory"] for kind, sizes in container["resources"].items()}
    assert memory == {"requests": "128Mi", "limits": "256Mi"}
    source = environment(deployment["spec"]["template"]["spec"])["SELFALIGN_NAMESPACE"]
    assert source == {"fieldRef": {"fieldPath": "metadata.namespace"}}


def test_controller_starts_anew_when_what_it_reads_once_changes() -> None:
    def annotations(**environment: str) -> Any:
        template = only(render_platform(environment=environment), "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]

    first, second = annotations(A="1"), annotations(A="2")
    assert first["checksum/environment"] != second["checksum/environment"]
    # What a Secret does to this one, a cluster shows: test_against_cluster.py.
    assert first["checksum/credentials"] == second["checksum/credentials"]


def test_nightly_submission_is_bounded_and_never_overlaps_itself() -> None:
    manifests = render_platform(nightly={"schedule": "30 2 * * *", "timeZone": "Europe/Berlin"})
    cronjob = only(manifests, "CronJob", "selfalign-nightly")
    spec = cronjob["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("30 2 * * *", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid"
    assert "suspend" not in spec  # who patches it to pause the nights keeps it at the next deploy
    assert spec["startingDeadlineSeconds"] > 0
    assert "selfalign.io/" not in str(cronjob["metadata"]["labels"])  # is no stage's template
    job = job_of(manifests, "selfalign-nightly")
    assert job["activeDeadlineSeconds"] > 0
    assert job["podReplacementPolicy"] == "Failed"
    rules = job["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["selfalign", "submit", "--nightly"]
    assert rules[1]["onExitCodes"]["containerName"] == container["name"]
    assert only(render_platform(nightly={"suspend": True}), "CronJob")["spec"]["suspend"] is True
    assert of_kind(render_platform(nightly={"enabled": False}), "CronJob") == []


def test_gc_is_off_and_where_it_is_on_it_reaches_the_store_alone() -> None:
    assert "selfalign-gc" not in {m["metadata"]["name"] for m in render_platform()}
    values = {"enabled": True, "keepNights": 30, "dryRun": True, "schedule": "@daily"}
    manifests = render_platform(gc=values)
    spec = only(manifests, "CronJob", "selfalign-gc")["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("@daily", "Forbid")
    pod = job_of(manifests, "selfalign-gc")["template"]["spec"]
    (container,) = pod["containers"]
    options = ["--keep-nights=30", "--grace-hours=48", "--dry-run"]
    assert [*container["command"], *container["args"]] == [
        *("selfalign", "gc", "--config", "/etc/selfalign/config.yaml"),
        *options,
    ]
    rules = job_of(manifests, "selfalign-gc")["podFailurePolicy"]["rules"]
    assert rules[1]["onExitCodes"]["containerName"] == container["name"]
    assert pod["serviceAccountName"] == "selfalign-gc"
    assert pod["automountServiceAccountToken"] is False
    assert only(manifests, "ServiceAccount", "selfalign-gc")
    subjects = [b["subjects"] for b in of_kind(manifests, "RoleBinding")]
    assert "selfalign-gc" not in str(subjects)
    egress = only(manifests, "NetworkPolicy", "selfalign-gc")["spec"]["egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in egress] == [[53, 53], [443]]
    agent = {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"port": 80}]}
    manifests = render_platform(gc=values, networkPolicy={"egress": [agent]})
    for name in ("selfalign-gc", "selfalign-controller"):
        assert agent in only(manifests, "NetworkPolicy", name)["spec"]["egress"]


def test_configuration_and_policy_are_where_the_controller_looks() -> None:
    config = {"store": "s3://bucket/x", "base_model": {"path": "/models/b", "revision": "1"}}
    manifests = render_platform(config=config, runs={"queues": ["nights"], "maxShards": 8})
    data = only(manifests, "ConfigMap", "selfalign-config")["data"]
    assert yaml.safe_load(data["config.yaml"]) == config
    policy = yaml.safe_load(data["policy.yaml"])
    assert policy.pop("overrides")
    assert float(policy.pop("limits")["*.max_steps"]) == 1_000_000
    lists = {"baseModels": [], "priorityClasses": [], "queues": ["nights"]}
    assert policy == {**lists, "maxActiveRuns": 4, "maxShards": 8, "maxConfigBytes": 65536}


def test_the_addresses_of_notices_come_from_secrets_and_nobody_else_reaches_their_port() -> None:
    config = {"store": "s3://bucket/x", "notify": [{"url_variable": "OWN", "format": "slack"}]}
    secret = {"name": "hooks", "key": "events"}
    notify = {
        "targets": [{"secretRef": secret, "link": "https://x/{run}"}],
        "ports": [8443],
        "cidrs": ["192.0.2.0/24"],
    }
    manifests = render_platform(config=config, notify=notify)
    data = only(manifests, "ConfigMap", "selfalign-config")["data"]
    named = "SELFALIGN_NOTIFY_URL_0"
    assert yaml.safe_load(data["config.yaml"])["notify"] == [
        *config["notify"],
        {"url_variable": named, "format": "cloudevents", "link": "https://x/{run}"},
    ]
    pod = pod_of(only(manifests, "Deployment"))
    assert pod is not None
    assert environment(pod)[named] == {"secretKeyRef": {**secret, "optional": True}}
    rule = {
        "ports": [{"port": 8443, "protocol": "TCP"}],
        "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
    }
    policies = of_kind(manifests, "NetworkPolicy")
    allowed = {p["metadata"]["name"] for p in policies if rule in p["spec"].get("egress", [])}
    assert allowed == {"selfalign-controller"}


def _paths(schema: Manifest, definitions: Manifest, path: str = "") -> list[str]:
    """Dotted paths of every field of the run configuration."""
    target = next((s["$ref"] for s in [schema, *schema.get("anyOf", [])] if "$ref" in s), "#/")
    resolved = definitions.get(target.rpartition("/")[2], schema)
    below = [
        found
        for name, child in resolved.get("properties", {}).items()
        for found in _paths(child, definitions, f"{path}.{name}".removeprefix("."))
    ]
    return below or [path]


def _covers(pattern: str, path: str) -> bool:
    parts, asked = pattern.split("."), path.split(".")
    return len(parts) <= len(asked) and all(
        part in ("*", other) for part, other in zip(parts, asked, strict=False)
    )


def test_runs_may_change_sizes_and_sampling_and_never_where_things_are() -> None:
    data = only(render_platform(), "ConfigMap", "selfalign-config")["data"]
    policy = yaml.safe_load(data["policy.yaml"])
    overrides = policy["overrides"]
    schema = RunConfig.model_json_schema()
    paths = _paths(schema, schema["$defs"])
    assert all(any(_covers(pattern, path) for path in paths) for pattern in overrides)
    allowed = {path for path in paths if any(_covers(pattern, path) for pattern in overrides)}
    sizes = {"seed", "align.num_shards", "instruct.records_per_part", "instruct.general_requests"}
    assert sizes | {"elaborate.sampling.temperature", "clone.lora.r"} <= allowed
    forbidden = {"store", "promote.rules", "base_model", "seeds", "engine", "align.engine"}
    forbidden |= {f"evaluate.{file}" for file in ("engine", "heldout", "hhh", "truthfulqa")}
    forbidden |= {"clone.deepspeed", "engrave.deepspeed", "engrave.num_processes"}
    assert [path for path in allowed if path.startswith(tuple(forbidden))] == []
    assert all(any(_covers(limit, path) for path in allowed) for limit in policy["limits"])
    large = {"instruct.general_requests", "engrave.max_steps", "clone.epochs", "clone.lora.r"}
    large |= {"align.sampling.max_new_tokens", "instruct.topics_per_type"}
    assert all(any(_covers(limit, path) for limit in policy["limits"]) for path in large)


def test_store_settings_reach_stages_and_controller_by_one_map() -> None:
    manifests = render_platform(environment={"AWS_REGION": "eu-west-1", "SELFALIGN_S3_PART_MIB": 8})
    settings = only(manifests, "ConfigMap", "selfalign-environment")
    assert settings["data"] == {"AWS_REGION": "eu-west-1", "SELFALIGN_S3_PART_MIB": "8"}
    for workload in (only(manifests, "Deployment"), only(render_stage("align"), "CronJob")):
        pod = pod_of(workload)
        sources = pod["containers"][0]["envFrom"]
        assert sources[0]["configMapRef"]["name"] == "selfalign-environment"
        assert sources[1]["secretRef"] == {"name": "selfalign-store", "optional": True}


def test_what_no_release_allows_is_denied_and_the_controller_reaches_what_it_needs() -> None:
    deny = only(render_platform(), "NetworkPolicy", "selfalign-stages-deny")["spec"]
    (selector,) = deny.pop("podSelector")["matchExpressions"]
    assert deny == {"policyTypes": ["Ingress", "Egress"]}
    pods = job_of(render_stage("align"))["template"]["metadata"]["labels"]
    assert (selector["operator"], selector["key"] in pods) == ("Exists", True)
    policy = only(render_platform(), "NetworkPolicy", "selfalign-controller")["spec"]
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[53, 53], [443, 6443], [443]]
    assert policy["ingress"] == []
    scraped = render_platform(serviceMonitor={"enabled": True})
    policy = only(scraped, "NetworkPolicy", "selfalign-controller")["spec"]
    assert policy["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]


def test_prometheus_scrapes_the_controller_and_alerts_on_time_since_the_last_success() -> None:
    assert not [m for m in render_platform() if "monitoring.coreos.com" in m["apiVersion"]]
    asked = {"serviceMonitor": {"enabled": True, "labels": {"release": "p"}}}
    manifests = render_platform(**asked, prometheusRule={"enabled": True})
    monitor, service = only(manifests, "ServiceMonitor"), only(manifests, "Service")
    assert monitor["metadata"]["labels"]["release"] == "p"
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["path"], endpoint["port"]) == ("/metrics", service["spec"]["ports"][0]["name"])
    rules = only(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
    alerts = {alert["alert"]: alert for alert in rules}
    assert alerts["SelfAlignNoSuccess"]["expr"] == (
        'time() - max(selfalign_last_success_timestamp_seconds{namespace="somewhere"}) > 129600'
    )
    assert "selfalign status" in alerts["SelfAlignNoSuccess"]["annotations"]["description"]
    assert alerts["SelfAlignNoRun"]["for"] == "36h"
    assert "absent(" in alerts["SelfAlignControllerDown"]["expr"]


def test_the_resource_is_upgraded_by_helm_outlives_it_and_shows_how_a_run_stands() -> None:
    installed = only(render_platform(), "CustomResourceDefinition")
    assert installed["spec"] == yaml.safe_load(CRD.read_text("utf-8"))["spec"]
    assert installed["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert of_kind(render_platform(crd={"create": False}), "CustomResourceDefinition") == []
    (version,) = installed["spec"]["versions"]
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns == ["Stage", "Progress", "Verdict", "Status", "Served", "Age", "Message"]
    assert version["subresources"] == {"status": {}}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"config": {"align": {"anything": 1}}, "maxAttempts": 2, "suspend": True}, None),
        ({"ttlSecondsAfterFinished": 0, "queueName": "nights", "priority": "team.low"}, None),
        ({"maxAttempt": 2}, "'maxAttempt' was unexpected"),
        ({"maxAttempts": 0}, "less than the minimum"),
        ({"maxAttempts": 11}, "greater than the maximum"),
        ({"ttlSecondsAfterFinished": 31536001}, "greater than the maximum"),
        ({"queueName": "Not A Name"}, "does not match"),
        ({"queueName": "q" * 64}, "is too long"),
        ({"priority": "Not A Class"}, "does not match"),
        ({"config": []}, "is not of type 'object'"),
        ({"config": {str(n): n for n in range(33)}}, "too many properties"),
    ],
)
def test_a_run_is_checked_when_it_is_created(spec: Manifest, problem: str | None) -> None:
    kind = {"apiVersion": "selfalign.io/v1alpha1", "kind": "AlignmentRun"}
    problems = check({**kind, "metadata": {"name": "tonight"}, "spec": spec})
    assert problems == [] if problem is None else problem in problems[0]


def test_what_a_run_was_created_with_is_immutable() -> None:
    version = yaml.safe_load(CRD.read_text("utf-8"))["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert {rule["fieldPath"]: rule["rule"] for rule in spec["x-kubernetes-validations"]} == {
        f".{field}": f"has(self.{field}) == has(oldSelf.{field}) && "
        f"(!has(self.{field}) || self.{field} == oldSelf.{field})"
        for field in ("config", "queueName", "priority")
    }
    # `==` compares only the number of the keys that the schema does not name.
    assert set(spec["properties"]["config"]["properties"]) == set(RunConfig.model_fields)


@pytest.mark.parametrize("chart", ["stage", "selfalign", "serving"])
def test_chart_versions_are_the_codes(chart: str) -> None:
    metadata = yaml.safe_load((ROOT / "charts" / chart / "Chart.yaml").read_text("utf-8"))
    assert metadata["version"] == metadata["appVersion"] == __version__
