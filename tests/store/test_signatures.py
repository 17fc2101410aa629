"""Who may write to a store and has no key cannot make anybody believe that a stage wrote it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from selfalign.errors import ConfigurationError, DataError
from selfalign.records import Prompt, digest
from selfalign.store.artifact import read_manifest
from selfalign.store.documents import read_document
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Shard
from selfalign.store.pointer import read_pointer
from selfalign.store.signatures import SIGNING_VARIABLE, VERIFY_VARIABLE
from selfalign.training.stored import StoreCheckpoints
from tests.artifacts import promote, publish_records, writer

MANIFEST = "artifacts/prompts/k/manifest.json"
MARK = "artifacts/prompts/k/parts/00000-of-00001/one.json"
CHECKPOINTS = "artifacts/prompts/training/checkpoints/saved.json"
SIGNED = [MANIFEST, MARK, "artifacts/prompts/k/shards/00000-of-00001.json", "current.json"]


def new_keys() -> tuple[str, str]:
    """A private and its public key, as the variables take them."""
    private = Ed25519PrivateKey.generate()
    raw, nothing = serialization.Encoding.Raw, serialization.NoEncryption()
    secret = private.private_bytes(raw, serialization.PrivateFormat.Raw, nothing)
    public = private.public_key().public_bytes(raw, serialization.PublicFormat.Raw)
    return base64.b64encode(secret).decode(), base64.b64encode(public).decode()


def publish(store: LocalStore, key: str = "k") -> None:
    records = [Prompt(id="p", source="self_instruct", text=key)]
    promote(store, publish_records(store, "prompts", records, key))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """What a stage published with its key; the process that reads has the public one alone."""
    made = LocalStore(tmp_path)
    secret, public = new_keys()
    monkeypatch.setenv(SIGNING_VARIABLE, secret)
    publish(made)
    StoreCheckpoints(writer(made, "prompts", "training")).publish(1, [])
    monkeypatch.delenv(SIGNING_VARIABLE)
    monkeypatch.setenv(VERIFY_VARIABLE, public)
    return made


def read(store: LocalStore, key: str) -> Any:
    if key == "current.json":
        return read_pointer(store)
    if key.endswith("manifest.json"):
        return read_manifest(store, *key.split("/")[1:3])
    if "/shards/" in key:
        return read_document(store, key, Shard)
    return writer(store, "prompts", key.split("/")[2]).shard(0, 1).committed()


@pytest.mark.parametrize("key", SIGNED)
def test_what_a_stage_signed_is_read(store: LocalStore, key: str) -> None:
    assert read(store, key)


@pytest.mark.parametrize("key", SIGNED)
@pytest.mark.parametrize("forgery", ["unsigned", "edited", "another key", "no base64"])
def test_a_forged_document_is_refused(
    store: LocalStore, key: str, forgery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = json.loads(store.read(key))
    if forgery == "another key":
        with monkeypatch.context() as attacker:
            attacker.delenv(VERIFY_VARIABLE)
            attacker.setenv(SIGNING_VARIABLE, new_keys()[0])
            other = LocalStore(Path(store.url) / "other")
            publish(other)
        value = json.loads(other.read(key))
    elif forgery == "no base64":
        value["signature"] = "ключ"
    else:
        signature = value.pop("signature")
        value.pop("checksum")
        if forgery == "edited":
            value["schema_version" if key == MANIFEST else "moved_at"] = "forged"
            value["signature"] = signature
        content = {name: each for name, each in value.items() if name != "signature"}
        value["checksum"] = digest(content)
    store.write(key, json.dumps(value).encode())
    with pytest.raises(DataError, match=f"{key}: .*not signed by the key of"):
        read(store, key)


def test_a_signed_mark_does_not_count_in_another_artifact(store: LocalStore) -> None:
    store.write(MARK.replace("/k/", "/other/"), store.read(MARK))
    with pytest.raises(DataError, match=r"other/.*not signed by the key of"):
        read(store, MARK.replace("/k/", "/other/"))


def test_an_unsigned_checkpoint_is_not_resumed(store: LocalStore, tmp_path: Path) -> None:
    checkpoints = StoreCheckpoints(writer(store, "prompts", "training"))
    assert checkpoints.latest(tmp_path / "a") == 1
    value = json.loads(store.read(CHECKPOINTS))
    value.pop("signature")
    store.write(CHECKPOINTS, json.dumps(value).encode())
    assert checkpoints.latest(tmp_path / "b") is None


def test_who_has_no_key_publishes_nothing(store: LocalStore) -> None:
    with pytest.raises(ConfigurationError, match=f"must be signed.*{SIGNING_VARIABLE} is not"):
        publish(store, "other")


@pytest.mark.parametrize("text", ["ключ", "c2hvcnQ=", "===="])
def test_a_key_that_is_none_is_named_and_not_shown(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VERIFY_VARIABLE, text)
    with pytest.raises(ConfigurationError, match=VERIFY_VARIABLE) as caught:
        read_pointer(store)
    assert text not in str(caught.value)


def test_without_keys_signed_documents_are_read_as_ever(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VERIFY_VARIABLE)
    assert all(read(store, key) for key in SIGNED)
    publish(store, "unsigned")
    assert b"signature" not in store.read("current.json")
