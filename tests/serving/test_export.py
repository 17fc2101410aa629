"""Models out of the store, into a directory and into a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError, DataError
from selfalign.serving.directory import MARKER, materialise
from selfalign.serving.export import export
from selfalign.store.base import Store
from selfalign.store.local import LocalStore
from selfalign.store.open import open_store

from .test_directory import FILES, model


def held(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_promoted_model_comes_out_with_its_scores_and_any_other_without(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    manifest = model(store)
    export(store, manifest, "merged", str(tmp_path / "before"))
    assert held(tmp_path / "before").keys() == {*FILES, MARKER}
    materialise(store, manifest, {"README.md": b"scores"})
    served, _ = export(store, manifest, "merged", str(tmp_path / "after"))
    found = held(tmp_path / "after")
    assert found.pop(MARKER) == served.to_bytes()
    assert found == {**FILES, "README.md": b"scores"}


def test_an_export_that_was_stopped_goes_on_and_repairs_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = LocalStore(tmp_path / "store"), tmp_path / "out"
    manifest = model(store)
    export(store, manifest, "merged", str(out))
    (out / MARKER).unlink()
    (out / "config.json").unlink()
    (out / "model-1-of-2.safetensors").write_bytes(b"x")
    moved: list[str] = []
    download = store.download
    monkeypatch.setattr(
        store, "download", lambda key, target: (moved.append(target.name), download(key, target))
    )
    export(store, manifest, "merged", str(out))
    assert moved == ["config.json", "model-1-of-2.safetensors"]
    assert {k: v for k, v in held(out).items() if k != MARKER} == FILES


def test_a_flipped_byte_in_the_store_is_not_exported(tmp_path: Path) -> None:
    store, out = LocalStore(tmp_path / "store"), tmp_path / "out"
    manifest = model(store)
    served = materialise(store, manifest, {})
    store.write(f"models/{served.digest}/model-2-of-2.safetensors", b"3")
    with pytest.raises(DataError, match=r"model-2-of-2\.safetensors: corrupt: expected SHA-256"):
        export(store, manifest, "merged", str(out))
    assert not (out / "model-2-of-2.safetensors").exists()
    assert not (out / MARKER).exists()


def test_another_model_is_never_mixed_in_and_a_missing_adapter_is_told(tmp_path: Path) -> None:
    store, out = LocalStore(tmp_path / "store"), tmp_path / "out"
    manifest = model(store)
    export(store, manifest, "merged", str(out))
    other = manifest.model_copy(update={"digest": "0" * 64, "key": "other"})
    with pytest.raises(ConfigurationError, match="holds the merged form of final_model k, not the"):
        export(store, other, "merged", str(out))
    with pytest.raises(ConfigurationError, match="has no adapter form"):
        export(store, manifest, "adapter", str(out))


def test_a_place_that_can_hold_no_model_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    manifest = model(store)
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match=r"file: expected a dir|a file stands where"):
            export(store, manifest, "merged", str(place))
    (tmp_path / "config.json").write_text("a project's")
    with pytest.raises(ConfigurationError, match=r"config\.json: is not the model's"):
        export(store, manifest, "merged", str(tmp_path))
    assert (tmp_path / "config.json").read_text() == "a project's"
    with pytest.raises(ConfigurationError, match="no such kind of store"):
        export(store, manifest, "merged", "gs://bucket/model")
    export(store, manifest, "merged", f"file://{tmp_path}/out")
    assert (tmp_path / "out" / MARKER).is_file()


def test_a_model_goes_into_another_bucket_once(tmp_path: Path, s3_url: str) -> None:
    store = LocalStore(tmp_path / "store")
    manifest = model(store)
    target = f"{s3_url}/public/model"
    bucket: Store = open_store(target)
    bucket.write("config.json", b"another's")
    with pytest.raises(ConfigurationError, match=r"model/config\.json: is not the model's"):
        export(store, manifest, "merged", target)
    assert list(bucket.list("")) == ["config.json"]
    whole = next(name for name in FILES if name != "config.json")
    bucket.write(whole, FILES[whole])  # so the other is what a stopped copy left
    served, place = export(store, manifest, "merged", target)
    assert {name: bucket.read(name) for name in FILES} == FILES
    assert bucket.exists(MARKER)
    versions = {name: bucket.read_versioned(name)[1] for name in FILES}
    assert export(store, manifest, "merged", target) == (served, place)
    assert {name: bucket.read_versioned(name)[1] for name in FILES} == versions
