"""The server's chart: who says which model, when a pod counts as ready, how one goes."""

from __future__ import annotations

from typing import Any

import pytest

from selfalign.deploy import releases
from selfalign.deploy.images import VARIANTS
from selfalign.run.executors.kubernetes import adapters
from selfalign.run.executors.kubernetes.deployment import DEPLOYMENT, DIGEST_ANNOTATION
from selfalign.serving.alias import CURRENT, STATUS
from tests.charts.conftest import ROOT, Manifest, check, only, render, render_platform


def deployment(**values: Any) -> Manifest:
    return only(render("serving", releases.SERVING, values), "Deployment")


def test_the_model_is_an_annotation_that_the_controller_alone_writes() -> None:
    found = deployment(podAnnotations={"team": "alignment"})
    assert found["metadata"]["name"] == DEPLOYMENT
    template = found["spec"]["template"]
    assert DIGEST_ANNOTATION not in template["metadata"]["annotations"]
    (fetch,) = template["spec"]["initContainers"]
    told = next(e for e in fetch["env"] if e["name"] == "SELFALIGN_MODEL_DIGEST")
    path = f"metadata.annotations['{DIGEST_ANNOTATION}']"
    assert told["valueFrom"] == {"fieldRef": {"fieldPath": path}}
    assert fetch["command"] == ["selfalign", "serving", "fetch"]


def test_a_roll_starts_the_new_before_the_old_goes_and_asks_it_first() -> None:
    spec = deployment(replicas=3)["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    (server,) = spec["template"]["spec"]["containers"]
    startup = server["startupProbe"]
    assert startup["exec"]["command"][:4] == ["selfalign", "serving", "probe", "/model/current"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 900
    assert spec["progressDeadlineSeconds"] > 900
    drain = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    shutdown = int(server["args"][4].removeprefix("--shutdown-seconds="))
    assert min(drain, shutdown) > 0
    assert drain + shutdown < spec["template"]["spec"]["terminationGracePeriodSeconds"]


def test_only_the_init_container_gets_the_stores_credentials_and_writes_the_model() -> None:
    pod = deployment(verify={"configMapName": "keys"})["spec"]["template"]["spec"]
    (fetch,), (server,) = pod["initContainers"], pod["containers"]
    assert [next(iter(source)) for source in fetch["envFrom"]] == ["configMapRef", "secretRef"]
    assert "envFrom" not in server
    model = next(m for m in server["volumeMounts"] if m["mountPath"] == "/model")
    assert model["readOnly"] is True
    for container in (fetch, server):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "SELFALIGN_VERIFY_KEY", "value": "/verify/key"} in fetch["env"]
    assert pod["automountServiceAccountToken"] is False


def test_arguments_are_vllms_and_come_after_two_dashes() -> None:
    def arguments(**values: Any) -> list[str]:
        found: list[str] = deployment(**values)["spec"]["template"]["spec"]["containers"][0]["args"]
        return found

    listening = ["--host", "0.0.0.0", "--port", "8000"]
    assert arguments() == [*listening, "--shutdown-seconds=100"]
    more = arguments(server={"vllmArgs": ["--max-model-len=4096"]})
    assert more[-2:] == ["--", "--max-model-len=4096"]


def test_a_variable_of_the_server_that_is_set_to_another_value_is_there_once() -> None:
    template = deployment(server={"env": {"TMPDIR": "/cache"}})["spec"]["template"]
    spec = template["spec"]
    (server,) = spec["containers"]
    assert [each["value"] for each in server["env"] if each["name"] == "TMPDIR"] == ["/cache"]
    (fetch,) = spec["initContainers"]
    assert {"name": "TMPDIR", "value": "/tmp"} in fetch["env"]


def test_one_server_holds_up_no_drain() -> None:
    kinds = [[m["kind"] for m in render("serving", "s", {"replicas": n})] for n in (1, 2)]
    assert ["PodDisruptionBudget" in found for found in kinds] == [False, True]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_make_deploys_is_valid(variant: Any) -> None:
    values = releases.serving_values(ROOT, variant=variant, image={"registry": "r", "tag": "t"})
    manifests = render("serving", releases.SERVING, values)
    assert [problem for manifest in manifests for problem in check(manifest)] == []
    server = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert ("nvidia.com/gpu" in server["resources"]["limits"]) == (variant == "gpu")
    assert server["image"] == "r/align:t"


def test_in_the_form_adapter_a_second_container_follows_and_the_server_only_reads() -> None:
    found = deployment(form="adapter", verify={"configMapName": "keys"})
    assert adapters.serves_adapters(found)
    assert not adapters.serves_adapters(deployment())
    pod = found["spec"]["template"]["spec"]
    (fetch,), (server, follow) = pod["initContainers"], pod["containers"]
    assert fetch["args"][-4:] == ["--form", "adapter", "--to", "/model"]
    assert server["command"] == ["selfalign", "serving", "start", "/model"]
    assert server["startupProbe"]["exec"]["command"][3] == f"/model/{CURRENT}"
    assert follow["command"] == ["selfalign", "serving", "follow", "/model"]
    assert follow["startupProbe"]["exec"]["command"][-1] == f"/model/{STATUS}"
    for container in (fetch, follow):
        assert {"name": "SELFALIGN_VERIFY_KEY", "value": "/verify/key"} in container["env"]
        assert [next(iter(source)) for source in container["envFrom"]] == [
            "configMapRef",
            "secretRef",
        ]
    # it takes what is current, whatever the pod was started with
    assert "SELFALIGN_MODEL_DIGEST" not in {each["name"] for each in follow["env"]}
    assert "envFrom" not in server
    writable = [
        not next(m for m in c["volumeMounts"] if m["mountPath"] == "/model").get("readOnly")
        for c in (fetch, server, follow)
    ]
    assert writable == [True, False, True]


def test_the_controller_may_ask_servers_that_hold_adapters() -> None:
    gateway = {"podSelector": {"matchLabels": {"app": "gateway"}}}
    values = {"form": "adapter", "networkPolicy": {"clients": [gateway]}}
    policy = only(render("serving", releases.SERVING, values), "NetworkPolicy")
    first, second = policy["spec"]["ingress"][0]["from"]
    assert first == gateway
    controller = only(render_platform(serving={"kind": "vllm"}), "Deployment")
    pods = controller["spec"]["template"]["metadata"]["labels"].items()
    assert second["podSelector"]["matchLabels"].items() <= pods
    egress = only(
        render_platform(serving={"kind": "vllm"}), "NetworkPolicy", "selfalign-controller"
    )["spec"]["egress"]
    (rule,) = [rule for rule in egress if rule["ports"][0]["port"] == adapters._PORT]
    server = deployment(form="adapter")["spec"]["template"]
    assert server["spec"]["containers"][0]["ports"][0]["containerPort"] == adapters._PORT
    wanted = rule["to"][0]["podSelector"]["matchLabels"]
    assert wanted.items() <= server["metadata"]["labels"].items()
