"""Stages `align` and `elaborate`: one prompt record in, at most one response record out.

`align`, principle-driven self-alignment: the base model answers each prompt under the principles
and exemplars, thinking first. Writes aligned_responses: prompt, thought, rules cited, answer, each
filter's verdict. `elaborate`: the engraved model, verbose cloning's teacher, answers at length:
neither principles nor thoughts are in sight. Writes verbose_responses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from selfalign.config import AlignConfig, ElaborateConfig
from selfalign.engines.base import (
    Completion,
    Engine,
    GenerationRequest,
    Quarantined,
    Sampling,
    blank,
)
from selfalign.filters.responses import Kept, filter_aligned, filter_verbose
from selfalign.filters.thoughts import Dropped
from selfalign.prompts import render_align, render_verbose, stop_strings, template_digest
from selfalign.records import AlignedResponse, Prompt, Record, VerboseResponse
from selfalign.stages.contract import (
    EngineHandle,
    PartOutcome,
    StageContext,
    chunked,
    generate_shard,
    share_size,
)
from selfalign.stages.models import artifact_engine, base_engine
from selfalign.store.artifact import read_records
from selfalign.store.manifest import Manifest
from selfalign.telemetry import Progress

_LONGEST_SAMPLE = 400  # characters of a dropped text that are kept for a person to see


def align(context: StageContext) -> Manifest | None:
    """Answer this shard's prompts under the principles; publish when all shards are done."""
    config, seeds = context.config.align, context.seeds
    return _answer_prompts(
        context,
        config,
        open_engine=partial(base_engine, context.store, context.config, config.engine),
        render=partial(render_align, seeds),
        judge=partial(filter_aligned, seeds=seeds, config=config),
        record=lambda kept, **more: AlignedResponse(thought=kept.thought, rules=kept.rules, **more),
        model=context.identity["base_model"],
        template=template_digest(seeds, "align"),
    )


def elaborate(context: StageContext) -> Manifest | None:
    """Answer this shard's prompts at length; publish when all shards are done."""
    config, seeds = context.config.elaborate, context.seeds
    teacher = context.parent("engraved_model")
    return _answer_prompts(
        context,
        config,
        open_engine=partial(artifact_engine, context.store, teacher, context.config, config.engine),
        render=partial(render_verbose, seeds),
        judge=partial(filter_verbose, seeds=seeds, config=config),
        record=lambda _, **more: VerboseResponse(**more),
        model=teacher.digest,
        template=template_digest(seeds, "verbose"),
    )


def _answer_prompts(
    context: StageContext,
    section: AlignConfig | ElaborateConfig,
    *,
    open_engine: Callable[[], Engine],
    render: Callable[[str], str],
    judge: Callable[..., Kept | Dropped],
    record: Callable[..., Record],
    model: str,
    template: str,
) -> Manifest | None:
    """Answer this shard's prompts; publish when all shards are done.

    Args:
        render: a prompt's text to what the model sees.
        judge: parse and filter a completion.
        record: the record of a completion that was kept, of this and of what all records hold.
        model, template: which model, and by its digest which prompt, a record is from.
    """
    prompts = context.parent("prompts")
    sampling = Sampling(**section.sampling.model_dump(), stop=stop_strings(context.seeds.labels))
    writer = context.writer()
    shard = writer.shard(context.shard, context.num_shards)

    def request(prompt: Prompt) -> GenerationRequest | Quarantined:
        if bad := blank(prompt.id, prompt.text):
            return bad
        seed = context.seed_for(prompt.id)
        return GenerationRequest(prompt.id, render(prompt.text), sampling, seed)

    def finish(outcome: PartOutcome, prompt: Prompt, completion: Completion) -> None:
        verdict = judge(completion.text, completion.finish_reason, prompt=prompt.text)
        if isinstance(verdict, Dropped):
            shown = f"{prompt.text} -> {completion.text}"
            outcome.drop(verdict.reason, shown[:_LONGEST_SAMPLE])
        else:
            kept = record(
                verdict,
                id=prompt.id,
                prompt=prompt.text,
                response=verdict.response,
                finish_reason=completion.finish_reason,
                verdicts=verdict.verdicts,
                model=model,
                template=template,
                seed=context.seed_for(prompt.id),
            )
            outcome.keep(kept)

    rows = read_records(context.store, prompts, Prompt)
    chunks = chunked("prompts", context.mine(rows), section.records_per_part)
    total = share_size(prompts.counts.kept, context.shard, context.num_shards)
    limit = partial(context.quarantine_limit, prompts.counts.kept)
    progress = Progress("prompts", total)
    with EngineHandle(open_engine) as engine:
        generate_shard(shard, chunks, engine, request, finish, progress, limit())
    return writer.publish_when_complete(context.num_shards, check=limit().add_all)
