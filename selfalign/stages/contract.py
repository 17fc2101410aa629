"""The stage contract: what a stage is given, and the loop that commits work part by part.

A stage reads manifests, writes parts as work is done, and publishes its manifest last. It may be
killed at any moment and run again, also twice at once.
"""

from __future__ import annotations

import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from selfalign._version import __version__
from selfalign.config import RunConfig
from selfalign.engines.base import (
    Completion,
    Engine,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Score,
    ScoreRequest,
    unreadable,
)
from selfalign.errors import TemporaryError, printable
from selfalign.pipeline import Stage
from selfalign.records import Record, now, record_seed
from selfalign.seeds import Seeds
from selfalign.stages.quarantine import QuarantineLimit
from selfalign.store.artifact import ArtifactWriter, ShardWriter, read_manifest
from selfalign.store.base import Store
from selfalign.store.manifest import Counts, Manifest, Parent, Part, Provenance, QuarantinedRow
from selfalign.store.pointer import Anchor, PromotedModel
from selfalign.telemetry import Progress, log

COMMITS_WAITING = 4  # parts whose records are held while others are uploaded
DROPPED_SAMPLES_PER_FILTER = 3  # texts kept per part and filter, so that a person can look
LONGEST_ID, LONGEST_EXPLANATION = 200, 300  # characters that are kept of a quarantined row

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage is given.

    Attributes:
        config: the whole configuration; a stage reads its own section and the shared ones.
        store: where artifacts live.
        stage: its row of the stage table.
        key: of the artifact that it writes.
        identity: the JSON object whose digest is the key.
        parents: artifact name -> key and content digest of what it reads.
        promoted: the model that the final one is compared with, for the stages that compare.
        anchor: the anchor, where it is another model than the promoted one.
        seeds: the loaded seeds directory.
        shard: which shard this worker does, of `num_shards`.
        work: a scratch directory, empty at the start and removed at the end.
        run: id of the run this work is done for; it never enters an identity.
    """

    config: RunConfig
    store: Store
    stage: Stage
    key: str
    identity: dict[str, Any]
    parents: dict[str, Parent]
    seeds: Seeds
    shard: int
    num_shards: int
    work: Path
    promoted: PromotedModel | None = None
    anchor: Anchor | None = None
    run: str | None = None

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    def writer(self) -> ArtifactWriter:
        """The writer of this stage's artifact."""
        return ArtifactWriter(
            self.store,
            artifact=self.stage.writes,
            stage=self.name,
            key=self.key,
            identity=self.identity,
            parents=self.parents,
        )

    def parent(self, artifact: str) -> Manifest:
        """The manifest of a parent artifact."""
        parent = self.parents[artifact]
        manifest = read_manifest(self.store, artifact, parent.key)
        if manifest is None or manifest.digest != parent.digest:
            raise TemporaryError(
                f"{self.store.url}: artifact {artifact} {parent.key} changed or vanished since "
                f"{self.name} was planned",
                remedy="run the stage again; it will plan anew",
            )
        return manifest

    def seed_for(self, record_id: str) -> int:
        """The seed of one record of this stage."""
        return record_seed(self.config.seed, self.name, record_id)

    def quarantine_limit(
        self, rows: int, what: str | None = None, uncounted: Container[str] = ()
    ) -> QuarantineLimit:
        """How many of `rows` may be quarantined; `what` names a part of the stage's work, and
        `uncounted` the reasons for which any number may be."""
        share: float = getattr(self.config, self.name).max_quarantined
        setting = f"{self.name}.max_quarantined"
        return QuarantineLimit(what or self.name, setting, rows, share, uncounted)

    def mine(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """This worker's share: every `num_shards`-th item."""
        return islice(items, self.shard, None, self.num_shards)


def share_size(total: int, shard: int, num_shards: int) -> int:
    """How many of `total` items `StageContext.mine` gives to a shard."""
    return len(range(shard, total, num_shards))


@dataclass(frozen=True, slots=True)
class Chunk(Generic[_Item]):
    """Items of work whose results are committed together, as the part `name`."""

    name: str
    items: list[_Item]


@dataclass(slots=True)
class PartOutcome:
    """What became of a chunk: kept records, counts, a few dropped texts per filter, and the rows
    that were set aside."""

    records: list[Record] = field(default_factory=list)
    read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_samples: dict[str, list[str]] = field(default_factory=dict)
    quarantined: list[QuarantinedRow] = field(default_factory=list)

    def keep(self, record: Record) -> None:
        """Count and keep a record."""
        self.read += 1
        self.records.append(record)

    def drop(self, reason: str, text: str) -> None:
        """Count a text that a filter dropped."""
        self.read += 1
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        samples = self.dropped_samples.setdefault(reason, [])
        if len(samples) < DROPPED_SAMPLES_PER_FILTER:
            samples.append(text)

    def quarantine(self, row: Quarantined, name: str | None = None) -> None:
        """Count a row that no engine answers, and keep its name (its id) and the reason."""
        self.read += 1
        self.quarantined.append(
            QuarantinedRow(
                id=printable(name or row.id)[:LONGEST_ID],
                reason=row.reason,
                explanation=printable(row.explanation)[:LONGEST_EXPLANATION],
            )
        )

    def counts(self) -> Counts:
        """The counts of this part."""
        reasons = Counter(row.reason for row in self.quarantined)
        return Counts(
            read=self.read,
            kept=len(self.records),
            dropped=dict(sorted(self.dropped.items())),
            quarantined=dict(sorted(reasons.items())),
        )


def chunked(prefix: str, items: Iterable[_Item], size: int) -> Iterator[Chunk[_Item]]:
    """Group items into chunks `<prefix>-00000`, ... of `size` items; lazy."""
    iterator = iter(items)
    for index in count():
        group = list(islice(iterator, size))
        if not group:
            return
        yield Chunk(f"{prefix}-{index:05d}", group)


def commit_parts(
    shard: ShardWriter,
    chunks: Iterable[Chunk[_Item]],
    work: Callable[[Iterator[Chunk[_Item]]], Iterable[tuple[str, PartOutcome]]],
    progress: Progress,
    replay: Callable[[Part], None] | None = None,
    check: Callable[[Part], None] | None = None,
) -> dict[str, Part]:
    """Do the chunks that are not committed yet, and commit them in their order.

    A thread compresses and uploads, so that `work` goes on meanwhile. It is never held up by more
    than one commit at a time: an outcome waits for those of the chunks before it, and where many
    have waited for one, more than COMMITS_WAITING are handed over together.

    Args:
        work: the names and outcomes of the chunks that it is given, in any order.
        replay: called with each part that an earlier attempt committed, in the chunks' order.
        check: called with each part that is committed, by an earlier attempt or now; what it raises
            ends the work.

    Returns:
        The parts of all chunks by name, in the chunks' order.
    """
    parts = shard.committed()
    names: list[str] = []
    undone: deque[str] = deque()  # chunks that `work` was given, until their commit is handed over
    done: dict[str, PartOutcome] = {}  # of chunks that wait for one before them

    def pending() -> Iterator[Chunk[_Item]]:
        for chunk in chunks:
            names.append(chunk.name)
            part = parts.get(chunk.name)
            if part is None:
                undone.append(chunk.name)
                yield chunk
                continue
            progress.skip(len(chunk.items))
            for told in (replay, check):
                if told is not None:
                    told(part)

    waiting: deque[tuple[str, Future[Part]]] = deque()

    def settle() -> None:
        name, committed = waiting.popleft()
        if committed.exception() is not None:
            done.clear()  # a store that takes one part no more takes no other
            for _, other in waiting:
                other.cancel()
        parts[name] = committed.result()
        log.debug("part.committed", part=name, kept=parts[name].counts.kept)
        if check is not None:
            check(parts[name])

    # Leaving the block waits for what was handed over: an interrupted worker loses none of it.
    with ThreadPoolExecutor(1, thread_name_prefix="commit") as committer:

        def hand_over(name: str) -> None:
            outcome = done.pop(name)
            committed = committer.submit(
                shard.commit,
                name,
                outcome.records,
                outcome.counts(),
                outcome.dropped_samples,
                outcome.quarantined,
            )
            waiting.append((name, committed))

        try:
            for finished, outcome in work(pending()):
                done[finished] = outcome
                while undone and undone[0] in done:
                    hand_over(undone.popleft())
                while waiting and waiting[0][1].done():
                    settle()
                if len(waiting) > COMMITS_WAITING:
                    settle()
        except BaseException:
            for name in list(done):  # complete, whatever the chunks before them still lack
                hand_over(name)
            raise
        while waiting:
            settle()
    progress.finish()
    return {name: parts[name] for name in names}


class EngineHandle:
    """An engine that is opened when first needed, and closed with the `with` block.

    A stage that finds all its parts committed never loads a model. After the block none is loaded
    any more, whatever another thread of the stage still wants to ask.
    """

    def __init__(self, opener: Callable[[], Engine]) -> None:
        self._opener = opener
        self._engine: Engine | None = None
        self._opening = Lock()
        self._closed = False
        self._opened_at: float | None = None  # None again when the first answer has come

    @property
    def info(self) -> EngineInfo | None:
        """What the engine is, or None while it was not needed."""
        return None if self._engine is None else self._engine.info

    def get(self) -> Engine:
        """The engine, loaded now if it was not yet. Threads may ask at once.

        Raises RuntimeError after the block.
        """
        with self._opening:
            if self._closed:
                raise RuntimeError("the engine was closed")
            if self._engine is None:
                log.info("engine.loading")
                self._opened_at = started = time.monotonic()
                self._engine = self._opener().__enter__()
                seconds = time.monotonic() - started
                self._engine.info.details["seconds_to_load"] = f"{seconds:.1f}"
                log.info(
                    "engine.loaded", device=self._engine.info.device, seconds=round(seconds, 1)
                )
            return self._engine

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        """As the engine's own; notes how long its first answer takes, loading included."""
        yield from self._noted(self.get().generate(requests))

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score | Quarantined]:
        """Likewise."""
        yield from self._noted(self.get().score(requests))

    def _noted(self, answers: Iterator[_Answer]) -> Iterator[_Answer]:
        for answer in answers:
            if self._opened_at is not None:
                seconds, self._opened_at = time.monotonic() - self._opened_at, None
                self.get().info.details["seconds_to_first_answer"] = f"{seconds:.1f}"
                log.info("engine.answers", seconds=round(seconds, 1))
            yield answer

    def __enter__(self) -> EngineHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        with self._opening:  # what another thread is loading is closed too
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.__exit__(*exc_info)


def generate_shard(
    shard: ShardWriter,
    chunks: Iterable[Chunk[_Item]],
    engine: EngineHandle,
    request: Callable[[_Item], GenerationRequest | Quarantined],
    finish: Callable[[PartOutcome, _Item, Completion], None],
    progress: Progress,
    limit: QuarantineLimit,
) -> None:
    """Generate what is not committed yet, then commit the shard.

    Args:
        request: what the engine is asked for an item, or why it cannot be; ids differ between
            items.
        finish: enters an item's completion into the outcome of its part.
        limit: of quarantined rows; raises DataError where it is passed.
    """
    started, made = now(), _Generation(engine, request, finish, progress)
    if shard.finished:
        return
    parts = commit_parts(shard, chunks, made.outcomes, progress, check=limit.add)
    shard.finish(parts.values(), provenance(started, engine.info, made.tokens_per_second))
    log.info("shard.finished", shard=shard.index, num_shards=shard.num_shards, parts=len(parts))


@dataclass(slots=True)
class _Generation(Generic[_Item]):
    """Chunks whose items an engine answers; what it generates, without what was committed before.

    The engine sees one stream of requests across chunks, so that it never runs dry between parts.
    """

    engine: EngineHandle
    request: Callable[[_Item], GenerationRequest | Quarantined]
    finish: Callable[[PartOutcome, _Item, Completion], None]
    progress: Progress
    new_tokens: int = 0
    seconds: float = 0.0
    # by request: its chunk, its place there; by chunk: the answers by place
    places: dict[str, tuple[Chunk[_Item], int]] = field(default_factory=dict)
    answers: dict[str, dict[int, Completion | Quarantined]] = field(default_factory=dict)
    complete: deque[Chunk[_Item]] = field(default_factory=deque)

    @property
    def tokens_per_second(self) -> float | None:
        """None where nothing was generated."""
        return round(self.new_tokens / max(self.seconds, 1e-9), 2) if self.new_tokens else None

    def outcomes(self, chunks: Iterator[Chunk[_Item]]) -> Iterator[tuple[str, PartOutcome]]:
        """The outcome of each chunk as soon as all its items are answered.

        The engine is opened only if there is a chunk.
        """
        first = next(chunks, None)
        if first is None:
            return
        self.engine.get()  # its loading is no part of the throughput
        began = time.monotonic()
        for answer in self.engine.generate(self._requests(chain([first], chunks))):
            self.seconds = time.monotonic() - began
            if isinstance(answer, Completion):
                self.new_tokens += answer.num_new_tokens
            self._settle(*self.places.pop(answer.id), answer)
            yield from self._completed()
        yield from self._completed()

    def _requests(self, chunks: Iterable[Chunk[_Item]]) -> Iterator[GenerationRequest]:
        for chunk in chunks:
            self.answers[chunk.name] = {}
            names: set[str] = set()
            for place, item in enumerate(chunk.items):
                asked = self.request(item)
                if asked.id in self.places or asked.id in names:
                    asked = Quarantined(asked.id, "duplicate_id", "another row has this id")
                names.add(asked.id)
                if isinstance(asked, Quarantined):
                    self._settle(chunk, place, asked)
                    continue
                self.places[asked.id] = (chunk, place)
                yield asked

    def _settle(self, chunk: Chunk[_Item], place: int, answer: Completion | Quarantined) -> None:
        self.answers[chunk.name][place] = answer
        self.progress.advance(1)
        if len(self.answers[chunk.name]) == len(chunk.items):
            self.complete.append(chunk)

    def _completed(self) -> Iterator[tuple[str, PartOutcome]]:
        while self.complete:
            chunk = self.complete.popleft()
            answered = self.answers.pop(chunk.name)
            outcome = PartOutcome()
            for place, item in enumerate(chunk.items):
                answer = answered[place]
                if isinstance(answer, Completion):
                    answer = unreadable(answer.id, answer.text) or answer
                if isinstance(answer, Quarantined):
                    outcome.quarantine(answer)
                else:
                    self.finish(outcome, item, answer)
            yield chunk.name, outcome


def provenance(
    started: str, engine: EngineInfo | None = None, tokens_per_second: float | None = None
) -> Provenance:
    """When and on what this was made."""
    details = (
        {}
        if engine is None
        else {
            "name": engine.name,
            "version": engine.version,
            "device": engine.device,
            **engine.details,
        }
    )
    return Provenance(
        started_at=started,
        finished_at=now(),
        tokens_per_second=tokens_per_second,
        hardware={
            "machine": platform.machine(),
            "processor": platform.processor(),
            "python": platform.python_version(),
            "selfalign": __version__,
        },
        engine=details,
    )
