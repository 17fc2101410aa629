"""`models/<digest>/`: begun, continued, complete once, in a directory and in S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.errors import DataError
from selfalign.serving.directory import materialise, read_served
from selfalign.store.base import Store
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from tests.artifacts import publish

FILES = {"config.json": b"{}", "model-1-of-2.safetensors": b"1", "model-2-of-2.safetensors": b"2"}


class Dies(LocalStore):
    """Dies at the `deaths`-th change of a model's directory."""

    deaths = 0

    def _count(self, key: str) -> None:
        if key.startswith("models/"):
            self.deaths -= 1
            if self.deaths == 0:
                raise KeyboardInterrupt

    def copy(self, source: str, key: str) -> None:
        self._count(key)
        super().copy(source, key)

    def write(
        self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None
    ) -> str:
        self._count(key)
        return super().write(key, data, if_absent=if_absent, if_version=if_version)


def model(store: Store, form: str = "merged") -> Manifest:
    files = {f"{form}/{name}": data for name, data in FILES.items()}
    return publish(store, "final_model", files={"loss.jsonl": b"loss", **files})


@pytest.mark.parametrize("death", range(1, 6))
def test_a_promotion_killed_anywhere_is_continued_and_the_marker_comes_last(
    tmp_path: Path, death: int
) -> None:
    store = Dies(tmp_path)
    manifest = model(store)
    store.deaths = death
    with pytest.raises(KeyboardInterrupt):
        materialise(store, manifest, {"README.md": b"first"})
    assert read_served(store, manifest.digest) is None
    served = materialise(store, manifest, {"README.md": b"second"})
    prefix = f"models/{manifest.digest}/"
    names = [*FILES, "README.md"]
    assert sorted(store.list(prefix)) == sorted(prefix + n for n in [*names, "selfalign.json"])
    assert [entry.name for entry in served.files] == sorted(names)
    card = b"first" if death == 5 else b"second"
    assert {n: store.read(prefix + n) for n in names} == {**FILES, "README.md": card}
    # once complete it never changes
    assert materialise(store, manifest, {"README.md": b"third"}) == served
    assert store.read(prefix + "README.md") == card


def test_a_lost_object_and_a_foreign_marker_are_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    manifest = model(store)
    lost = next(entry for entry in manifest.files if entry.name.endswith("config.json"))
    store.delete(f"artifacts/final_model/k/{lost.location}")
    with pytest.raises(DataError, match=rf"{lost.location}: the manifest names it but"):
        materialise(store, manifest, {})
    other = LocalStore(tmp_path / "other")
    served = materialise(other, model(other), {})
    other.write(f"models/{'0' * 64}/selfalign.json", served.to_bytes())
    with pytest.raises(DataError, match=f"is that of model {served.digest[:12]}"):
        read_served(other, "0" * 64)
