"""Stages `engrave` and `clone`: fine-tune the base model on what it wrote itself.

Reads aligned_responses (engrave) or verbose_responses (clone); writes files/merged (the model
that is served, with its card and bill of materials), files/adapter (LoRA methods) and
files/loss.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from selfalign.config import TrainConfig
from selfalign.errors import DataError
from selfalign.prompts import render_concise, render_standard
from selfalign.records import AlignedResponse, VerboseResponse, now
from selfalign.serving.form import ChatForm
from selfalign.stages.contract import StageContext, provenance
from selfalign.stages.models import model_location
from selfalign.stages.served import base_model_facts, write_papers
from selfalign.store.artifact import read_records
from selfalign.store.documents import StoredCount
from selfalign.store.manifest import Counts, FileEntry, Manifest
from selfalign.telemetry import Progress, log
from selfalign.training.base import Example, TrainResult
from selfalign.training.finetune import train
from selfalign.training.processes import is_main_process, wait_for_everyone
from selfalign.training.stored import StoreCheckpoints


def engrave(context: StageContext) -> Manifest | None:
    """Principle engraving: the standard prompt alone, no principles, no thought."""
    rows = read_records(context.store, context.parent("aligned_responses"), AlignedResponse)
    examples = (
        Example(render_standard(context.seeds, row.prompt), row.response, _finished(row))
        for row in rows
    )
    return _fine_tune(context, context.config.engrave, examples)


def clone(context: StageContext) -> Manifest | None:
    """Verbose cloning: the standard and the concise prompt alternate over the examples."""
    rows = read_records(context.store, context.parent("verbose_responses"), VerboseResponse)
    renderers: tuple[Callable[..., str], ...] = (render_standard, render_concise)
    examples = (
        Example(renderers[index % 2](context.seeds, row.prompt), row.response, _finished(row))
        for index, row in enumerate(rows)
    )
    return _fine_tune(context, context.config.clone, examples)


def _finished(row: AlignedResponse | VerboseResponse) -> bool:
    """Whether the model ended its answer where the text ends.

    Not so where it met the token limit or was cut at a repetition: there the filter `unfinished`
    looked for the last complete sentence. To stop after that one would be learnt as a habit.
    """
    return "unfinished" not in row.verdicts


def _fine_tune(
    context: StageContext, config: TrainConfig, examples: Iterator[Example]
) -> Manifest | None:
    started = now()
    data = list(examples)
    if not data:
        (parent,) = context.parents
        raise DataError(
            f"{context.name}: artifact {parent} holds no records to train on",
            remedy=f"see what was dropped: selfalign show {parent}; loosen the filters or "
            "generate more prompts",
        )
    writer = context.writer()
    checkpoints = StoreCheckpoints(writer)
    progress = Progress("steps", None)
    rate: float | None = None

    def on_progress(step: int, total_steps: int, loss: float, tokens_per_second: float) -> None:
        nonlocal rate
        progress.total, rate = total_steps, round(tokens_per_second, 2)
        if progress.done == 0 and step > 1:
            progress.skip(step - 1)
        progress.advance(
            step - progress.done, loss=round(loss, 4), tokens_per_second=round(tokens_per_second)
        )

    base_model, revision = model_location(context.store, context.config.base_model)
    result = train(
        config,
        base_model=base_model,
        revision=revision,
        examples=data,
        form=ChatForm.of(context.seeds.templates.distil_standard, context.seeds.labels),
        output=context.work / "output",
        work=context.work / "training",
        checkpoints=checkpoints,
        seed=context.seed_for("training"),
        on_progress=on_progress,
    )
    progress.finish()
    manifest = None
    if is_main_process():
        version = str(context.identity["base_model"])
        base = base_model_facts(context.config, version, base_model, result)
        write_papers(context, base, result.merged)
        manifest = writer.publish(
            shards=[],
            files=_upload(context, context.work / "output"),
            counts=Counts(read=len(data), kept=result.examples, dropped=result.dropped_examples),
            details={**_details(config, result), "base_model": base.model_dump()},
            provenance=provenance(started, None, rate).model_copy(update={"engine": result.engine}),
        )
        checkpoints.clear()
    wait_for_everyone()
    return manifest


def _upload(context: StageContext, output: Path) -> list[FileEntry]:
    writer = context.writer()
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    log.info("upload.started", files=len(paths), bytes=sum(p.stat().st_size for p in paths))
    return [writer.add_file(path, str(path.relative_to(output))) for path in paths]


def _details(config: TrainConfig, result: TrainResult) -> dict[str, object]:
    return {
        "method": config.method,
        "adapted_modules": result.adapted_modules,
        "steps": result.steps,
        "examples": result.examples,
        "truncated_examples": result.truncated_examples,
        "trained_tokens": result.trained_tokens,
        "final_loss": result.loss_curve[-1]["loss"] if result.loss_curve else None,
    }


class _Point(BaseModel):
    """A line of loss.jsonl."""

    model_config = ConfigDict(extra="allow")

    step: StoredCount
    loss: float


def loss_curve(text: bytes) -> list[dict[str, float]]:
    """The loss curve in an artifact's files/loss.jsonl. Raises DataError for any other text."""
    try:
        return [_Point.model_validate_json(line).model_dump() for line in text.splitlines() if line]
    except ValueError as error:
        raise DataError(
            "loss.jsonl: not a loss curve", remedy="delete the model's artifact and train it again"
        ) from error
