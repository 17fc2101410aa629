"""Whoever may write to the store can make a reader fail, with an error that names the object, and
can do nothing else."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from selfalign import inputs
from selfalign.errors import DataError, SelfAlignError
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.records import Prompt
from selfalign.run.record import (
    RunRecord,
    RunStatus,
    read_run,
    read_status,
    write_run,
    write_status,
)
from selfalign.store import artifact as artifacts
from selfalign.store.artifact import (
    ArtifactWriter,
    download_files,
    read_file,
    read_file_as,
    read_manifest,
    read_records,
    read_rows,
    verify,
)
from selfalign.store.documents import MAX_DEPTH, decode_json
from selfalign.store.files import local_target
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, FileEntry, Manifest, Part, Shard, content_sum
from selfalign.store.pointer import promoted_manifest, read_pointer
from tests.artifacts import WHEN, promote, publish, writer
from tests.forging import damaged, edited, sealed

MODEL = "artifacts/final_model/m/"
PROMPTS = "artifacts/prompts/p/"
ESCAPES = ("../x", "a/../../x", "/abs/x", "a//x", "a\\x", "a\0x", "a\x1b[2Jx", ".", "", "ä")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A store with a promoted model, records, an input and a run."""
    monkeypatch.setenv("SELFALIGN_CACHE_DIR", str(tmp_path / "cache"))
    store = LocalStore(tmp_path / "store")
    manifest = publish(store, "final_model", "m", {"merged/model.safetensors": b"weights"})
    promote(store, manifest, promotion="q", run="r")
    shard = records_writer(store).shard(0, 1)
    for name in ("one", "two"):
        records = [Prompt(id=f"{name}-{i}", source="self_instruct", text=name) for i in range(3)]
        shard.commit(name, records, Counts(read=4, kept=3, dropped={"x": 1}), {"x": ["dropped"]})
    shard.finish(shard.committed().values(), WHEN)
    records_writer(store).publish_when_complete(1)
    write_run(store, RunRecord(id="r", created_at="2026-01-01", code_version="1", config={"a": 1}))
    write_status(store, RunStatus(id="r", phase="Running", updated_at="2026-01-01"))
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "general.txt").write_text("a line")
    inputs.push(store, "seeds", tmp_path / "seeds")
    inputs.push(store, "heldout", tmp_path / "seeds" / "general.txt")
    return store


def records_writer(store: LocalStore) -> ArtifactWriter:
    return writer(store, "prompts", "p")


def manifest_of(store: LocalStore, artifact: str, key: str) -> Manifest:
    manifest = read_manifest(store, artifact, key)
    assert manifest is not None
    return manifest


def input_name(store: LocalStore, kind: str) -> str:
    (key,) = [k for k in store.list(f"inputs/{kind}/") if k.endswith("/manifest.json")]
    return "store:" + key.removesuffix("/manifest.json")


def forge(store: LocalStore, key: str, change: Callable[[Any], None]) -> None:
    """Change a document and all the digests in it that follow."""
    value = json.loads(store.read(key))
    change(value)
    store.write(key, sealed(value))


# Names.


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("field", ["name", "key"])
def test_a_forged_name_of_a_model_file_is_refused(store: LocalStore, field: str, name: str) -> None:
    def change(value: Any) -> None:
        value["files"][0][field] = f"files/merged/{name}"

    forge(store, MODEL + "manifest.json", change)
    with pytest.raises(DataError, match=r"final_model/m/manifest\.json"):
        read_manifest(store, "final_model", "m")


@pytest.mark.parametrize("name", ESCAPES)
def test_no_file_is_put_outside_its_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        local_target(tmp_path / "cache", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["copy", "copy/sub", "copy/sub/model.safetensors"])
def test_a_symbolic_link_in_a_copy_is_not_followed(
    store: LocalStore, tmp_path: Path, link: str
) -> None:
    model = writer(store, "final_model", "m")
    manifest = manifest_of(store, "final_model", "m").model_copy(
        update={"files": [model.add_bytes(b"weights", "merged/sub/model.safetensors")]}
    )
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(outside)
    with pytest.raises(DataError, match=f"{link}: .* found a symbolic link"):
        download_files(store, manifest, "merged", tmp_path / "copy")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "forged"),
    [
        ("kind", "../x"),
        ("kind", "base_model"),
        ("digest", "../../x"),
        ("digest", "0" * 64),
        ("single", "/etc/passwd"),
        ("single", "../x"),
        ("single", "other.txt"),
    ],
)
def test_a_forged_input_is_refused(store: LocalStore, field: str, forged: str) -> None:
    name = input_name(store, "heldout")
    key = name.removeprefix("store:") + "/manifest.json"
    forge(store, key, lambda value: value.update({field: forged}))
    with pytest.raises(DataError, match=key):
        inputs.fetch(store, name)


@pytest.mark.parametrize("kind", ["seeds", "heldout"])
def test_an_input_whose_content_has_another_digest_is_refused(store: LocalStore, kind: str) -> None:
    name = input_name(store, kind)
    key = name.removeprefix("store:")
    store.write(f"{key}/files/general.txt", b"a forged line")

    def change(value: Any) -> None:
        value["files"][0].update(sha256=hashlib.sha256(b"a forged line").hexdigest(), bytes=13)

    forge(store, f"{key}/manifest.json", change)
    with pytest.raises(DataError, match=f"{key}/manifest.json: its files are not those"):
        inputs.fetch(store, name)


def test_control_characters_in_an_error_are_escaped() -> None:
    error = DataError("store \x1b]0;x\x07: a\u202eb", remedy="delete \x9b2J")
    assert str(error) == "store \\x1b]0;x\\x07: a\\u202eb\n  remedy: delete \\x9b2J"


# Sizes and shapes.


def test_a_part_that_unpacks_to_more_than_its_mark_allows_is_refused(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_RECORD_BYTES", 1000)
    bomb = zstandard.ZstdCompressor().compress(b"x" * 50_000_000)
    entry = FileEntry(
        name="parts/bomb", sha256=hashlib.sha256(bomb).hexdigest(), bytes=len(bomb), records=9
    )
    part = Part(name="bomb", file=entry, counts=Counts())
    shard = Shard(index=0, num_shards=1, parts=[part], provenance=WHEN)
    manifest = manifest_of(store, "prompts", "p").model_copy(update={"shards": [shard]})
    store.write(PROMPTS + "parts/bomb", bomb)
    with pytest.raises(DataError, match="parts/bomb: corrupt: decompresses to more than 9000"):
        list(read_records(store, manifest, Prompt))


def test_a_part_too_large_to_be_read_is_not_written(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_PART_BYTES", 100)
    records = [Prompt(id="p", source="self_instruct", text="x" * 200)]
    with pytest.raises(DataError, match="expected at most 100"):
        records_writer(store).shard(0, 1).commit("large", records, Counts())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "9" * 5000, '"\\ud800"']
)
@pytest.mark.parametrize(
    ("key", "read"),
    [
        (MODEL + "manifest.json", lambda store: read_manifest(store, "final_model", "m")),
        ("current.json", read_pointer),
        ("runs/r/run.json", lambda store: read_run(store, "r")),
        (
            PROMPTS + "parts/00000-of-00001/one.json",
            lambda store: records_writer(store).shard(0, 1).committed(),
        ),
        (
            PROMPTS + "shards/00000-of-00001.json",
            lambda store: records_writer(store).publish_when_complete(1),
        ),
    ],
)
def test_a_document_that_json_cannot_bear_is_named(
    store: LocalStore, key: str, read: Callable[[LocalStore], object], text: str
) -> None:
    store.write(key, b'{"schema_version": ' + text.encode() + b"}")
    with pytest.raises(DataError, match=key):
        read(store)


def test_json_is_read_as_deep_as_allowed_and_no_deeper() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(decode_json(text)) == text
    with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
        decode_json(f"[{text}]")


# Contents.


def test_records_changed_under_the_same_digest_are_refused(store: LocalStore) -> None:
    lines = [
        Prompt(id=f"one-{i}", source="self_instruct", text="forged").model_dump_json()
        for i in range(3)
    ]
    data = zstandard.ZstdCompressor().compress("".join(line + "\n" for line in lines).encode())
    store.write(PROMPTS + "parts/forged", data)

    def change(value: Any) -> None:
        file = value["shards"][0]["parts"][0]["file"]
        file.update(name="parts/forged", sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    before = manifest_of(store, "prompts", "p")
    forge(store, PROMPTS + "manifest.json", change)
    manifest = manifest_of(store, "prompts", "p")
    assert manifest.digest == before.digest
    with pytest.raises(DataError, match="parts/forged: corrupt: its records are not those"):
        list(read_records(store, manifest, Prompt))
    (problem,) = verify(store, manifest)
    assert "parts/forged" in problem


@pytest.mark.parametrize("line", ['{"text": "no id"}', "[]", '{"id": "a", "text": 3}', "[" * 9999])
def test_a_line_that_is_no_record_is_a_named_error(store: LocalStore, line: str) -> None:
    data = zstandard.ZstdCompressor().compress(line.encode() + b"\n")
    sha = hashlib.sha256(data).hexdigest()
    store.write(PROMPTS + "parts/odd", data)

    def change(value: Any) -> None:
        part = value["shards"][0]["parts"][0]
        part["file"] = {"name": "parts/odd", "sha256": sha, "bytes": len(data), "records": 1}
        part["content"] = content_sum([line])

    forge(store, PROMPTS + "manifest.json", change)
    with pytest.raises(DataError, match="parts/odd: corrupt"):
        list(read_records(store, manifest_of(store, "prompts", "p"), Prompt))


def test_a_part_of_0_2_0_with_fewer_records_than_it_names_is_refused(store: LocalStore) -> None:
    manifest = manifest_of(store, "prompts", "p")
    (shard,) = manifest.shards
    part = shard.parts[0]
    short = part.model_copy(
        update={"content": None, "file": part.file.model_copy(update={"records": 4})}
    )
    forged = manifest.model_copy(update={"shards": [shard.model_copy(update={"parts": [short]})]})
    with pytest.raises(DataError, match="corrupt: 3 records, expected 4"):
        list(read_records(store, forged, Prompt))


def test_a_content_sum_that_is_no_number_is_refused(store: LocalStore) -> None:
    mark = PROMPTS + "parts/00000-of-00001/one.json"
    forge(store, mark, lambda value: value.update(content="no number"))
    with pytest.raises(DataError, match=mark):
        records_writer(store).shard(0, 1).committed()


def test_a_document_put_in_another_place_is_refused(store: LocalStore) -> None:
    parts = PROMPTS + "parts/00000-of-00001/"
    store.write(parts + "three.json", store.read(parts + "one.json"))
    with pytest.raises(DataError, match=r"three\.json: belongs to"):
        records_writer(store).shard(0, 1).committed()
    store.write("artifacts/prompts/other/manifest.json", store.read(PROMPTS + "manifest.json"))
    with pytest.raises(DataError, match=r"other/manifest\.json: belongs to"):
        read_manifest(store, "prompts", "other")


def test_a_promoted_model_swapped_for_another_is_refused(store: LocalStore) -> None:
    def change(value: Any) -> None:
        value["files"][0]["sha256"] = hashlib.sha256(b"forged").hexdigest()

    current = read_pointer(store)
    assert promoted_manifest(store, current.pointer.model).key == "m"
    forge(store, MODEL + "manifest.json", change)
    assert read_manifest(store, "final_model", "m") is not None
    with pytest.raises(DataError, match="promoted model final_model m has the digest"):
        promoted_manifest(store, current.pointer.model)


def test_an_artifact_whose_parts_expired_says_what_to_delete(store: LocalStore) -> None:
    manifest = manifest_of(store, "prompts", "p")
    part = manifest.shards[0].parts[1].file.name
    store.delete(PROMPTS + part)
    with pytest.raises(DataError, match=f"{part}: .* missing .*expired") as caught:
        list(read_records(store, manifest, Prompt))
    assert f"delete {store.url}/{PROMPTS}" in str(caught.value)
    assert caught.value.exit_code == 3


# Anything at all.


def corrupted(data: bytes, chance: random.Random) -> bytes:
    """The object after an accident, or with a value of its JSON replaced by another."""
    if data.startswith(b"{") and chance.random() < 0.5:
        return json.dumps(edited(json.loads(data), chance)).encode()
    return damaged(data, chance)


def readers(store: LocalStore, scratch: Path) -> dict[str, Callable[[], object]]:
    """Every public reader, on the things of the fixture."""

    def copied(directory: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()]

    def records() -> object:
        return list(read_records(store, manifest_of(store, "prompts", "p"), Prompt))

    def model() -> object:
        manifest = manifest_of(store, "final_model", "m")
        copy = download_files(store, manifest, "merged", scratch / "model")
        return copied(copy), read_file(store, manifest, "merged/model.safetensors")

    def parts() -> object:
        shard = records_writer(store).shard(0, 1)
        return [list(shard.read_part(part, Prompt)) for part in shard.committed().values()]

    def promoted() -> object:
        current = read_pointer(store)
        return current.pointer, promoted_manifest(store, current.pointer.model)

    return {
        "records": records,
        "rows": lambda: list(read_rows(store, manifest_of(store, "prompts", "p"))),
        "model": model,
        "parts": parts,
        "publish": lambda: records_writer(store).publish_when_complete(1),
        "promoted": promoted,
        "run": lambda: read_run(store, "r"),
        "status": lambda: read_status(store, "r"),
        "seeds": lambda: copied(inputs.fetch(store, input_name(store, "seeds"))),
        "heldout": lambda: inputs.fetch(store, input_name(store, "heldout")).read_bytes(),
    }


def test_a_corruption_has_no_effect_or_is_an_error_that_names_the_object(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key for key in store.list("") if not key.endswith("/claim.json")]  # gc alone reads it
    assert len(keys) == 15
    expected = {name: read() for name, read in readers(store, tmp_path / "good").items()}
    refused = dict.fromkeys(keys, 0)
    for number in range(300):
        chance = random.Random(number)
        key = keys[number % len(keys)]
        good = store.read(key)
        store.write(key, corrupted(good, chance))
        monkeypatch.setenv("SELFALIGN_CACHE_DIR", str(tmp_path / f"cache-{number}"))
        for name, read in readers(store, tmp_path / f"copy-{number}").items():
            try:
                found = read()
            except SelfAlignError as error:
                found = str(error)
            # of a status that cannot be read, status_to_show says so
            failed = key in found if isinstance(found, str) else name == "status" and not found
            refused[key] += failed
            assert failed or found == expected[name], (number, key, name)
        store.write(key, good)
    assert all(refused.values()), refused


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b'{"a": 1}', b"\xff\xfe"])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, text: bytes) -> None:
    store = LocalStore(tmp_path)
    manifest = publish(store, "evaluation", files={"summary.json": text})
    with pytest.raises(DataError, match=r"files/summary\.json"):
        read_file_as(store, manifest, "summary.json", EvaluationSummary)
