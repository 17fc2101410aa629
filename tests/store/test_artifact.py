"""Artifacts: parts, shards, manifests, on any store; here on a local directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from selfalign.errors import DataError, TemporaryError
from selfalign.records import Prompt
from selfalign.store.artifact import (
    ArtifactWriter,
    download_files,
    read_file,
    read_manifest,
    read_records,
    verify,
)
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, FileEntry, Manifest, content_digest
from tests import artifacts
from tests.artifacts import WHEN


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def writer(store: LocalStore) -> ArtifactWriter:
    return artifacts.writer(store, "prompts", "abc", identity={"stage": "curate"})


def prompts(*texts: str, shard: int = 0) -> list[Prompt]:
    """What the shard of two would hold of prompts dealt out in turn."""
    return [
        Prompt(id=f"p-{2 * i + shard:02d}", source="self_instruct", text=f"{text}{shard}")
        for i, text in enumerate(texts)
    ]


def publish_two_shards(store: LocalStore, details: dict[str, object] | None = None) -> Manifest:
    artifact = writer(store)
    for index in range(2):
        shard = artifact.shard(index, 2)
        a, b, c = prompts("a", "b", "c", shard=index)
        shard.commit("part-0", [a, b], Counts(read=3, kept=2, dropped={"x": 1}))
        shard.commit("part-1", [c], Counts(read=1, kept=1))
        shard.finish(shard.committed().values(), WHEN)
    manifest = artifact.publish_when_complete(2, details)
    assert manifest is not None
    return manifest


def test_an_artifact_without_a_manifest_does_not_exist(store: LocalStore) -> None:
    shard = writer(store).shard(0, 1)
    shard.commit("part-0", prompts("a"), Counts(read=1, kept=1))
    shard.finish(shard.committed().values(), WHEN)
    assert read_manifest(store, "prompts", "abc") is None


def test_the_manifest_is_published_only_when_every_shard_is_finished(store: LocalStore) -> None:
    artifact = writer(store)
    shard = artifact.shard(1, 2)
    shard.commit("part-0", prompts("a"), Counts(read=1, kept=1))
    shard.finish(shard.committed().values(), WHEN)
    assert artifact.publish_when_complete(2) is None
    first = artifact.shard(0, 2)
    first.finish([], WHEN)
    manifest = artifact.publish_when_complete(2)
    assert manifest == read_manifest(store, "prompts", "abc")


def test_counts_of_parts_add_up_and_records_come_back_in_order(store: LocalStore) -> None:
    manifest = publish_two_shards(store)
    assert manifest.counts == Counts(read=8, kept=6, dropped={"x": 2})
    texts = [record.text for record in read_records(store, manifest, Prompt)]
    assert texts == ["a0", "a1", "b0", "b1", "c0", "c1"]
    assert verify(store, manifest) == []


def test_the_digest_and_the_order_do_not_tell_how_records_were_shared(tmp_path: Path) -> None:
    # more than 99 of one request: their numbers are wider than the others'
    ids = [f"general-00000001-{i:02d}" for i in range(120)]
    ids += [f"general-00000002-{i:02d}" for i in range(3)]
    records = [Prompt(id=name, source="self_instruct", text=name) for name in ids]
    digests = set()
    for num_shards, size in ((1, 1000), (1, 7), (3, 5), (4, 50), (200, 1)):
        store = LocalStore(tmp_path / f"{num_shards}-{size}")
        for index in range(num_shards):
            shard, mine = writer(store).shard(index, num_shards), records[index::num_shards]
            names = [f"part-{start:03d}" for start in range(0, len(mine), size)]
            for number, name in enumerate(names):
                part = mine[number * size :][:size]
                shard.commit(name, part, Counts(read=len(part), kept=len(part)))
            shard.finish(shard.committed().values(), WHEN)
        manifest = writer(store).publish_when_complete(num_shards)
        assert manifest is not None
        assert list(read_records(store, manifest, Prompt)) == records, num_shards
        digests.add(manifest.digest)
    assert len(digests) == 1


def test_other_records_have_another_digest(tmp_path: Path) -> None:
    digests = set()
    for number, texts in enumerate([("a",), ("b",), ("a", "b"), ("b", "a"), ("a", "a")]):
        store = LocalStore(tmp_path / str(number))
        shard = writer(store).shard(0, 1)
        shard.commit("part-0", prompts(*texts), Counts())
        shard.finish(shard.committed().values(), WHEN)
        manifest = writer(store).publish_when_complete(1)
        digests.add(manifest.digest)
    assert len(digests) == 5


def test_documents_of_0_2_0_without_sums_and_checksums_are_still_read(store: LocalStore) -> None:
    value = publish_two_shards(store).model_dump(mode="json")
    for shard in value["shards"]:
        for part in shard["parts"]:
            del part["content"]
    parsed = Manifest.model_validate(value)
    value["digest"] = content_digest(parsed.shards, parsed.files)
    store.write("artifacts/prompts/abc/manifest.json", json.dumps(value).encode())
    old = read_manifest(store, "prompts", "abc")
    assert old is not None
    assert [r.text for r in read_records(store, old, Prompt)] == [
        "a0",
        "a1",
        "b0",
        "b1",
        "c0",
        "c1",
    ]
    mark = "artifacts/prompts/abc/parts/00000-of-00002/part-0.json"
    store.write(mark, json.dumps(value["shards"][0]["parts"][0]).encode())
    assert writer(store).shard(0, 2).committed()["part-0"].content is None


def test_a_text_with_unusual_line_ends_survives(store: LocalStore) -> None:
    artifact = writer(store)
    shard = artifact.shard(0, 1)
    odd = "one\u2028two\x85three\nfour"
    shard.commit("part-0", prompts(odd), Counts(read=1, kept=1))
    shard.finish(shard.committed().values(), WHEN)
    manifest = artifact.publish_when_complete(1)
    assert manifest is not None
    assert [r.text for r in read_records(store, manifest, Prompt)] == [f"{odd}0"]


def test_the_first_of_two_workers_on_a_part_wins_and_nothing_mixes(store: LocalStore) -> None:
    one, two = writer(store).shard(0, 1), writer(store).shard(0, 1)
    first = one.commit("part-0", prompts("first"), Counts(read=1, kept=1))
    second = two.commit("part-0", prompts("second", "more"), Counts(read=2, kept=2))
    assert second == first
    one.finish([first], WHEN)
    two.finish([second], WHEN)
    manifest = writer(store).publish_when_complete(1)
    assert manifest is not None
    assert [r.text for r in read_records(store, manifest, Prompt)] == ["first0"]
    leftovers = [key for key in store.list("artifacts/prompts/abc/parts/") if ".zst" in key]
    assert len(leftovers) == 1


def test_publishing_twice_returns_the_first_manifest(store: LocalStore) -> None:
    first = publish_two_shards(store)
    again = writer(store).publish(shards=[], files=[], counts=Counts(), details={}, provenance=WHEN)
    assert again == first


def test_a_corrupt_part_is_named_with_both_digests(store: LocalStore, tmp_path: Path) -> None:
    manifest = publish_two_shards(store)
    name = manifest.shards[1].parts[0].file.name
    path = tmp_path / "store" / "artifacts/prompts/abc" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError) as caught:
        list(read_records(store, manifest, Prompt))
    assert name in str(caught.value)
    assert "expected SHA-256" in str(caught.value)
    assert len(verify(store, manifest)) == 1


def test_a_missing_part_is_named(store: LocalStore, tmp_path: Path) -> None:
    manifest = publish_two_shards(store)
    name = manifest.shards[0].parts[1].file.name
    (tmp_path / "store" / "artifacts/prompts/abc" / name).unlink()
    with pytest.raises(DataError, match="missing"):
        list(read_records(store, manifest, Prompt))


@pytest.mark.parametrize(
    ("path", "edited"),
    [
        (("counts", "kept"), 7),
        (("counts", "dropped", "x"), 1),
        (("details", "rate"), 1e-4),
        (("provenance", "engine", "name"), "another"),
        (("shards", 0, "parts", 0, "file", "sha256"), "0" * 64),
        (("shards", 0, "parts", 0, "content"), "0" * 64),
        (("digest",), "0" * 64),
        (("checksum",), "0" * 64),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_an_edited_manifest_is_refused(
    store: LocalStore, path: tuple[str | int, ...], edited: object
) -> None:
    publish_two_shards(store, {"rate": 1e-05, "text": "ü\u2028", "none": None, "list": (1, 2.0)})
    assert read_manifest(store, "prompts", "abc") is not None
    key = "artifacts/prompts/abc/manifest.json"
    value = json.loads(store.read(key))
    place = value
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = edited
    store.write(key, json.dumps(value).encode())
    with pytest.raises(DataError, match="does not match its content") as caught:
        read_manifest(store, "prompts", "abc")
    assert key in caught.value.message


@pytest.mark.parametrize("name", ["config", "data", "judge", "seeds"])
def test_a_manifest_whose_identity_holds_null_is_refused(store: LocalStore, name: str) -> None:
    artifacts.publish(store, "prompts", identity={name: {}})
    key = "artifacts/prompts/k/manifest.json"
    value = json.loads(store.read(key)) | {"identity": {name: None}}
    del value["checksum"]  # as in 0.2.0
    store.write(key, json.dumps(value).encode())
    with pytest.raises(DataError, match=f"{name} is no mapping"):
        read_manifest(store, "prompts", "k")


def test_a_truncated_manifest_is_refused(store: LocalStore) -> None:
    publish_two_shards(store)
    key = "artifacts/prompts/abc/manifest.json"
    store.write(key, store.read(key)[:100])
    with pytest.raises(DataError, match="not a valid Manifest"):
        read_manifest(store, "prompts", "abc")


def test_model_files_are_copied_once_and_verified(store: LocalStore, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights" * 1000)
    artifact = writer(store)
    entry = artifact.add_file(source, "merged/model.safetensors")
    note = artifact.add_bytes(b"{}", "merged/config.json")
    manifest = artifact.publish(
        shards=[], files=[entry, note], counts=Counts(), details={}, provenance=WHEN
    )
    copy = download_files(store, manifest, "merged", tmp_path / "copy")
    assert (copy / "model.safetensors").read_bytes() == source.read_bytes()
    (copy / "model.safetensors").write_bytes(b"x" * 7000)
    download_files(store, manifest, "merged", copy)
    assert (copy / "model.safetensors").read_bytes() == source.read_bytes()
    assert read_file(store, manifest, "merged/config.json") == b"{}"
    store.write(f"artifacts/prompts/abc/{note.location}", b"[]")
    with pytest.raises(DataError, match="corrupt"):
        download_files(store, manifest, "merged", tmp_path / "other")
    assert not (tmp_path / "other" / "config.json").exists()


def test_a_file_under_its_plain_name_is_still_read(store: LocalStore) -> None:
    key = "artifacts/prompts/abc/files/summary.json"
    store.write(key, b"{}")
    entry = FileEntry(name="files/summary.json", sha256=hashlib.sha256(b"{}").hexdigest(), bytes=2)
    manifest = writer(store).publish(
        shards=[], files=[entry], counts=Counts(), details={}, provenance=WHEN
    )
    assert read_file(store, manifest, "summary.json") == b"{}"
    assert verify(store, manifest) == []


@pytest.mark.parametrize(
    "name", ["parts/00000-of-00001/part-0", "shards/00000-of-00001", "manifest"]
)
def test_a_document_that_gc_deletes_before_it_is_read_is_written_by_the_next_attempt(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def work() -> None:
        artifact = writer(store)
        shard = artifact.shard(0, 1)
        shard.finish([shard.commit("part-0", prompts("a"), Counts(read=1, kept=1))], WHEN)
        assert artifact.publish_when_complete(1) is not None

    def deleted(key: str) -> bytes:
        if key.endswith(f"{name}.json"):
            store.delete(key)
        return LocalStore.read(store, key)

    work()
    monkeypatch.setattr(store, "read", deleted)
    with pytest.raises(TemporaryError, match=rf"{name}\.json: was deleted"):
        work()
    monkeypatch.undo()
    work()


def test_a_shard_is_finished_without_reading_the_marks_of_its_parts(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = writer(store).shard(0, 1)
    parts = [shard.commit(f"part-{n}", prompts("a"), Counts(read=1, kept=1)) for n in range(3)]
    monkeypatch.setattr(store, "read", None)
    monkeypatch.setattr(store, "list", None)
    shard.finish(parts, WHEN)
