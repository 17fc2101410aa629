"""The last part of `evaluate`: a judge says which answers refuse, and compares the final model's
answers with those of others.

Reads the parts of held-out answers that were committed before, so that a judge that fails costs no
answer; writes one part for each model's refusals, one for each opponent, and one for the pairs
that people labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selfalign.config import JudgeConfig
from selfalign.engines.base import Asked, Quarantined
from selfalign.errors import ConfigurationError
from selfalign.evaluation.datasets import load_heldout, load_labelled
from selfalign.evaluation.generation import refusal_scores
from selfalign.evaluation.items import HeldoutItem
from selfalign.evaluation.pairwise import (
    Pair,
    PairVerdict,
    agreement,
    pairwise_requests,
    pairwise_verdicts,
)
from selfalign.evaluation.refusal import classify_refusal
from selfalign.evaluation.refusal_judge import judged_classes, refusal_agreement
from selfalign.evaluation.scores import (
    JUDGE,
    LENGTH_WORDS,
    WIN_RATE,
    WIN_RATE_PRINCIPLE,
    WIN_RATE_SAME_LENGTH,
    ItemScore,
)
from selfalign.evaluation.template import load_template
from selfalign.inputs import is_stored, read_input
from selfalign.records import EvaluationRecord
from selfalign.seeds import Template
from selfalign.stages.contract import Chunk, EngineHandle, PartOutcome, StageContext, commit_parts
from selfalign.stages.models import WEIGHTS, judge_engine
from selfalign.stages.scoring import scored_part
from selfalign.store.artifact import ShardWriter
from selfalign.store.files import file_sha256
from selfalign.store.manifest import Manifest, Part
from selfalign.telemetry import Progress

SUBJECT, OPPONENTS = "final", ("base", "promoted")
LABELLED = "judge-labelled"  # the part of pairs that people judged


_Found = Iterator[ItemScore | Quarantined]


@dataclass(frozen=True, slots=True)
class _Work:
    """A part: whose scores it holds, of how many rows, and how the judge's engine finds them."""

    model: str
    rows: int
    scores: Callable[[Asked], _Found]


@dataclass(frozen=True, slots=True)
class _Answer:
    """One of a model's answers to a held-out item."""

    item: HeldoutItem
    sample: int
    text: str


def refuse_candidate(context: StageContext, judge: JudgeConfig, judged: Sequence[Manifest]) -> None:
    """Raise ConfigurationError where the judge is one of the models whose answers it would judge.

    A model is told by the content of its weights, wherever a copy of it lies; one that a server
    has, by the digest that it is served under. Of a hub id nothing is known: no run puts models
    there.
    """
    asked = (judge.engine and judge.engine.served_model) or judge.model.path
    for manifest in judged:
        served_under = manifest.digest, manifest.digest[:32]  # the last part of a path counts
        if Path(asked).name in served_under or _holds(context, judge.model.path, manifest):
            raise ConfigurationError(
                f"evaluate.judge.model: {asked} is {manifest.artifact} "
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
) -> list[tuple[str, Part]]:
    """Judge what is not judged yet: parts, each with the model whose scores it holds, or `judge`
    where that is compared with people.

    Args:
        answers: the part of each model with its answers to held-out prompts.
    """
    config = context.config.evaluate
    assert config.heldout is not None
    items = {item.id: item for item in load_heldout(config.heldout)}
    read = {model: _answers(shard, part, items) for model, part in answers.items()}
    principles = {rule.name: rule.text for rule in context.seeds.principles}
    work = dict(_refusals(judge, read)) | dict(_duels(judge, read, principles))
    if judge.labelled is not None:
        work[LABELLED] = _labelled(judge, judge.labelled)
    progress = Progress("judgements", len(work))
    opener = partial(judge_engine, context.store, judge, config.engine or context.config.engine)

    def outcomes(chunks: Iterator[Chunk[_Work]]) -> Iterator[tuple[str, PartOutcome]]:
        for chunk in chunks:
            (each,) = chunk.items
            yield chunk.name, scored_part(each.model, chunk.name, each.scores(handle))
            progress.advance(1)

    def check(part: Part) -> None:
        context.quarantine_limit(work[part.name].rows, f"evaluate: {part.name}").add(part)

    with EngineHandle(opener) as handle:
        chunks = (Chunk(name, [each]) for name, each in work.items())
        parts = commit_parts(shard, chunks, outcomes, progress, check=check)
    return [(work[name].model, part) for name, part in parts.items()]


def _refusals(
    judge: JudgeConfig, read: Mapping[str, Mapping[str, _Answer]]
) -> Iterator[tuple[str, _Work]]:
    """Every model's answers to the items that must, or must not, be refused."""
    template = load_template("refusal", judge.refusal_template)
    for model, answers in read.items():
        mine = {key: each for key, each in answers.items() if each.item.refusal is not None}
        if mine:
            samples = 1 + max(each.sample for each in answers.values())
            judged = judge.refusals == "judge"
            find = partial(_refusal_scores, mine, samples, template, judged=judged)
            yield f"judge-refusals-{model}", _Work(model, len(mine), find)


def _refusal_scores(
    answers: Mapping[str, _Answer], samples: int, template: Template, engine: Asked, *, judged: bool
) -> _Found:
    """Of each answer how far judge and wording agree, and the scores that wait for the judge.

    Args:
        samples: that the model was asked for at each item.
        judged: whether any do.
    """
    said = {key: each for key, each in answers.items() if each.text.strip()}
    if judged:  # an empty answer is as nobody wants it, whatever it is called
        for key in answers.keys() - said.keys():
            each = answers[key]
            yield from refusal_scores(each.item, each.text, "complies", each.sample, samples)
    asked = {key: (each.item.prompt, each.text) for key, each in said.items()}
    for found in judged_classes(engine, asked, template):
        if isinstance(found, Quarantined):
            yield found
            continue
        key, theirs = found
        item, text, sample = said[key].item, said[key].text, said[key].sample
        classes = theirs, classify_refusal(item.prompt, text)
        decides, other = classes if judged else reversed(classes)
        yield refusal_agreement(item.id, item.kind, sample, decides=decides, other=other)
        if judged:
            yield from refusal_scores(item, text, theirs, sample, samples)


def _duels(
    judge: JudgeConfig, read: Mapping[str, Mapping[str, _Answer]], principles: Mapping[str, str]
) -> Iterator[tuple[str, _Work]]:
    """The final model's answers beside those of each opponent that was evaluated.

    Args:
        principles: the text of each principle of the seeds, by name.
    """
    ours = read[SUBJECT]
    for opponent in OPPONENTS:
        if (theirs := read.get(opponent)) is None:
            continue
        pairs = [
            Pair(
                *(key, item.prompt, each.text, theirs[key].text, item.rubric),
                principles.get(item.principle or ""),
            )
            for key, each in ours.items()
            if key in theirs
            for item in (each.item,)
        ]
        scores = partial(_duel_scores, opponent, ours, principles)
        find = partial(_verdicts, judge, pairs, scores)
        yield f"judge-{opponent}", _Work(SUBJECT, len(pairs), find)


def _verdicts(
    judge: JudgeConfig,
    pairs: Sequence[Pair],
    scores: Callable[[PairVerdict], Iterable[ItemScore]],
    engine: Asked,
) -> _Found:
    """What a verdict on each pair says."""
    requests = pairwise_requests(pairs, load_template("pairwise", judge.template))
    for verdict in pairwise_verdicts(pairs, engine.score(requests)):
        if isinstance(verdict, Quarantined):
            yield verdict
        else:
            yield from scores(verdict)


def _duel_scores(
    opponent: str, answers: Mapping[str, _Answer], principles: Container[str], verdict: PairVerdict
) -> Iterator[ItemScore]:
    answer = answers[verdict.id]
    kinds = {WIN_RATE: answer.item.kind}
    if verdict.same_length:
        kinds[WIN_RATE_SAME_LENGTH] = answer.item.kind
    if answer.item.principle is not None and answer.item.principle in principles:
        kinds[WIN_RATE_PRINCIPLE] = answer.item.principle
    for metric, kind in kinds.items():
        yield ItemScore(
            item_id=answer.item.id,
            metric=metric,
            kind=kind,
            value=verdict.value,
            length_words=verdict.first_words,
            text=verdict.letters,
            sample=answer.sample,
            against=opponent,
        )


def _labelled(judge: JudgeConfig, path: Path) -> _Work:
    labelled = load_labelled(path)
    pairs = [Pair(str(n), each.prompt, each.first, each.second) for n, each in enumerate(labelled)]

    def scores(verdict: PairVerdict) -> Iterator[ItemScore]:
        yield agreement(verdict.id, verdict.winner, labelled[int(verdict.id)].winner)

    return _Work(JUDGE, len(pairs), partial(_verdicts, judge, pairs, scores))


def _answers(
    shard: ShardWriter, part: Part, items: Mapping[str, HeldoutItem]
) -> dict[str, _Answer]:
    """A model's answers by item and sample: every one has its length once, whatever else it has."""
    found = sorted(
        (record.item_id, record.sample, record.text)
        for record in shard.read_part(part, EvaluationRecord)
        if record.metric == LENGTH_WORDS
    )
    return {f"{name}/{n}": _Answer(items[name], n, text) for name, n, text in found}
