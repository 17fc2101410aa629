"""Stage `curate`: keep what is novel, over all shards at once, in a deterministic order.

Reads candidates and the evaluation files; writes prompts. Exact duplicates, contamination by
evaluation items (their words, or the same asked in other words), near duplicates and ROUGE-L
novelty, cheapest first, each with its own count.
A killed worker's successor feeds the kept prompts of committed parts back into the indexes and
goes on after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from selfalign.evaluation.datasets import reference_texts
from selfalign.filters.decontamination import Decontaminator
from selfalign.filters.near_duplicates import NearDuplicateIndex, normalise
from selfalign.filters.novelty import NoveltyIndex
from selfalign.filters.rewording import RewordingIndex
from selfalign.records import Candidate, Prompt, now
from selfalign.stages.contract import PartOutcome, StageContext, provenance
from selfalign.store.artifact import ShardWriter, read_records
from selfalign.store.manifest import Manifest
from selfalign.telemetry import Progress


class Curator:
    """The filters and everything that was kept so far.

    Args:
        context: of the stage; its seeds and evaluation files are indexed at once.
    """

    def __init__(self, context: StageContext) -> None:
        config = context.config.curate
        self._exact: set[str] = set()
        self._novelty = NoveltyIndex(config.novelty_threshold)
        self._near = NearDuplicateIndex(
            config.near_duplicate_threshold, config.near_duplicate_shingle
        )
        self._contamination = Decontaminator(config.decontamination_ngram)
        self._rewording = RewordingIndex(config.decontamination_overlap)
        for kind in ("heldout", "hhh", "truthfulqa"):
            path = getattr(context.config.evaluate, kind)
            if path is not None:
                for reference, text in reference_texts(path, kind):
                    self._contamination.add_reference(f"{kind}/{reference}", text)
                    self._rewording.add_reference(f"{kind}/{reference}", text)
        guided = [seed.question for seed in context.seeds.topic_guided]
        for index, text in enumerate([*context.seeds.general, *guided]):
            self.add(f"seed-{index}", text)

    def verdict(self, text: str) -> str | None:
        """Name of the first filter that drops the text, or None."""
        if normalise(text) in self._exact:
            return "exact_duplicate"
        if self._contamination.find(text) is not None:
            return "contaminated"
        if self._rewording.find(text) is not None:
            return "contaminated_rewording"
        if self._near.find(text) is not None:
            return "near_duplicate"
        if self._novelty.find(text) is not None:
            return "not_novel"
        return None

    def add(self, name: str, text: str) -> None:
        """Count a text as kept: later ones are compared with it."""
        self._exact.add(normalise(text))
        self._near.add(name, text)
        self._novelty.add(name, text)


def curate(context: StageContext) -> Manifest | None:
    """Filter every candidate; publish."""
    started = now()
    config = context.config.curate
    candidates = context.parent("candidates")
    writer = context.writer()
    shard = writer.shard(0, 1)
    if not shard.finished:
        rows = read_records(context.store, candidates, Candidate)
        progress = Progress("candidates", candidates.counts.kept)
        names = _curate_parts(
            Curator(context), shard, rows, config.records_per_part, config.max_prompts, progress
        )
        progress.finish()
        shard.finish(names, provenance(started))
    return writer.publish_when_complete(1)


def _curate_parts(
    curator: Curator,
    shard: ShardWriter,
    rows: Iterator[Candidate],
    size: int,
    max_prompts: int | None,
    progress: Progress,
) -> list[str]:
    committed = shard.committed()
    names: list[str] = []
    kept = 0
    while group := list(islice(rows, size)):
        name = f"candidates-{len(names):05d}"
        names.append(name)
        part = committed.get(name)
        if part is None:
            outcome = _curate_group(curator, group, kept, max_prompts, progress)
            part = shard.commit(name, outcome.records, outcome.counts(), outcome.dropped_samples)
        else:
            for prompt in shard.read_part(part, Prompt):
                curator.add(prompt.id, prompt.text)
            progress.skip(len(group))
        kept += part.counts.kept
    return names


def _curate_group(
    curator: Curator,
    group: list[Candidate],
    kept_before: int,
    max_prompts: int | None,
    progress: Progress,
) -> PartOutcome:
    outcome = PartOutcome()
    for candidate in group:
        reason = curator.verdict(candidate.text)
        if reason is None and max_prompts is not None:
            full = kept_before + len(outcome.records) >= max_prompts
            reason = "over_max_prompts" if full else None
        if reason is not None:
            outcome.drop(reason, candidate.text)
        else:
            curator.add(candidate.id, candidate.text)
            outcome.keep(
                Prompt(
                    id=candidate.id,
                    source=candidate.source,
                    text=candidate.text,
                    type=candidate.type,
                    topic=candidate.topic,
                )
            )
        progress.advance(1)
    return outcome
