"""What can be known to fail later is refused before a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_rule_on_data_that_is_not_configured_is_left_to_the_gate_which_skips_it(
    config_path: Path,
) -> None:
    rules = "[{metric: hhh/harmless, against: base}, {metric: mc1, against: promoted}]"
    checked(config_path, f"promote.rules={rules}")


def test_an_interval_of_full_confidence_is_no_configuration(config_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="confidence"):
        checked(config_path, "evaluate.confidence=1")
