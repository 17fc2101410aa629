"""Checkpoints in the store: which one is resumed from, and that none is left behind."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from selfalign.errors import Interrupted, StoreDenied, StoreUnavailable
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, Provenance
from selfalign.training import checkpoints
from selfalign.training.checkpoints import Checkpoints
from selfalign.training.processes import Ranks
from selfalign.training.stored import StoreCheckpoints
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


@pytest.mark.parametrize("fails", [False, True])
def test_a_rehearsal_uploads_like_a_checkpoint_and_leaves_nothing(
    writer: ArtifactWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    save(writer, 5, node(tmp_path / "local", weights="w"))
    before, upload = list(writer.store.list("")), LocalStore.upload
    uploaded: list[bytes] = []

    def look(store: LocalStore, source: Path, key: str) -> None:
        upload(store, source, key)
        assert key.startswith(f"{writer.prefix}checkpoints/")
        uploaded.append(store.read(key))
        if fails:
            raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(LocalStore, "upload", look)
    with pytest.raises(StoreUnavailable) if fails else nullcontext():
        StoreCheckpoints(writer).rehearse(node(tmp_path / "tried", rehearsal="bytes"))
    assert uploaded == [b"bytes"]
    assert list(writer.store.list("")) == before


def test_a_rehearsal_that_a_dead_worker_left_is_no_checkpoint_and_goes_with_them(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    sink = StoreCheckpoints(writer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "delete", lambda store, key: None)
        sink.rehearse(node(tmp_path / "tried", rehearsal="bytes"))
    assert stored(writer) == {"000000000"}
    assert resumed(writer, tmp_path / "resumed") == (None, {})
    save(writer, 5, node(tmp_path / "local", weights="w"))
    assert resumed(writer, tmp_path / "resumed") == (5, {"weights": "w"})
    sink.clear()
    assert stored(writer) == set()


class Tried(StoreCheckpoints):
    """Notes the sizes that are rehearsed; may raise afterwards."""

    def __init__(self, writer: ArtifactWriter, error: Exception | None = None) -> None:
        super().__init__(writer)
        self.sizes: list[int] = []
        self.error = error

    def rehearse(self, directory: Path) -> None:
        super().rehearse(directory)
        self.sizes += [path.stat().st_size for path in directory.iterdir()]
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("size", "telling", "sizes"),
    [
        (1000, 60.0, [1000]),
        (6 << 20, 60.0, [1 << 20, 4 << 20, 6 << 20]),
        (1 << 40, 0.0, [1 << 20]),  # a slow store costs no more time than it must
    ],
)
def test_how_fast_a_checkpoint_is_saved_is_told_and_nothing_is_left(
    writer: ArtifactWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    telling: float,
    sizes: list[int],
) -> None:
    monkeypatch.setattr(checkpoints, "_TELLING_SECONDS", telling)
    sink = Tried(writer)
    rate = Checkpoints(sink, Ranks(), "").bytes_per_second(size, tmp_path / "scratch" / "here")
    assert rate is not None
    assert rate > 0
    assert sink.sizes == sizes
    assert stored(writer) == set()
    assert not list((tmp_path / "scratch" / "here").iterdir())


def test_a_store_that_fails_tells_nothing_and_an_interruption_passes(
    writer: ArtifactWriter, tmp_path: Path
) -> None:
    def rate(error: Exception) -> float | None:
        return Checkpoints(Tried(writer, error), Ranks(), "").bytes_per_second(9, tmp_path)

    before = list(tmp_path.iterdir())
    assert rate(StoreUnavailable("the answer was lost")) is None
    assert rate(StoreDenied("no deletion")) is None
    with pytest.raises(Interrupted):
        rate(Interrupted(15))
    assert {*tmp_path.iterdir()} - {*before} == {tmp_path / "store"}
    assert stored(writer) == set()


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
