"""The loop that commits work part by part, against engines of every temper."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Self

import pytest

from selfalign.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Sampling,
    Score,
    ScoreRequest,
)
from selfalign.errors import EngineError, StorageFull
from selfalign.records import Prompt
from selfalign.stages.contract import EngineHandle, PartOutcome, chunked, generate_shard, share_size
from selfalign.stages.quarantine import QuarantineLimit
from selfalign.store.artifact import ArtifactWriter, read_records
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from selfalign.telemetry import Progress
from tests import artifacts

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=8)


class EchoEngine:
    """Answers each prompt with itself, `window` requests in flight, in a shuffled order."""

    info = EngineInfo("echo", "1", "cpu")
    max_length = 100

    def __init__(self, window: int = 1, fail_after: int | None = None) -> None:
        self.window = window
        self.fail_after = fail_after
        self.seen: list[str] = []
        self.closed = False

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        order = random.Random(0)
        flying: list[GenerationRequest] = []
        done = 0
        stream = iter(requests)
        exhausted = False
        while True:
            while not exhausted and len(flying) < self.window:
                request = next(stream, None)
                exhausted = request is None
                if request is not None:
                    self.seen.append(request.id)
                    flying.append(request)
            if not flying:
                return
            if self.fail_after is not None and done >= self.fail_after:
                raise EngineError("out of luck")
            request = flying.pop(order.randrange(len(flying)))
            done += 1
            yield Completion(request.id, request.prompt, "stop", 1, 1)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        raise AssertionError("not asked to score")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closed = True


def writer(store: LocalStore) -> ArtifactWriter:
    return artifacts.writer(store, "prompts")


def request(index: int) -> GenerationRequest:
    return GenerationRequest(f"r{index:03d}", f"text {index}", SAMPLING, index)


def finish(outcome: PartOutcome, index: int, completion: Completion) -> None:
    if index % 7 == 6:
        outcome.drop("seventh", completion.text)
    else:
        outcome.keep(Prompt(id=completion.id, source="self_instruct", text=completion.text))


class ShortEngine(EchoEngine):
    """Has no room for every tenth prompt."""

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        for request in requests:
            if request.seed % 10 == 3:
                yield Quarantined.too_long(request.id, 101, self.max_length)
            else:
                yield Completion(request.id, request.prompt, "stop", 1, 1)


def limit() -> QuarantineLimit:
    return QuarantineLimit("curate", "curate.max_quarantined", 23, 0.5)


def generate(store: LocalStore, engine: EchoEngine, count: int = 23) -> Manifest | None:
    artifact = writer(store)
    with EngineHandle(lambda: engine) as handle:
        chunks = chunked("part", range(count), 5)
        shard, progress = artifact.shard(0, 1), Progress("x", count)
        generate_shard(shard, chunks, handle, request, finish, progress, limit())
    return artifact.publish_when_complete(1)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.mark.parametrize("window", [1, 3, 11, 100])
def test_records_are_in_order_whatever_order_completions_come_in(
    store: LocalStore, window: int
) -> None:
    manifest = generate(store, EchoEngine(window))
    assert manifest is not None
    records = list(read_records(store, manifest, Prompt))
    assert [r.id for r in records] == [f"r{i:03d}" for i in range(23) if i % 7 != 6]
    assert manifest.counts.dropped == {"seventh": 3}
    assert manifest.counts.read == 23


def test_a_prompt_that_is_too_long_is_set_aside_and_the_others_are_kept(store: LocalStore) -> None:
    manifest = generate(store, ShortEngine())
    assert manifest.counts.dropped == {"seventh": 2}
    assert manifest.counts.quarantined == {"too_long": 2}
    assert [row.id for row in manifest.quarantined] == ["r003", "r013"]
    assert manifest.counts.read == 23


def test_the_manifest_says_how_many_new_tokens_a_second_a_worker_made(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("selfalign.stages.contract.time.monotonic", lambda: float(next(ticks)))
    manifest = generate(store, ShortEngine())
    rate = manifest.provenance.tokens_per_second
    assert rate is not None
    assert rate == 0.46  # 21 tokens while the clock went on by 46
    again = generate(LocalStore(Path(store.url) / "other"), EchoEngine(), count=0)
    assert again.provenance.tokens_per_second is None


class BabblingEngine(EchoEngine):
    """Every fifth answer is no text."""

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        for request in requests:
            text = "half \udc00" if request.seed % 5 == 0 else request.prompt
            yield Completion(request.id, text, "stop", 1, 1)


def test_an_answer_that_cannot_be_encoded_is_set_aside(store: LocalStore) -> None:
    manifest = generate(store, BabblingEngine())
    assert manifest.counts.quarantined == {"not_unicode": 5}
    assert manifest.counts.read == 23


@pytest.mark.parametrize("window", [2, 100])
def test_a_row_with_the_id_of_another_is_set_aside(store: LocalStore, window: int) -> None:
    artifact, engine = writer(store), EchoEngine(window)
    items = [0, 1, 1, 2, 3, 4]
    with EngineHandle(lambda: engine) as handle:
        shard, progress = artifact.shard(0, 1), Progress("x", len(items))
        chunks = chunked("part", items, 3)
        generate_shard(shard, chunks, handle, request, finish, progress, limit())
    manifest = artifact.publish_when_complete(1)
    assert manifest.counts.kept == 5
    assert manifest.counts.quarantined == {"duplicate_id": 1}


def test_a_part_of_rows_that_are_all_set_aside_is_committed_too(store: LocalStore) -> None:
    def refuse(index: int) -> Quarantined:
        return Quarantined(f"r{index}", "empty", "nothing")

    artifact = writer(store)
    with EngineHandle(EchoEngine) as handle:
        shard, progress = artifact.shard(0, 1), Progress("x", 8)
        chunks = chunked("part", range(8), 3)
        generate_shard(shard, chunks, handle, refuse, finish, progress, limit())
    manifest = artifact.publish_when_complete(1)
    assert manifest.counts.quarantined == {"empty": 8}
    assert [part.name for part in manifest.shards[0].parts] == [f"part-{n:05d}" for n in range(3)]


class BackwardsEngine(EchoEngine):
    """Answers the last request first; `fail_after` counts answers."""

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        for done, request in enumerate(reversed(list(requests))):
            if done == self.fail_after:
                raise EngineError("out of luck")
            yield Completion(request.id, request.prompt, "stop", 1, 1)


class WatchedStore(LocalStore):
    """Remembers the parts that were written, in order; refuses all after `room` of them."""

    def __init__(self, path: Path, room: int | None = None) -> None:
        super().__init__(path)
        self.room = room
        self.parts: list[str] = []

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        found = re.search(r"(part-\d+)\.json$", key)
        if found is not None:
            self.parts.append(found[1])
            if self.room is not None and len(self.parts) > self.room:
                raise StorageFull("no space left")
        super().write(key, data, if_absent=if_absent)


def test_parts_are_committed_in_order_though_the_last_is_answered_first(tmp_path: Path) -> None:
    store = WatchedStore(tmp_path)
    manifest = generate(store, BackwardsEngine(), count=100)
    assert manifest is not None
    assert store.parts == [f"part-{n:05d}" for n in range(20)]


def test_what_is_complete_survives_although_parts_before_it_do_not(tmp_path: Path) -> None:
    store = WatchedStore(tmp_path)
    with pytest.raises(EngineError):
        generate(store, BackwardsEngine(fail_after=12))  # of 23: the last two parts and a bit
    assert sorted(store.parts) == ["part-00003", "part-00004"]


def test_a_full_store_keeps_the_parts_that_it_took(tmp_path: Path) -> None:
    with pytest.raises(StorageFull):
        generate(WatchedStore(tmp_path, room=2), BackwardsEngine(), count=100)
    again = WatchedStore(tmp_path)
    assert generate(again, BackwardsEngine(), count=100) is not None
    assert again.parts == [f"part-{n:05d}" for n in range(2, 20)]


def test_finished_parts_survive_a_failing_engine_and_are_not_asked_again(
    store: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(EngineError):
        generate(store, EchoEngine(window=1, fail_after=12))
    engine = EchoEngine()
    resumed = generate(store, engine)
    assert engine.seen[0] == "r010"  # two parts of five were committed
    whole = LocalStore(tmp_path / "other")
    assert resumed.digest == generate(whole, EchoEngine(window=7)).digest  # type: ignore[union-attr]


def test_the_engine_is_closed_when_it_fails(store: LocalStore) -> None:
    engine = EchoEngine(fail_after=0)
    with pytest.raises(EngineError):
        generate(store, engine)
    assert engine.closed


def test_an_engine_that_another_thread_loads_is_closed_too() -> None:
    engine, loading, go_on = EchoEngine(), Event(), Event()

    def opener() -> EchoEngine:
        loading.set()
        go_on.wait()
        return engine

    with ThreadPoolExecutor(1) as beside:
        with EngineHandle(opener) as handle:
            beside.submit(handle.get)
            loading.wait()
            go_on.set()
        assert engine.closed
        with pytest.raises(RuntimeError, match="closed"):
            handle.get()


def test_a_manifest_says_how_long_the_first_answer_took_with_the_loading(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.count(step=2.0)  # each look at the clock is two seconds later
    monkeypatch.setattr("selfalign.stages.contract.time.monotonic", lambda: next(times))
    manifest = generate(store, EchoEngine())
    details = manifest.provenance.engine
    assert float(details["seconds_to_load"]) == 2
    assert float(details["seconds_to_first_answer"]) == 6


def test_a_shard_with_every_part_committed_loads_no_model(store: LocalStore) -> None:
    generate(store, EchoEngine())

    def must_not_be_called() -> EchoEngine:
        raise AssertionError("must not be called")

    with EngineHandle(must_not_be_called) as handle:
        chunks = chunked("part", range(23), 5)
        shard, progress = writer(store).shard(0, 1), Progress("x", None)
        generate_shard(shard, chunks, handle, request, finish, progress, limit())


def test_no_work_at_all_publishes_an_empty_artifact(store: LocalStore) -> None:
    manifest = generate(store, EchoEngine(), count=0)
    assert manifest.counts.kept == 0
    assert list(read_records(store, manifest, Prompt)) == []


def test_requests_are_drawn_lazily_across_parts(store: LocalStore) -> None:
    engine = EchoEngine(window=2, fail_after=1)
    with pytest.raises(EngineError):
        generate(store, engine, count=1000)
    assert len(engine.seen) <= 3


def test_shares_of_shards_add_up() -> None:
    for total in (0, 1, 7, 100):
        for shards in (1, 2, 3, 8):
            assert sum(share_size(total, s, shards) for s in range(shards)) == total
