"""Stage `align`: principle-driven self-alignment.

Reads prompts; the base model answers each under the principles and exemplars, thinking first.
Writes aligned_responses: prompt, thought, rules cited, answer, each filter's verdict.
"""

from __future__ import annotations

from selfalign.engines.base import Completion
from selfalign.filters.responses import Kept, filter_aligned
from selfalign.prompts import render_align, template_digest
from selfalign.records import AlignedResponse, Prompt
from selfalign.stages.answers import answer_prompts
from selfalign.stages.contract import StageContext
from selfalign.stages.models import base_engine
from selfalign.store.manifest import Manifest


def align(context: StageContext) -> Manifest | None:
    """Answer this shard's prompts under the principles; publish when all shards are done."""
    config, seeds = context.config.align, context.seeds
    template = template_digest(seeds, "align")
    model = context.identity["base_model"]

    def record(prompt: Prompt, kept: Kept, completion: Completion) -> AlignedResponse:
        return AlignedResponse(
            id=prompt.id,
            prompt=prompt.text,
            thought=kept.thought,
            rules=kept.rules,
            response=kept.response,
            finish_reason=completion.finish_reason,
            verdicts=kept.verdicts,
            model=model,
            template=template,
            seed=context.seed_for(prompt.id),
        )

    return answer_prompts(
        context,
        config,
        config.sampling,
        open_engine=lambda: base_engine(context.store, context.config, config.engine),
        render=lambda text: render_align(seeds, text),
        judge=lambda prompt, completion: filter_aligned(
            completion.text,
            completion.finish_reason,
            prompt=prompt.text,
            seeds=seeds,
            config=config,
        ),
        record=record,
    )
