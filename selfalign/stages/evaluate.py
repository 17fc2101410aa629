"""Stage `evaluate`: score every variant, item by item, then summarise paired.

Reads the base, engraved, final and promoted models and the evaluation files; writes one part per
variant and task, and for each comparison of a judge (records: ItemScore rows), and
files/summary.json. The parts are the truth: the summary can be computed from them again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import RootModel

from selfalign.engines.base import EngineInfo
from selfalign.evaluation.anchor import anchor_confidence
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.explanations import judged as judged_in_words
from selfalign.evaluation.refusal_judge import LOW_AGREEMENT, disputed
from selfalign.evaluation.splits import choosing_split, scores_of
from selfalign.evaluation.summary import EvaluationSummary, summarise
from selfalign.evaluation.versions import describe_data
from selfalign.records import canonical_json, now
from selfalign.stages.contract import StageContext, provenance
from selfalign.stages.judging import judge_answers, refuse_candidate
from selfalign.stages.scoring import publish_scores, score_variants, scores_in, tasks_of
from selfalign.stages.serving import stated_dtype
from selfalign.stages.variants import model_manifest, variants
from selfalign.store.artifact import ShardWriter, read_file_as
from selfalign.store.manifest import Manifest, Part
from selfalign.telemetry import log


def evaluate(context: StageContext) -> Manifest:
    """Score what is not scored yet, then summarise and publish."""
    started = now()
    writer = context.writer()
    shard = writer.shard(0, 1)
    tasks = tasks_of(context)
    chosen = list(variants(context))
    judge = context.config.evaluate.judge
    if judge is not None:
        known = dict.fromkeys(each.model for each in chosen if each.model != "base")
        refuse_candidate(context, judge, [model_manifest(context, model) for model in known])
    scored = score_variants(context, shard, chosen, tasks)
    by_variant = {variant.name: scored.of(variant.name) for variant in chosen}
    answers = {name: part for (name, task), part in scored.parts.items() if task == "heldout"}
    judged = judge_answers(context, judge, shard, answers) if judge else []
    for model, part in judged:
        by_variant.setdefault(model, []).append(part)
    summary = _summarise(context, shard, by_variant, list(tasks))
    _warn_of_refusals(summary)
    _warn_of_precision(context, scored.engine)
    parts = [*scored.parts.values(), *(part for _, part in judged)]
    return publish_scores(
        writer,
        parts,
        summary,
        files=[writer.add_bytes(canonical_json(_prompts(context)).encode(), "prompts.json")],
        details={
            "models": [variant.name for variant in chosen],
            "tasks": list(tasks),
            "data": describe_data(context.config.evaluate)
            | {name: task.described for name, task in tasks.items() if task.described},
            **({"judge": judged_in_words(summary)} if judge else {}),
            **({"refusals": judge.refusals if judge else "wording"} if answers else {}),
        },
        provenance=provenance(started, scored.engine),
    )


def _warn_of_refusals(summary: EvaluationSummary) -> None:
    """Log each model on whose answers judge and wording agree too seldom."""
    for row in disputed(summary):
        log.warning(
            "evaluation.refusals_disputed",
            model=row.model,
            agreement=row.mean,
            answers=row.n,
            expected_at_least=LOW_AGREEMENT,
            remedy="read some of these answers; `selfalign gate refusals FILE` says how often "
            "judge and wording agree with people",
        )


def _warn_of_precision(context: StageContext, engine: EngineInfo | None) -> None:
    """Log where the answers were computed in another precision than a server's will be."""
    evaluated = engine.details.get("dtype") if engine else None
    if evaluated is None:
        return
    final, config = model_manifest(context, "final"), RootModel[dict[str, Any]]
    served = stated_dtype(read_file_as(context.store, final, "merged/config.json", config).root)
    if served not in ("auto", evaluated):
        log.warning(
            "evaluation.other_precision",
            evaluated=evaluated,
            served=served,
            remedy="leave evaluate.engine.dtype out: the engine then takes the weights' own",
        )


def _prompts(context: StageContext) -> dict[str, str]:
    """The held-out prompts by item id, so that a report can show answers beside questions."""
    path = context.config.evaluate.heldout
    return {} if path is None else {item.id: item.prompt for item in load_heldout(path)}


def _summarise(
    context: StageContext, shard: ShardWriter, by_variant: dict[str, list[Part]], tasks: list[str]
) -> EvaluationSummary:
    config = context.config.evaluate
    fold = partial(
        summarise,
        confidence=config.confidence,
        bootstrap_samples=config.bootstrap_samples,
        seed=context.config.seed,
        tasks=tasks,
        refusals=config.judge.refusals if config.judge else None,
        anchor_confidence=None
        if context.anchor is None
        else anchor_confidence(config.confidence, context.anchor.promotions),
    )
    chosen = choosing_split(config, context.parents["final_model"].digest)
    if not chosen:
        return fold({name: scores_in(shard, parts) for name, parts in by_variant.items()})
    reported, choosing = (
        fold(
            {
                name: scores_of(scores_in(shard, parts), chosen, choosing=side)
                for name, parts in by_variant.items()
            }
        )
        for side in (False, True)
    )
    return reported.model_copy(update={"choosing": choosing})
