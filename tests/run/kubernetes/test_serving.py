"""The serving Deployment follows `current`: promotion, rollback, a failing probe, kills."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.executors.kubernetes.controller import Controller
from selfalign.run.executors.kubernetes.deployment import (
    DEPLOYMENT,
    DIGEST_ANNOTATION,
    DeploymentTarget,
)
from selfalign.run.executors.kubernetes.serving import Serving, Target
from selfalign.store.pointer import PromotedModel
from tests.artifacts import promote

from .unreliable import Killed, Unreliable
from .worlds import World

OLD, NEW = "0" * 64, "1" * 64
REPLICAS = 2
LABELS = {"app.kubernetes.io/name": "selfalign-serving"}


@dataclass
class Site:
    """A namespace with runs and a Deployment, and Kubernetes' own controllers, which are played.

    Attributes:
        bad: digests of models whose servers fail their probe.
        pods: (digest, ready) by the pod's name.
    """

    world: World = field(default_factory=World)
    bad: set[str] = field(default_factory=set)
    pods: dict[str, tuple[str | None, bool]] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        self.cluster = self.world.cluster
        template: Resource = {"metadata": {"labels": LABELS, "annotations": {"team": "a"}}}
        spec = {"replicas": REPLICAS, "selector": {"matchLabels": LABELS}, "template": template}
        self.cluster.create("deployments", {"metadata": {"name": DEPLOYMENT}, "spec": spec})
        self.restart()

    def restart(self, cluster: Any = None) -> None:
        """A controller that knows nothing."""
        cluster = cluster or self.cluster
        self.serving = Serving(
            cluster, lambda _url: self.world.store, self.target(cluster), lambda: self.world.now
        )

    def target(self, cluster: Any) -> Target:
        return DeploymentTarget(cluster)

    def promote(self, digest: str, run: str | None, directory: str | None = "models/x") -> None:
        """`promote` or, without a run, `rollback` moves the pointer."""
        model = PromotedModel(
            artifact="final_model", key=digest[:8], digest=digest, directory=directory
        )
        promote(self.world.store, model, run=run, moved_at="2026-11-01T01:00:00+00:00")

    def run(self, name: str, digest: str) -> None:
        """A run that made this model and has succeeded."""
        self.world.submit(name)
        succeeded = {
            "type": "Succeeded", "status": "True", "reason": "Promoted", "message": "",
            "lastTransitionTime": "2026-11-01T01:00:00Z",
        }  # fmt: skip
        clone = {"name": "clone", "phase": "Done", "digest": digest}
        self.cluster.set_status(
            "alignmentruns", name, {"stages": [clone], "conditions": [succeeded]}
        )

    def work(self) -> None:
        """One move of the Deployment controller and of the kubelets: surge 1, unavailable 0."""
        found = self.cluster.get("deployments", DEPLOYMENT)
        wanted = self.annotation()
        mine = [name for name, (digest, _) in self.pods.items() if digest == wanted]
        old = [name for name in self.pods if name not in mine]
        starting = [name for name in mine if not self.pods[name][1]]
        stale = [name for name in old if not self.pods[name][1]]
        if stale:
            self._remove(stale[0])
        elif starting and wanted in self.bad:
            self._warn(starting[0])
        elif starting:
            self.pods[starting[0]] = (wanted, True)
            if old:
                self._remove(old[0])
        elif len(mine) < REPLICAS:
            self._start(wanted)
        updated = [name for name, (digest, _) in self.pods.items() if digest == wanted]
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": len(self.pods),
            "updatedReplicas": len(updated),
            "availableReplicas": sum(ready for _, ready in self.pods.values()),
        }
        self.cluster.set_status("deployments", DEPLOYMENT, status)

    def _start(self, digest: str | None) -> None:
        self.made += 1
        name = f"{DEPLOYMENT}-{self.made}"
        metadata = {"name": name, "labels": LABELS, "annotations": {DIGEST_ANNOTATION: digest}}
        self.cluster.create("pods", {"metadata": metadata, "status": {"phase": "Running"}})
        self.pods[name] = (digest, False)

    def _remove(self, name: str) -> None:
        del self.pods[name]
        uid = self.cluster.get("pods", name)["metadata"]["uid"]
        self.cluster.delete("pods", name, uid=uid)

    def _warn(self, pod: str) -> None:
        for number, said in enumerate(["Connection refused", "5 of 8 answers as evaluated"]):
            event = {
                "metadata": {"name": f"{pod}.{number}"},
                "involvedObject": {"name": pod},
                "type": "Warning",
                "reason": "Unhealthy",
                "message": f"Startup probe failed: {said}",
                "lastTimestamp": f"2026-11-01T01:00:0{1 - number}Z",
            }
            if event["metadata"]["name"] not in [  # type: ignore[index]
                each["metadata"]["name"] for each in self.cluster.list("events")
            ]:
                self.cluster.create("events", event)

    def settle(self, steps: int = 12) -> None:
        """Everybody works until nothing is left to do."""
        for _ in range(steps):
            self.serving.step()
            self.work()
        self.serving.step()

    def annotation(self) -> str | None:
        template = self.cluster.get("deployments", DEPLOYMENT)["spec"]["template"]
        found: str | None = template["metadata"]["annotations"].get(DIGEST_ANNOTATION)
        return found

    def ready(self) -> list[str | None]:
        """Digests that clients get answers of."""
        return sorted(digest or "" for digest, ready in self.pods.values() if ready)

    def served(self, run: str) -> tuple[str, str]:
        found = crd.condition(self.cluster.get("alignmentruns", run), "Served")
        return ("", "") if found is None else (found["status"], found["reason"])

    def message(self, run: str) -> str:
        found = crd.condition(self.cluster.get("alignmentruns", run), "Served")
        return str(found["message"])


@pytest.fixture
def site() -> Site:
    """A site on which model OLD of run `first` is served, and run `second` has made NEW."""
    found = Site()
    found.run("first", OLD)
    found.run("second", NEW)
    found.promote(OLD, "first")
    found.settle()
    assert found.served("first") == ("True", "Served")
    return found


def test_nothing_happens_before_a_model_is_promoted() -> None:
    site = Site()
    assert site.serving.step() is None
    assert site.annotation() is None


def test_a_promotion_rolls_the_deployment_and_both_runs_say_so(site: Site) -> None:
    site.promote(NEW, "second")
    site.serving.step()
    assert site.annotation() == NEW
    # until its servers are ready the model before is the one that is served
    assert (site.served("second"), site.served("first")) == (
        ("False", "RollingOut"),
        ("True", "Served"),
    )
    site.settle()
    assert site.ready() == [NEW] * REPLICAS
    assert (site.served("second"), site.served("first")) == (
        ("True", "Served"),
        ("False", "Replaced"),
    )
    assert site.message("second") == f"model {NEW}"
    assert NEW[:12] in site.message("first")
    template = site.cluster.get("deployments", DEPLOYMENT)["spec"]["template"]
    assert template["metadata"]["annotations"] == {"team": "a", DIGEST_ANNOTATION: NEW}
    reasons = [reason for reason, _ in site.world.events()]
    assert reasons.count("Served") == 2
    assert reasons.count("Replaced") == 1


def test_a_rollback_takes_the_same_way_and_names_the_run_that_made_the_model(site: Site) -> None:
    site.promote(NEW, "second")
    site.settle()
    site.promote(OLD, None)
    site.settle()
    assert site.ready() == [OLD] * REPLICAS
    assert site.served("first") == ("True", "Served")
    assert site.served("second") == ("False", "Replaced")


def test_a_failing_probe_leaves_the_old_model_and_is_told(site: Site) -> None:
    site.bad.add(NEW)
    before = sorted(name for name, (digest, _) in site.pods.items() if digest == OLD)
    site.promote(NEW, "second")
    site.settle()
    assert site.ready() == [OLD] * REPLICAS
    assert sorted(name for name, (digest, _) in site.pods.items() if digest == OLD) == before
    assert site.served("second") == ("False", "NotReady")
    assert site.served("first") == ("True", "Served")
    told = site.message("second")
    assert "Unhealthy: Startup probe failed: 5 of 8 answers as evaluated" in told
    assert "what was served before goes on; remedy: " in told
    # a rollback ends it
    site.promote(OLD, None)
    site.settle()
    assert site.ready() == [OLD] * REPLICAS
    assert (site.served("first"), site.served("second")) == (
        ("True", "Served"),
        ("False", "Replaced"),
    )


def test_what_a_container_ended_with_is_told(site: Site) -> None:
    site.bad.add(NEW)
    site.promote(NEW, "second")
    site.settle(3)
    pod = next(name for name, (digest, _) in site.pods.items() if digest == NEW)
    ended = {"terminated": {"exitCode": 3, "message": "not signed\n remedy: sign it"}}
    fetch = {"name": "fetch", "state": {"waiting": {"reason": "x"}}, "lastState": ended}
    site.cluster.set_status("pods", pod, {"phase": "Pending", "initContainerStatuses": [fetch]})
    site.serving.step()
    assert "fetch ended with 3: not signed remedy: sign it" in site.message("second")


def test_a_step_that_finds_nothing_new_writes_nothing(site: Site) -> None:
    site.restart(unreliable := Unreliable(site.cluster))
    for _ in range(3):
        site.serving.step()
    assert {verb for verb, _, _ in unreliable.calls} == {"get", "list"}


@pytest.mark.parametrize("seed", range(8))
def test_a_controller_killed_at_any_moment_changes_nothing(site: Site, seed: int) -> None:
    chance = random.Random(seed)
    site.promote(NEW, "second")
    for _ in range(14):
        unreliable = Unreliable(site.cluster)
        site.restart(unreliable)
        fault = chance.choice(["killed-before", "killed-after"])
        unreliable.arm(chance.randrange(8), fault)
        with contextlib.suppress(Killed):
            site.serving.step()
        site.work()
        assert len(site.ready()) >= REPLICAS
        assert set(site.ready()) <= {OLD, NEW}
    site.restart()
    site.settle(2)
    assert site.ready() == [NEW] * REPLICAS
    assert (site.served("second"), site.served("first")) == (
        ("True", "Served"),
        ("False", "Replaced"),
    )
    assert site.made == 2 * REPLICAS  # no pod of the new model was started twice


def test_two_promotions_in_a_row_end_with_the_last(site: Site) -> None:
    site.promote(NEW, "second")
    site.serving.step()
    site.work()
    third = "2" * 64
    site.run("third", third)
    site.promote(third, "third")
    site.settle()
    assert site.ready() == [third] * REPLICAS
    assert [site.served(name)[1] for name in ("first", "second", "third")] == [
        "Replaced",
        "Replaced",
        "Served",
    ]


def test_without_a_deployment_or_a_directory_the_run_says_what_to_do(site: Site) -> None:
    uid = site.cluster.get("deployments", DEPLOYMENT)["metadata"]["uid"]
    site.promote(NEW, "second", directory=None)
    site.serving.step()
    assert site.served("second") == ("False", "NotServable")
    assert site.annotation() == OLD
    site.cluster.delete("deployments", DEPLOYMENT, uid=uid)
    site.promote(NEW, "second")
    site.serving.step()
    assert site.served("second") == ("False", "NotDeployed")
    assert "make deploy-serving" in site.message("second")


def test_a_running_run_keeps_the_condition_when_its_status_is_written() -> None:
    site = Site()
    site.world.submit("toy")
    site.world.step("toy", after=1)
    site.promote(NEW, "toy")
    site.serving.step()
    assert site.served("toy") == ("False", "RollingOut")
    site.world.to_the_end("toy")
    assert site.served("toy") == ("False", "RollingOut")
    assert site.world.condition("Succeeded", "toy")["status"] == "True"


def test_without_a_target_the_pointer_is_read_and_nothing_is_written(site: Site) -> None:
    unreliable = Unreliable(site.cluster)
    metrics = Controller(unreliable, lambda _url: site.world.store).metrics
    metrics.standing = Serving(unreliable, lambda _url: site.world.store, None).step()
    assert (metrics.standing.reason, metrics.standing.digest) == ("NotFollowed", OLD)
    assert [verb for verb, *_ in unreliable.calls] == ["get"]  # the platform's configuration
    assert metrics.registry.get_sample_value("selfalign_model_current", {"digest": OLD}) == 1
    assert metrics.registry.get_sample_value("selfalign_model_served", {"digest": OLD}) is None


def test_the_gauges_say_what_is_served() -> None:
    site = Site()
    target = DeploymentTarget(site.cluster)
    controller = Controller(site.cluster, lambda _url: site.world.store, serving=target)
    site.run("first", OLD)
    site.promote(OLD, "first")

    def gauge() -> str:
        from prometheus_client import generate_latest

        return generate_latest(controller.metrics.registry).decode()

    assert "selfalign_model_served" not in gauge()
    controller._serve()
    assert f'selfalign_model_served{{digest="{OLD}"}} 0.0' in gauge()
    assert "selfalign_last_promotion_timestamp_seconds 1.793494" in gauge()
