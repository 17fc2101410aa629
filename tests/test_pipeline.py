"""The table holds together with configuration, command line and stage implementations."""

from __future__ import annotations

from selfalign.cli.commands import COMMANDS
from selfalign.config import RunConfig
from selfalign.pipeline import BY_NAME, PRODUCER, STAGES
from selfalign.run.stage import _IMPLEMENTATIONS
from tests.pipeline_world import downstream


def test_every_artifact_read_is_written_by_an_earlier_stage() -> None:
    written: set[str] = set()
    for stage in STAGES:
        assert set(stage.reads) <= written, stage.name
        written.add(stage.writes)
    assert len(PRODUCER) == len(STAGES)


def test_every_stage_has_a_section_a_command_and_an_implementation() -> None:
    for stage in STAGES:
        assert stage.name in RunConfig.model_fields
        assert stage.name in COMMANDS
        assert stage.name in _IMPLEMENTATIONS


def test_editing_a_principle_redoes_align_and_what_follows_and_nothing_before() -> None:
    direct = [stage.name for stage in STAGES if "principles.txt" in stage.seeds]
    redone = {name for first in direct for name in (first, *downstream(first))}
    assert redone == {"align", "engrave", "elaborate", "clone", "evaluate", "promote"}


def test_only_stages_of_generation_are_sharded() -> None:
    assert {stage.name for stage in STAGES if stage.sharded} == {
        stage.name for stage in STAGES if stage.workload == "generate"
    }
    assert BY_NAME["engrave"].workload == "train"
