"""A store that holds an object of every kind there is, and what a bucket's writer may do to one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner

from selfalign.cli.main import cli
from selfalign.errors import SelfAlignError
from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.records import digest
from selfalign.run.record import Attempt, RunRecord, RunStatus, StageState, write_run, write_status
from selfalign.run.stage import run_stage
from selfalign.serving.signing import SIGNING_KEY
from selfalign.stages.checkpoints import StoreCheckpoints
from selfalign.store.claims import Collection
from selfalign.store.local import LocalStore
from selfalign.store.manifest import content_sum
from selfalign.store.pointer import Anchor, PromotedModel, move_pointer, read_pointer
from selfalign.store.signatures import SIGNING_VARIABLE
from tests.pipeline_world import write_world
from tests.serving.test_signing import write_keys
from tests.store.test_signatures import new_keys

WHEN = "2026-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class WholeStore:
    """A finished night whose store nothing was removed from.

    Attributes:
        config: names every input by its `store:` name.
        public: the key of models' signatures.
        verify: the key of documents' signatures, as the environment takes it.
    """

    config: Path
    store: LocalStore
    public: Path
    verify: str

    def restore(self) -> None:
        """Put back what a corruption and the commands after it changed."""
        root = Path(self.store.url)
        shutil.rmtree(root)
        shutil.copytree(root.with_name("kept"), root, copy_function=os.link)

    def objects(self) -> list[str]:
        return list(self.store.list(""))


def outcome(*arguments: str) -> tuple[int, str]:
    """Exit code and text of a command. Raises whatever would be a traceback."""
    result = CliRunner().invoke(cli, list(arguments), input="")
    if isinstance(result.exception, SelfAlignError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def build(directory: Path, base_model: Path) -> WholeStore:
    """Eight stages with every document signed, a study, an approval, checkpoints that outlived
    their training, a gc at work."""
    path = write_world(directory, base_model)
    resolved, store = directory / "resolved.yaml", LocalStore(directory / "store")
    private, public = write_keys(directory / "keys")
    secret, verify = new_keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFALIGN_CACHE_DIR", str(directory / "cache"))
        patch.setenv(SIGNING_VARIABLE, secret)
        patch.setenv(SIGNING_KEY, str(private))
        patch.setattr(StoreCheckpoints, "clear", lambda _: None)
        manual = ("--set", "promote.approval=manual")
        _done("inputs", "push", "--config", str(path), *manual, "--out", str(resolved))
        config = load_config(resolved, ("clone.checkpoint_every_steps=1",)).config
        states = []
        for stage in STAGES:
            manifest = run_stage(stage.name, config, store, run="r")
            if manifest is None:
                (request,) = Path(store.url).glob("artifacts/promotion/*/request.json")
                _write_run(store, config.model_dump(mode="json"), states, request.parent.name)
                named = ("--config", str(resolved))
                _done("approve", "r", "--as", "anna", "--reason", "good", *named)
                manifest = run_stage(stage.name, config, store, run="r")
            assert manifest is not None
            states.append(
                StageState(name=stage.name, phase="Done", key=manifest.key, digest=manifest.digest)
            )
        _done("ablate", "--principle", "1", "--config", str(resolved))
        _write_run(store, config.model_dump(mode="json"), states, states[-1].key)
        _fill_pointer(store, states)
    whole = WholeStore(resolved, store, public, verify)
    shutil.copytree(store.url, Path(store.url).with_name("kept"))
    return whole


def _done(*arguments: str) -> None:
    code, text = outcome(*arguments)
    assert code == 0, text


def _write_run(
    store: LocalStore, config: dict[str, Any], states: list[StageState], promotion: str
) -> None:
    """Run r as its driver wrote it, with an attempt; at first its promotion waits for a person."""
    store.delete("runs/r/run.json")
    write_run(store, RunRecord(id="r", created_at=WHEN, code_version="0", config=config))
    awaited = StageState(name="promote", phase="Running", key=promotion)
    status = RunStatus(
        id="r",
        phase="Succeeded" if states[-1].name == "promote" else "Running",
        started_at=WHEN,
        stages=states if states[-1].name == "promote" else [*states, awaited],
        attempts=[
            Attempt(
                stage="align",
                key=str(states[2].key),
                number=1,
                condition="Failed",
                cause="temporary",
                exit_code=70,
                message="the engine failed",
                started_at=WHEN,
                finished_at="2026-01-01T00:01:00+00:00",
                gpus=1,
            )
        ],
        notified={"HOOK": "0" * 32},
    )
    write_status(store, status)


def _fill_pointer(store: LocalStore, states: list[StageState]) -> None:
    """Every field of the pointer, of which the next evaluation reads none."""
    current = read_pointer(store)
    assert current is not None
    engraved = PromotedModel(
        artifact="engraved_model", key=str(states[3].key), digest=str(states[3].digest)
    )
    fields = {
        "history": [engraved],
        "rolled_back": [engraved],
        "anchor": Anchor(model=current.pointer.model, promotions=1),
    }
    move_pointer(store, current.pointer.model_copy(update=fields), current)
    notice = Collection(by="0" * 16, renewed_at=datetime.now(UTC), condemned=["runs/none"])
    store.write("gc.json", notice.to_bytes())


# What may befall an object.

ESC = "\x1b]0;owned\x07[/x] :cd: \u202e"
ODD: list[Any] = [
    *(None, 0, -1, 1, 0.5, 10**400, 1e308, True, False, "", ".", "..", "/etc/passwd", "a/../../x"),
    *("\ud800", ESC, "0" * 64, "f" * 20, [], {}, [[]], [None], {"": None}, {"a": {"b": []}}),
    *("x" * 100_000, "2026-01-01", WHEN, "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59-23:00"),
    *("final_model", "promote", "Failed", [1, 2], ["", ESC], [{}], 2**63, "1e999"),
]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The object after a disk's or a network's accident."""
    place = chance.randrange(max(len(data), 1))
    return chance.choice(
        [
            data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
            if data
            else b"x",
            data[:place],
            b"",
            chance.randbytes(200),
            b"<html><title>502 Bad Gateway</title></html>",
            data[:place] + bytes(512) + data[place + 512 :],
        ]
    )


def edited(value: Any, chance: random.Random) -> Any:
    """A JSON value with one place changed, removed or added; near its top as often as far below."""
    if not isinstance(value, dict | list) or not value:
        return chance.choice(ODD)
    name = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value[name], dict | list) and chance.random() < 0.7:
        value[name] = edited(value[name], chance)
        return value
    what = chance.choice(["change", "change", "change", "remove", "add"])
    if what == "remove":
        del value[name]
    elif what == "add" and isinstance(value, dict):
        value[chance.choice([ESC, "unknown", "__proto__"])] = chance.choice(ODD)
    else:
        value[name] = chance.choice(ODD)
    return value


def forged(data: bytes, chance: random.Random) -> bytes:
    """The object as somebody writes it who knows the format: JSON of other content, sealed where it
    was; lines of records packed again; anything else damaged."""
    packed = data.startswith(b"\x28\xb5\x2f\xfd")
    text = zstandard.ZstdDecompressor().decompressobj().decompress(data) if packed else data
    lines = text.splitlines()
    try:
        if packed or (len(lines) > 1 and all(map(json.loads, lines))):
            place = chance.randrange(len(lines))
            changed = edited(json.loads(lines[place]), chance)
            lines[place] = json.dumps(changed).encode()
            text = b"\n".join([*lines, b""])
        else:
            value = json.loads(text)
            was_sealed = isinstance(value, dict) and value.pop("checksum", None) is not None
            changed = edited(value, chance)
            text = sealed(changed) if was_sealed else json.dumps(changed).encode()
    except ValueError:
        return damaged(data, chance)
    return zstandard.compress(text) if packed else text


def sealed(value: dict[str, Any]) -> bytes:
    """A document with the checksum and the digest of content that anybody can compute."""
    value = {name: each for name, each in value.items() if name not in ("checksum", "signature")}
    if "shards" in value:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            sums = [p["content"] for s in value["shards"] for p in s["parts"]]
            named = sorted([f["name"], f["sha256"]] for f in value["files"])
            total = f"{sum(int(s, 16) for s in sums) % 2**256:064x}"
            content = {"records": total, "files": named} if sums else {"parts": [], "files": named}
            value["digest"] = digest(content)
    with contextlib.suppress(UnicodeError):
        value = {**value, "checksum": digest(value)}
    return json.dumps(value).encode()


def believe(store: LocalStore, key: str, data: bytes) -> None:
    """Make the document that names an object name these bytes: a manifest, a directory's marker;
    and the pointer follow the model."""
    parts = key.split("/")
    if parts[0] == "models":
        index, entries = f"models/{parts[1]}/selfalign.json", "files"
    elif parts[0] == "artifacts":
        index, entries = "/".join(parts[:3]) + "/manifest.json", "shards"
    else:
        return
    if index == key or not store.exists(index):
        return
    value = json.loads(store.read(index))
    files = list(value["files"])
    if entries == "shards":
        for part in (p for s in value["shards"] for p in s["parts"]):
            files.append(part["file"])
            if key.endswith(part["file"]["key"] or part["file"]["name"]):
                with contextlib.suppress(UnicodeError, zstandard.ZstdError):
                    text = zstandard.ZstdDecompressor().decompressobj().decompress(data).decode()
                    part["content"] = content_sum(text.splitlines())
    for entry in files:
        if key.endswith("/" + (entry["key"] or entry["name"])):
            entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    before = value.get("digest")
    text = sealed(value)
    store.write(index, text)
    if store.exists("current.json") and before != (after := json.loads(text).get("digest")):
        pointer = store.read("current.json").replace(str(before).encode(), str(after).encode())
        store.write("current.json", sealed(json.loads(pointer)))
