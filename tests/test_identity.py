"""What enters an identity is all there is, or an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfalign.identity import path_sha256


def test_a_directory_that_cannot_be_listed_is_an_error_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    listed: Callable[..., Any] = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "part":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    before = path_sha256(tmp_path)
    (tmp_path / "part" / "model.safetensors").write_bytes(b"others")
    assert path_sha256(tmp_path) != before
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        path_sha256(tmp_path)
