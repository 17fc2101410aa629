"""What holds for every manifest of all charts, whatever the values."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.charts.conftest import (
    RENDERINGS,
    ROOT,
    VERSIONS,
    Manifest,
    check,
    environment,
    everything,
    of_kind,
    pod_of,
    render,
    render_stage,
)

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
# (image: kubernetes/kubernetes#130394)
RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image"),
    *("persistentVolumeClaim", "projected", "secret"),
}
LABELS = {
    *(f"app.kubernetes.io/{label}" for label in ("name", "instance", "part-of", "version")),
    *("app.kubernetes.io/managed-by", "helm.sh/chart"),
}


@cache
def _pods() -> list[tuple[str, Manifest]]:
    """Name and pod of every workload."""
    found = [(manifest["metadata"]["name"], pod_of(manifest)) for manifest in everything()]
    return [(name, pod) for name, pod in found if pod is not None]


@pytest.mark.parametrize("rendering", RENDERINGS, ids=lambda r: r[0])
def test_lints_renders_and_passes_strict_validation(rendering: Any) -> None:
    _, chart, _, values = rendering
    report = import_module("helm_python").lint(ROOT / "charts" / chart, values, strict=True)
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    assert report["errors"] == []
    manifests = render(*rendering[1:])
    assert manifests
    assert [p for m in manifests for version in VERSIONS for p in check(m, version)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_strict_validation_finds_what_is_misspelt_mistyped_and_unknown(version: str) -> None:
    (cronjob,) = of_kind(render_stage("align"), "CronJob")
    misspelt = {**cronjob, "spec": {**cronjob["spec"], "suspended": True}}
    assert "'suspended' was unexpected" in check(misspelt, version)[0]
    job = {**cronjob["spec"]["jobTemplate"]["spec"], "activeDeadlineSeconds": "soon"}
    mistyped = {**cronjob, "spec": {**cronjob["spec"], "jobTemplate": {"spec": job}}}
    assert "$.spec.jobTemplate.spec.activeDeadlineSeconds" in check(mistyped, version)[0]
    assert "Couldn't find" in check({**cronjob, "apiVersion": "batch/v9"}, version)[0]


def test_every_pod_is_admitted_where_restricted_is_enforced() -> None:
    assert _pods()
    for name, pod in _pods():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == security["runAsGroup"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} <= RESTRICTED_VOLUMES, (name, volume)
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "privileged" not in context, name
            assert all("hostPort" not in port for port in container.get("ports", [])), name


def test_only_limited_empty_directories_are_writable_and_no_code_is_loaded_from_them() -> None:
    for name, pod in _pods():
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
            assert "/tmp" in writable, name
            env = environment({"containers": [container]})
            for variable in {"HOME", "TMPDIR", "HF_HOME", "SELFALIGN_CACHE_DIR"} & set(env):
                held = any(Path(env[variable]).is_relative_to(m) for m in writable)
                assert held, (name, variable)
            assert env["PYTHONNOUSERSITE"] == "1", name
        for volume in pod["volumes"]:
            assert volume.get("emptyDir", {"sizeLimit": "-"})["sizeLimit"], (name, volume["name"])


def test_only_what_talks_to_the_api_server_gets_a_token_and_no_image_is_latest() -> None:
    for name, pod in _pods():
        talks = name in ("selfalign-controller", "selfalign-nightly")
        assert pod["automountServiceAccountToken"] is talks, name
        assert pod["enableServiceLinks"] is False, name
        image = pod["containers"][0]["image"]
        tag = image.rpartition("/")[2].partition("@")[2] or image.rpartition(":")[2]
        assert tag not in ("", "latest", image), name


def test_every_container_has_requests_and_a_memory_limit() -> None:
    for name, chart, *rendering in RENDERINGS:
        if name.startswith("charts/stage/ci"):
            continue  # these leave some out on purpose
        for pod in filter(None, map(pod_of, render(chart, *rendering))):
            resources = pod["containers"][0]["resources"]
            assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"]), name
            assert "memory" in resources["limits"], name


def test_every_object_is_labelled_prefixed_and_in_the_release_namespace() -> None:
    for manifest in everything():
        metadata = manifest["metadata"]
        assert set(metadata["labels"]) >= LABELS, metadata["name"]
        if manifest["kind"] == "CustomResourceDefinition":
            assert "namespace" not in metadata
        elif manifest["kind"].startswith("ValidatingAdmissionPolicy"):
            assert "namespace" not in metadata
            assert metadata["name"] == "selfalign-nightly-somewhere"
        else:
            assert metadata["namespace"] == "somewhere"
            assert metadata["name"].startswith("selfalign")


def test_charts_hold_no_secret() -> None:
    assert of_kind(everything(), "Secret") == []
    words = ("AWS_SECRET", "AWS_ACCESS_KEY", "password", "AKIA")
    for manifest in everything():
        assert not [word for word in words if word in str(manifest)], manifest["metadata"]["name"]


def test_permissions_are_namespaced_and_name_what_they_grant() -> None:
    assert {m["kind"] for m in everything()} & {"ClusterRole", "ClusterRoleBinding"} == set()
    for role in of_kind(everything(), "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"]
