"""What `align` and `elaborate` share: one prompt record in, at most one response record out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from selfalign.config import GenerationStageModel, SamplingConfig
from selfalign.engines.base import (
    Completion,
    Engine,
    GenerationRequest,
    Quarantined,
    Sampling,
    blank,
)
from selfalign.filters.responses import Kept
from selfalign.filters.thoughts import Dropped
from selfalign.prompts import stop_strings
from selfalign.records import Prompt, Record
from selfalign.stages.contract import (
    EngineHandle,
    PartOutcome,
    StageContext,
    chunked,
    generate_shard,
    share_size,
)
from selfalign.store.artifact import read_records
from selfalign.store.manifest import Manifest
from selfalign.telemetry import Progress

_LONGEST_SAMPLE = 400  # characters of a dropped text that are kept for a person to see


def answer_prompts(
    context: StageContext,
    section: GenerationStageModel,
    sampling_config: SamplingConfig,
    *,
    open_engine: Callable[[], Engine],
    render: Callable[[str], str],
    judge: Callable[[Prompt, Completion], Kept | Dropped],
    record: Callable[[Prompt, Kept, Completion], Record],
) -> Manifest | None:
    """Answer this shard's prompts; publish when all shards are done.

    Args:
        render: a prompt's text to what the model sees.
        judge: parse and filter a completion.
        record: the record of a completion that was kept.
    """
    prompts = context.parent("prompts")
    sampling = Sampling(**sampling_config.model_dump(), stop=stop_strings(context.seeds.labels))
    writer = context.writer()
    shard = writer.shard(context.shard, context.num_shards)

    def request(prompt: Prompt) -> GenerationRequest | Quarantined:
        if bad := blank(prompt.id, prompt.text):
            return bad
        seed = context.seed_for(prompt.id)
        return GenerationRequest(prompt.id, render(prompt.text), sampling, seed)

    def finish(outcome: PartOutcome, prompt: Prompt, completion: Completion) -> None:
        verdict = judge(prompt, completion)
        if isinstance(verdict, Dropped):
            shown = f"{prompt.text} -> {completion.text}"
            outcome.drop(verdict.reason, shown[:_LONGEST_SAMPLE])
        else:
            outcome.keep(record(prompt, verdict, completion))

    rows = read_records(context.store, prompts, Prompt)
    chunks = chunked("prompts", context.mine(rows), section.records_per_part)
    total = share_size(prompts.counts.kept, context.shard, context.num_shards)
    limit = partial(context.quarantine_limit, prompts.counts.kept)
    progress = Progress("prompts", total)
    with EngineHandle(open_engine) as engine:
        generate_shard(shard, chunks, engine, request, finish, progress, limit())
    return writer.publish_when_complete(context.num_shards, check=limit().add_all)
