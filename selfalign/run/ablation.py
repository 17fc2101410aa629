"""Do the study `selfalign ablate`, or find it done: planned, claimed and kept as a stage is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfalign.config import RunConfig
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.identity import collect_inputs, identity_key, stage_identity
from selfalign.inputs import localise
from selfalign.pipeline import BY_NAME
from selfalign.seeds import load_seeds
from selfalign.stages.ablation import LeftOut, ablate, left_out
from selfalign.stages.context_limits import check_long_items
from selfalign.stages.contract import StageContext
from selfalign.store.artifact import read_file_as, read_manifest
from selfalign.store.base import Store
from selfalign.store.claims import artifact_unit, claim
from selfalign.store.files import explain_os_error
from selfalign.telemetry import bind, log

# What it asks and how is the section evaluate's; it reads no trained model.
_STUDY = replace(BY_NAME["evaluate"], reads=(), reads_promoted=False, writes="ablation")


def run_ablation(
    config: RunConfig,
    store: Store,
    principles: Sequence[int] | None = None,
    exemplars: Sequence[int] | None = None,
) -> tuple[list[LeftOut], EvaluationSummary]:
    """What was left out, and what changed; a study that was interrupted goes on.

    Args:
        principles: numbers of those to leave out, each in its turn; None is every one.
        exemplars: likewise.
    """
    bind(stage="ablate")
    config = localise(config, store)
    seeds = load_seeds(config.seeds)
    every = [rule.number for rule in seeds.principles]
    lines = left_out(
        seeds,
        every if principles is None else principles,
        range(1, len(seeds.exemplars) + 1) if exemplars is None else exemplars,
    )
    identity = stage_identity(_STUDY, config, collect_inputs(config), {}, None)
    identity["left_out"] = [line.line for line in lines]
    key = identity_key(identity)
    manifest = read_manifest(store, _STUDY.writes, key)
    if manifest is None:
        claim(store, artifact_unit(_STUDY.writes, key), {})
        check_long_items(config, seeds)
        log.info("ablation.started", key=key, left_out=len(lines))
        with tempfile.TemporaryDirectory(prefix="selfalign-ablate-") as work:
            context = StageContext(
                config=config,
                store=store,
                stage=_STUDY,
                key=key,
                identity=identity,
                parents={},
                seeds=seeds,
                shard=0,
                num_shards=1,
                work=Path(work),
            )
            try:
                manifest = ablate(context, lines)
            except OSError as error:
                raise explain_os_error(error, "ablate") from error
    return lines, read_file_as(store, manifest, "summary.json", EvaluationSummary)
