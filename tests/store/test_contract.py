"""One contract, two stores: a local directory and S3 (a real server process). Its other half is
`selfalign store check`, which test_check.py holds both to."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError, DataError
from selfalign.store.artifact import (
    ArtifactWriter,
    download_files,
    read_file,
    read_manifest,
    verify,
)
from selfalign.store.base import NotFound, PreconditionFailed, Store
from selfalign.store.manifest import Counts, FileEntry, Manifest
from selfalign.store.open import open_store
from tests.artifacts import WHEN, writer

from .conftest import PAGE_SIZE, SECRET_KEY, SESSION_TOKEN
from .racing import race, racers

NO_KEYS = [
    *("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "\\a"),
    *("a b", "a\n", "a\0b", "ä", "ключ", "a:b", "a?b", "a%2Fb", "~/a", "a*"),
    *(".selfalign", ".selfalign/locks/00", "x" * 256, "x/" * 384 + "x"),
]


def test_an_absent_object_is_not_found(store: Store, tmp_path: Path) -> None:
    store.write("folder/object", b"here")
    for key in ("nothing", "folder", "folder/nothing", "folder/object/below"):
        assert not store.exists(key)
        with pytest.raises(NotFound, match=key):
            store.read(key)
        with pytest.raises(NotFound):
            store.read_versioned(key)
        with pytest.raises(NotFound):
            store.download(key, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_object_too_large_for_memory_is_not_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("local", "s3"):
        monkeypatch.setattr(f"selfalign.store.{module}.MAX_READ_BYTES", 1000)
    store.write("object", b"x" * 1000)
    assert len(store.read("object")) == 1000
    store.write("object", b"x" * 1001)
    for read in (store.read, store.read_versioned):
        with pytest.raises(DataError, match="object: larger than"):
            read("object")


def test_if_version_of_a_deleted_object_fails(store: Store) -> None:
    version = store.write("current", b"1")
    store.delete("current")
    with pytest.raises(PreconditionFailed):
        store.write("current", b"2", if_version=version)
    assert list(store.list("")) == []


def test_the_two_conditions_exclude_each_other(store: Store) -> None:
    with pytest.raises(ValueError, match="exclude"):
        store.write("a", b"", if_absent=True, if_version="1")


def test_one_of_eight_processes_creates_an_object(store: Store, store_url: str) -> None:
    names = [f"racer-{number}" for number in range(8)]
    outcomes = race(*(("create", store_url, "runs/manifest", name) for name in names))
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert store.read("runs/manifest").decode() == names[outcomes.index("won")]


def test_compare_and_swap_loses_no_increment(store: Store, store_url: str) -> None:
    store.write("counter", b"0")
    assert race(*[("increment", store_url, "counter", "6")] * 4) == ["done"] * 4
    assert store.read("counter") == b"24"


def test_a_reader_sees_whole_objects_while_processes_write(store: Store, store_url: str) -> None:
    wholes = {letter.encode() * size for letter, size in (("a", 300_000), ("b", 100_000))}
    store.write("object", min(wholes))
    commands = [("fill", store_url, "object", chr(w[0]), str(len(w)), "15") for w in wholes]
    seen = set()
    with racers(*commands) as processes:
        processes.go()
        while processes.running:
            data = store.read("object")
            assert data in wholes, (len(data), set(data))
            seen.add(data)
        assert processes.results() == ["done", "done"]
    assert seen


def test_entries_have_size_and_age(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # S3 tells whole seconds
    for key in ("a/b", "a/c", "d"):
        store.write(key, key.encode() * 3)
    entries = list(store.entries("a/"))
    assert [(entry.key, entry.bytes) for entry in entries] == [("a/b", 9), ("a/c", 9)]
    assert all(before < entry.modified < datetime.now(UTC) for entry in entries)
    with pytest.raises(ConfigurationError):
        list(store.entries("../"))


def test_upload_and_download_replace_what_is_there(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    store.write("file", b"before")
    store.download("file", path)
    for content in (b"first", b"", b"second"):
        path.write_bytes(content)
        store.upload(path, "file")
        assert store.read("file") == content
        path.write_bytes(b"stale")
        store.download("file", path)
        assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_upload_of_an_absent_file_names_it(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-such-file"):
        store.upload(tmp_path / "no-such-file", "key")
    assert not store.exists("key")


def test_a_prefix_is_a_string_not_a_folder(store: Store) -> None:
    keys = ["runs/1/a", "runs/1/b", "runs/10/a", "runs/1-old/a", "runs/2/a", "runsfile"]
    for key in keys:
        store.write(key, b"")
    for prefix in ("", "r", "runs", "runs/", "runs/1", "runs/1/", "runs/1/a", "runs/1/a/", "x/"):
        expected = sorted(key for key in keys if key.startswith(prefix))
        assert list(store.list(prefix)) == expected, prefix


def test_list_goes_beyond_one_page(store: Store) -> None:
    keys = [f"part-{number:02d}" for number in range(3 * PAGE_SIZE + 1)]
    for key in keys:
        store.write(key, b"")
    assert list(store.list("part-")) == keys


def test_delete_removes_and_may_be_repeated(store: Store) -> None:
    for key in ("a/b/c", "a/b/d", "x"):
        store.write(key, b"")
    for _ in range(2):
        store.delete("a/b/c")
        store.delete("never/written")
        store.delete("a")
        store.delete("x/below")
    assert list(store.list("")) == ["a/b/d", "x"]
    store.delete("a/b/d")
    store.write("a", b"an object where a folder was")
    assert list(store.list("")) == ["a", "x"]


def test_keys_outside_the_rule_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for key in NO_KEYS:
        for use in (
            lambda key: store.read(key),
            lambda key: store.read_versioned(key),
            lambda key: store.write(key, b""),
            lambda key: store.upload(tmp_path / "file", key),
            lambda key: store.download(key, tmp_path / "target"),
            lambda key: store.exists(key),
            lambda key: store.delete(key),
        ):
            with pytest.raises(ConfigurationError, match="not a store key"):
                use(key)
    assert list(store.list("")) == []


def test_prefixes_of_no_key_are_refused(store: Store) -> None:
    for prefix in ("/", "../", "a/../", "a//", "ä", ".selfalign/"):
        with pytest.raises(ConfigurationError, match="no store key starts like this"):
            store.list(prefix)


def test_the_longest_key_is_accepted(store: Store) -> None:
    key = "/".join(["x" * 255] * 3)
    assert len(key) == 767
    store.write(key, b"long")
    assert store.read(key) == b"long"
    assert list(store.list("x" * 255)) == [key]


def test_the_url_opens_the_same_store_and_holds_no_secret(store: Store, store_url: str) -> None:
    store.write("a", b"same")
    assert store.url == store_url
    assert open_store(store.url).read("a") == b"same"
    for secret in (SECRET_KEY, SESSION_TOKEN, "AKIA"):
        assert secret not in store.url
        assert secret not in repr(store)


@pytest.mark.parametrize("loser_uploads_last", [False, True])
def test_two_workers_with_other_bytes_publish_one_whole_artifact(
    store: Store, tmp_path: Path, loser_uploads_last: bool
) -> None:
    def upload(writer: ArtifactWriter, name: str) -> list[FileEntry]:
        source = tmp_path / "weights"
        source.write_text(f"weights of {name}")
        return [
            writer.add_file(source, "merged/model.safetensors"),
            writer.add_bytes(b"the same", "merged/config.json"),
            writer.add_bytes(name.encode(), "loss.jsonl"),
        ]

    def publish(writer: ArtifactWriter, files: list[FileEntry]) -> Manifest:
        return writer.publish(shards=[], files=files, counts=Counts(), details={}, provenance=WHEN)

    winner, loser = writer(store, "final_model"), writer(store, "final_model")
    if loser_uploads_last:
        first = publish(winner, upload(winner, "winner"))
        second = publish(loser, upload(loser, "loser"))
    else:
        files, others = upload(winner, "winner"), upload(loser, "loser")
        first, second = publish(winner, files), publish(loser, others)
    assert second == first == read_manifest(store, "final_model", "k")
    assert verify(store, first) == []
    assert read_file(store, first, "loss.jsonl") == b"winner"
    copy = download_files(store, first, "merged", tmp_path / "copy")
    assert (copy / "model.safetensors").read_text() == "weights of winner"
    assert (copy / "config.json").read_text() == "the same"
    assert len(list(store.list(winner.prefix))) == 4  # three files and the manifest


def test_a_large_copy_stays_inside_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfalign.store.s3.COPY_PART_MIB", 5)  # S3's smallest part
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * (12 << 12))
    store.upload(source, "artifacts/weights")
    for method in ("read", "download", "upload"):
        monkeypatch.setattr(store, method, None)
    store.copy("artifacts/weights", "models/weights")
    monkeypatch.undo()
    store.download("models/weights", target)
    assert _digest(target) == _digest(source)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
