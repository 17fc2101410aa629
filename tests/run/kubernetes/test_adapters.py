"""The serving Deployment in the form adapter: its pods are asked, and rolled where they say so."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from selfalign.run.executors.kubernetes import adapters
from selfalign.run.executors.kubernetes.adapters import FORM_LABEL
from selfalign.run.executors.kubernetes.deployment import (
    DEPLOYMENT,
    DIGEST_ANNOTATION,
    DeploymentTarget,
)
from selfalign.run.executors.kubernetes.serving import Wanted
from tests.loopback import answering

from .memory import MemoryCluster

SLOW, MOVED = b"slow", b"moved"
OLD, NEW = "0" * 64, "1" * 64
LABELS = {"app.kubernetes.io/name": "selfalign-serving"}


class Site:
    """A Deployment of two pods, at 127.0.0.1 and 127.0.0.2, that answer over HTTP.

    Attributes:
        says: what each pod answers, by its address; bytes are sent as they are.
    """

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.says: dict[str, Any] = {}
        template = {"metadata": {"annotations": {DIGEST_ANNOTATION: OLD}}}
        spec = {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template}
        metadata = {"name": DEPLOYMENT, "labels": {FORM_LABEL: "adapter"}}
        self.cluster.create("deployments", {"metadata": metadata, "spec": spec})
        for number in (1, 2):
            annotations = {DIGEST_ANNOTATION: OLD}
            named = {"name": f"pod-{number}", "labels": LABELS, "annotations": annotations}
            self.cluster.create("pods", {"metadata": named})
            ready = {"type": "Ready", "status": "True"}
            address = f"127.0.0.{number}"
            status = {"phase": "Running", "podIP": address, "conditions": [ready]}
            self.cluster.set_status("pods", f"pod-{number}", status)
            self.says[address] = {"digest": OLD, "found": {"wanted": OLD, "reason": "Served"}}
        self.count(replicas=2, updatedReplicas=2, availableReplicas=2)

    def count(self, **counts: int) -> None:
        found = self.cluster.get("deployments", DEPLOYMENT)
        seen = {"observedGeneration": found["metadata"]["generation"]}
        status = {**(found.get("status") or {}), **counts, **seen}
        self.cluster.set_status("deployments", DEPLOYMENT, status)

    def follow(self, digest: str) -> tuple[str, str]:
        return DeploymentTarget(self.cluster).follow(Wanted(digest, "s3://b/m", None, "t"), None)

    def pinned(self) -> str:
        template = self.cluster.get("deployments", DEPLOYMENT)["spec"]["template"]
        found: str = template["metadata"]["annotations"][DIGEST_ANNOTATION]
        return found


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found, done = Site(), threading.Event()

    class Pod(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = found.says[self.connection.getsockname()[0]]
            assert self.path == "/selfalign/status"
            if said == SLOW:
                while not done.wait(0.05):  # a byte now and then, for ever
                    self.wfile.write(b"x")
                return
            self.send_response(301 if said == MOVED else 200)
            self.send_header("Location", "http://127.0.0.2/selfalign/status")
            self.end_headers()
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("0.0.0.0", 0), Pod) as server:
        monkeypatch.setattr(adapters, "_PORT", server.server_port)
        with answering(server):
            yield found
            done.set()


def test_a_model_is_served_when_every_pod_says_so_and_nothing_is_rolled(site: Site) -> None:
    assert site.follow(OLD) == ("Served", f"model {OLD}")
    site.says["127.0.0.1"] = {"digest": NEW, "found": {}}
    assert site.follow(NEW)[0] == "RollingOut"
    site.says["127.0.0.2"] = {"digest": NEW, "found": {}}
    assert site.follow(NEW) == ("Served", f"model {NEW}")
    assert site.pinned() == OLD


def test_a_pod_whose_adapter_failed_says_why(site: Site) -> None:
    told = f"model {NEW[:12]}: 2 of 8 answers\nas evaluated\x1b[2J"
    found = {"wanted": NEW, "reason": "Failed", "message": told}
    site.says["127.0.0.2"] = {"digest": OLD, "found": found}
    site.says["127.0.0.1"] = {"digest": NEW, "found": {}}
    reason, message = site.follow(NEW)
    assert reason == "NotReady"
    assert "pod pod-2: " in message
    assert "2 of 8 answers as evaluated" in message
    assert "\x1b" not in message
    assert "what was served before goes on; remedy: " in message
    assert site.pinned() == OLD


def test_a_model_that_needs_another_server_rolls_the_deployment(site: Site) -> None:
    found = {"wanted": NEW, "reason": "OtherServer", "message": ""}
    site.says["127.0.0.1"] = {"digest": OLD, "found": found}
    assert site.follow(NEW)[0] == "RollingOut"
    assert site.pinned() == NEW
    # the roll is under way, and the pointer goes back: the roll goes back too
    site.count(replicas=3, updatedReplicas=1, availableReplicas=2)
    assert site.follow(OLD)[0] == "RollingOut"
    assert site.pinned() == OLD


def test_servers_of_which_none_is_ready_are_started_anew_with_the_wanted_model(site: Site) -> None:
    site.count(availableReplicas=0)
    assert site.follow(NEW)[0] == "RollingOut"
    assert site.pinned() == NEW


def test_a_lost_pod_rolls_nothing_and_what_holds_it_up_is_told(site: Site) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    status = {"phase": "Pending", "containerStatuses": [{"name": "server", "state": waiting}]}
    site.cluster.set_status("pods", "pod-2", status)
    site.count(availableReplicas=1)
    reason, message = site.follow(OLD)
    assert reason == "NotReady"
    assert "server: ImagePullBackOff: no such image" in message
    site.says["127.0.0.1"] = {"digest": NEW, "found": {}}
    assert site.follow(NEW)[0] == "NotReady"
    assert site.pinned() == OLD


@pytest.mark.parametrize("said", [b"no JSON", b"[]", b"[" * 2000, b"\xff", MOVED])
def test_a_pod_that_answers_something_else_is_named(site: Site, said: bytes) -> None:
    site.says["127.0.0.1"] = said
    reason, message = site.follow(OLD)
    assert reason == "NotReady"
    assert "pod pod-1 does not answer" in message
    assert "networkPolicy" in message


def test_a_pod_that_cannot_be_reached_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_PORT", 9)
    assert "pod pod-1 does not answer at port 9" in site.follow(OLD)[1]


def test_a_pod_that_never_ends_its_answer_holds_nobody_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_TIMEOUT_SECONDS", 0.3)
    site.says["127.0.0.1"] = SLOW
    assert "does not answer at port" in site.follow(OLD)[1]
    assert "nothing within 0.3 s" in site.follow(OLD)[1]
