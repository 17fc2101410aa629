"""A real vLLM server on a promoted model answers as `selfalign chat` does.

SELFALIGN_VLLM_PYTHON names an interpreter that has vllm, where this one has not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.run.stage import run_stage
from selfalign.store.local import LocalStore
from tests.pipeline_world import WORDS, write_llama, write_world

PROJECT = Path(__file__).resolve().parents[2]
VLLM_PYTHON = os.environ.get("SELFALIGN_VLLM_PYTHON") or (
    sys.executable if importlib.util.find_spec("vllm") else None
)


@pytest.mark.skipif(VLLM_PYTHON is None, reason="no vllm here, and no SELFALIGN_VLLM_PYTHON")
def test_the_server_answers_as_chat_does(tmp_path: Path) -> None:
    assert VLLM_PYTHON is not None
    base = tmp_path / "base"
    write_llama(
        base,
        list(dict.fromkeys(WORDS)),
        hidden_size=64,  # heads of 32, which vLLM has kernels for
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
    )
    world = tmp_path / "world"
    world.mkdir()
    path = write_world(world, base)
    config = load_config(path).config
    for stage in STAGES:
        run_stage(stage.name, config, LocalStore(Path(config.store)))
    done = subprocess.run(
        [
            *(sys.executable, str(PROJECT / "benchmarks/serving/same_answers.py")),
            *("--config", str(path), "--set", 'evaluate.engine={"kind":"transformers"}'),
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
