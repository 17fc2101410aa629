"""`selfalign export --mlflow` and `--tensorboard`, read back by MLflow and as TensorBoard would."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from tensorboardX.proto.event_pb2 import Event

from selfalign.cli import mlflow_registry
from selfalign.cli.main import cli
from selfalign.cli.mlflow_registry import DIGEST_TAG, register
from selfalign.errors import ConfigurationError, StorageFull, StoreUnavailable
from selfalign.evaluation.scores import ItemScore
from selfalign.evaluation.summary import summarise
from selfalign.serving.directory import materialise
from selfalign.store.local import LocalStore
from tests import artifacts
from tests.artifacts import publish


def promote(store: LocalStore, key: str, *, rollback: bool = False) -> str:
    """Promote the model of this key, made now if need be, or roll back to it; its digest."""
    curve = b'{"step": 1, "loss": 2.5, "epoch": 0.5}\n{"step": 2, "loss": 1.5, "epoch": 1.0}\n'
    files = {"merged/config.json": key.encode(), "loss.jsonl": curve}
    model = publish(store, "final_model", key, files)
    scores = [ItemScore(str(n), "heldout.aligned", None, float(n > 0), 1, "") for n in range(4)]
    summary = summarise({"final": scores, "base": scores}).model_dump_json().encode()
    evaluation = publish(store, "evaluation", f"{key}-e", {"summary.json": summary})
    promotion = publish(store, "promotion", f"{key}-p", parents=(evaluation, model))
    materialise(store, model, {})
    by = {} if rollback else {"promotion": promotion.key, "run": f"run-{key}"}
    directory = f"models/{model.digest}"
    artifacts.promote(store, model, directory=directory, moved_at="2026-11-01T01:00:00Z", **by)
    return model.digest


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's own store of files."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "mlflow").mkdir()
    return (tmp_path / "mlflow").as_uri()


def versions(registry: str) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=registry, registry_uri=registry)
    found = client.search_model_versions("name = 'selfalign'")
    aliases = client.get_registered_model("selfalign").aliases
    return {
        **{str(version.version): version for version in found},
        "current": str(aliases["current"]),
    }


def test_a_promoted_model_is_one_version_however_often_it_is_exported(
    store: LocalStore, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = promote(store, "one")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        arguments = ["export", "--mlflow", registry, "--store", "store", "--json"]
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == {"mlflow_version": "1"}
    found = versions(registry)
    assert (len(found), found["current"]) == (2, "1")
    version = found["1"]
    assert version.source == f"{store.url}/models/{digest}"
    assert version.tags == {
        DIGEST_TAG: digest,
        "selfalign.artifact": "final_model/one",
        "selfalign.promoted_at": "2026-11-01T01:00:00Z",
        "selfalign.run": "run-one",
        "selfalign.score.heldout.aligned": "0.7500 [0.3006, 0.9544]",
    }


def test_the_alias_follows_promotion_and_rollback(store: LocalStore, registry: str) -> None:
    promote(store, "one")
    assert register(store, registry, "selfalign") == "1"
    promote(store, "two")
    assert register(store, registry, "selfalign") == "2"
    assert versions(registry)["current"] == "2"
    promote(store, "one", rollback=True)
    assert register(store, registry, "selfalign") == "1"
    found = versions(registry)
    assert (len(found), found["current"]) == (3, "1")


def test_of_two_exports_at_once_one_version_stays(
    store: LocalStore, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, "one")
    register(store, registry, "selfalign")
    read, stale = mlflow_registry._versions, [True]
    monkeypatch.setattr(
        mlflow_registry, "_versions", lambda *asked: [] if stale.pop() else read(*asked)
    )
    stale[:] = [False, True]  # the first look was before the other's version
    assert register(store, registry, "selfalign") == "1"
    assert len(versions(registry)) == 2


def test_a_version_that_the_registry_does_not_list_yet_is_registered(
    store: LocalStore, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, "one")
    monkeypatch.setattr(mlflow_registry, "_versions", lambda *_asked: None)
    assert register(store, registry, "selfalign") == "1"
    assert versions(registry)["current"] == "1"


def test_what_cannot_be_registered_is_told(
    store: LocalStore, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="no model is promoted yet"):
        register(store, registry, "selfalign")
    digest = promote(store, "one")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigurationError, match="takes no directory"):
        register(store, "http://127.0.0.1:1", "selfalign")
    bucket = LocalStore(Path(store.url))
    monkeypatch.setattr(LocalStore, "url", "s3://bucket/prefix")
    with pytest.raises(StoreUnavailable, match="--mlflow: ") as caught:
        register(bucket, "http://someone:secret@127.0.0.1:1", "selfalign")
    assert "secret" not in str(caught.value)
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="--mlflow: "):
        register(store, "nonsense://x", "selfalign")
    store.delete(f"models/{digest}/selfalign.json")
    with pytest.raises(ConfigurationError, match="not there or not complete"):
        register(store, registry, "selfalign")


def test_the_loss_curve_is_written_once_for_tensorboard(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, "one")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done = CliRunner().invoke(cli, ["export", "--tensorboard", "curves", "--store", "store"])
        assert done.exit_code == 0, done.output
        assert "wrote curves/final_model-one" in done.stdout
    (events,) = (tmp_path / "curves/final_model-one").iterdir()
    values = {}
    data = events.read_bytes()
    while data:  # TFRecord: length, its checksum, an Event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        values |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        data = data[16 + size :]
    assert values == {
        ("train/loss", 1): 2.5, ("train/loss", 2): 1.5,
        ("train/epoch", 1): 0.5, ("train/epoch", 2): 1.0,
    }  # fmt: skip


def test_a_loss_curve_on_a_full_disk_is_told_as_one(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, "one")

    written: list[bytes] = []

    def full(_self: object, data: bytes) -> None:
        written.append(data)
        if len(written) > 1:  # the first is the file's version
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
    asked = ["export", "--tensorboard", f"{store.url}/../curves", "--store", store.url]
    assert isinstance(CliRunner().invoke(cli, asked).exception, StorageFull)


def test_an_export_to_nowhere_and_a_key_for_the_registry_are_refused() -> None:
    assert "give --to, --mlflow or --tensorboard" in CliRunner().invoke(cli, ["export"]).output
    asked = ["export", "abc", "--mlflow", "http://x"]
    assert "leave KEY out" in CliRunner().invoke(cli, asked).output
    asked = ["export", "--artifact", "engraved_model", "--to", "model"]
    assert "give KEY too" in CliRunner().invoke(cli, asked).output
