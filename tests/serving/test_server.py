"""A real vLLM server on promoted models, started as the pods of charts/serving start it.

SELFALIGN_VLLM_PYTHON names an interpreter that has vllm, where this one has not.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from selfalign.cli.main import cli
from selfalign.errors import DataError, TemporaryError
from selfalign.inputs import push_inputs
from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.run.stage import run_stage
from selfalign.serving.alias import current_digest
from selfalign.serving.directory import MARKER, directory_of, read_served
from selfalign.serving.probe import PROBE_NAME, Probe, call, served_names
from selfalign.stages.adapters import Follower
from selfalign.stages.models import current_model
from selfalign.stages.rollback import roll_back
from selfalign.store.local import LocalStore
from tests.engines.server_process import free_port
from tests.pipeline_world import WORDS, write_llama, write_world

PROJECT = Path(__file__).resolve().parents[2]
VLLM_PYTHON = os.environ.get("SELFALIGN_VLLM_PYTHON") or (
    sys.executable if importlib.util.find_spec("vllm") else ""
)
pytestmark = pytest.mark.skipif(
    not VLLM_PYTHON, reason="no vllm here, and no SELFALIGN_VLLM_PYTHON"
)
REAL = 'evaluate.engine={"kind":"transformers"}'
SHORT = "evaluate.sampling={temperature: 0, max_new_tokens: 24}"
QUESTIONS = [f"How do I vacuum the {word}?" for word in ("sofa", "soap", "person", "fair deed")]
ENVIRONMENT = {
    "PYTHONPATH": str(PROJECT),
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a world with one promoted model."""
    directory = tmp_path_factory.mktemp("world")
    base = directory / "base"
    write_llama(
        base,
        list(dict.fromkeys(WORDS)),
        hidden_size=64,  # heads of 32, which vLLM has kernels for
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
    )
    (directory / "run").mkdir()
    path = write_world(directory / "run", base)
    promote(path, seed=0)
    return path


def promote(path: Path, seed: int, *overrides: str) -> None:
    config = load_config(path, (REAL, SHORT, f"seed={seed}", *overrides)).config
    for stage in STAGES:
        run_stage(stage.name, config, LocalStore(Path(config.store)))


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["serving", *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


class Server:
    """`selfalign serving start` on a fetched model, until the block ends."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.log = directory.with_suffix(".log")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(VLLM_PYTHON, "-m", "selfalign", "serving", "start", str(directory)),
                    *("--port", str(self.port), "--shutdown-seconds", "600"),
                    *("--", "--enforce-eager", "--gpu-memory-utilization", "0.1"),
                ],
                stdout=output,
                stderr=output,
                env={**os.environ, **ENVIRONMENT},
            )

    def wait(self) -> None:
        """Until it answers /health, as the readiness probe asks."""
        for _ in range(1200):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5),
            ):
                return
            time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def running(self) -> bool:
        """Whether it is at work on a request."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        (found,) = (line for line in lines if line.startswith("vllm:num_requests_running{"))
        return float(found.split()[-1]) > 0

    def ask(self, **body: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "How do I clean a carpet?"}]
        data = json.dumps({"model": "selfalign", "messages": messages, **body}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=900) as response:
            found: dict[str, Any] = json.load(response)
            return found


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Server]:
    server = Server(directory)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()  # killed, it would leave its engine's processes behind
        server.process.wait(120)


def readme_curl(port: int) -> str:
    """The README's request, as it stands there but for the port: the rest of its block."""
    found = re.search(r"curl -s [^`]+", (PROJECT / "README.md").read_text())
    return found[0].replace("localhost:8000", f"localhost:{port}")


def test_the_server_answers_as_chat_does(world: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(PROJECT / "benchmarks/serving/same_answers.py")),
            *("--config", str(world), "--set", REAL),
            *("--python", VLLM_PYTHON, "--max-tokens", "12", "--log", str(tmp_path / "log")),
        ],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["different"] == []
    assert (found["conversations"], found["answers"]) == (50, 100)
    assert found["distinct_answers"] > 5


def test_a_promotion_arrives_and_the_old_server_answers_what_it_has_accepted(
    world: Path, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    invoke("fetch", "--config", str(world), "--to", str(before))
    with serving(before) as old:
        done = subprocess.run(
            ["bash", "-c", readme_curl(old.port)], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["choices"][0]["message"]["content"]
        assert "4 of 4 answers as evaluated" in invoke("probe", str(before), "--url", old.url)
        promote(world, seed=11)
        invoke("fetch", "--config", str(world), "--to", str(after))
        with pytest.raises(DataError, match="not the model"):
            invoke("probe", str(after), "--url", old.url)
        with serving(after) as new:
            assert "4 of 4 answers as evaluated" in invoke("probe", str(after), "--url", new.url)
        long: list[dict[str, Any]] = []
        body = {"n": 16, "max_tokens": 900, "temperature": 1.0, "ignore_eos": True}
        client = threading.Thread(target=lambda: long.append(old.ask(**body)))
        client.start()
        while not old.running():
            assert client.is_alive()
        old.process.send_signal(signal.SIGTERM)
        client.join(900)
        assert long[0]["usage"]["completion_tokens"] == 16 * 900
        assert old.process.wait(120) == 0


class Clients:
    """Ask ten times a second, each in a thread of its own, until the block ends.

    Attributes:
        answers: (question, the model that the server names, its answer).
        failures: what went wrong.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.answers: list[tuple[str, str, str]] = []
        self.failures: list[str] = []
        self._asked = 0
        self._stop = threading.Event()

    def __enter__(self) -> Clients:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failures == []
        assert len(self.answers) == self._asked

    def wait(self, count: int) -> None:
        """Until so many more answers are there."""
        enough = len(self.answers) + count
        while len(self.answers) < enough:
            assert self.failures == []
            time.sleep(0.05)

    def _work(self) -> None:
        with ThreadPoolExecutor(32) as pool:
            while not self._stop.wait(0.1):
                pool.submit(self._ask, QUESTIONS[self._asked % len(QUESTIONS)])
                self._asked += 1

    def _ask(self, question: str) -> None:
        try:
            self.answers.append((question, *answer(self.server, "selfalign", question)))
        except Exception as error:  # noqa: BLE001 - whatever it was, the request is lost
            self.failures.append(f"{type(error).__name__}: {error}")


def answer(server: Server, model: str, question: str) -> tuple[str, str]:
    """The model that the server names, and its answer."""
    asked = [{"role": "user", "content": question}]
    found = server.ask(model=model, messages=asked, max_tokens=12, temperature=0)
    return found["model"], found["choices"][0]["message"]["content"]


def refused(server: Server, path: str, body: dict[str, Any], method: str = "POST") -> int:
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        server.url + path, data, {"Content-Type": "application/json"}, method=method
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    with error.value:
        return error.value.code


def probed(directory: Path, url: str) -> None:
    """The startup probe passes; a server that is slow to answer at first is asked again."""
    while True:
        with contextlib.suppress(TemporaryError):
            assert "4 of 4 answers as evaluated" in invoke("probe", str(directory), "--url", url)
            return


def arrives(follower: Follower, digest: str) -> None:
    """Follow until the model is served; a server too busy for its probe in time is asked again."""
    while (status := follower.step()).reason != "Served":
        assert "timed out" in status.message
    assert (status.wanted, current_digest(follower.directory)) == (digest, digest)


def plant(store: LocalStore, digest: str) -> None:
    """Give a promoted model a probe that it cannot pass."""
    place, marker = f"{directory_of(digest)}/{PROBE_NAME}", read_served(store, digest)
    assert marker is not None
    probe = Probe.model_validate_json(store.read(place))
    wrong = [question.model_copy(update={"answer": "Never."}) for question in probe.questions]
    data = probe.model_copy(update={"questions": wrong}).to_bytes()
    known = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    files = [f.model_copy(update=known) if f.name == PROBE_NAME else f for f in marker.files]
    store.write(place, data)
    marked = marker.model_copy(update={"files": files}).to_bytes()
    store.write(f"{directory_of(digest)}/{MARKER}", marked)


def test_adapters_take_each_others_place_in_one_server_and_no_request_is_lost(
    world: Path, tmp_path: Path
) -> None:
    config = load_config(world, (REAL, SHORT)).config
    store = LocalStore(Path(config.store))
    push_inputs(config, store)
    promote(world, 22, "clone.learning_rate=0.01")  # answers otherwise
    newest = current_model(store)
    new = newest.digest
    roll_back(store)
    directory = tmp_path / "adapters"
    invoke("fetch", "--config", str(world), "--form", "adapter", "--to", str(directory))
    old = current_digest(directory)
    with serving(directory) as server:
        follower = Follower(store, directory, server.url, None)

        def answers(digest: str) -> dict[tuple[str, str], str]:
            """What the model says, asked by its digest."""
            return {
                (question, digest): answer(server, digest, question)[1] for question in QUESTIONS
            }

        probed(directory / "current", server.url)
        assert follower.step().reason == "Served"
        said = answers(old)
        long: list[dict[str, Any]] = []
        body = {"model": "selfalign", "max_tokens": 900, "temperature": 1.0, "ignore_eos": True}
        client = threading.Thread(target=lambda: long.append(server.ask(**body)))
        client.start()
        with Clients(server) as clients:
            clients.wait(20)
            roll_back(store, to=newest.key)
            began = time.monotonic()
            arrives(follower, new)
            print(f"promotion arrived in {time.monotonic() - began:.2f} s")
            said |= answers(new)
            client.join(900)
            assert (long[0]["model"], long[0]["usage"]["completion_tokens"]) == (old, 900)
            clients.wait(20)
            follower.step()
            assert served_names(server.url) == ["base", new]
            roll_back(store)
            arrives(follower, old)
            clients.wait(20)
        seen = [model for _, model, _ in clients.answers]
        print(
            f"{len(seen)} answers, {seen.count(old)} of the old model, {seen.count(new)} of the new"
        )
        assert min(seen.count(old), seen.count(new)) > 0
        for question, model, text in clients.answers:
            assert said[question, model] == text
        assert any(said[question, new] != said[question, old] for question in QUESTIONS)

        plant(store, new)
        roll_back(store, to=newest.key)
        with Clients(server) as clients:
            while "0 of 4 answers as evaluated" not in (status := follower.step()).message:
                assert "timed out" in status.message
            assert status.reason == "Failed"
            told = call(f"{server.url}/selfalign/status")
            assert (told["digest"], told["found"]["reason"]) == (old, "Failed")
        assert {model for _, model, _ in clients.answers} == {old}

        foreign = {"lora_name": "0" * 64, "lora_path": str(tmp_path)}
        assert refused(server, "/v1/load_lora_adapter", foreign) == 403
        assert refused(server, "/v1/unload_lora_adapter", {"lora_name": old}) == 403
        assert refused(server, "/adapters", {"name": "x", "src": str(tmp_path)}) == 403
        assert refused(server, f"/adapters/{old}", {}, "DELETE") == 403
        assert refused(server, "/v1/completions", {"model": "base", "prompt": "a"}) == 404
