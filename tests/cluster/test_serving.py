"""A promotion arrives on a real node: clients ask all the while, and no request is lost.

The stages run on this machine, against the bucket; the controller and the servers run on the node.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
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

from .site import BUCKET, PROJECT, S3, Site, kubectl, until

pytestmark = pytest.mark.cluster
ROLL_SECONDS = 120.0
ASKED_PER_SECOND = 10
QUESTIONS = 12
PATIENCE_SECONDS = 300.0
SERVICES = "inferenceservices"

Answers = dict[str, str]  # question: answer


@dataclass
class Client:
    """Asks ten times a second, in turn, whatever becomes of the requests before.

    Attributes:
        answers: question and answer, in the order of asking; None while that is not known.
        failures: what went wrong.
    """

    url: str
    questions: list[str]
    answers: list[tuple[str, str] | None] = field(default_factory=list)
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
        question = self.questions[number % len(self.questions)]
        try:
            self.answers[number] = (question, ask(self.url, question))
        except Exception as error:  # noqa: BLE001 - whatever it was, the request is lost
            self.failures.append(f"request {number}: {type(error).__name__}: {error}")

    def seen(self, *models: Answers) -> Counter[int]:
        """How many answers tell each model from the others; raises for one that is of none."""
        assert self.failures == []
        told = [answer for answer in self.answers if answer is not None]
        assert len(told) == len(self.answers)
        found: Counter[int] = Counter()
        for question, answer in told:
            of = [number for number, model in enumerate(models) if model[question] == answer]
            assert of, f"{question!r} was answered {answer!r}, by none of {models}"
            if len(of) == 1:
                found[of[0]] += 1
        return found


def ask(url: str, question: str) -> str:
    """One answer of what is served."""
    body = {
        "model": "selfalign",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 12,
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
    questions: list[str]

    def client(self) -> Client:
        return Client(self.url(), self.questions)

    def answers(self) -> Answers:
        """What the served model says."""
        return {question: ask(self.url(), question) for question in self.questions}

    def promote(self, *overrides: str) -> tuple[str, str]:
        """`selfalign run` with this store; the run's name and the digest of the promoted model."""
        sets = [part for each in overrides for part in ("--set", each)]
        done = self.site.cli("run", "--config", str(self.config), "--json", *sets)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["promoted"], done.stdout
        pointer = self.pointer()
        return pointer["run"], pointer["model"]["digest"]

    def pointer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read("current.json"))
        return found

    def read(self, key: str) -> bytes:
        data: bytes = (
            self.site.s3.client().get_object(Bucket=BUCKET, Key=self._key(key))["Body"].read()
        )
        return data

    def write(self, key: str, data: bytes) -> None:
        self.site.s3.client().put_object(Bucket=BUCKET, Key=self._key(key), Body=data)

    def _key(self, key: str) -> str:
        return f"{self.site.namespace}/{key}"

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
def served(
    request: pytest.FixtureRequest, image_tag: str, s3: S3, local_config: Path, tmp_path: Path
) -> Iterator[Served]:
    """A namespace with the platform, whose controller follows the promoted model.

    The fixture's parameter is the section `serving` of the platform's values; without one the
    server of charts/serving is rolled.
    """
    name = f"selfalign-test-{uuid.uuid4().hex[:8]}"
    preflight.ensure_namespace(name)
    try:
        site = Site(connect(name), s3, image_tag, {}, tmp_path)
        resolved = site.push_inputs(local_config)
        heldout = (local_config.parent / "heldout.jsonl").read_text().splitlines()
        site.deploy(serving=getattr(request, "param", {"kind": "vllm"}))
        questions = [json.loads(line)["prompt"] for line in heldout[:QUESTIONS]]
        yield Served(site, resolved, questions)
    finally:
        kubectl("delete", "namespace", name, "--wait=false", check=False)


def write_values(site: Site) -> str:
    """The file of values for `make deploy-serving`."""
    path = site.directory / "serving.yaml"
    port = int(site.s3.url.rpartition(":")[2])
    path.write_text(yaml.safe_dump({"drainSeconds": 5, "networkPolicy": {"storePorts": [port]}}))
    return str(path)


def test_the_readmes_block_that_ends_with_curl_answers(served: Served) -> None:
    site = served.site
    served.promote()
    blocks = (PROJECT / "README.md").read_text().split("```")[1::2]
    (block,) = [block for block in blocks if "port-forward" in block]
    script = block.replace("-n selfalign ", f"-n {site.namespace} ") + "echo\n"  # ends curl's line
    given = {"NAMESPACE": site.namespace, "VARIANT": "cpu", "SKIP_BUILD": "1",
             "IMAGE_TAG": site.tag, "VALUES": write_values(site)}  # fmt: skip
    with subprocess.Popen(
        ["bash", "-c", script], cwd=PROJECT, env={**os.environ, **given}, start_new_session=True,
        stdout=subprocess.PIPE, text=True,
    ) as shell:  # fmt: skip
        assert shell.stdout is not None
        told: list[str] = []
        try:
            while not told or "choices" not in told[-1]:
                told.append(shell.stdout.readline())
                assert told[-1], "".join(told)
        finally:
            os.killpg(shell.pid, signal.SIGTERM)  # the port-forward too
    (choice,) = json.loads(told[-1])["choices"]
    assert choice["message"]["role"] == "assistant", told[-1]
    print(told[-1])


def test_promotions_arrive_while_clients_ask_and_a_failed_probe_leaves_the_old_model(
    served: Served,
) -> None:
    site = served.site
    first, old = served.promote()
    site.create_run(first, suspend=True)  # its record in the cluster; it starts nothing
    site.make("deploy-serving", VALUES=write_values(site))
    print(f"first model served after {served.arrives(first):.0f} s")
    of_old = served.answers()

    with served.client() as client:
        second, new = served.promote("seed=7")
        assert new != old
        site.create_run(second, suspend=True, config={"seed": 7})
        print(f"second model served after {served.arrives(second):.0f} s")
    of_new = served.answers()
    assert of_new != of_old
    seen = client.seen(of_old, of_new)
    assert min(seen[0], seen[1]) > 0, seen
    assert served.condition(first)[0] == "Replaced"
    print(f"{len(client.answers)} answers; {seen[0]} could only be the old model's, {seen[1]} the "
          "new one's")  # fmt: skip

    probe = served.plant(old, "Never.")
    with served.client() as client:
        served.rollback()
        served.arrives(first, "NotReady")
        assert "answers as evaluated" in served.condition(first)[1]
        time.sleep(10)
    assert set(client.seen(of_old, of_new)) == {1}

    served.replace(old, probe)
    key = served.pointer()["rolled_back"][0]["key"]
    served.rollback("--to", key)
    served.arrives(first, "Replaced")  # the second was served all the time
    with served.client() as client:
        served.rollback()
        seconds = served.arrives(first)
        print(f"rollback arrived after {seconds:.0f} s")
    assert seconds < ROLL_SECONDS
    client.seen(of_old, of_new)
    assert served.answers() == of_old

    kills = 0
    for run, arguments, of_it in ((second, ("--to", key), of_new), (first, (), of_old)) * 2:
        with served.client() as client:
            served.rollback(*arguments)
            kills += _kill_the_controller(site, 5)
            print(f"rolled after {served.arrives(run):.0f} s more, {kills} kills so far")
        client.seen(of_old, of_new)
        assert served.answers() == of_it
    assert kills == 20


@pytest.mark.parametrize(
    "served", [{"kind": "kserve", "kserve": {"name": "aligned"}}], indirect=True
)
def test_an_inference_service_is_pointed_at_each_promoted_model_and_nothing_else_of_it_changes(
    served: Served,
) -> None:
    site = served.site
    if not kubectl("get", "crd", f"{SERVICES}.serving.kserve.io", "--ignore-not-found"):
        pytest.skip("the cluster does not have KServe's resource InferenceService")
    model = {"modelFormat": {"name": "huggingface"}, "args": ["--model_name=selfalign"]}
    body = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "aligned"},
        "spec": {"predictor": {"serviceAccountName": "models", "model": model}},
    }
    kubectl("-n", site.namespace, "create", "-f", "-", stdin=body)

    def points_at(digest: str) -> bool:
        found = site.cluster.get(SERVICES, "aligned")["spec"]["predictor"]
        uri = found["model"].pop("storageUri", None)
        assert found == {"serviceAccountName": "models", "model": model}
        return bool(uri == f"s3://{BUCKET}/{site.namespace}/{directory_of(digest)}")

    def say(ready: str, message: str) -> None:
        """What KServe's controller would."""
        generation = site.cluster.get(SERVICES, "aligned")["metadata"]["generation"]
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": at, "message": message}
        status = {"observedGeneration": generation, "conditions": [condition]}
        kubectl("-n", site.namespace, "patch", SERVICES, "aligned", "--subresource=status",
                "--type=merge", "-p", json.dumps({"status": status}))  # fmt: skip

    first, old = served.promote()
    site.create_run(first, suspend=True)
    until(lambda: points_at(old), "the first model", PATIENCE_SECONDS)
    served.arrives(first, "RollingOut")
    say("True", "")
    served.arrives(first)

    second, new = served.promote("seed=7")
    site.create_run(second, suspend=True, config={"seed": 7})
    until(lambda: points_at(new), "the second model", PATIENCE_SECONDS)
    say("False", "no GPU")
    served.arrives(second, "NotReady")
    assert "no GPU" in served.condition(second)[1]
    served.rollback()
    until(lambda: points_at(old), "the first model again", PATIENCE_SECONDS)
    say("True", "")
    served.arrives(first)


def _kill_the_controller(site: Site, times: int) -> int:
    """SIGKILL it at that many random moments, each in a new pod: none waits for its restart."""
    chance = random.Random(3)
    for _ in range(times):
        until(site.kill_controller, "a controller to kill", 60)
        site.renew_controller_pod()
        time.sleep(chance.uniform(0.5, 6))
    return times
