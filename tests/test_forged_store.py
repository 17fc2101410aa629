"""Forty forged objects in a store against every command that reads one: no traceback, no question,
and whoever reads the object names it with a documented exit code."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from selfalign.errors import EXIT_CODES
from selfalign.load import load_config
from selfalign.run.record import RunRecord, RunStatus, StageState, write_run, write_status
from selfalign.store.local import LocalStore
from tests.forging import ESC, sealed
from tests.forked import selfalign
from tests.pipeline_world import run_stages, write_world
from tests.whole_store import outcome

Change = Callable[[Any], object]
DEEP = b'{"a": ' + b"[" * 100_000
HUGE = b'{"schema_version": ' + b"9" * 5000 + b"}"


def put(**fields: Any) -> Change:
    return lambda value: value.update(fields)


def first_file(**fields: Any) -> Change:
    return lambda value: value["files"][0].update(fields)


def part(**fields: Any) -> Change:
    return lambda value: value["shards"][0]["parts"][0].update(fields)


def part_file(**fields: Any) -> Change:
    return lambda value: value["shards"][0]["parts"][0]["file"].update(fields)


def stage_state(**fields: Any) -> Change:
    return lambda value: value["stages"][0].update(fields)


def without(name: str) -> Change:
    return lambda value: value.pop(name)


# object (a pattern of the keys), what is done to it: a change of a document, whose digests are then
# made right again, or other bytes.
FORGERIES: list[tuple[str, Change | bytes]] = [
    ("current.json", put(model={"artifact": "../../etc", "key": "x", "digest": "y"})),
    ("current.json", put(model={"artifact": "final_model", "key": "k" * 20, "digest": "0" * 64})),
    ("current.json", put(history=7)),
    ("current.json", put(promotion="/etc/passwd")),
    ("current.json", b""),
    ("current.json", b"<html>404</html>"),
    ("current.json", DEEP),
    ("current.json", HUGE),
    ("gc.json", b'{"by": 1}'),
    ("gc.json", b'{"by": "x", "renewed_at": "2026-01-01T00:00:00", "condemned": []}'),
    ("gc.json", b'{"by": "x", "renewed_at": "now", "condemned": ["../x"]}'),
    ("runs/r/run.json", b"\xff\xfe"),
    ("runs/r/run.json", put(annotation_lines="many")),
    ("runs/r/status.json", stage_state(name="nonsense")),
    ("runs/r/status.json", stage_state(key="../../../etc/passwd")),
    ("runs/r/status.json", stage_state(key=ESC, message=ESC)),
    ("artifacts/final_model/*/manifest.json", first_file(name="files/merged/../../../../x")),
    ("artifacts/final_model/*/manifest.json", first_file(key="files/merged//etc/passwd")),
    ("artifacts/final_model/*/manifest.json", first_file(sha256="0" * 64)),
    ("artifacts/final_model/*/manifest.json", put(parents={"verbose_responses": None})),
    ("artifacts/aligned_responses/*/manifest.json", part(name="..")),
    ("artifacts/aligned_responses/*/manifest.json", part(content="no number")),
    ("artifacts/aligned_responses/*/manifest.json", part_file(name="parts/none")),
    ("artifacts/aligned_responses/*/manifest.json", part(counts={"kept": "x"})),
    ("artifacts/aligned_responses/*/manifest.json", without("provenance")),
    ("artifacts/aligned_responses/*/manifest.json", put(identity=[])),
    ("artifacts/promotion/*/manifest.json", put(parents={})),
    ("artifacts/aligned_responses/*/parts/*/*.zst", zstandard.compress(b"[]\n")),
    ("artifacts/aligned_responses/*/parts/*/*.zst", zstandard.compress(b"x" * 50_000_000)),
    ("artifacts/evaluation/*/files/summary.json-*", b"[" * 100_000),
    ("artifacts/evaluation/*/files/prompts.json-*", b'{"a": {"b": 1}}'),
    ("artifacts/promotion/*/files/verdict.json-*", b"null"),
    ("artifacts/final_model/*/files/loss.jsonl-*", b"[1]\n{}\n"),
    ("artifacts/final_model/*/files/loss.jsonl-*", b'{"step": "x", "loss": null}\n'),
    ("models/*/selfalign.json", put(files=[])),
    ("models/*/selfalign.json", b"null"),
]
# What the object says is shown as it is: a harmless lie of who may write it.
SHOWN: list[tuple[str, Change]] = [
    ("current.json", put(moved_at=ESC)),
    ("runs/r/run.json", put(created_at="yesterday")),
    ("runs/r/run.json", put(config={"seeds": {"directory": ["x"]}})),
    ("runs/r/status.json", put(phase="Failed", message=ESC, remedy=ESC, exit_code=10**30)),
    ("runs/r/status.json", put(started_at="x", completed_at="y")),
    ("runs/r/status.json", stage_state(seconds=1e308, done=-1, total=1)),
    ("artifacts/final_model/*/manifest.json", first_file(bytes=-1)),
    ("artifacts/final_model/*/manifest.json", put(details={"final_loss": ESC, "steps": ESC})),
    ("artifacts/prompts/*/manifest.json", part(dropped_samples={ESC: [ESC]})),
    ("artifacts/promotion/*/manifest.json", put(details={"promoted": "no", "reasons": 7})),
]


@pytest.fixture(scope="module")
def finished(
    tiny_base_model: Path, finished_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, LocalStore]]:
    """A world whose eight stages are published, with a run of them."""
    directory = tmp_path_factory.mktemp("forged")
    path = write_world(directory, tiny_base_model)
    shutil.copytree(finished_store, directory / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFALIGN_CACHE_DIR", str(directory / "cache"))
        config = load_config(path, ()).config
        store = LocalStore(Path(config.store))
        manifests = run_stages(config)
    states = [
        StageState(name=m.stage, phase="Done", key=m.key, digest=m.digest)
        for m in manifests.values()
    ]
    when = "2026-01-01T00:00:00+00:00"
    request = RunRecord(
        id="r", created_at=when, code_version="0", config=config.model_dump(mode="json")
    )
    write_run(store, request)
    write_status(store, RunStatus(id="r", phase="Succeeded", started_at=when, stages=states))
    yield path, store
    shutil.rmtree(directory)


def forge(store: LocalStore, pattern: str, change: Change | bytes) -> str:
    """Forge an object, and the documents that hold its digest; returns its key."""
    root = Path(store.url)
    if "*" in pattern:
        pattern = next(root.glob(pattern)).relative_to(root).as_posix()
    if isinstance(change, bytes):
        store.write(pattern, change)
        if pattern.startswith("artifacts/"):
            _believe(store, pattern, change)
        return pattern
    value = json.loads(store.read(pattern))
    change(value)
    store.write(pattern, sealed(value))
    return pattern


def _believe(store: LocalStore, key: str, data: bytes) -> None:
    """Make the manifest name the forged bytes."""
    prefix = "/".join(key.split("/")[:3])
    value = json.loads(store.read(f"{prefix}/manifest.json"))
    parts = [p["file"] for shard in value["shards"] for p in shard["parts"]]
    for entry in parts + value["files"]:
        if f"{prefix}/{entry['key'] or entry['name']}" == key:
            entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    store.write(f"{prefix}/manifest.json", sealed(value))


READERS = {
    "status": ["status", "r"],
    "report": ["report", "r", "--out", "{out}"],
    "diff": ["diff", "r", "r"],
    "chat": ["chat", "A question?"],
    "show": ["show", "final_model"],
    "show --dropped": ["show", "prompts", "--dropped"],
    "show --verify": ["show", "aligned_responses", "--verify"],
    "run": ["run", "--run-id", "again", "--max-attempts", "1"],
    "align": ["align"],
    "export": ["export", "--to", "{out}.model"],
    "gc": ["gc", "--keep-nights", "1", "--dry-run"],
}


def read_by(arguments: list[str], config: Path, out: Path) -> tuple[int, str]:
    """What a command that reads the store ends with, and says."""
    words = [*(each.format(out=out) for each in arguments), "--config", str(config)]
    if arguments[0] != "run":
        return outcome(*words)
    ran = selfalign(*words)  # its workers are processes too
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.returncode, ran.stderr if ran.returncode else ran.stdout


def test_the_list_is_long_enough() -> None:
    assert len(FORGERIES) + len(SHOWN) >= 40


def test_every_reader_is_content_with_what_is_genuine(
    finished: tuple[Path, LocalStore], tmp_path: Path
) -> None:
    config, store = finished
    for name, arguments in READERS.items():
        code, text = read_by(arguments, config, tmp_path / "report.html")
        assert code == 0, (name, text)
    for key in list(store.list("runs/again/")):
        store.delete(key)


@pytest.mark.parametrize(("pattern", "change"), [*FORGERIES, *SHOWN])
def test_a_forged_object_is_named_and_nothing_else_happens(
    finished: tuple[Path, LocalStore], tmp_path: Path, pattern: str, change: Change | bytes
) -> None:
    config, store = finished
    before = {key: store.read(key) for key in store.list("")}
    key = forge(store, pattern, change)
    refused = []
    try:
        for name, arguments in READERS.items():
            code, text = read_by(arguments, config, tmp_path / "report.html")
            assert code == 0 or code in EXIT_CODES, (name, code, text)
            assert "\x1b]0;" not in text, name
            refused += [text] if code else []
    finally:
        for other in list(store.list("")):
            if other not in before:
                store.delete(other)
        for other, data in before.items():
            if store.read(other) != data if store.exists(other) else True:
                store.write(other, data)
    if (pattern, change) in SHOWN:
        return
    what = key.rpartition("/")[2].partition("-")[0]  # the object, or what it speaks of
    told = (what, "promoted model final_model", "parts/none")
    assert any(each in text for text in refused for each in told), (key, refused)
