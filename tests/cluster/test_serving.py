"""A promotion arrives on a real node: clients ask all the while, and no request is lost.

The stages run on this machine, against the bucket; the controller and the servers run on the node.
"""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfalign.deploy import cluster as preflight
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import connect
from selfalign.serving.directory import MARKER, ServedModel, directory_of
from selfalign.serving.probe import PROBE_NAME, Probe
from selfalign.store.files import file_sha256
from tests.pipeline_world import write_world

from .site import BUCKET, S3, Site, kubectl, until

pytestmark = pytest.mark.cluster
ROLL_SECONDS = 120.0
ASKED_PER_SECOND = 10
QUESTION = "How do I vacuum the sofa?"
PATIENCE_SECONDS = 300.0


@dataclass
class Client:
    """Asks ten times a second, whatever becomes of the requests before.

    Attributes:
        answers: what was answered, in the order of asking; None while that is not known.
        failures: what went wrong.
    """

    url: str
    answers: list[str | None] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Client:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        with ThreadPoolExecutor(32) as pool:
            while not self._stop.wait(1 / ASKED_PER_SECOND):
                self.answers.append(None)
                pool.submit(self._ask, len(self.answers) - 1)

    def _ask(self, number: int) -> None:
        try:
            self.answers[number] = ask(self.url)
        except Exception as error:  # noqa: BLE001 - whatever it was, the request is lost
            self.failures.append(f"request {number}: {type(error).__name__}: {error}")


def ask(url: str) -> str:
    """One answer of what is served."""
    body = {
        "model": "selfalign",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 8,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "text/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.loads(response.read())["choices"][0]["message"]["content"])


@dataclass
class Served:
    """A site that serves, and the world whose models are promoted there."""

    site: Site
    config: Path

    def promote(self, *overrides: str) -> tuple[str, str]:
        """`selfalign run` with this store; the run's name and the digest of the promoted model."""
        sets = [part for each in overrides for part in ("--set", each)]
        done = self.site.cli("run", "--config", str(self.config), "--json", *sets)
        assert done.returncode == 0, done.stdout + done.stderr
        pointer = self.pointer()
        return pointer["run"], pointer["model"]["digest"]

    def pointer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read("current.json"))
        return found

    def read(self, key: str) -> bytes:
        data: bytes = self._client().get_object(Bucket=BUCKET, Key=self._key(key))["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        self._client().put_object(Bucket=BUCKET, Key=self._key(key), Body=data)

    def _key(self, key: str) -> str:
        return f"{self.site.namespace}/{key}"

    def _client(self) -> Any:
        import boto3

        from .site import SECRET

        return boto3.client(
            "s3", endpoint_url=self.site.s3.url, region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key=SECRET,
        )  # fmt: skip

    def rollback(self, *arguments: str) -> None:
        done = self.site.cli("rollback", "--config", str(self.config), *arguments)
        assert done.returncode == 0, done.stderr

    def condition(self, run: str) -> tuple[str, str]:
        found = crd.condition(self.site.cluster.get("alignmentruns", run), "Served")
        return ("", "") if found is None else (found["reason"], found["message"])

    def arrives(self, run: str, reason: str = "Served") -> float:
        """Seconds until the run's condition has this reason."""
        began = time.monotonic()
        until(lambda: self.condition(run)[0] == reason, f"{run}: {reason}", PATIENCE_SECONDS)
        return time.monotonic() - began

    def url(self) -> str:
        service = json.loads(
            kubectl("-n", self.site.namespace, "get", "service", "selfalign-serving", "-o", "json")
        )["spec"]
        return f"http://{service['clusterIP']}:{service['ports'][0]['port']}"

    def plant(self, digest: str, answer: str) -> bytes:
        """Give a model a probe that it cannot pass; the probe that it had."""
        directory = directory_of(digest)
        was = self.read(f"{directory}/{PROBE_NAME}")
        probe = Probe.model_validate_json(was)
        wrong = [q.model_copy(update={"answer": answer}) for q in probe.questions]
        self.replace(digest, probe.model_copy(update={"questions": wrong}).to_bytes())
        return was

    def replace(self, digest: str, probe: bytes) -> None:
        directory = directory_of(digest)
        marker = ServedModel.model_validate_json(self.read(f"{directory}/{MARKER}"))
        path = self.site.directory / PROBE_NAME
        path.write_bytes(probe)
        known = {"sha256": file_sha256(path), "bytes": len(probe)}
        files = [f.model_copy(update=known) if f.name == PROBE_NAME else f for f in marker.files]
        self.write(f"{directory}/{PROBE_NAME}", probe)
        marked = marker.model_copy(update={"files": files})
        self.write(f"{directory}/{MARKER}", marked.to_bytes())


@pytest.fixture
def served(image_tag: str, s3: S3, tiny_base_model: Path, tmp_path: Path) -> Iterator[Served]:
    """A namespace with the platform and a server of the promoted model."""
    name = f"selfalign-test-{uuid.uuid4().hex[:8]}"
    preflight.ensure_namespace(name)
    try:
        world = tmp_path / "world"
        world.mkdir()
        path = write_world(world, tiny_base_model)
        config = yaml.safe_load(path.read_text())
        config["store"] = f"s3://{BUCKET}/{name}"
        config["evaluate"] |= {
            "engine": {"kind": "transformers"},
            "sampling": {"temperature": 0.0, "max_new_tokens": 24},
        }
        config["clone"]["learning_rate"] = 0.05  # so that more steps give another model
        path.write_text(yaml.safe_dump(config))
        site = Site(connect(name), s3, image_tag, {}, tmp_path)
        resolved = tmp_path / "resolved.yaml"
        pushed = site.cli("inputs", "push", "--config", str(path), "--out", str(resolved))
        assert pushed.returncode == 0, pushed.stderr
        site.config = yaml.safe_load(resolved.read_text())
        site.deploy(serving=True)
        yield Served(site, resolved)
    finally:
        kubectl("delete", "namespace", name, "--wait=false", check=False)


def test_promotions_arrive_while_clients_ask_and_a_failed_probe_leaves_the_old_model(
    served: Served,
) -> None:
    site = served.site
    first, old = served.promote()
    site.create_run(first, suspend=True)  # its record in the cluster; it starts nothing
    port = int(site.s3.url.rpartition(":")[2])
    values = site.directory / "serving.yaml"
    values.write_text(yaml.safe_dump({"drainSeconds": 5, "networkPolicy": {"storePorts": [port]}}))
    site.make("deploy-serving", VALUES=str(values))
    print(f"first model served after {served.arrives(first):.0f} s")
    url = served.url()
    of_old = ask(url)

    with Client(url) as client:
        second, new = served.promote("seed=7", "clone.max_steps=40")
        assert new != old
        site.create_run(second, suspend=True, config={"seed": 7, "clone": {"max_steps": 40}})
        chance, stop = random.Random(3), threading.Event()

        def kill() -> None:
            while not stop.wait(chance.uniform(0.2, 2)):
                site.kill_controller()

        killer = threading.Thread(target=kill)
        killer.start()
        time.sleep(20)
        stop.set()
        killer.join()
        site.renew_controller_pod()
        print(f"second model served after {served.arrives(second):.0f} s more")
    assert client.failures == []
    of_new = ask(url)
    assert of_new != of_old
    assert set(client.answers) == {of_old, of_new}
    assert served.condition(first)[0] == "Replaced"
    print(f"{len(client.answers)} answers, {client.answers.count(of_old)} of the old model")

    probe = served.plant(old, "Never.")
    with Client(url) as client:
        served.rollback()
        served.arrives(first, "NotReady")
        assert "answers as evaluated" in served.condition(first)[1]
        time.sleep(10)
    assert client.failures == []
    assert set(client.answers) == {of_new}

    served.replace(old, probe)
    served.rollback("--to", served.pointer()["rolled_back"][0]["key"])
    served.arrives(second)
    with Client(url) as client:
        served.rollback()
        seconds = served.arrives(first)
        print(f"rollback arrived after {seconds:.0f} s")
    assert seconds < ROLL_SECONDS
    assert client.failures == []
    assert ask(url) == of_old
