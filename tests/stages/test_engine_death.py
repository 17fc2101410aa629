"""An engine is killed in the middle of a shard: what is committed stays, the rest is tried again,
and the artifact is the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from selfalign.config import RunConfig
from selfalign.errors import EngineError
from selfalign.run.stage import run_stage
from selfalign.store.artifact import ShardWriter
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Part
from tests.engines.server_process import free_port, transformers_serving, vllm_serving
from tests.pipeline_world import write_vllm_model
from tests.stages.planting import GOOD, config_of, plant, rows

VLLM = pytest.param(vllm_serving, marks=pytest.mark.filterwarnings("default"), id="vllm")


def planted(directory: Path, model: Path, url: str) -> RunConfig:
    changes = ["engine.server.give_up_after_seconds=1", "engine.server.concurrency=8"]
    changes.append("align.records_per_part=10")
    config = config_of(directory, model, "openai", *changes, server=url)
    plant(config, "candidates")
    plant(config, "prompts", rows(poisoned=False))
    return config


@pytest.mark.parametrize("serve", [pytest.param(transformers_serving, id="transformers"), VLLM])
def test_a_shard_goes_on_after_its_last_part_when_the_engine_was_killed(
    serve: Any, tmp_path: Path, tiny_base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if serve is vllm_serving and find_spec("vllm") is None:
        pytest.skip("vllm is not installed here")
    if serve is vllm_serving:
        tiny_base_model = tmp_path / "model"
        write_vllm_model(tiny_base_model)
    port, log = free_port(), tmp_path / "log"
    with serve(tiny_base_model, 512, log, port) as (url, kill):
        undisturbed = planted(tmp_path / "whole", tiny_base_model, url)
        expected = run_stage("align", undisturbed, LocalStore(Path(undisturbed.store)))
        assert expected is not None
        config = planted(tmp_path / "w", tiny_base_model, url)
        store = LocalStore(Path(config.store))
        commit = ShardWriter.commit

        def commit_and_kill(self: ShardWriter, *args: Any) -> Part:
            part = commit(self, *args)
            if len(self.committed()) == 2:
                kill()
            return part

        with monkeypatch.context() as patch:
            patch.setattr(ShardWriter, "commit", commit_and_kill)
            with pytest.raises(EngineError) as caught:
                run_stage("align", config, store)
    assert caught.value.exit_code == 70  # to be tried again
    before = {name: store.read(name) for name in store.list("artifacts/aligned_responses")}
    parts = [name for name in before if name.endswith(".json")]
    assert 2 <= len(parts) < len(GOOD) / 10
    with serve(tiny_base_model, 512, log, port):
        manifest = run_stage("align", config, store)
    assert manifest.digest == expected.digest
    assert manifest.counts == expected.counts
    assert {name: store.read(name) for name in before} == before
