"""A process of a stage, and one that a person starts, meet a forged object in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.store.open import open_store
from tests.forked import selfalign


@pytest.mark.parametrize("command", [["align"], ["chat", "A question?"]])
def test_a_process_names_the_forged_pointer(s3_url: str, world: Path, command: list[str]) -> None:
    open_store(s3_url).write("current.json", b'{"model": {"artifact": "../x"}}')
    at = ("--config", world, "--set", f"store={s3_url}")
    ended = selfalign(*command, *at, SELFALIGN_LOG="text")
    assert ended.returncode == 3, ended.stderr
    assert f"{s3_url}/current.json: not a valid Pointer" in ended.stderr
    assert "Traceback" not in ended.stderr
