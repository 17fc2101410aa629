"""The index of runs: their order, and records that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from selfalign.cli.main import cli
from selfalign.errors import ConfigurationError, DataError
from selfalign.report.collect import collect
from selfalign.run.record import (
    Attempt,
    RunRecord,
    RunStatus,
    latest_run,
    read_run,
    run_ids,
    write_run,
    write_status,
)
from selfalign.run.storage import held_bytes
from selfalign.store.local import LocalStore


def write(store: LocalStore, run_id: str, created_at: str) -> None:
    write_run(store, RunRecord(id=run_id, created_at=created_at, code_version="0", config={}))
    write_status(store, RunStatus(id=run_id, phase="Succeeded", updated_at=created_at))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    write(store, "nightly", "2026-01-01T00:00:00+00:00")
    write(store, "20260103-000000-aaaa", "2026-01-03T00:00:00+00:00")
    write(store, "b", "2026-01-02T00:00:00Z")
    write(store, "a", "2026-01-02T00:00:00+00:00")
    return store


def test_gpu_hours_count_what_each_attempt_held_for_as_long_as_it_took() -> None:
    def attempt(number: int, end: str | None, gpus: int | None) -> Attempt:
        times = {"started_at": "2026-01-01T00:00:00Z", "finished_at": end}
        known = {"stage": "align", "key": "k", "number": number, "condition": "Complete"}
        return Attempt.model_validate({**known, **times, "gpus": gpus})

    ended = [attempt(1, "2026-01-01T00:30:00Z", 8), attempt(2, "2026-01-01T02:00:00Z", 1)]
    open_or_uncounted = [attempt(3, None, 8), attempt(4, "2026-01-02T00:00:00Z", None)]
    assert RunStatus(id="a", attempts=[*ended, *open_or_uncounted]).gpu_hours == 6.0
    assert RunStatus(id="a", attempts=open_or_uncounted[1:]).gpu_hours is None


def test_who_reads_a_cluster_s_run_in_its_store_is_sent_to_the_cluster(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for run_id, lines in (("there", None), ("here", 299)):
        about = {"created_at": "2026-01-01T00:00:00Z", "code_version": "0", "config": {}}
        write_run(store, RunRecord(id=run_id, annotation_lines=lines, **about))
        for phase in ("Interrupted", "Running"):
            write_status(store, RunStatus(id=run_id, phase=phase))
            told = CliRunner().invoke(cli, ["status", run_id, "--store", str(tmp_path), "--json"])
            action = json.loads(told.stdout)["next_action"]
            assert ("selfalign run" in action) == (run_id == "here")


def test_a_store_of_many_objects_is_not_listed_to_its_end(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for number in range(5):
        store.write(f"a/{number}", b"12345678")
    assert (held_bytes(store, 5).bytes, held_bytes(store, 5).whole) == (40, True)
    part = held_bytes(store, 4)
    assert (part.bytes, part.whole) == (32, False)
    assert str(part) == "at least 32 bytes"


def test_the_latest_run_is_the_newest_and_not_the_last_of_the_alphabet(store: LocalStore) -> None:
    assert run_ids(store) == ["nightly", "a", "b", "20260103-000000-aaaa"]
    assert latest_run(store) == "20260103-000000-aaaa"


@pytest.mark.parametrize("name", ["a b", "..", "é", "x" * 300])
def test_a_name_that_no_run_can_have_is_no_run(store: LocalStore, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no run '.+ in .*") as refused:
        read_run(store, name)
    assert "the latest runs are" in str(refused.value.remedy)


def test_the_history_of_a_run_is_what_was_created_before_it(store: LocalStore) -> None:
    assert [past.status.id for past in collect(store, "b").history] == ["nightly", "a", "b"]


def test_a_truncated_record_is_named_and_hides_no_other_run(
    store: LocalStore, tmp_path: Path
) -> None:
    record = tmp_path / "runs" / "a" / "run.json"
    record.write_bytes(record.read_bytes()[:20])
    with pytest.raises(DataError, match=r"runs/a/run\.json: not a valid RunRecord"):
        read_run(store, latest_run(store))
    assert [past.status.id for past in collect(store, "b").history] == ["nightly", "b"]
