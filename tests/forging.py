"""What an accident, or whoever may write to a bucket, does to an object of a store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import zstandard

from selfalign.records import digest
from selfalign.store.local import LocalStore
from selfalign.store.manifest import content_sum

Change = Callable[[Any], object]
WHEN = "2026-01-01T00:00:00+00:00"
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


def forge(store: LocalStore, pattern: str, change: Change | bytes) -> str:
    """Forge the first object of this name, and the documents that hold its digest; returns its key.

    A change is one of a JSON document.
    """
    key = next(key for key in store.list("") if fnmatchcase(key, pattern))
    if isinstance(change, bytes):
        data = change
    else:
        value = json.loads(store.read(key))
        change(value)
        data = sealed(value) if "checksum" in value else json.dumps(value).encode()
    store.write(key, data)
    believe(store, key, data)
    return key


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
