"""Stage `curate`: keep what is novel, over all shards at once, in a deterministic order.

Reads candidates and the evaluation files; writes prompts. Exact duplicates, contamination by
evaluation items (their words, or the same asked in other words), near duplicates and ROUGE-L
novelty, each with its own count. What needs no other candidate is found by several
processes; what depends on order, by this one, so that any number of them decides the same.
A killed worker's successor feeds the kept prompts of committed parts back into the indexes and
goes on after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from selfalign.evaluation.datasets import reference_texts
from selfalign.filters.screening import Screen, Screened
from selfalign.filters.selection import Selection
from selfalign.records import Candidate, Prompt, now
from selfalign.stages.contract import (
    Chunk,
    PartOutcome,
    StageContext,
    chunked,
    commit_parts,
    provenance,
)
from selfalign.stages.instruct import GUIDED
from selfalign.stages.screeners import Screening, num_screeners, screeners
from selfalign.store.artifact import ShardWriter, read_records
from selfalign.store.manifest import Manifest, Part
from selfalign.telemetry import Progress


def curate(context: StageContext) -> Manifest | None:
    """Filter every candidate; publish."""
    started = now()
    candidates = context.parent("candidates")
    writer = context.writer()
    shard = writer.shard(0, 1)
    if not shard.finished:
        total = candidates.counts.kept
        progress = Progress("candidates", total)
        rows = read_records(context.store, candidates, Candidate)
        chunks = chunked("candidates", rows, context.config.curate.records_per_part)
        with screeners(_screen(context), num_screeners(total), _Work.texts) as screened:
            limits = _limits(context.config.curate.max_prompts, candidates)
            curator = _Curator(context, shard, progress, screened, limits)
            parts = commit_parts(shard, chunks, curator.work, progress, curator.replay)
        shard.finish(parts.values(), provenance(started))
    return writer.publish_when_complete(1)


def _screen(context: StageContext) -> Screen:
    references = (
        (f"{kind}/{name}", text)
        for kind in ("heldout", "hhh", "truthfulqa")
        if (path := getattr(context.config.evaluate, kind)) is not None
        for name, text in reference_texts(path, kind)
    )
    config = context.config.curate
    return Screen(
        references, ngram=config.decontamination_ngram, overlap=config.decontamination_overlap
    )


def _limits(max_prompts: int | None, candidates: Manifest) -> dict[str, int] | None:
    """How many prompts there may be when one of each source is kept; None: any number.

    General candidates come first, and leave the topic-guided ones their share of the room.
    """
    if max_prompts is None:
        return None
    parts = [part for shard in candidates.shards for part in shard.parts]
    guided = sum(part.counts.kept for part in parts if part.name.startswith(GUIDED))
    of_guided = max_prompts * guided // max(1, candidates.counts.kept)
    return {"self_instruct": max_prompts - of_guided, "topic_guided": max_prompts}


@dataclass(frozen=True, slots=True)
class _Work:
    """A chunk to be judged, once the prompts of the committed parts before it are known."""

    before: list[Part]
    chunk: Chunk[Candidate]

    def texts(self) -> list[str]:
        return [candidate.text for candidate in self.chunk.items]


class _Curator:
    """Judges chunks in their order. Seeds are kept before anything else."""

    def __init__(
        self,
        context: StageContext,
        shard: ShardWriter,
        progress: Progress,
        screened: Screening[_Work],
        limits: dict[str, int] | None,
    ) -> None:
        config = context.config.curate
        self._shard = shard
        self._progress = progress
        self._screened = screened
        self._limits = limits
        self._num_prompts = 0
        self._committed: list[Part] = []
        self._selection = Selection(
            novelty_threshold=config.novelty_threshold,
            near_duplicate_threshold=config.near_duplicate_threshold,
            shingle=config.near_duplicate_shingle,
        )
        guided = (seed.question for seed in context.seeds.topic_guided)
        self._selection.add(Screened.of([*context.seeds.general, *guided]))

    def replay(self, part: Part) -> None:
        """Take over a part that an earlier attempt committed, when its turn comes."""
        self._committed.append(part)

    def work(self, chunks: Iterator[Chunk[Candidate]]) -> Iterator[tuple[str, PartOutcome]]:
        """What becomes of each chunk."""
        for work, screened in self._screened(self._in_turn(chunks)):
            for part in work.before:
                texts = [prompt.text for prompt in self._shard.read_part(part, Prompt)]
                self._selection.add(Screened.of(texts))
                self._num_prompts += len(texts)
            yield work.chunk.name, self._judge(work.chunk.items, screened)
            self._progress.advance(len(work.chunk.items))

    def _in_turn(self, chunks: Iterator[Chunk[Candidate]]) -> Iterator[_Work]:
        # Chunks are screened ahead of their turn, and committed parts between them count too.
        for chunk in chunks:
            before, self._committed = self._committed, []
            yield _Work(before, chunk)

    def _judge(self, candidates: list[Candidate], screened: Screened) -> PartOutcome:
        room = None
        if self._limits is not None:
            room = [self._limits[each.source] - self._num_prompts for each in candidates]
        verdicts = self._selection.judge(screened, room)
        outcome = PartOutcome()
        for candidate, reason in zip(candidates, verdicts, strict=True):
            if reason is None:
                kept = candidate.model_dump(include=set(Prompt.model_fields))
                outcome.keep(Prompt(**kept))
            else:
                outcome.drop(reason, candidate.text)
        self._num_prompts += len(outcome.records)
        return outcome
