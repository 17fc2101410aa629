"""The charts on a real API server: admitted, upgraded, uninstalled. Needs KUBECONFIG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from selfalign.deploy import releases
from selfalign.deploy.cluster import RESOURCE, ensure_namespace, kubectl
from selfalign.deploy.helm import upgrade
from tests.charts.conftest import (
    CRD,
    ROOT,
    UNCHECKED_GROUPS,
    Manifest,
    everything,
    pod_of,
    render_platform,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="KUBECONFIG is not set"),
]


def _apply(verb: str, namespace: str, manifests: list[Manifest], *flags: str) -> list[str]:
    """What the API server says is wrong with manifests."""
    stream = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    moved = stream.replace('"somewhere"', f'"{namespace}"')
    answer = kubectl(verb, "-f", "-", "-n", namespace, "--validate=strict", *flags, stdin=moved)
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    problems = [line for line in lines if "(AlreadyExists)" not in line]
    return problems if answer.returncode else []


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace that enforces Pod Security restricted, with the platform's accounts."""
    name = f"charts-{uuid.uuid4().hex[:8]}"
    assert ensure_namespace(name)
    kinds = ("Role", "RoleBinding", "ServiceAccount")
    found = {(m["kind"], m["metadata"]["name"]): m for m in everything() if m["kind"] in kinds}
    assert _apply("apply", name, list(found.values())) == []
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def resource() -> Iterator[bool]:
    """The AlignmentRun resource; True when it was not there before."""
    missing = kubectl("get", "crd", RESOURCE).returncode != 0
    if missing:
        applied = kubectl("apply", "--server-side", "-f", str(CRD))
        assert applied.returncode == 0, applied.stderr
        kubectl("wait", "--for=condition=Established", f"crd/{RESOURCE}", "--timeout=30s")
    yield missing
    if missing:
        kubectl("delete", "crd", RESOURCE)


def test_the_api_server_takes_every_manifest_strictly(resource: bool) -> None:
    known = [m for m in everything() if m["apiVersion"].partition("/")[0] not in UNCHECKED_GROUPS]
    assert _apply("create", "default", known, "--dry-run=server") == []
    misspelt = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dta": {}}
    (problem,) = _apply("create", "default", [misspelt], "--dry-run=server")
    assert 'unknown field "dta"' in problem


def test_every_pod_is_admitted_under_restricted(namespace: str) -> None:
    pods = []
    for number, manifest in enumerate(everything()):
        if (spec := pod_of(manifest)) is None:
            continue
        cluster_wide = ("priorityClassName", "runtimeClassName")  # of clusters that have them
        pod = {key: value for key, value in spec.items() if key not in cluster_wide}
        name = f"{manifest['metadata']['name']}-{number}"
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod})
    assert _apply("create", namespace, pods, "--dry-run=server") == []
    bare = {"containers": [{"name": "x", "image": "x:1"}], "serviceAccountName": "selfalign-stage"}
    refused = _apply("create", namespace, [{**pods[0], "spec": bare}], "--dry-run=server")
    assert "violates PodSecurity" in refused[-1]


def _run(name: str, spec: dict[str, Any]) -> Manifest:
    kind = {"apiVersion": "selfalign.io/v1alpha1", "kind": "AlignmentRun"}
    return {**kind, "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(
    ("name", "spec", "refusal"),
    [
        ("n" * 41, {}, "a run's name is at most 40"),
        ("x", {"maxAttempts": 11}, "should be less than or equal to 10"),
        ("x", {"ttlSecondsAfterFinished": 31536001}, "should be less than or equal to 31536000"),
        ("x", {"priority": "Not A Class"}, "should match"),
        ("x", {"more": 1}, "unknown field"),
        ("x", {"config": {"instruct": {"num_shards": 10_001}}}, "less than or equal to 10000"),
        ("x", {"config": {"clone": {"epochs": 1e300}}}, "less than or equal to 10000"),
        ("x", {"config": {"align": {"sampling": {"max_new_tokens": 2**25}}}}, "16777216"),
        ("x", {"config": {"elaborate": {"engine": {"batch_size": 0}}}}, "or equal to 1"),
        ("x", {"config": {"engrave": {"max_steps": "many"}}}, "must be of type integer"),
    ],
)
def test_a_wrong_run_is_refused(
    resource: bool, namespace: str, name: str, spec: dict[str, Any], refusal: str
) -> None:
    assert refusal in " ".join(_apply("create", namespace, [_run(name, spec)]))


def test_only_who_may_use_the_verb_labels_a_run_as_nightly(resource: bool, namespace: str) -> None:
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    policy = [m for m in render_platform() if m["kind"] in kinds]
    assert _apply("apply", namespace, policy) == []
    bind = ["create", "rolebinding", "creator", "--role=selfalign-run-creator", "--user=creator"]
    assert kubectl(*bind, "-n", namespace).returncode == 0
    submit = f"system:serviceaccount:{namespace}:selfalign-submit"

    def as_user(name: str, *arguments: str, stdin: str | None = None) -> str:
        answer = kubectl(*arguments, "-n", namespace, f"--as={name}", stdin=stdin)
        return answer.stderr if answer.returncode else ""

    def create(name: str, user: str, *labels: str) -> str:
        run = _run(name, {})
        run["metadata"]["labels"] = dict.fromkeys(labels, "true")
        return as_user(user, "create", "-f", "-", stdin=json.dumps(run))

    label = "selfalign.io/nightly"
    try:
        until = time.monotonic() + 30  # the API server learns of a policy a moment later
        while "label-nightly" not in (refusal := create("mine", "creator", label)):
            assert time.monotonic() < until, refusal
            kubectl("delete", "alignmentrun/mine", "-n", namespace)
            time.sleep(1)
        assert create("mine", "creator", "other") == ""
        assert create("tonight", submit, label) == ""
        change = ["patch", "--type=merge", "-p"]
        named = json.dumps({"metadata": {"labels": {label: "true"}}})
        assert "label-nightly" in as_user("creator", *change, named, "alignmentrun/mine")
        bare = json.dumps({"metadata": {"labels": {label: None}}})
        assert "label-nightly" in as_user("creator", *change, bare, "alignmentrun/tonight")
        suspended = json.dumps({"spec": {"suspend": True}})
        assert as_user("creator", *change, suspended, "alignmentrun/tonight") == ""
    finally:
        for manifest in policy:
            kubectl("delete", manifest["kind"], manifest["metadata"]["name"])


def test_what_a_run_was_created_with_cannot_be_changed(resource: bool, namespace: str) -> None:
    align = {"sampling": {"top_p": 0.5}, "engine": {"options": {"a": 1}}}
    config = {"align": align, "evaluate": {"heldout": None}}  # null is a value, never dropped
    asked = {"config": config, "queueName": "nights"}
    assert _apply("create", namespace, [_run("fixed", asked)]) == []
    stored = kubectl("get", "alignmentrun/fixed", "-n", namespace, "-o", "json").stdout
    assert json.loads(stored)["spec"] == {**asked, "maxAttempts": 3, "suspend": False}

    def patch(spec: dict[str, Any]) -> str:
        body = json.dumps({"spec": spec})
        what = ("patch", "alignmentrun/fixed", "-n", namespace, "--type=merge", "-p", body)
        return kubectl(*what).stderr

    changed = {"align": {"sampling": {"top_p": 0.6}}}
    other = {"align": None, "clone": {"epochs": 1}}  # as many keys as before
    options = {"align": {"engine": {"options": {"a": 2}}}}
    for spec in (
        *({"config": changed}, {"config": {"seed": 1}}, {"config": other}, {"config": None}),
        *({"config": options}, {"config": {"evaluate": {"heldout": "default"}}}),
    ):
        assert "config is immutable" in patch(spec)
    for spec in ({"queueName": "days"}, {"queueName": None}):
        assert "queueName is immutable" in patch(spec)
    assert "priority is immutable" in patch({"priority": "high"})
    assert patch({"suspend": True, "maxAttempts": 2, "ttlSecondsAfterFinished": 60}) == ""


def test_install_upgrade_and_uninstall_keep_the_resource_and_its_runs(resource: bool) -> None:
    name = f"charts-{uuid.uuid4().hex[:8]}"
    ensure_namespace(name)
    own = {"crd": {"create": False}}
    stage = releases.stage_values(ROOT, "align", variant="cpu")
    upgrade(ROOT / "charts/selfalign", "selfalign", name, own)
    notes = upgrade(ROOT / "charts/stage", "selfalign-align", name, stage)
    assert f"make deploy-stage STAGE=align NAMESPACE={name}" in notes
    assert _apply("create", name, [_run("kept", {})]) == []
    changed = {**stage, "image": {"tag": "another"}, "config": {"align": {"num_shards": 3}}}
    upgrade(ROOT / "charts/stage", "selfalign-align", name, changed)
    found = kubectl("get", "cronjob", "selfalign-align", "-n", name, "-o", "json").stdout
    template = json.loads(found)["spec"]["jobTemplate"]["spec"]
    assert template["template"]["spec"]["containers"][0]["image"].endswith(":another")
    assert template["completions"] == 3

    def checksum() -> str:
        query = "jsonpath={.spec.template.metadata.annotations.checksum/credentials}"
        deployment = ("deployment", "selfalign-controller", "-n", name)
        return kubectl("get", *deployment, "-o", query).stdout

    before = checksum()
    kubectl("create", "secret", "generic", "selfalign-store", "-n", name, "--from-literal=A=b")
    upgrade(ROOT / "charts/selfalign", "selfalign", name, {**own, "nightly": {"suspend": True}})
    assert before != checksum() != ""

    command = ["make", "-C", str(ROOT), "undeploy", f"NAMESPACE={name}", "CLUSTER_TOOLS="]
    undeployed = subprocess.run(
        [*command, f"PYTHON={sys.executable}"], capture_output=True, text=True, check=False
    )
    assert undeployed.returncode == 0, undeployed.stderr
    assert "kept" in kubectl("get", "alignmentruns", "-n", name, "-o", "name").stdout
    assert kubectl("get", "deployments,cronjobs", "-n", name, "-o", "name").stdout == ""
    kubectl("delete", "namespace", name, "--wait=false")
