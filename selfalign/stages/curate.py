"""Stage `curate`: keep what is novel, over all shards at once, in a deterministic order.

Reads candidates and the evaluation files; writes prompts. Exact duplicates, contamination by
evaluation items (their words, or the same asked in other words), near duplicates and ROUGE-L
novelty, cheapest first, each with its own count.
A killed worker's successor feeds the kept prompts of committed parts back into the indexes and
goes on after them.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfalign.evaluation.datasets import reference_texts
from selfalign.filters.decontamination import Decontaminator
from selfalign.filters.near_duplicates import NearDuplicateIndex, normalise
from selfalign.filters.novelty import NoveltyIndex
from selfalign.filters.rewording import RewordingIndex
from selfalign.records import Candidate, Prompt, now
from selfalign.stages.contract import (
    Chunk,
    PartOutcome,
    StageContext,
    chunked,
    commit_parts,
    provenance,
)
from selfalign.store.artifact import read_records
from selfalign.store.manifest import Manifest, Part
from selfalign.telemetry import Progress


class Curator:
    """The filters and everything that was kept so far.

    Args:
        context: of the stage; its seeds and evaluation files are indexed at once.
    """

    def __init__(self, context: StageContext) -> None:
        config = context.config.curate
        self._kept = 0
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
            self._add(f"seed-{index}", text)

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

    def judge(self, candidates: list[Candidate], max_prompts: int | None) -> PartOutcome:
        """Keep those candidates that no filter drops, at most `max_prompts` in all."""
        outcome = PartOutcome()
        for candidate in candidates:
            reason = self.verdict(candidate.text)
            if reason is None and max_prompts is not None and self._kept >= max_prompts:
                reason = "over_max_prompts"
            if reason is not None:
                outcome.drop(reason, candidate.text)
                continue
            prompt = Prompt(**candidate.model_dump(include=set(Prompt.model_fields)))
            self.keep(prompt)
            outcome.keep(prompt)
        return outcome

    def keep(self, prompt: Prompt) -> None:
        """Count a prompt as kept: later ones are compared with it."""
        self._kept += 1
        self._add(prompt.id, prompt.text)

    def _add(self, name: str, text: str) -> None:
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
        curator = Curator(context)
        progress = Progress("candidates", candidates.counts.kept)

        def work(chunks: Iterator[Chunk[Candidate]]) -> Iterator[tuple[str, PartOutcome]]:
            for chunk in chunks:
                yield chunk.name, curator.judge(chunk.items, config.max_prompts)
                progress.advance(len(chunk.items))

        def replay(part: Part) -> None:
            for prompt in shard.read_part(part, Prompt):
                curator.keep(prompt)

        rows = read_records(context.store, candidates, Candidate)
        chunks = chunked("candidates", rows, config.records_per_part)
        parts = commit_parts(shard, chunks, work, progress, replay)
        shard.finish(parts, provenance(started))
    return writer.publish_when_complete(1)
