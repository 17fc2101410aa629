"""From a model artifact to what is served: the files that tell of it, and its directory.

`engrave` and `clone` write card and bill of materials beside the weights; `promote` writes them
anew, with the scores, into `models/<digest>/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import RootModel

from selfalign.config import RunConfig, SamplingConfig
from selfalign.evaluation.scores import LENGTH_WORDS
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.records import EvaluationRecord
from selfalign.serving.bom import BOM_NAME, bill_of_materials
from selfalign.serving.card import CARD_NAME, Score, Scores, model_card
from selfalign.serving.defaults import GENERATION_CONFIG, with_sampling
from selfalign.serving.directory import directory_of, is_servable, materialise, served_files
from selfalign.serving.origin import Base, origin, stated_license
from selfalign.serving.probe import PROBE_NAME, Probe, new_probe
from selfalign.serving.signing import SIGNING_KEY, key_file, sign
from selfalign.stages.contract import StageContext
from selfalign.store.artifact import read_file, read_file_as, read_records
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest

if TYPE_CHECKING:
    from selfalign.training.base import TrainResult

_TOLD = ("base", "engraved", "final", "promoted")  # models whose scores the card shows
_PACKAGES = ("accelerate", "bitsandbytes", "deepspeed", "peft", "torch")


def base_model_facts(config: RunConfig, version: str, location: str, result: TrainResult) -> Base:
    """What is known of the base model, without a path of this machine.

    Args:
        version: its commit, or the digest of its files.
        location: a directory, or a hub id.
        result: of the training that made a model of it.
    """
    base = config.base_model
    return Base(
        name=base.path if base.revision is not None and not Path(base.path).is_dir() else None,
        version=version,
        license=stated_license(Path(location)),
        multimodal=result.multimodal,
        dtype=json.loads((result.merged / "config.json").read_text(encoding="utf-8")).get("dtype"),
    )


def write_papers(context: StageContext, base: Base, merged: Path) -> None:
    """Write the model card and the bill of materials beside the weights."""
    found = origin(context.store, context.writer(), base)
    (merged / CARD_NAME).write_bytes(model_card(found, None))
    (merged / BOM_NAME).write_bytes(bill_of_materials(found, None))


def serve(
    context: StageContext, final: Manifest, evaluation: Manifest, summary: EvaluationSummary
) -> str | None:
    """Complete the directory of the final model; None for a model of 0.4.0 or before."""
    if not is_servable(final):
        return None
    found = origin(context.store, final, _base_of(final))
    scores = _scores(evaluation.key, summary)
    stated = read_file(context.store, final, f"merged/{GENERATION_CONFIG}")
    engine = final.provenance.engine
    packages = {name: engine[name] for name in _PACKAGES if name in engine}
    written = {
        GENERATION_CONFIG: with_sampling(stated, context.config.evaluate.sampling),
        CARD_NAME: model_card(found, scores),
    }
    if (probe := _probe(context.store, evaluation, context.config.evaluate.sampling)) is not None:
        written[PROBE_NAME] = probe.to_bytes()
    copied = [file for file in served_files(final) if file.name not in (*written, BOM_NAME)]
    if "version" in engine:
        packages["transformers"] = engine["version"]
    written[BOM_NAME] = bill_of_materials(found, scores, files=copied, packages=packages)
    served = materialise(context.store, final, written)
    if (key := key_file(SIGNING_KEY)) is not None:
        sign(context.store, served, key)
    return directory_of(final.digest)


def _probe(store: Store, evaluation: Manifest, sampling: SamplingConfig) -> Probe | None:
    """What the final model answered; None where its answers were drawn at random."""
    if sampling.temperature > 0:
        return None
    prompts = read_file_as(store, evaluation, "prompts.json", RootModel[dict[str, str]]).root
    # every answer has its length once, whatever else it is judged by
    answers = {
        record.item_id: record.text
        for record in read_records(store, evaluation, EvaluationRecord)
        if (record.model, record.metric) == ("final", LENGTH_WORDS)
    }
    return new_probe(answers, prompts, sampling.max_new_tokens)


def _base_of(final: Manifest) -> Base:
    try:
        return Base.model_validate(final.details.get("base_model"))
    except ValueError:
        return Base(name=None, version=str(final.identity.get("base_model")), license=None)


def _scores(evaluation: str, summary: EvaluationSummary) -> Scores:
    rows = [
        Score(**row.model_dump())
        for row in summary.metrics
        if row.kind is None and row.model in _TOLD
    ]
    rows.sort(key=lambda row: (row.metric, _TOLD.index(row.model)))
    return Scores(evaluation, summary.confidence, rows)
