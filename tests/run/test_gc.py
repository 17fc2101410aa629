"""gc deletes what nothing needs, and nothing else, whoever works meanwhile and whenever it dies."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.errors import Condemned, DataError, SelfAlignError
from selfalign.inputs import push
from selfalign.run.gc import Collecting, Outcome, collect
from selfalign.run.reachable import ABANDONED, Retention, find_units, unreachable
from selfalign.run.record import RunRecord, read_status, write_run, write_status
from selfalign.store.artifact import read_manifest
from selfalign.store.base import Store
from selfalign.store.claims import COLLECTION_KEY, HEED, claim
from selfalign.store.pointer import read_pointer
from tests.artifacts import publish
from tests.memory_store import Bucket, MemoryStore

from .nights import Killed, Turns, later, night, night_config, problems, work

RETENTION = Retention(nights=2, grace=timedelta(hours=48))


def made(bucket: Bucket, name: str, *, promotes: bool = False, **changes: Any) -> str:
    """A night that went well, ten days ago."""
    status = night(
        MemoryStore(bucket), night_config(**changes), name, bucket.clock, promotes=promotes
    )
    assert status.phase == "Succeeded", status.message
    later(bucket, days=10)
    return name


def gc(bucket: Bucket, store: Store | None = None, **options: Any) -> Outcome:
    retention = options.pop("retention", RETENTION)
    return collect(store or MemoryStore(bucket), retention, clock=bucket.clock, **options)


def whole(bucket: Bucket, run_id: str) -> list[str]:
    """What is missing of what a run names."""
    store = MemoryStore(bucket)
    status = read_status(store, run_id)
    assert status is not None
    missing = []
    for state in status.stages:
        manifest = read_manifest(store, state.artifact, state.key or "")
        missing += [state.name] if manifest is None else problems(store, manifest)
    return missing


def promoted_missing(bucket: Bucket) -> list[str]:
    """What is missing of the models that the pointer names."""
    store = MemoryStore(bucket)
    current = read_pointer(store)
    if current is None:
        return []
    missing = []
    for model in [current.pointer.model, *current.pointer.history]:
        manifest = read_manifest(store, model.artifact, model.key)
        missing += [model.key] if manifest is None else problems(store, manifest)
        if not store.exists(f"models/{model.digest}/model.safetensors"):
            missing.append(f"models/{model.digest}")
    # none where the run died between moving the pointer and publishing
    promotion = read_manifest(store, "promotion", current.pointer.promotion or "")
    return missing + ([] if promotion is None else problems(store, promotion))


# What is kept.


def test_runs_of_the_latest_nights_are_kept_and_older_ones_go() -> None:
    bucket = Bucket()
    for number in range(4):
        made(bucket, f"night-{number}", seed=number)
    outcome = gc(bucket)
    assert {p for p in outcome.deleted if p.startswith("runs/")} == {"runs/night-0", "runs/night-1"}
    assert len([p for p in outcome.deleted if p.startswith("artifacts/")]) == 2 * 8 + 2 * 2
    assert whole(bucket, "night-2") == whole(bucket, "night-3") == []
    assert COLLECTION_KEY not in bucket.objects
    assert gc(bucket).deleted == []


def test_promoted_models_are_kept_with_what_they_were_made_from() -> None:
    bucket = Bucket()
    for number in range(8):
        made(bucket, f"night-{number}", seed=number, promotes=number in (1, 2, 3))
    gc(bucket)
    assert promoted_missing(bucket) == []
    kept = [p for p in find_units(MemoryStore(bucket)) if p.startswith("artifacts/promotion/")]
    assert len(kept) == 3 + 2  # with the verdicts that chose them, and the two latest nights'


def test_an_artifact_that_a_kept_night_reused_is_kept() -> None:
    bucket = Bucket()
    made(bucket, "first")
    for number in range(3):
        made(bucket, f"night-{number}", align={"min_answer_characters": number})
    gc(bucket)
    assert whole(bucket, "night-2") == []


def test_an_unfinished_run_is_kept_until_it_is_abandoned() -> None:
    bucket = Bucket()
    store = MemoryStore(bucket)
    for number in range(4):
        made(bucket, f"night-{number}", seed=number)
    status = read_status(store, "night-0")
    write_status(store, status.model_copy(update={"phase": "Running"}))
    later(bucket, days=10)
    gc(bucket)
    assert whole(bucket, "night-0") == []
    later(bucket, seconds=ABANDONED.total_seconds())
    gc(bucket)
    assert "runs/night-0/run.json" not in bucket.objects
    assert len(whole_artifacts(bucket)) == 2 * 8


def whole_artifacts(bucket: Bucket) -> list[str]:
    return [key for key in bucket.objects if key.endswith("/manifest.json")]


def test_what_is_young_or_claimed_is_kept_with_its_parents() -> None:
    bucket = Bucket()
    store = MemoryStore(bucket)
    for number in range(3):
        made(bucket, f"night-{number}", seed=number)
    status = read_status(store, "night-0")
    assert status is not None
    parent = next(state for state in status.stages if state.name == "align")
    claim(store, "artifacts/engraved_model/new", {"aligned_responses": parent.key or ""})
    gc(bucket)
    found = read_manifest(store, "aligned_responses", parent.key or "")
    assert found is not None
    assert problems(store, found) == []
    later(bucket, hours=49)
    assert "artifacts/engraved_model/new" in gc(bucket).deleted


def test_checkpoints_that_outlived_their_training_go() -> None:
    bucket = Bucket()
    made(bucket, "night")
    assert [p.rpartition("/")[2] for p in gc(bucket).deleted] == ["checkpoints"] * 2
    assert whole(bucket, "night") == []


def test_inputs_are_kept_while_something_names_them(tmp_path: Any) -> None:
    bucket = Bucket()
    store = MemoryStore(bucket)
    names = {}
    for name in ("run", "config", "manifest", "nobody"):
        (tmp_path / name).write_text(name)
        names[name] = push(store, "heldout", tmp_path / name)
    later(bucket, days=10)
    moment = bucket.now.isoformat()
    request = RunRecord(
        id="r", created_at=moment, code_version="0", config={"evaluate": {"heldout": names["run"]}}
    )
    write_run(store, request)
    (tmp_path / "judge").write_text("weights")
    judge = push(store, "judge", tmp_path / "judge")
    identity = {
        "data": {"heldout": names["manifest"].rpartition("/")[2]},
        "judge": {"model": f"sha256:{judge.rpartition('/')[2]}"},
    }
    publish(store, "evaluation", identity=identity)
    outcome = gc(bucket, retention=Retention(1, timedelta(hours=48), frozenset([names["config"]])))
    assert outcome.deleted == [names["nobody"].removeprefix("store:")]
    assert read_manifest(store, "evaluation", "k") is not None


def test_objects_that_belong_to_nothing_are_not_touched() -> None:
    bucket = Bucket()
    made(bucket, "night")
    for key in ("readme.txt", "artifacts/stray", "other/a/b/c"):
        bucket.objects[key] = (b"mine", bucket.now - timedelta(days=999))
    gc(bucket)
    assert {"readme.txt", "artifacts/stray", "other/a/b/c"} <= bucket.objects.keys()


def test_a_dry_run_changes_nothing() -> None:
    bucket = Bucket()
    for number in range(3):
        made(bucket, f"night-{number}", seed=number)
    before = dict(bucket.objects)
    outcome = gc(bucket, dry_run=True)
    assert outcome.condemned
    assert outcome.deleted == []
    assert bucket.objects == before


@pytest.mark.parametrize(
    "key", ["current.json", "runs/night-2/status.json", "runs/night-0/run.json"]
)
def test_what_cannot_be_read_stops_gc_before_it_deletes_anything(key: str) -> None:
    bucket = Bucket()
    for number in range(3):
        made(bucket, f"night-{number}", seed=number, promotes=True)
    bucket.objects[key] = (b"{", bucket.now)
    before = dict(bucket.objects)
    with pytest.raises(DataError, match=key):
        gc(bucket)
    assert bucket.objects == before


def test_two_at_once_are_refused_and_a_dead_one_is_taken_over() -> None:
    bucket = Bucket()
    for number in range(3):
        made(bucket, f"night-{number}", seed=number)
    turns = Turns(bucket, lambda _alive: 0)
    dead = turns.add(lambda store: gc(bucket, store), killed_at=60)
    turns.go()
    assert dead.killed
    assert COLLECTION_KEY in bucket.objects
    with pytest.raises(Collecting, match="a gc is at work since"):
        gc(bucket)
    unit = next(p for p in find_units(MemoryStore(bucket)) if p.startswith("artifacts/candidates"))
    later(bucket, seconds=HEED.total_seconds() + 1)
    claim(MemoryStore(bucket), unit, {}, bucket.clock)
    claimed = {key for key in bucket.objects if key.startswith(unit)}
    gc(bucket)
    assert COLLECTION_KEY not in bucket.objects
    assert claimed <= bucket.objects.keys()


def test_a_gc_that_slept_does_not_delete_what_others_began_to_use() -> None:
    bucket = Bucket()
    for number in range(3):
        made(bucket, f"night-{number}", seed=number)
    evaluations = [
        p for p in find_units(MemoryStore(bucket)) if p.startswith("artifacts/evaluation")
    ]
    claimed: list[str] = []

    class Sleeping(MemoryStore):
        def delete(self, key: str) -> None:
            super().delete(key)
            if not claimed:
                later(bucket, hours=2)
                for unit in evaluations:
                    claim(MemoryStore(bucket), unit, {}, bucket.clock)
                    claimed.append(unit)

    with pytest.raises(Collecting, match="not renewed since"):
        gc(bucket, Sleeping(bucket))
    assert all(f"{unit}/manifest.json" in bucket.objects for unit in claimed)
    later(bucket, hours=1)
    assert not set(gc(bucket).deleted) & set(claimed)
    assert COLLECTION_KEY not in bucket.objects


def test_a_worker_does_not_begin_what_is_being_deleted() -> None:
    bucket = Bucket()
    made(bucket, "night-0", seed=0)
    made(bucket, "night-1", seed=1)
    refused = []

    def try_to_work(store: MemoryStore) -> None:
        with pytest.raises(Condemned):
            work(
                store, night_config(seed=0, align={"num_shards": 2}), "evaluate", None, bucket.clock
            )
        refused.append(True)

    status = read_status(MemoryStore(bucket), "night-0")
    assert status is not None
    key = next(state.key for state in status.stages if state.name == "evaluate")
    del bucket.objects[f"artifacts/evaluation/{key}/manifest.json"]
    # gc until its notice is up, then the worker
    turns = Turns(bucket, lambda alive: alive - 1 if COLLECTION_KEY in bucket.objects else 0)
    turns.add(lambda store: gc(bucket, store, retention=Retention(1, timedelta(hours=48))))
    turns.add(try_to_work)
    turns.go()
    assert refused


# Races and deaths.


@settings(max_examples=40)
@given(data=st.data())
def test_runs_that_work_while_gc_deletes_and_dies_lose_nothing(data: st.DataObject) -> None:
    """Earlier nights, then at once: one or two runs that reuse what gc is about to delete, and gc,
    perhaps killed. Whatever they do, all that is in use is whole."""
    bucket = Bucket()
    variants = [
        {"seed": seed, "align": {"min_answer_characters": n}} for seed in (0, 1) for n in (0, 1)
    ]
    earlier = data.draw(st.lists(st.sampled_from(variants), min_size=2, max_size=4))
    for number, changes in enumerate(earlier):
        made(bucket, f"before-{number}", promotes=data.draw(st.booleans()), **changes)
    turns = Turns(bucket, chooser(data))
    last = Retention(1, RETENTION.grace)
    killed_at = data.draw(st.none() | st.integers(0, 300))
    collector = turns.add(lambda store: gc(bucket, store, retention=last), killed_at=killed_at)
    runs = {}
    for number in range(data.draw(st.integers(1, 2))):
        name = f"at-once-{number}"
        options = {
            "promotes": data.draw(st.booleans()),
            # a notice that nobody takes down is waited for in fewer steps
            "sleep": lambda seconds: later(bucket, seconds=1200 if collector.killed else seconds),
        }
        config = night_config(**data.draw(st.sampled_from(variants)))
        act = partial(night, config=config, run_id=name, clock=bucket.clock, **options)
        killed_at = data.draw(st.none() | st.integers(0, 400))
        runs[name] = turns.add(act, killed_at=killed_at)
    turns.go()
    for name, run in runs.items():
        if not run.killed:
            assert run.result.phase == "Succeeded", run.result.message
            assert whole(bucket, name) == []
    assert promoted_missing(bucket) == []
    # and the next gc goes on where this one died
    later(bucket, days=40)
    gc(bucket)
    assert promoted_missing(bucket) == []
    for name, run in runs.items():
        if not run.killed:
            assert whole(bucket, name) == []
    assert (
        unreachable(MemoryStore(bucket), find_units(MemoryStore(bucket)), RETENTION, bucket.now)
        == set()
    )


def chooser(data: st.DataObject) -> Any:
    """Who acts next: now one for long, now the other."""
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    stay = data.draw(st.sampled_from([0.5, 0.9, 0.98]))
    last = [0]

    def choose(alive: int) -> int:
        if chance.random() > stay or last[0] >= alive:
            last[0] = chance.randrange(alive)
        return last[0]

    return choose


def test_a_year_of_nights_stays_bounded_and_loses_nothing() -> None:
    """Each night a run, each morning a gc, which is killed at a random call every third time."""
    bucket = Bucket()
    chance = random.Random(2026)
    sizes = []
    killed = 0
    for number in range(365):
        changes = {"seed": number // 6, "align": {"min_answer_characters": number // 2 % 3}}
        promotes = chance.random() < 0.2
        status = night(
            MemoryStore(bucket), night_config(**changes), f"n{number}", bucket.clock,
            promotes=promotes, sleep=lambda seconds: later(bucket, seconds=seconds),
        )  # fmt: skip
        assert status.phase == "Succeeded", (number, status.message)
        later(bucket, hours=6)
        killed += dies_at(bucket, chance.randrange(300) if number % 3 == 0 else None)
        bucket.now = bucket.now.replace(hour=1, minute=0, second=0) + timedelta(days=1)
        sizes.append(len(bucket.objects))
        if number % 20 == 0:
            assert promoted_missing(bucket) == []
            assert all(whole(bucket, f"n{n}") == [] for n in range(max(0, number - 6), number + 1))
    assert killed > 40
    assert max(sizes[30:]) < 2 * max(sizes[:20]), (max(sizes[30:]), max(sizes[:20]))
    assert read_pointer(MemoryStore(bucket)) is not None


def dies_at(bucket: Bucket, call: int | None) -> bool:
    """A gc that is killed at this call, if it comes so far."""
    left = call

    def turn() -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left < 0:
                raise Killed

    try:
        collect(MemoryStore(bucket, turn), Retention(7, RETENTION.grace), clock=bucket.clock)
    except Killed:
        return True
    except SelfAlignError as error:
        raise AssertionError(error) from error
    return False
