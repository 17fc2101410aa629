"""Stage `evaluate`: score every variant, item by item, then summarise paired.

Reads the base, engraved, final and promoted models and the evaluation files; writes one part per
variant and task, and for each comparison of a judge (records: ItemScore rows), and
files/summary.json. The parts are the truth: the summary can be computed from them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain, groupby
from pathlib import Path

from selfalign.engines.base import (
    Completion,
    Engine,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Sampling,
    ScoreRequest,
    blank,
)
from selfalign.evaluation.datasets import load_heldout, load_hhh, load_truthfulqa
from selfalign.evaluation.explanations import judged as judged_in_words
from selfalign.evaluation.generation import answer_ids, heldout_scores
from selfalign.evaluation.multiple_choice import (
    hhh_requests,
    hhh_scores,
    hhh_template,
    truthfulqa_requests,
    truthfulqa_scores,
    truthfulqa_template,
)
from selfalign.evaluation.scores import JUDGE, ItemScore
from selfalign.evaluation.splits import choosing_items, scores_of
from selfalign.evaluation.summary import EvaluationSummary, summarise
from selfalign.evaluation.versions import describe_data
from selfalign.filters.responses import parse_thought
from selfalign.prompts import render_align, render_principles, stop_strings
from selfalign.records import EvaluationRecord, canonical_json, now, record_seed
from selfalign.stages.asking import asking
from selfalign.stages.contract import Chunk, PartOutcome, StageContext, commit_parts, provenance
from selfalign.stages.judging import LABELLED, SUBJECT, judge_answers, refuse_candidate
from selfalign.stages.models import artifact_engine, base_engine
from selfalign.stages.preflight import require_evaluation_data
from selfalign.stages.scored import scored_part
from selfalign.stages.variants import Variant, model_manifest, variants
from selfalign.store.artifact import ShardWriter
from selfalign.store.manifest import Counts, Manifest, Part, Shard
from selfalign.telemetry import Progress

_SCORED = {"hhh", "truthfulqa"}  # tasks that ask for log-likelihoods


@dataclass(frozen=True, slots=True)
class _Task:
    """What every variant is scored on: how many items, and how."""

    num_items: int
    scores: Callable[[Engine, Variant], Iterator[ItemScore | Quarantined]]


def evaluate(context: StageContext) -> Manifest:
    """Score what is not scored yet, then summarise and publish."""
    started = now()
    writer = context.writer()
    shard = writer.shard(0, 1)
    tasks = _tasks(context)
    chosen = list(variants(context))
    evaluations = [
        _Evaluation(variant, task)
        for variant in chosen
        for task in tasks
        if task == "heldout" or not variant.again  # nothing is drawn in the others
    ]
    judge = context.config.evaluate.judge
    if judge is not None:
        known = dict.fromkeys(each.model for each in chosen if each.model != "base")
        refuse_candidate(context, judge, [model_manifest(context, model) for model in known])
    progress = Progress("evaluations", len(evaluations))
    engine_info: list[EngineInfo] = []

    def work(chunks: Iterator[Chunk[_Evaluation]]) -> Iterator[tuple[str, PartOutcome]]:
        for model, group in groupby(chunks, key=lambda chunk: chunk.items[0].variant.model):
            with _engine(context, model) as engine:
                engine_info.append(engine.info)
                if tasks.keys() & _SCORED:
                    deque(engine.score([]), 0)  # an engine that cannot score says so now
                for chunk in group:
                    (evaluation,) = chunk.items
                    scores = tasks[evaluation.task].scores(engine, evaluation.variant)
                    yield chunk.name, scored_part(evaluation.variant.name, evaluation.task, scores)
                    progress.advance(1)

    chunks = (Chunk(evaluation.part, [evaluation]) for evaluation in evaluations)
    items = {evaluation.part: tasks[evaluation.task].num_items for evaluation in evaluations}

    def check(part: Part) -> None:
        context.quarantine_limit(items[part.name], f"evaluate: {part.name}").add(part)

    parts = commit_parts(shard, chunks, work, progress, check=check)
    judged = judge_answers(context, judge, shard, parts) if judge else {}
    summary = _summarise(context, shard, evaluations, parts, judged)
    parts |= judged
    where = provenance(started, engine_info[-1] if engine_info else None)
    return writer.publish(
        shards=[Shard(index=0, num_shards=1, parts=list(parts.values()), provenance=where)],
        files=[
            writer.add_bytes(summary.model_dump_json(indent=2).encode(), "summary.json"),
            writer.add_bytes(canonical_json(_prompts(context)).encode(), "prompts.json"),
        ],
        counts=reduce(Counts.plus, (part.counts for part in parts.values()), Counts()),
        details={
            "models": [variant.name for variant in chosen],
            "tasks": list(tasks),
            "data": describe_data(context.config.evaluate),
            **({"judge": judged_in_words(summary)} if judge else {}),
        },
        provenance=where,
    )


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """One variant at one task: a part."""

    variant: Variant
    task: str

    @property
    def part(self) -> str:
        return f"{self.variant.name}-{self.task}"


def _prompts(context: StageContext) -> dict[str, str]:
    """The held-out prompts by item id, so that a report can show answers beside questions."""
    path = context.config.evaluate.heldout
    return {} if path is None else {item.id: item.prompt for item in load_heldout(path)}


def _engine(context: StageContext, model: str) -> Engine:
    engine = context.config.evaluate.engine
    if model == "base":
        return base_engine(context.store, context.config, engine)
    return artifact_engine(context.store, model_manifest(context, model), context.config, engine)


def _tasks(context: StageContext) -> dict[str, _Task]:
    """The tasks that the configuration gives data for, by name."""
    config = context.config.evaluate
    require_evaluation_data(config)
    tasks: dict[str, _Task] = {}
    if config.heldout is not None:
        tasks["heldout"] = _heldout_task(context, config.heldout)
    if config.hhh is not None:
        hhh_items, hhh = load_hhh(config.hhh), hhh_template(config.hhh_template)
        tasks["hhh"] = _Task(
            len(hhh_items),
            lambda engine, variant: hhh_scores(
                hhh_items, engine.score(_in_context(variant, hhh_requests(hhh_items, hhh)))
            ),
        )
    if config.truthfulqa is not None:
        qa_items = load_truthfulqa(config.truthfulqa)
        qa = truthfulqa_template(config.truthfulqa_template)
        tasks["truthfulqa"] = _Task(
            len(qa_items),
            lambda engine, variant: truthfulqa_scores(
                qa_items, engine.score(_in_context(variant, truthfulqa_requests(qa_items, qa)))
            ),
        )
    return tasks


def _heldout_task(context: StageContext, path: Path) -> _Task:
    items = load_heldout(path)
    config = context.config.evaluate

    def scores(engine: Engine, variant: Variant) -> Iterator[ItemScore | Quarantined]:
        chosen = (config.principled_sampling if variant.principled else None) or config.sampling
        render, stop = _prompts_of(context, variant)
        sampling = Sampling(**chosen.model_dump(), stop=stop)
        samples = config.samples if sampling.temperature > 0 else 1
        again = ("again",) if variant.again else ()

        named = [
            (item, sample, name)
            for item in items
            for sample, name in enumerate(answer_ids(item.id, samples))
        ]
        empty = [bad for item, _, name in named if (bad := blank(name, item.prompt))]
        requests = (
            GenerationRequest(
                name,
                render(item.prompt),
                sampling,
                # the same seed for every model: the comparison is paired
                record_seed(context.config.seed, "evaluate", item.id, *again, *_nth(sample)),
            )
            for item, sample, name in named
            if item.prompt.strip()
        )
        completions = chain(empty, engine.generate(requests))
        answers = (_answer(each, variant) for each in completions)
        return heldout_scores(items, answers, context.seeds.labels.all, samples)

    return _Task(len(items) * config.samples, scores)


def _nth(sample: int) -> tuple[str, ...]:
    """What the seed of a further answer to an item is named by; the first has the item's own."""
    return (str(sample),) if sample else ()


def _prompts_of(
    context: StageContext, variant: Variant
) -> tuple[Callable[[str], str], tuple[str, ...]]:
    """How a question becomes the variant's prompt, and the strings that end its answer."""
    if variant.principled:
        return partial(render_align, variant.seeds), stop_strings(variant.seeds.labels)
    manifest = None if variant.model == "base" else model_manifest(context, variant.model)
    found = asking(context.store, manifest, variant.seeds)
    return found.question, found.stop


def _answer(completion: Completion | Quarantined, variant: Variant) -> Completion | Quarantined:
    """The answer alone: under the principles it comes after a thought."""
    if isinstance(completion, Quarantined):
        return completion
    text = completion.text
    if variant.principled:
        text = parse_thought(text, variant.seeds.labels).response_or_empty
    return Completion(
        completion.id,
        text.strip(),
        completion.finish_reason,
        completion.num_prompt_tokens,
        completion.num_new_tokens,
    )


def _in_context(variant: Variant, requests: Iterable[ScoreRequest]) -> Iterator[ScoreRequest]:
    """Put the principles before a multiple-choice question where the variant has them."""
    rules = render_principles(variant.seeds.principles) + "\n\n" if variant.principled else ""
    for request in requests:
        yield replace(request, prompt=rules + request.prompt)


def _summarise(
    context: StageContext,
    shard: ShardWriter,
    evaluations: list[_Evaluation],
    parts: dict[str, Part],
    judged: dict[str, Part],
) -> EvaluationSummary:
    config = context.config.evaluate

    def scores(group: list[Part]) -> Iterator[ItemScore]:
        for part in group:
            for record in shard.read_part(part, EvaluationRecord):
                yield ItemScore(**record.model_dump(exclude={"id", "model"}))

    by_variant: dict[str, list[Part]] = {}
    for evaluation in evaluations:
        by_variant.setdefault(evaluation.variant.name, []).append(parts[evaluation.part])
    for name, part in judged.items():
        model = JUDGE if name == LABELLED else SUBJECT
        by_variant.setdefault(model, []).append(part)
    fold = partial(
        summarise,
        confidence=config.confidence,
        bootstrap_samples=config.bootstrap_samples,
        seed=context.config.seed,
        tasks=list(dict.fromkeys(evaluation.task for evaluation in evaluations)),
    )
    if config.choosing_share is None or config.heldout is None:
        return fold({name: scores(group) for name, group in by_variant.items()})
    model = context.parents["final_model"].digest
    chosen = choosing_items(load_heldout(config.heldout), config.choosing_share, model)
    reported, choosing = (
        fold(
            {
                name: scores_of(scores(group), chosen, choosing=side)
                for name, group in by_variant.items()
            }
        )
        for side in (False, True)
    )
    return reported.model_copy(update={"choosing": choosing})
