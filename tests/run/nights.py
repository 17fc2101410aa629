"""Nights in a store in memory: real planning, driving, claiming and publishing of all eight stages,
of which only the work itself is small; and threads that take turns between two calls of the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from selfalign.config import RunConfig
from selfalign.errors import Condemned, SelfAlignError
from selfalign.identity import Inputs
from selfalign.load import validate_config
from selfalign.records import Prompt
from selfalign.run.drive import Driver
from selfalign.run.plan import Planned, heed_gc, plan_from_store
from selfalign.run.record import Attempt, RunRecord, RunStatus, write_run, write_status
from selfalign.run.stage import claimed
from selfalign.stages.contract import StageContext
from selfalign.store.base import PreconditionFailed, Store
from selfalign.store.manifest import Counts, Manifest, Provenance
from selfalign.store.pointer import Pointer, PromotedModel, move_pointer, read_pointer
from tests.memory_store import Bucket, MemoryStore

INPUTS = Inputs(seeds={"principles.txt": "0" * 64}, base_model="0123abcd", data={})
HISTORY = 3  # promoted models that the pointer names here


class Killed(BaseException):
    """The process is killed at this call of the store."""


def night_config(**changes: Any) -> RunConfig:
    """A configuration whose `seed` or stages make a night differ from others."""
    base = {"base_model": {"path": "example/base", "revision": INPUTS.base_model}}
    return validate_config({**base, **changes}, "a night")


@dataclass
class Workers:
    """An executor: does a stage's work within `start`, as its process would."""

    store: Store
    config: RunConfig
    run_id: str
    clock: Callable[[], datetime]
    promotes: bool
    done: list[Attempt] = field(default_factory=list)

    def attempts(self, remembered: Sequence[Attempt]) -> list[Attempt]:
        return list(self.done)

    def start(self, planned: Planned, number: int) -> None:
        stage, moment = planned.stage.name, self.clock().isoformat()
        attempt = Attempt(
            stage=stage, key=planned.key, number=number, condition="Complete",
            started_at=moment, finished_at=moment,
        )  # fmt: skip
        try:
            work(self.store, self.config, stage, planned.key, self.clock, self.promotes)
        except SelfAlignError as error:
            cause = "temporary" if error.retryable else "permanent"
            changes = {"condition": "Failed", "cause": cause, "message": error.message}
            attempt = attempt.model_copy(update=changes)
        self.done.append(attempt)


def work(
    store: Store,
    config: RunConfig,
    stage: str,
    expect_key: str | None,
    clock: Callable[[], datetime],
    promotes: bool = True,
) -> Manifest:
    """What a stage's process does to the store: two parts and a file."""
    planned = claimed(stage, config, INPUTS, store, expect_key, clock)
    if planned.manifest is not None:
        return planned.manifest
    context: Any = StageContext(
        config=config, store=store, stage=planned.stage, key=planned.key,
        identity=planned.identity, parents=planned.parents, seeds=None, shard=0, num_shards=1,
        work=Path(), promoted=planned.promoted,
    )  # type: ignore[arg-type]  # fmt: skip
    parents = [context.parent(name) for name in planned.parents]
    for parent in parents:
        for entry in parent.entries:
            store.read(f"artifacts/{parent.artifact}/{parent.key}/{entry.location}")
    writer = context.writer()
    shard = writer.shard(0, 1)
    for part in ("one", "two"):
        if part not in shard.committed():
            text = f"{planned.key} {part}"
            shard.commit(part, [Prompt(id=part, source="self_instruct", text=text)], Counts())
    moment = clock().isoformat()
    when = Provenance(started_at=moment, finished_at=moment)
    shard.finish(shard.committed().values(), when)
    if planned.stage.workload == "train":
        store.write(f"{writer.prefix}checkpoints/000000001/weights-0", b"saved")
    if stage == "promote" and promotes:
        _promote(store, context.parent("final_model"), planned, moment)
    published = writer.publish_when_complete(1, {"promoted": promotes})
    assert published is not None
    return published


def _promote(store: Store, final: Manifest, planned: Planned, moment: str) -> None:
    current = read_pointer(store)
    store.write(f"models/{final.digest}/model.safetensors", b"weights")
    model = PromotedModel(artifact=final.artifact, key=final.key, digest=final.digest)
    if current is not None and current.pointer.model == model:
        return
    before = [] if current is None else [current.pointer.model, *current.pointer.history]
    pointer = Pointer(
        model=model, previous=before[0] if before else None, promotion=planned.key, run=None,
        moved_at=moment, history=before[:HISTORY],
    )  # fmt: skip
    try:
        move_pointer(store, pointer, current)
    except PreconditionFailed:
        return  # another run promoted meanwhile


def night(
    store: Store,
    config: RunConfig,
    run_id: str,
    clock: Callable[[], datetime],
    *,
    promotes: bool = True,
    sleep: Callable[[float], None] = lambda _seconds: None,
) -> RunStatus:
    """One run to its end."""
    moment = clock().isoformat()
    write_run(store, RunRecord(id=run_id, created_at=moment, code_version="0", config={}))
    driver = Driver(
        Workers(store, config, run_id, clock, promotes),
        lambda: plan_from_store(config, INPUTS, store),
        lambda status: write_status(store, status),
        clock=clock,
        heed=lambda named: heed_gc(store, named, clock),
    )
    status = RunStatus(id=run_id)
    while not status.finished:
        try:
            status, wait_seconds = driver.step(status)
        except Condemned:
            wait_seconds = 30.0
        sleep(wait_seconds or 0.0)
    return status


class Turns:
    """Threads of which one acts at a time; `choose` says which after each call of the store."""

    def __init__(self, bucket: Bucket, choose: Callable[[int], int]) -> None:
        self.bucket = bucket
        self._choose = choose
        self._actors: list[_Actor] = []

    def add(self, act: Callable[[MemoryStore], Any], *, killed_at: int | None = None) -> _Actor:
        """A process that is killed at that call, if at any."""
        actor = _Actor(self.bucket, act, killed_at)
        self._actors.append(actor)
        return actor

    def go(self) -> None:
        """Until all have ended."""
        alive = list(self._actors)
        for actor in alive:
            actor.thread.start()
            actor.arrived.acquire()
        while alive := [actor for actor in alive if not actor.ended]:
            actor = alive[self._choose(len(alive))]
            actor.may_go.release()
            actor.arrived.acquire()
        for actor in self._actors:
            actor.thread.join()
            if actor.error is not None:
                raise actor.error


class _Actor:
    def __init__(
        self, bucket: Bucket, act: Callable[[MemoryStore], Any], killed_at: int | None
    ) -> None:
        self.arrived, self.may_go = threading.Semaphore(0), threading.Semaphore(0)
        self.ended = self.killed = False
        self.result: Any = None
        self.error: Exception | None = None
        self._left = killed_at
        store = MemoryStore(bucket, self._turn)

        def body() -> None:
            try:
                self.result = act(store)
            except Killed:
                self.killed = True
            except Exception as error:  # noqa: BLE001  raised again by `go`
                self.error = error
            self.ended = True
            self.arrived.release()

        self.thread = threading.Thread(target=body)

    def _turn(self) -> None:
        self.arrived.release()
        self.may_go.acquire()
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Killed


def problems(store: Store, manifest: Manifest) -> list[str]:
    """What is missing of an artifact and of all it was made from."""
    from selfalign.store.artifact import read_manifest

    missing = [
        entry.location
        for entry in manifest.entries
        if not store.exists(f"artifacts/{manifest.artifact}/{manifest.key}/{entry.location}")
    ]
    for name, parent in manifest.parents.items():
        found = read_manifest(store, name, parent.key)
        if found is None or found.digest != parent.digest:
            missing.append(f"{name} {parent.key}")
        else:
            missing += problems(store, found)
    return missing


def later(bucket: Bucket, **time: float) -> None:
    """Let time pass."""
    bucket.now += timedelta(**time)
