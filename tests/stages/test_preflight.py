"""What can be known to fail later is refused before a run begins."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import structlog

from selfalign.errors import ConfigurationError, DataError, SelfAlignError
from selfalign.load import load_config
from selfalign.seeds import load_seeds
from selfalign.stages.preflight import check_run
from tests.pipeline_world import write_world


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """A world's configuration; its base model is never looked at."""
    (tmp_path / "world").mkdir()
    return write_world(tmp_path / "world", tmp_path / "base_model")


def checked(path: Path, *overrides: str, until: str | None = None) -> None:
    config = load_config(path, overrides).config
    check_run(config, load_seeds(config.seeds), until=until)


@pytest.mark.parametrize(
    ("override", "error", "said", "harmless_until"),
    [
        ("curate.num_shards=2", ConfigurationError, "curate cannot be sharded", "instruct"),
        ("evaluate.heldout=null", ConfigurationError, "no evaluation data", "clone"),
        ("evaluate.ablate_principles=[9]", ConfigurationError, "9", "clone"),
        (
            "promote.rules=[{metric: heldout.algned, against: base}]",
            ConfigurationError,
            "unknown metric 'heldout.algned'; known are heldout.aligned",
            "evaluate",
        ),
        (
            "promote.rules=[{metric: heldout.aligned/fair, against: base}]",
            ConfigurationError,
            "no items of kind 'fair'; it has benign, harmful",
            "evaluate",
        ),
        ("evaluate.hhh=broken.jsonl", DataError, "broken.jsonl", "instruct"),
        ("evaluate.hhh_template=broken.jsonl", ConfigurationError, "broken.jsonl", "clone"),
    ],
)
def test_a_mistake_is_told_before_anything_runs_if_its_stage_will_run(
    config_path: Path, override: str, error: type[SelfAlignError], said: str, harmless_until: str
) -> None:
    (config_path.parent / "broken.jsonl").write_text('{"id": ')
    checked(config_path)
    with pytest.raises(error, match=said):
        checked(config_path, override)
    checked(config_path, override, until=harmless_until)


def test_a_base_model_is_checked_where_it_is_a_directory(world: Path) -> None:
    checked(world)
    for stage in ("engrave", "clone"):
        override = f"{stage}.lora.target_modules=[q_proj, query]"
        with pytest.raises(ConfigurationError, match=r"no module 'query'; it has .*q_proj"):
            checked(world, override)
        checked(world, override, until="align")
        checked(world, override, f"{stage}.method=full")


def test_it_is_said_that_a_base_model_cannot_be_checked_here(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with structlog.testing.capture_logs() as said:
        checked(world)
    assert "base_model.unchecked" not in [line["event"] for line in said]
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with structlog.testing.capture_logs() as said:
        checked(world, "engrave.lora.target_modules=[query]")
    (line,) = (line for line in said if line["event"] == "base_model.unchecked")
    assert line["missing"] == ["peft"]
    assert line["path"] == load_config(world, ()).config.base_model.path
    assert "selfalign[models]" in line["remedy"]


def test_a_base_model_without_an_end_of_sequence_is_refused(world: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(load_config(world, ()).config.base_model.path, base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has no eos_token"):
        checked(world, f"base_model.path={base}")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{", "config.json: cannot be read as JSON"),
        ("config.json", '{"model_type": "llama", "hidden_act": 3}', "hidden_act"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
    ],
)
def test_a_damaged_base_model_is_told_before_a_run(
    world: Path, tmp_path: Path, file: str, content: str, said: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(load_config(world, ()).config.base_model.path, base)
    (base / file).write_text(content)
    with pytest.raises(DataError, match=said):
        checked(world, f"base_model.path={base}", "engine={kind: transformers, batch_size: 4}")


def test_a_rule_that_could_not_be_measured_is_refused_before_anything_runs(
    config_path: Path,
) -> None:
    for rules, said in (
        ("[{metric: hhh/harmless, against: base}]", "evaluate.hhh has no item for it"),
        ("[{metric: heldout.refusal.must, at_least: 0.5}]", "evaluate.heldout has no item for it"),
        ("null", "'heldout.refusal.must' cannot be measured"),  # the default rules
    ):
        with pytest.raises(ConfigurationError, match=said):
            checked(config_path, f"promote.rules={rules}")


def test_refusals_measured_from_one_side_are_refused(config_path: Path) -> None:
    heldout = config_path.parent / "heldout.jsonl"
    rows = [json.loads(line) | {"refusal": "must"} for line in heldout.read_text().splitlines()]
    heldout.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigurationError, match="is one-sided"):
        checked(config_path, "promote.rules=[{metric: heldout.refusal.must, at_least: 0.5}]")


def test_an_interval_of_full_confidence_is_no_configuration(config_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="confidence"):
        checked(config_path, "evaluate.confidence=1")


@pytest.mark.skipif(find_spec("langdetect") is not None, reason="its checks are installed here")
def test_ifeval_without_its_checks_is_refused_before_anything_is_trained(config_path: Path) -> None:
    row = {"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (config_path.parent / "ifeval.jsonl").write_text(json.dumps(row))
    checked(config_path, "evaluate.heldout=ifeval.jsonl", until="clone")
    with pytest.raises(ConfigurationError, match="lm-eval, which is not installed"):
        checked(config_path, "evaluate.heldout=ifeval.jsonl")
