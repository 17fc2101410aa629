"""Stage `elaborate`: the engraved model answers every prompt at length (verbose cloning's teacher).

Reads prompts and engraved_model; writes verbose_responses. Neither principles nor thoughts are
in sight: the engraved model needs none.
"""

from __future__ import annotations

from selfalign.engines.base import Completion
from selfalign.filters.responses import Kept, filter_verbose
from selfalign.prompts import render_verbose, template_digest
from selfalign.records import Prompt, VerboseResponse
from selfalign.stages.answers import answer_prompts
from selfalign.stages.contract import StageContext
from selfalign.stages.models import artifact_engine
from selfalign.store.manifest import Manifest


def elaborate(context: StageContext) -> Manifest | None:
    """Answer this shard's prompts at length; publish when all shards are done."""
    config, seeds = context.config.elaborate, context.seeds
    template = template_digest(seeds, "verbose")
    teacher = context.parent("engraved_model")

    def record(prompt: Prompt, kept: Kept, completion: Completion) -> VerboseResponse:
        return VerboseResponse(
            id=prompt.id,
            prompt=prompt.text,
            response=kept.response,
            finish_reason=completion.finish_reason,
            verdicts=kept.verdicts,
            model=teacher.digest,
            template=template,
            seed=context.seed_for(prompt.id),
        )

    return answer_prompts(
        context,
        config,
        config.sampling,
        open_engine=lambda: artifact_engine(context.store, teacher, context.config, config.engine),
        render=lambda text: render_verbose(seeds, text),
        judge=lambda prompt, completion: filter_verbose(
            completion.text,
            completion.finish_reason,
            prompt=prompt.text,
            seeds=seeds,
            config=config,
        ),
        record=record,
    )
