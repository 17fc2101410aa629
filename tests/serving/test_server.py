"""A real vLLM server on promoted models, started as the pods of charts/serving start it.

SELFALIGN_VLLM_PYTHON names an interpreter that has vllm, where this one has not.
"""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from selfalign.cli.main import cli
from selfalign.errors import DataError
from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.run.stage import run_stage
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


def promote(path: Path, seed: int) -> None:
    config = load_config(path, (REAL, SHORT, f"seed={seed}")).config
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
    assert found is not None
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
