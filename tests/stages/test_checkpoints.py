"""Checkpoints in the store: which one is resumed from, and that none is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.stages.checkpoints import StoreCheckpoints
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, Provenance


@pytest.fixture
def writer(tmp_path: Path) -> ArtifactWriter:
    return ArtifactWriter(
        LocalStore(tmp_path / "store"),
        artifact="engraved_model",
        stage="engrave",
        key="k",
        identity={},
        parents={},
    )


def checkpoint(directory: Path, content: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "weights").write_text(content)
    return directory


def test_the_newest_two_are_kept_and_the_newest_is_resumed_from(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    checkpoints = StoreCheckpoints(writer)
    for step in (5, 10, 15):
        checkpoints.save(step, checkpoint(tmp_path / "local", f"step {step}"))
    names = list(writer.store.list(f"{writer.prefix}checkpoints/"))
    assert [name.rpartition("/")[2] for name in names if name.endswith(".json")] == [
        "000000010.json",
        "000000015.json",
    ]
    assert checkpoints.latest(tmp_path / "resumed") == 15
    assert (tmp_path / "resumed" / "weights").read_text() == "step 15"


def test_a_worker_still_training_after_another_published_leaves_no_checkpoint(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    ahead, behind = StoreCheckpoints(writer), StoreCheckpoints(writer)
    behind.save(5, checkpoint(tmp_path / "local", "behind"))
    writer.publish(
        shards=[],
        files=[],
        counts=Counts(),
        details={},
        provenance=Provenance(started_at="", finished_at=""),
    )
    ahead.clear()
    behind.save(10, tmp_path / "local")
    assert list(writer.store.list(f"{writer.prefix}checkpoints/")) == []
    assert behind.latest(tmp_path / "resumed") is None
