"""gc beside runs that use what it is about to delete, on a real S3 server; and the command."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from selfalign.cli.main import cli
from selfalign.run.gc import collect
from selfalign.run.reachable import Retention
from selfalign.run.record import RunStatus
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Entry, Store
from selfalign.store.open import open_store
from tests.run.nights import night, night_config, problems


def clock() -> datetime:
    return datetime.now(UTC)


class Aged:
    """A store to which ten days have gone by for what it holds now, and is not written again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._old = {entry.key: entry.modified for entry in store.entries("")}

    def entries(self, prefix: str) -> Iterator[Entry]:
        for entry in self._store.entries(prefix):
            if self._old.get(entry.key) == entry.modified:
                yield replace(entry, modified=entry.modified - timedelta(days=10))
            else:
                yield entry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_run_that_reuses_what_gc_deletes_ends_whole(s3_url: str) -> None:
    store = open_store(s3_url)
    night(store, night_config(), "first", clock, promotes=False)
    for number, delay in enumerate([0.0, 0.5]):
        for key in [k for k in store.list("runs/") if not k.startswith("runs/kept")]:
            store.delete(key)  # nothing names the artifacts any more
        aged: Any = Aged(store)
        time.sleep(1.1)  # S3 tells whole seconds: what is written from now on is not the old
        ended: list[RunStatus] = []

        def run(name: str = f"at-once-{number}", ended: list[RunStatus] = ended) -> None:
            other = open_store(s3_url)
            sleep = lambda _seconds: time.sleep(0.2)  # noqa: E731
            ended.append(night(other, night_config(), name, clock, promotes=False, sleep=sleep))

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(delay)
        outcome = collect(aged, Retention(1, timedelta(hours=2)))
        thread.join()
        (status,) = ended
        assert status.phase == "Succeeded", status.message
        for state in status.stages:
            manifest = read_manifest(store, state.artifact, state.key or "")
            assert manifest is not None, (number, state.name, outcome.deleted)
            assert problems(store, manifest) == []
    assert not store.exists("gc.json")


def test_the_command_deletes_what_is_old_and_says_how_much(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for number in range(2):
        night(store, night_config(seed=number), f"night-{number}", clock, promotes=False)
    (run,) = (tmp_path / "store" / "runs").glob("night-0")
    record = json.loads((run / "run.json").read_text())
    record.pop("checksum")
    (run / "run.json").write_text(json.dumps({**record, "created_at": "2020-01-01T00:00:00+00:00"}))
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (0, 0))

    def gc(*options: str) -> Any:
        arguments = ["gc", "--store", store.url, "--keep-nights", "1", *options]
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    planned = json.loads(gc("--dry-run", "--json"))
    assert planned["dry_run"]
    assert "runs/night-0" in planned["prefixes"]
    assert "would be deleted  11" in gc("--dry-run")  # a run, its artifacts, superseded checkpoints
    done = json.loads(gc("--json"))
    assert done["deleted"] == planned["deleted"]
    assert done["kept"] == planned["kept"]
    assert json.loads(gc("--json"))["deleted"] == {"units": 0, "objects": 0, "bytes": 0}
    assert sum(entry.bytes for entry in store.entries("")) == done["kept"]["bytes"]
