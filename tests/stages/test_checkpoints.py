"""Checkpoints in the store: which one is resumed from, and that none is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfalign.stages.checkpoints import StoreCheckpoints
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, Provenance
from tests import artifacts


@pytest.fixture
def writer(tmp_path: Path) -> ArtifactWriter:
    return artifacts.writer(LocalStore(tmp_path / "store"), "engraved_model")


def save(writer: ArtifactWriter, step: int, *directories: Path) -> None:
    """What a training does: every node uploads its directory, then the main process publishes."""
    sink = StoreCheckpoints(writer)
    sink.publish(step, [file for node in directories for file in sink.upload(step, node)])


def node(directory: Path, **files: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content)
    return directory


def stored(writer: ArtifactWriter) -> set[str]:
    prefix = f"{writer.prefix}checkpoints/"
    return {key.removeprefix(prefix).partition("/")[0] for key in writer.store.list(prefix)}


def resumed(writer: ArtifactWriter, target: Path) -> tuple[int | None, dict[str, str]]:
    target.mkdir(exist_ok=True)
    step = StoreCheckpoints(writer).latest(target)
    return step, {p.name: p.read_text() for p in target.rglob("*") if p.is_file()}


def test_the_newest_two_are_kept_and_the_newest_is_resumed_from(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    assert resumed(writer, tmp_path / "resumed") == (None, {})
    for step in (5, 10, 15):
        save(writer, step, node(tmp_path / "local", weights=f"step {step}"))
    assert stored(writer) == {"000000010", "000000015", "saved.json"}
    assert resumed(writer, tmp_path / "resumed") == (15, {"weights": "step 15"})


def test_the_newest_is_the_one_saved_last_whatever_its_step(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    """A training of other settings left steps 200 and 300; the one after it has reached 100."""
    for step in (200, 300, 100):
        save(writer, step, node(tmp_path / "local", weights=f"step {step}"))
    assert stored(writer) == {"000000100", "000000300", "saved.json"}
    assert resumed(writer, tmp_path / "resumed") == (100, {"weights": "step 100"})


def test_a_step_saved_again_replaces_its_files(writer: ArtifactWriter, tmp_path: Path) -> None:
    for content in ("first", "second", "third"):
        save(writer, 5, node(tmp_path / "local", weights=content))
    assert len(list(writer.store.list(f"{writer.prefix}checkpoints/"))) == 3
    assert resumed(writer, tmp_path / "resumed") == (5, {"weights": "third"})


def test_the_files_of_all_nodes_make_one_checkpoint(writer: ArtifactWriter, tmp_path: Path) -> None:
    save(writer, 5, node(tmp_path / "0", weights="w", rng_0="a"), node(tmp_path / "1", rng_1="b"))
    files = {"weights": "w", "rng_0": "a", "rng_1": "b"}
    assert resumed(writer, tmp_path / "resumed") == (5, files)


def test_an_upload_that_was_not_published_is_no_checkpoint(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    save(writer, 5, node(tmp_path / "local", weights="whole"))
    StoreCheckpoints(writer).upload(10, node(tmp_path / "local", weights="torn"))
    assert resumed(writer, tmp_path / "resumed") == (5, {"weights": "whole"})


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    for step in (5, 10):
        save(writer, step, node(tmp_path / "local", weights=f"step {step}"))
    (key,) = writer.store.list(f"{writer.prefix}checkpoints/000000010/")
    writer.store.write(key, b"damaged")
    assert resumed(writer, tmp_path / "resumed") == (5, {"weights": "step 5"})


def test_strange_objects_among_the_checkpoints_change_nothing(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    for name in ("abc.json", "000000300.json", "notes/readme"):
        writer.store.write(f"{writer.prefix}checkpoints/{name}", b"{}")
    save(writer, 5, node(tmp_path / "local", weights="w"))
    assert resumed(writer, tmp_path / "resumed") == (5, {"weights": "w"})


def test_an_index_that_is_damaged_starts_the_training_anew(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    writer.store.write(f"{writer.prefix}checkpoints/saved.json", b'{"saved": [')
    assert resumed(writer, tmp_path / "resumed") == (None, {})
    save(writer, 5, node(tmp_path / "local", weights="w"))
    assert resumed(writer, tmp_path / "resumed") == (5, {"weights": "w"})


@pytest.mark.parametrize("field", ["name", "key"])
def test_a_file_name_from_the_store_never_leads_out_of_the_directory(
    writer: ArtifactWriter, tmp_path: Path, field: str
) -> None:
    save(writer, 5, node(tmp_path / "local", weights="w"))
    index = f"{writer.prefix}checkpoints/saved.json"
    value = json.loads(writer.store.read(index))
    value["saved"][0]["files"][0][field] = "../escaped"
    del value["checksum"]  # as a forger would
    writer.store.write(index, json.dumps(value).encode())
    assert resumed(writer, tmp_path / "resumed") == (None, {})
    assert not (tmp_path / "escaped").exists()


def test_a_worker_still_training_after_another_published_leaves_no_checkpoint(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    local = node(tmp_path / "local", weights="behind")
    save(writer, 5, local)
    provenance = Provenance(started_at="", finished_at="")
    writer.publish(shards=[], files=[], counts=Counts(), details={}, provenance=provenance)
    StoreCheckpoints(writer).clear()
    save(writer, 10, local)
    assert stored(writer) == set()
    assert resumed(writer, tmp_path / "resumed") == (None, {})
