"""The exit-code table on a real node: what ends a run, what is retried, what a person is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from selfalign.run.executors.kubernetes.cluster import Resource
from tests.store.proxy import Fault

from .site import BUCKET, Site, until

pytestmark = pytest.mark.cluster
ALWAYS = 10**9


def told(site: Site, run: str) -> tuple[str, str]:
    """Cause and next action, as `selfalign status` prints them: a line each."""
    shown = site.cli("status", run, "-n", site.namespace)
    assert shown.returncode == 0, shown.stderr
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.strip()}
    return lines["cause"], lines["next"]


def attempts(status: Resource, stage: str) -> list[tuple[str | None, int | None]]:
    return [(r.get("cause"), r.get("exitCode")) for r in status["attempts"] if r["stage"] == stage]


@pytest.fixture(autouse=True)
def _healed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "s3" in request.fixturenames:
        request.getfixturevalue("s3").proxy.faults.clear()


def test_a_configuration_error_ends_the_run_before_anything_starts(site: Site) -> None:
    site.create_run("typo", config={"align": {"sampling": {"temprature": 1}}})
    status = site.ended("typo", 60)
    assert "temprature" in status["message"]
    assert not status.get("attempts")
    cause, action = told(site, "typo")
    assert "align.sampling.temprature" in cause
    assert "submit a new run" in action


def test_a_configuration_error_of_a_stage_is_never_retried(site: Site) -> None:
    """An engine that its image does not have: exit code 2."""
    site.create_run("engine", config={"engine": {"kind": "vllm"}})  # not in a CPU image
    status = site.ended("engine", 300)
    assert attempts(status, "instruct") == [("permanent", 2)]
    cause, action = told(site, "engine")
    assert "vllm" in cause
    assert "submit a new run" in action


def test_a_data_error_is_never_retried(site: Site) -> None:
    site.create_run("toy")
    until(lambda: site.phases("toy").get("instruct") == "Done", "candidates")
    store = f"s3://{BUCKET}/{site.namespace}"
    key = next(r["key"] for r in site.status("toy")["stages"] if r["name"] == "instruct")
    _corrupt(site, f"{site.namespace}/artifacts/candidates/{key}/parts/")
    status = site.ended("toy", 300)
    assert attempts(status, "curate") == [("permanent", 3)], status["message"]
    cause, action = told(site, "toy")
    assert "candidates" in cause
    assert store in cause or key in cause
    assert "submit a new run" in action


def _corrupt(site: Site, prefix: str) -> None:
    client = site.s3.client()
    for found in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]:
        if found["Key"].endswith(".zst"):
            client.put_object(Bucket=BUCKET, Key=found["Key"], Body=b"not what it was")


def test_an_engine_out_of_memory_is_retried_and_then_says_what_to_raise(
    new_site: Callable[..., Site],
) -> None:
    limits = {"requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "64Mi"},
              "limits": {"memory": "180Mi", "ephemeral-storage": "14Gi"}}  # fmt: skip
    site = new_site(resources=limits, retries=0)
    site.create_run("toy", maxAttempts=2)
    status = site.ended("toy", 400)
    seen = attempts(status, "instruct")
    assert [cause for cause, _ in seen] == ["temporary"] * 2, status["message"]
    cause, action = told(site, "toy")
    assert "memory" in cause
    assert "memory" in action


def test_a_store_that_denies_ends_the_run_with_its_own_words(site: Site) -> None:
    site.create_run("toy", suspend=True)
    until(lambda: site.status("toy").get("stages"), "the run to be planned", 60)
    site.cluster.patch("alignmentruns", "toy", {"spec": {"suspend": False}})
    until(lambda: site.pods("toy"), "a pod")
    denied = Fault("PUT", "answer", ALWAYS, status=403, code="AccessDenied", message="no PutObject")
    site.s3.proxy.faults.append(denied)
    status = site.ended("toy", 300)
    assert attempts(status, "instruct") == [("permanent", 4)], status["message"]
    cause, action = told(site, "toy")
    assert "AccessDenied" in cause or "denied" in cause.lower() or "refuse" in cause
    assert "submit a new run" in action


def test_a_store_that_is_down_is_waited_for(site: Site) -> None:
    site.create_run("toy")
    until(lambda: site.phases("toy").get("align") == "Running", "align to run")
    site.s3.proxy.faults.append(Fault("*", "hang_up", ALWAYS))
    until(
        lambda: "cannot read" in site.status("toy").get("message", "")
        or any(r.get("exitCode") == 69 for r in site.status("toy").get("attempts") or []),
        "it to be noticed", 300,
    )  # fmt: skip
    cause, action = told(site, "toy")
    assert site.s3.url in cause
    assert "check the network and the endpoint" in action
    site.s3.proxy.faults.clear()
    status = site.ended("toy")
    assert status.get("verdict") == "Promoted", status["message"]
    assert {cause for cause, _ in attempts(status, "align")} <= {None, "temporary"}


def test_no_secret_is_in_objects_logs_or_errors(site: Site) -> None:
    from .site import SECRET, kubectl

    site.create_run("toy")
    site.ended("toy")
    kinds = "alignmentruns,jobs,pods,configmaps,events,cronjobs,deployments"
    objects = kubectl("-n", site.namespace, "get", kinds, "-o", "json")
    assert SECRET not in objects
    for pod in json.loads(kubectl("-n", site.namespace, "get", "pods", "-o", "json"))["items"]:
        name = pod["metadata"]["name"]
        assert SECRET not in kubectl("-n", site.namespace, "logs", name, check=False)
