"""The last part of `evaluate`: a judge compares the final model's answers with those of others.

Reads the parts of held-out answers that were committed before, so that a judge that fails costs no
answer; writes one part for each opponent, and one for the pairs that people labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selfalign.config import EvaluateConfig, JudgeConfig
from selfalign.engines.base import Quarantined
from selfalign.errors import ConfigurationError
from selfalign.evaluation.datasets import load_heldout, load_labelled
from selfalign.evaluation.items import HeldoutItem
from selfalign.evaluation.pairwise import (
    Pair,
    PairVerdict,
    agreement,
    pairwise_requests,
    pairwise_template,
    pairwise_verdicts,
)
from selfalign.evaluation.scores import JUDGE, JUDGED, LENGTH_WORDS, WIN_RATE, ItemScore
from selfalign.inputs import is_stored, read_input
from selfalign.records import EvaluationRecord
from selfalign.stages.contract import Chunk, EngineHandle, PartOutcome, StageContext, commit_parts
from selfalign.stages.models import WEIGHTS, judge_engine
from selfalign.stages.scoring import scored_part
from selfalign.store.artifact import ShardWriter
from selfalign.store.files import file_sha256
from selfalign.store.manifest import Manifest, Part
from selfalign.telemetry import Progress

SUBJECT, OPPONENTS = "final", ("base", "promoted")
LABELLED = "judge-labelled"  # the part of pairs that people judged


@dataclass(frozen=True, slots=True)
class _Work:
    """A part: whose scores it holds, its pairs by id, and what a verdict on one says."""

    model: str
    pairs: dict[str, Pair]
    scores: Callable[[PairVerdict], Iterable[ItemScore]]


def refuse_candidate(context: StageContext, judge: JudgeConfig, judged: Sequence[Manifest]) -> None:
    """Raise ConfigurationError where the judge is one of the models whose answers it would judge.

    A model is told by the content of its weights, wherever a copy of it lies; one that a server
    has, by the digest that it is served under. Of a hub id nothing is known: no run puts models
    there.
    """
    asked = judge.engine.served_model if judge.engine else None
    for manifest in judged:
        if asked == manifest.digest or _holds(context, judge.model.path, manifest):
            raise ConfigurationError(
                f"evaluate.judge.model: {asked or judge.model.path} is {manifest.artifact} "
                f"{manifest.key}, whose answers are judged",
                remedy="name a model that no run here made, or make evaluate.judge null",
            )


def _holds(context: StageContext, path: str, manifest: Manifest) -> bool:
    """Whether all weights in a model's directory are those of an artifact's merged model."""
    weights = {
        entry.sha256: entry.bytes for entry in manifest.files if entry.name.endswith(WEIGHTS)
    }
    if is_stored(path):
        files = read_input(context.store, path).files
        found = [entry.sha256 for entry in files if entry.name.endswith(WEIGHTS)]
        return bool(found) and weights.keys() >= set(found)
    mine = [file for file in Path(path).glob("*") if file.name.endswith(WEIGHTS)]
    sizes = set(weights.values())  # most models differ in these, and need no hashing
    return bool(mine) and all(
        file.stat().st_size in sizes and file_sha256(file) in weights for file in mine
    )


def judge_answers(
    context: StageContext, judge: JudgeConfig, shard: ShardWriter, answers: Mapping[str, Part]
) -> dict[str, Part]:
    """Judge what is not judged yet: parts by name, with scores of `final`, or of `judge` where it
    is compared with people.

    Args:
        answers: the part of each model with its answers to held-out prompts.
    """
    config = context.config.evaluate
    work = dict(_duels(config, shard, answers))
    if judge.labelled is not None:
        work[LABELLED] = _labelled(judge.labelled)
    template = pairwise_template(judge.template)
    progress = Progress("judgements", len(work))
    opener = partial(judge_engine, context.store, judge, config.engine or context.config.engine)

    def outcomes(chunks: Iterator[Chunk[_Work]]) -> Iterator[tuple[str, PartOutcome]]:
        for chunk in chunks:
            (each,) = chunk.items
            pairs = list(each.pairs.values())
            scores = handle.get().score(pairwise_requests(pairs, template))
            found: list[ItemScore | Quarantined] = []
            for verdict in pairwise_verdicts(pairs, scores):
                found += [verdict] if isinstance(verdict, Quarantined) else each.scores(verdict)
            yield chunk.name, scored_part(each.model, chunk.name, found)
            progress.advance(1)

    def check(part: Part) -> None:
        rows = len(work[part.name].pairs)
        context.quarantine_limit(rows, f"evaluate: {part.name}").add(part)

    with EngineHandle(opener) as handle:
        chunks = (Chunk(name, [each]) for name, each in work.items())
        return commit_parts(shard, chunks, outcomes, progress, check=check)


def _duels(
    config: EvaluateConfig, shard: ShardWriter, answers: Mapping[str, Part]
) -> Iterator[tuple[str, _Work]]:
    """The final model's answers beside those of each opponent that was evaluated."""
    assert config.heldout is not None
    items = {item.id: item for item in load_heldout(config.heldout)}
    ours = _answers(shard, answers[SUBJECT])
    for opponent in OPPONENTS:
        if (part := answers.get(opponent)) is None:
            continue
        theirs = _answers(shard, part)
        places = {
            f"{name}/{n}": (items[name], n) for name, n in sorted(ours.keys() & theirs.keys())
        }
        pairs = {
            key: Pair(key, item.prompt, ours[item.id, n], theirs[item.id, n], item.rubric)
            for key, (item, n) in places.items()
        }
        yield f"judge-{opponent}", _Work(SUBJECT, pairs, partial(_duel_scores, opponent, places))


def _duel_scores(
    opponent: str, places: Mapping[str, tuple[HeldoutItem, int]], verdict: PairVerdict
) -> Iterator[ItemScore]:
    item, sample = places[verdict.id]
    for metric in JUDGED if verdict.same_length else (WIN_RATE,):
        yield ItemScore(
            item_id=item.id,
            metric=metric,
            kind=item.kind,
            value=verdict.value,
            length_words=verdict.first_words,
            text=verdict.letters,
            sample=sample,
            against=opponent,
        )


def _labelled(path: Path) -> _Work:
    labelled = load_labelled(path)
    pairs = {str(n): Pair(str(n), p.prompt, p.first, p.second) for n, p in enumerate(labelled)}

    def scores(verdict: PairVerdict) -> Iterator[ItemScore]:
        yield agreement(verdict.id, verdict.winner, labelled[int(verdict.id)].winner)

    return _Work(JUDGE, pairs, scores)


def _answers(shard: ShardWriter, part: Part) -> dict[tuple[str, int], str]:
    """Answers by item id and sample: every one has its length once, whatever else it has."""
    records = shard.read_part(part, EvaluationRecord)
    return {(r.item_id, r.sample): r.text for r in records if r.metric == LENGTH_WORDS}
