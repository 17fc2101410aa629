"""How variants are scored: what each is asked, and one committed part for each variant and task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from selfalign.config import SamplingConfig
from selfalign.engines.base import (
    Asked,
    Completion,
    Engine,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Sampling,
    ScoreRequest,
    blank,
)
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.generation import answer_ids, heldout_scores
from selfalign.evaluation.harness import HarnessTask, harness_scores, load_tasks
from selfalign.evaluation.multiple_choice import SUITES, Suite
from selfalign.evaluation.scores import HARNESS, ItemScore
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.evaluation.template import load_template
from selfalign.filters.thoughts import ParsedResponse, parse_thought
from selfalign.prompts import render_align, render_principles, stop_strings
from selfalign.records import EvaluationRecord, record_seed
from selfalign.seeds import Template
from selfalign.stages.asking import asking
from selfalign.stages.contract import Chunk, EngineHandle, PartOutcome, StageContext, commit_parts
from selfalign.stages.models import artifact_engine, base_engine
from selfalign.stages.preflight import require_evaluation_data
from selfalign.stages.variants import Variant, model_manifest
from selfalign.store.artifact import ArtifactWriter, ShardWriter
from selfalign.store.manifest import Counts, FileEntry, Manifest, Part, Provenance, Shard
from selfalign.telemetry import Progress

_Found = Iterator[ItemScore | Quarantined]


@dataclass(frozen=True, slots=True)
class Task:
    """What every variant is scored on: how many items, how, whether by log-likelihoods, what people
    are told of it, and how often a variant is asked each."""

    num_items: int
    scores: Callable[[Asked, Variant], _Found]
    by_likelihood: bool = True
    described: str | None = None
    samples: Callable[[Variant], int] = lambda _: 1


@dataclass(frozen=True, slots=True)
class Scored:
    """What was scored: the parts of each variant by task, and the engine that was used last, None
    where an earlier attempt had done everything."""

    parts: dict[tuple[str, str], Part]
    engine: EngineInfo | None

    def of(self, variant: str) -> list[Part]:
        """All parts of a variant."""
        return [part for (name, _), part in self.parts.items() if name == variant]


def score_variants(
    context: StageContext, shard: ShardWriter, variants: Sequence[Variant], tasks: dict[str, Task]
) -> Scored:
    """Score every variant at every task, as far as it is not committed yet.

    Args:
        variants: those of one model side by side; each model is loaded once.
    """
    evaluations = {
        f"{variant.name}-{task}": (variant, task)
        for variant in variants
        for task in tasks
        if task == "heldout" or not variant.again  # nothing is drawn in the others
    }
    progress = Progress("evaluations", len(evaluations))
    engines: list[EngineInfo] = []

    def work(chunks: Iterator[Chunk[tuple[Variant, str]]]) -> Iterator[tuple[str, PartOutcome]]:
        for model, group in groupby(chunks, key=lambda chunk: chunk.items[0][0].model):
            with EngineHandle(partial(_engine, context, model)) as engine:
                engines.append(engine.get().info)
                if any(task.by_likelihood for task in tasks.values()):
                    deque(engine.score([]), 0)  # an engine that cannot score says so now
                for chunk in group:
                    ((variant, task),) = chunk.items
                    scores = tasks[task].scores(engine, variant)
                    yield chunk.name, scored_part(variant.name, task, scores)
                    progress.advance(1)

    def check(part: Part) -> None:
        variant, task = evaluations[part.name]
        items = tasks[task].num_items * tasks[task].samples(variant)
        # An item beyond the context is no reason to lose the night: it is beyond it for each model.
        limit = context.quarantine_limit(items, f"{context.name}: {part.name}", ("too_long",))
        limit.add(part)

    chunks = (Chunk(name, [each]) for name, each in evaluations.items())
    parts = commit_parts(shard, chunks, work, progress, check=check)
    by_variant = {(v.name, task): parts[name] for name, (v, task) in evaluations.items()}
    return Scored(by_variant, engines[-1] if engines else None)


def scores_in(shard: ShardWriter, parts: Iterable[Part]) -> Iterator[ItemScore]:
    """The scores that parts hold."""
    for part in parts:
        for record in shard.read_part(part, EvaluationRecord):
            yield ItemScore(**record.model_dump(exclude={"id", "model"}))


def scored_part(model: str, task: str, found: Iterable[ItemScore | Quarantined]) -> PartOutcome:
    """The records of a model at a task, by metric and item, and the rows that were set aside."""
    outcome = PartOutcome()
    scores: list[ItemScore] = []
    bad: list[Quarantined] = []
    for each in found:
        bad.append(each) if isinstance(each, Quarantined) else scores.append(each)
    for score in sorted(scores, key=lambda score: (score.metric, score.item_id, score.sample)):
        names = (model, score.metric, score.against, score.item_id, score.sample or None)
        name = "/".join(str(part) for part in names if part is not None)
        outcome.keep(EvaluationRecord(id=name, model=model, **asdict(score)))
    for row in sorted(bad, key=lambda row: row.id):
        outcome.quarantine(row, f"{model}/{task}/{row.id}")
    return outcome


def publish_scores(
    writer: ArtifactWriter,
    parts: Sequence[Part],
    summary: EvaluationSummary,
    *,
    files: Sequence[FileEntry] = (),
    details: dict[str, Any],
    provenance: Provenance,
) -> Manifest:
    """Publish scored parts with their summary, which can be computed from them again.

    Args:
        files: further ones, uploaded before.
    """
    summed = writer.add_bytes(summary.model_dump_json(indent=2).encode(), "summary.json")
    return writer.publish(
        shards=[Shard(index=0, num_shards=1, parts=list(parts), provenance=provenance)],
        files=[summed, *files],
        counts=reduce(Counts.plus, (part.counts for part in parts), Counts()),
        details=details,
        provenance=provenance,
    )


def _engine(context: StageContext, model: str) -> Engine:
    engine = context.config.evaluate.engine
    if model == "base":
        return base_engine(context.store, context.config, engine)
    return artifact_engine(context.store, model_manifest(context, model), context.config, engine)


def tasks_of(context: StageContext) -> dict[str, Task]:
    """The tasks that the configuration gives data for, by name."""
    config = context.config.evaluate
    require_evaluation_data(config)
    tasks: dict[str, Task] = {}
    if config.heldout is not None:
        later = config.judge is not None and config.judge.refusals == "judge"
        tasks["heldout"] = heldout_task(context, config.heldout, refusals_later=later)
    for name, suite in SUITES.items():
        if (path := getattr(config, name)) is not None:
            template = load_template(name, getattr(config, f"{name}_template"))
            tasks[name] = _likelihood_task(suite, suite.load(path), template)
    for name, task in load_tasks(config.harness).items():
        tasks[f"{HARNESS}{name}"] = harness_task(context, task)
    return tasks


def _likelihood_task(suite: Suite, items: Sequence[Any], template: Template) -> Task:
    def scores(engine: Asked, variant: Variant) -> Iterator[ItemScore | Quarantined]:
        requests = _in_context(variant, suite.requests(items, template))
        return suite.scores(items, engine.score(requests))

    return Task(len(items), scores)


def harness_task(context: StageContext, task: HarnessTask) -> Task:
    """Answering a task of lm-evaluation-harness."""

    def scores(engine: Asked, variant: Variant) -> _Found:
        return harness_scores(task, engine, _rules(variant), context.config.seed)

    return Task(task.num_items, scores, task.scores_continuations, task.described())


def heldout_task(context: StageContext, path: Path, *, refusals_later: bool = False) -> Task:
    """Answering the held-out prompts; `refusals_later` as in `heldout_scores`."""
    items = load_heldout(path)
    config = context.config.evaluate

    def sampling_of(variant: Variant) -> SamplingConfig:
        return (config.principled_sampling if variant.principled else None) or config.sampling

    def samples_of(variant: Variant) -> int:
        return config.samples if sampling_of(variant).temperature > 0 else 1

    def scores(engine: Asked, variant: Variant) -> _Found:
        render, stop = _prompts_of(context, variant)
        sampling = Sampling(**sampling_of(variant).model_dump(), stop=stop)
        samples = samples_of(variant)
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
        labels = context.seeds.labels.all
        return heldout_scores(items, answers, labels, samples, refusals_later=refusals_later)

    return Task(len(items), scores, by_likelihood=False, samples=samples_of)


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
        parsed = parse_thought(text, variant.seeds.labels)
        text = parsed.response if isinstance(parsed, ParsedResponse) else ""
    return replace(completion, text=text.strip())


def _in_context(variant: Variant, requests: Iterable[ScoreRequest]) -> Iterator[ScoreRequest]:
    """Put the principles before a multiple-choice question where the variant has them."""
    for request in requests:
        yield replace(request, prompt=_rules(variant) + request.prompt)


def _rules(variant: Variant) -> str:
    return render_principles(variant.seeds.principles) + "\n\n" if variant.principled else ""
