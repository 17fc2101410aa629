"""The controller against a real API server with its own Job and garbage collectors.

Needs KUBECONFIG; a node is not needed: the test plays the kubelet and writes how pods end. Charts
are rendered by Helm's engine, so the templates are the ones that are deployed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfalign.deploy import releases
from selfalign.deploy.helm import render
from selfalign.pipeline import STAGES
from selfalign.run.executors.kubernetes.api import Cluster, connect
from selfalign.run.executors.kubernetes.cluster import (
    ClusterDenied,
    ClusterRejected,
    Conflict,
    Gone,
    Resource,
    is_owned_by,
    labels_of,
    name_of,
)
from selfalign.run.executors.kubernetes.controller import Controller
from selfalign.run.executors.kubernetes.crd import PLATFORM_CONFIG, POLICY_FILE, new_run
from selfalign.run.executors.kubernetes.outcome import job_end, pods_of
from selfalign.run.executors.kubernetes.reconcile import NightlyOverlap
from selfalign.run.executors.kubernetes.submit import submit_nightly
from selfalign.store.base import Store

from .worlds import (
    PROJECT,
    DictStore,
    config_map,
    platform_values,
    policy_values,
    publish,
    pushed_seeds,
)

pytestmark = pytest.mark.cluster
PATIENCE_SECONDS = 180


class Node:
    """What a kubelet would write: how the pods of Jobs end."""

    def __init__(self, cluster: Cluster, kubeconfig: str) -> None:
        from kubernetes import client, config

        self.cluster = cluster
        self._core = client.CoreV1Api(config.new_client_from_config(kubeconfig))

    def pods(self, job: str) -> list[Resource]:
        """Pods of a Job that have not ended."""
        found = pods_of(self.cluster.get("jobs", job), self.cluster.list("pods"))
        return [pod for pod in found if pod["status"]["phase"] in ("Pending", "Running")]

    def allow(self, account: str) -> None:
        """Make the service account that pods run as."""
        body = {"metadata": {"name": account}}
        self._core.create_namespaced_service_account(self.cluster.namespace, body)

    def end(self, pod: Resource, code: int, message: str = "", *, disrupted: bool = False) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ended = {"exitCode": code, "message": message, "reason": "Error" if code else "Completed",
                 "startedAt": now, "finishedAt": now}  # fmt: skip
        container = pod["spec"]["containers"][0]
        status: Resource = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [
                {
                    "name": container["name"], "image": container["image"], "imageID": "",
                    "ready": False, "restartCount": 0, "state": {"terminated": ended},
                }
            ],
        }  # fmt: skip
        if disrupted:
            status["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                 "lastTransitionTime": now}
            ]  # fmt: skip
        self._core.patch_namespaced_pod_status(
            name_of(pod), self.cluster.namespace, {"status": status}
        )


class Site:
    """A namespace with everything installed, a controller, and a node that obeys the test."""

    def __init__(
        self,
        cluster: Cluster,
        kubeconfig: str,
        platform: dict[str, Any] | None = None,
        store: Store | None = None,
    ) -> None:
        self.cluster = cluster
        self.store = store or DictStore()
        for key, data in pushed_seeds()[1].items():
            self.store.write(key, data)
        self.node = Node(cluster, kubeconfig)
        self._install(platform or platform_values())

    def _install(self, platform: dict[str, Any]) -> None:
        for account in ("selfalign-stage", "selfalign-promote"):
            self.node.allow(account)
        body = config_map(PLATFORM_CONFIG, platform)
        body["data"][POLICY_FILE] = yaml.safe_dump(policy_values())
        self.cluster.create("configmaps", body)
        for stage in STAGES:
            values = releases.stage_values(PROJECT, stage.name, variant="cpu")
            release = releases.release_name(stage.name)
            files = render(PROJECT / "charts/stage", release, self.cluster.namespace, values)
            manifest = yaml.safe_load(files["selfalign-stage/templates/cronjob.yaml"])
            self.cluster.create("cronjobs", manifest)

    @contextlib.contextmanager
    def controller(self) -> Iterator[Controller]:
        controller = Controller(self.cluster, lambda _url: self.store)
        thread = threading.Thread(target=controller.run)
        thread.start()
        try:
            yield controller
        finally:
            controller.stop()
            thread.join(60)

    def submit(self, name: str, **spec: Any) -> Resource:
        body = new_run(name, self.cluster.namespace, spec)
        return self.cluster.create("alignmentruns", body)

    def status(self, name: str) -> Resource:
        return self.cluster.get("alignmentruns", name).get("status") or {}

    def job(self, name: str) -> Resource | None:
        with contextlib.suppress(Gone):
            return self.cluster.get("jobs", name)
        return None

    def work(self, run: str) -> bool:
        """Every Job of the run that waits does its work; whether the run has ended."""
        for job in self.cluster.list("jobs", f"selfalign.io/run={run}"):
            if job_end(job) is None and self.node.pods(name_of(job)):
                publish(self.cluster, self.store, name_of(job))
                for pod in self.node.pods(name_of(job)):
                    self.node.end(pod, 0)
        return bool(self.status(run).get("completedAt"))


def until(condition: Callable[[], Any]) -> Any:
    for _ in range(PATIENCE_SECONDS * 2):
        with contextlib.suppress(Gone, Conflict):
            if found := condition():
                return found
        time.sleep(0.5)
    raise AssertionError("it did not happen")


def as_account(site: Site, kubeconfig: str, account: str, tmp_path: Path) -> Cluster:
    """A connection with nothing but what charts/selfalign allows this account."""
    from kubernetes import client, config

    api = config.new_client_from_config(kubeconfig)
    namespace = site.cluster.namespace
    files = render(PROJECT / "charts/selfalign", "selfalign", namespace, {})
    manifests = [
        manifest
        for name in ("serviceaccounts", "rbac")
        for manifest in yaml.safe_load_all(files[f"selfalign/templates/{name}.yaml"])
        if manifest
    ]
    roles, core = client.RbacAuthorizationV1Api(api), client.CoreV1Api(api)
    site.node.allow(account)
    for manifest in manifests:
        if manifest["metadata"]["name"] != account:
            continue
        if manifest["kind"] == "Role":
            roles.create_namespaced_role(namespace, manifest)
        elif manifest["kind"] == "RoleBinding":
            roles.create_namespaced_role_binding(namespace, manifest)
    request = {"spec": {"expirationSeconds": 3600}}
    answer = core.create_namespaced_service_account_token(account, namespace, request)
    value = yaml.safe_load(Path(kubeconfig).read_text())
    value["users"][0]["user"] = {"token": answer.status.token}
    path = tmp_path / f"{account}.kubeconfig"
    path.write_text(yaml.safe_dump(value))
    return connect(namespace, kubeconfig=str(path))


@pytest.fixture
def site(real_cluster: Cluster, real_crd: str) -> Site:
    return Site(real_cluster, real_crd)


def test_a_run_goes_to_promotion_and_an_identical_one_reuses_it(site: Site) -> None:
    with site.controller():
        site.submit("toy")
        until(lambda: site.work("toy"))
        assert site.status("toy")["verdict"] == "Promoted"
        assert [row["phase"] for row in site.status("toy")["stages"]] == ["Done"] * 8
        site.submit("again")
        until(lambda: site.status("again").get("verdict") == "Promoted")
    assert site.cluster.list("jobs", "selfalign.io/run=again") == []
    reasons = [event["reason"] for event in site.cluster.list("events")]
    assert reasons.count("StageStarted") == 8
    assert reasons.count("RunSucceeded") == 2


def test_exit_code_3_of_a_pod_ends_the_run_with_its_message(site: Site) -> None:
    with site.controller():
        site.submit("toy")
        (pod,) = until(lambda: site.node.pods("toy-instruct-1"))
        site.node.end(pod, 3, "seeds.txt: corrupt\nremedy: restore it")
        until(lambda: site.status("toy").get("completedAt"))
    job = site.cluster.get("jobs", "toy-instruct-1")
    end = job_end(job)
    assert end["reason"] == "PodFailurePolicy"
    (attempt,) = site.status("toy")["attempts"]
    assert (attempt["cause"], attempt["exitCode"]) == ("permanent", 3)
    assert site.status("toy")["message"] == "instruct: shard 0: seeds.txt: corrupt"
    assert site.status("toy")["remedy"] == "restore it"


def test_an_evicted_pod_and_a_deleted_job_cost_no_attempt(site: Site) -> None:
    with site.controller():
        site.submit("toy", maxAttempts=1)
        (pod,) = until(lambda: site.node.pods("toy-instruct-1"))
        site.node.end(pod, 137, disrupted=True)
        (anew,) = until(
            lambda: [p for p in site.node.pods("toy-instruct-1") if name_of(p) != name_of(pod)]
        )
        assert name_of(anew) != name_of(pod)
        job = site.cluster.get("jobs", "toy-instruct-1")
        assert job_end(job) is None
        site.cluster.delete("jobs", "toy-instruct-1", uid=job["metadata"]["uid"])
        until(lambda: site.job("toy-instruct-2"))
        until(lambda: site.work("toy"))
    assert site.status("toy")["verdict"] == "Promoted"
    instruct = site.status("toy")["stages"][0]
    assert (instruct["attempts"], instruct["disruptions"]) == (1, 1)


def test_a_job_that_quota_keeps_without_pods_says_so(site: Site, real_crd: str) -> None:
    from kubernetes import client, config

    core = client.CoreV1Api(config.new_client_from_config(real_crd))
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    core.create_namespaced_resource_quota(site.cluster.namespace, quota)
    until(lambda: core.read_namespaced_resource_quota("none", site.cluster.namespace).status.hard)
    with site.controller():
        site.submit("toy")
        until(lambda: site.job("toy-instruct-1"))
        until(lambda: "exceeded quota" in site.status("toy").get("message", ""))
    conditions = {c["type"]: c for c in site.status("toy")["conditions"]}
    assert conditions["Progressing"]["reason"] == "Waiting"


def test_deleting_a_run_deletes_its_jobs_and_keeps_its_artifacts(site: Site) -> None:
    with site.controller():
        run = site.submit("toy")
        until(lambda: site.node.pods("toy-instruct-1"))
        publish(site.cluster, site.store, "toy-instruct-1")
        site.cluster.delete("alignmentruns", "toy", uid=run["metadata"]["uid"])
        until(lambda: not site.cluster.list("jobs", "selfalign.io/run=toy"))
        until(lambda: site.job("toy-config") is None)
    assert [key for key in site.store.list("artifacts/") if key.endswith("manifest.json")]


def test_a_run_made_anew_at_once_waits_for_the_garbage_collector_and_goes_on(site: Site) -> None:
    with site.controller():
        first = site.submit("toy")
        until(lambda: site.node.pods("toy-instruct-1"))
        site.cluster.delete("alignmentruns", "toy", uid=first["metadata"]["uid"])
        second = site.submit("toy")
        job = until(
            lambda: next((j for j in site.cluster.list("jobs") if is_owned_by(j, second)), None)
        )
        assert labels_of(job)["selfalign.io/stage"] == "instruct"
        until(lambda: site.work("toy"))
    assert site.status("toy")["verdict"] == "Promoted"


def test_two_controllers_at_once_make_each_job_once(site: Site) -> None:
    with site.controller(), site.controller():
        site.submit("toy")
        until(lambda: site.work("toy"))
    assert site.status("toy")["verdict"] == "Promoted"
    assert len(site.cluster.list("jobs", "selfalign.io/run=toy")) == 8


def test_the_controller_s_role_allows_what_it_does_and_no_more(
    site: Site, real_crd: str, tmp_path: Path
) -> None:
    own = as_account(site, real_crd, "selfalign-controller", tmp_path)
    admin, site.cluster = site.cluster, own
    with site.controller():
        site.cluster = admin
        site.submit("toy", ttlSecondsAfterFinished=5)
        (pod,) = until(lambda: site.node.pods("toy-instruct-1"))
        site.node.end(pod, 137, disrupted=True)
        until(lambda: site.work("toy"))
        until(lambda: not admin.list("alignmentruns"))
    reasons = [event["reason"] for event in admin.list("events")]
    assert "RunSucceeded" in reasons
    with pytest.raises(ClusterDenied, match="create cronjobs"):
        own.create("cronjobs", {"metadata": {"name": "x"}, "spec": {}})


def test_the_nightly_submission_s_role_allows_what_it_does(
    site: Site, real_crd: str, tmp_path: Path
) -> None:
    own = as_account(site, real_crd, "selfalign-submit", tmp_path)
    made = submit_nightly(own, {}, {})
    with pytest.raises(NightlyOverlap):
        submit_nightly(own, {}, {})
    (event,) = [e for e in site.cluster.list("events") if e["reason"] == "NightlyRefused"]
    assert event["involvedObject"]["name"] == name_of(made)


def test_the_run_s_name_is_checked_by_the_api_server_too(site: Site) -> None:
    with pytest.raises(ClusterRejected, match="at most 40"):
        site.submit("n" * 41)
