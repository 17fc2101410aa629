"""A run on the cluster has the record in the store that `status` and `report` read."""

from __future__ import annotations

import pytest

from selfalign.errors import StoreUnavailable
from selfalign.run.record import read_run, read_status

from .worlds import DictStore, World, fail


@pytest.fixture
def world() -> World:
    world = World()
    world.submit()
    return world


def test_the_record_says_what_was_asked_for(world: World) -> None:
    world.step()
    record = read_run(world.store, "toy")
    assert record.created_at == world.run()["metadata"]["creationTimestamp"]
    assert record.config["align"]["num_shards"] == 3
    assert record.annotation_lines


def test_the_status_follows_the_run_to_its_end(world: World) -> None:
    world.step()
    status = read_status(world.store, "toy")
    assert status is not None
    assert (status.phase, status.stages[0].phase) == ("Running", "Running")
    world.to_the_end()
    status = read_status(world.store, "toy")
    assert status is not None
    assert (status.phase, status.verdict) == ("Succeeded", "Promoted")
    assert [stage.phase for stage in status.stages] == ["Done"] * 8
    assert all(stage.digest for stage in status.stages)
    assert status.stages[0].seconds is not None


def test_a_failure_is_recorded_with_its_attempts(world: World) -> None:
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=3, message="corrupt")
    world.step()
    status = read_status(world.store, "toy")
    assert status is not None
    (attempt,) = status.stages[0].attempts
    assert (status.phase, attempt.exit_code, attempt.cause) == ("Failed", 3, "permanent")
    assert "corrupt" in status.message


def test_a_deleted_run_is_recorded_as_interrupted(world: World) -> None:
    world.step()
    world.cluster.delete("alignmentruns", "toy", uid=world.run()["metadata"]["uid"])
    world.step()
    status = read_status(world.store, "toy")
    assert status is not None
    assert status.phase == "Interrupted"


def test_a_run_made_anew_has_a_record_of_its_own(world: World) -> None:
    world.step()
    world.cluster.delete("alignmentruns", "toy", uid=world.run()["metadata"]["uid"])
    world.cluster.collect_garbage()
    world.step(after=60)
    world.submit(config={"seed": 5})
    world.step()
    assert read_run(world.store, "toy").config["seed"] == 5


def test_a_restarted_controller_keeps_the_record(world: World) -> None:
    world.step()
    before = read_run(world.store, "toy")
    world.restart()
    world.to_the_end()
    assert read_run(world.store, "toy") == before


def test_a_record_of_another_version_is_replaced(world: World) -> None:
    world.store.write("runs/toy/run.json", b'{"id": "toy", "of": "another version"}')
    world.step()
    assert read_run(world.store, "toy").config["align"]["num_shards"] == 3


def test_a_store_that_refuses_records_stops_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(world.store, DictStore)
    write = world.store.write

    def refuse(key: str, data: bytes, **options: object) -> str:
        if key.startswith("runs/"):
            raise StoreUnavailable("down")
        return write(key, data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.store, "write", refuse)
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"
    assert read_status(world.store, "toy") is None
