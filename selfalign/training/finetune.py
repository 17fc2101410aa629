"""Fine-tune the base model on its own answers: data, loop, merge.

Reads the base model, examples and the newest checkpoint; writes what `outputs` documents.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError
from selfalign.serving.form import ChatForm
from selfalign.training import outputs
from selfalign.training.attention import pack_attention
from selfalign.training.base import Example, TrainingProgress, TrainResult
from selfalign.training.batches import MicroBatches
from selfalign.training.chat import fit_form
from selfalign.training.checkpoints import (
    Checkpoint,
    Checkpoints,
    training_identity,
    versions,
    without_code,
)
from selfalign.training.examples import EncodedExamples, encode
from selfalign.training.failures import engine_errors
from selfalign.training.loop import (
    CHECKPOINTING,
    build_trainer,
    collator,
    forget_deepspeed,
    numpy_seed,
    quiet_libraries,
    training_arguments,
)
from selfalign.training.memory import (
    checkpoint_bytes,
    estimate,
    fit_micro_batch,
    in_gib,
    peak_memory,
)
from selfalign.training.model import (
    BaseModel,
    adapted_modules,
    check_token_id,
    for_hardware,
    load_for_training,
    load_tokenizer,
)
from selfalign.training.processes import Ranks, StopRequest
from selfalign.training.stored import StoreCheckpoints
from selfalign.training.watch import READ_SECONDS, CheckpointPace, StepWatch

_log = structlog.get_logger(__name__)

_PROBE_TOKENS = 64  # of the first example, to compare the merged model with the trained one


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is settled before a weight is loaded."""

    config: TrainConfig
    base: BaseModel
    tokenizer: Any
    form: ChatForm
    pad_token_id: int
    adapted_modules: dict[str, int]
    examples: EncodedExamples
    batches: MicroBatches
    total_steps: int
    seed: int
    work: Path


def train(
    config: TrainConfig,
    *,
    base_model: Path | str,
    revision: str | None,
    examples: Sequence[Example],
    form: ChatForm,
    output: Path,
    work: Path,
    checkpoints: StoreCheckpoints,
    seed: int,
    on_progress: TrainingProgress,
) -> TrainResult:
    """Train from the base model, or from the newest checkpoint of this very training.

    Under torchrun every process calls this with the same arguments; only rank 0 writes, and all
    return when it has written.

    Args:
        base_model: a directory or hub id; never a model that was fine-tuned before.
        revision: commit of a hub id.
        form: of the examples' prompts, before a tokenizer is known; the chat template's source.
        output: receives merged/, adapter/ and loss.jsonl.
        work: scratch of this node, emptied at the end.
        seed: of data order, adapter and dropout.

    Raises:
        DataError: no examples, or a base model that cannot be used.
        ConfigurationError: settings that contradict each other or this machine.
        Interrupted: after SIGTERM or SIGINT; a checkpoint of the last step is in the sink.
        EngineError, OutOfMemory, StorageFull: see `failures`.
    """
    ranks = Ranks.from_environment()
    base = BaseModel(str(base_model), revision)
    config = for_hardware(config)
    with engine_errors("training"), quiet_libraries(), StopRequest() as stop:
        plan = _plan(config, base, examples, form, work, ranks, seed)
        arguments = training_arguments(
            config,
            ranks=ranks,
            batches=plan.batches,
            total_steps=plan.total_steps,
            seed=seed,
            directory=work / "checkpoints",
        )
        ranks = ranks.connected()
        identity = training_identity(config, ranks, seed, plan.examples.sha256)
        kept = Checkpoints(checkpoints, ranks, identity)
        resumed = kept.restore(work / "resume")
        stop.raise_if(ranks.highest(stop.signal_number))
        if resumed is not None and resumed.step == plan.total_steps:
            trained, history = resumed.directory, resumed.history()
            division = {}
        else:
            watch = StepWatch(
                batches=plan.batches,
                examples=plan.examples,
                ranks=ranks,
                stop=stop,
                pace=CheckpointPace(
                    config.checkpoint_every_steps,
                    measure=partial(kept.bytes_per_second, scratch=work / "checkpoints"),
                ),
                read_seconds=0.0 if arguments.device.type == "cpu" else READ_SECONDS,
                total_steps=plan.total_steps,
                on_progress=on_progress,
                publish=kept.publish,
            )
            trained, history = _run(plan, arguments, watch, resumed)
            division = {
                "micro_batch_size": str(plan.batches.micro_batch_size),
                "rows": "packed" if plan.batches.packed else "padded",
            }
        stop.raise_if(ranks.highest(stop.signal_number))
        curve = outputs.loss_curve(history)
        forget_deepspeed()
        if ranks.main:
            _write(plan, trained, curve, output)
        ranks.barrier()
        if ranks.node_leader:
            _clean(work)
    adapter = None if config.method == "full" else output / "adapter"
    steps = range(1, plan.total_steps + 1)
    taught = plan.examples.taught
    return TrainResult(
        steps=plan.total_steps,
        examples=len(plan.examples),
        truncated_examples=plan.examples.truncated,
        dropped_examples=plan.examples.dropped,
        trained_tokens=sum(int(taught[plan.batches.examples_of_step(s)].sum()) for s in steps),
        loss_curve=curve,
        merged=output / "merged",
        adapter=adapter,
        adapted_modules=plan.adapted_modules,
        multimodal=plan.base.multimodal(),
        engine=_engine(ranks) | division,
        resumed_from=None if resumed is None else resumed.step,
    )


def _plan(
    config: TrainConfig,
    base: BaseModel,
    examples: Sequence[Example],
    form: ChatForm,
    work: Path,
    ranks: Ranks,
    seed: int,
) -> _Plan:
    tokenizer, eos_token_id, pad_token_id = load_tokenizer(base)
    form = fit_form(form, tokenizer)
    adapted = adapted_modules(config, base)
    encoded = encode(
        examples, tokenizer, form=form, eos_token_id=eos_token_id, max_length=config.max_length
    )
    check_token_id(base, tokenizer, int(encoded.tokens.max()))
    _check_positions(config, base, encoded)
    batches = MicroBatches(
        encoded.lengths,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=seed,
    )
    total_steps = batches.total_steps(epochs=config.epochs, max_steps=config.max_steps)
    if ranks.main:
        _log.info(
            "training.planned",
            examples=len(encoded),
            truncated=encoded.truncated,
            dropped=encoded.dropped,
            total_steps=total_steps,
            processes=ranks.world_size,
        )
        if len(encoded) < config.global_batch_size:  # the filters left next to nothing
            _log.warning(
                "training.few_examples",
                examples=len(encoded),
                global_batch_size=config.global_batch_size,
            )
        if config.warmup_steps >= total_steps:
            _log.warning(
                "training.never_warm", warmup_steps=config.warmup_steps, total_steps=total_steps
            )
    return _Plan(
        config=config,
        base=base,
        tokenizer=tokenizer,
        form=form,
        pad_token_id=pad_token_id,
        adapted_modules=adapted,
        examples=encoded,
        batches=batches,
        total_steps=total_steps,
        seed=seed,
        work=work,
    )


def _check_positions(config: TrainConfig, base: BaseModel, examples: EncodedExamples) -> None:
    positions = getattr(base.config(), "max_position_embeddings", None)
    longest = int(examples.lengths.max())
    if positions is not None and longest > positions:
        raise ConfigurationError(
            f"max_length is {config.max_length} and an example has {longest} tokens; the base "
            f"model {base.path} takes {positions}",
            remedy=f"set max_length to at most {positions}",
        )


def _run(
    plan: _Plan, arguments: Any, watch: StepWatch, resumed: Checkpoint | None
) -> tuple[Path, list[dict[str, Any]]]:
    """Train to the end. Returns the directory of what was trained, and the Trainer's history.

    Raises Interrupted when the loop was asked to stop. Collective.
    """
    from transformers import set_seed

    trained = plan.work / "trained"
    if watch.ranks.node_leader:
        for leftover in (trained, Path(arguments.output_dir)):
            shutil.rmtree(leftover, ignore_errors=True)
    watch.ranks.barrier()
    set_seed(numpy_seed(plan.seed))  # the adapter's first weights are random
    model = load_for_training(plan.config, plan.base)
    if watch.ranks.main:  # whose pace counts
        watch.pace.size = checkpoint_bytes(model, plan.config, watch.ranks.nodes)
    packed = _prepare(plan, arguments, model, watch.ranks)
    trainer = build_trainer(
        model=model,
        packed=packed,
        arguments=arguments,
        examples=plan.examples,
        watch=watch,
        pad_token_id=plan.pad_token_id,
    )
    watch.stop.raise_if(watch.ranks.highest(watch.stop.signal_number))
    directory = None if resumed is None else str(resumed.directory)
    step = None if resumed is None else resumed.step
    with without_code(step, deepspeed=plan.config.deepspeed is not None):
        trainer.train(resume_from_checkpoint=directory)
    watch.stop.raise_if(watch.stopped_by)
    trainer.save_model(str(trained))
    watch.ranks.barrier()
    return trained, list(trainer.state.log_history)


def _prepare(plan: _Plan, arguments: Any, model: Any, ranks: Ranks) -> bool:
    """Choose attention and micro-batch for the device, and say what the training takes.

    Returns whether examples are packed. Collective.
    """
    config, device = plan.config, arguments.device
    on_gpu = device.type == "cuda"
    if on_gpu and config.deepspeed is None and next(model.parameters()).device != device:
        model.to(device)  # as the Trainer would; what is tried must be tried there
    packed = pack_attention(model, autocast=config.precision == "bfloat16")
    plan.batches.packed = packed
    peak: dict[str, float] = {}
    if on_gpu and config.deepspeed is None and config.micro_batch_size is None:
        size, recompute = fit_micro_batch(
            model,
            config,
            batches=plan.batches,
            examples=plan.examples,
            collator=collator(arguments, plan.pad_token_id, packed=packed),
            enable_checkpointing=lambda: model.gradient_checkpointing_enable(CHECKPOINTING),
        )
        plan.batches.divide(min(ranks.gather(size)))
        arguments.per_device_train_batch_size = plan.batches.micro_batch_size
        arguments.gradient_accumulation_steps = plan.batches.accumulation
        arguments.gradient_checkpointing = any(ranks.gather(recompute))
        peak = peak_memory()
    if ranks.main:
        _log.info(
            "training.starts",
            steps=plan.total_steps,
            micro_batch_size=plan.batches.micro_batch_size,
            micro_batches_per_step=plan.batches.accumulation,
            gradient_checkpointing=arguments.gradient_checkpointing,
            tokens_per_step=round(config.global_batch_size * float(plan.examples.lengths.mean())),
            **in_gib(estimate(model, config)),
            **peak,
        )
    return packed


def _write(plan: _Plan, trained: Path, curve: list[dict[str, float]], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    outputs.clear(output)
    adapter = None
    if plan.config.method != "full":
        adapter = outputs.write_adapter(trained, plan.base, output)
    tokens, _ = plan.examples[0]
    outputs.write_merged(
        plan.base,
        plan.tokenizer,
        plan.form,
        output=output,
        trained=trained,
        adapter=adapter,
        probe=tokens[:_PROBE_TOKENS].tolist(),
    )
    outputs.write_loss_curve(output, curve)
    _log.info("training.written", steps=plan.total_steps)


def _clean(work: Path) -> None:
    for name in ("checkpoints", "resume", "trained"):
        shutil.rmtree(work / name, ignore_errors=True)


def _engine(ranks: Ranks) -> dict[str, str]:
    import torch

    gpu = torch.cuda.is_available()
    packages = versions()
    return {
        "name": "transformers",
        "version": packages.pop("transformers"),
        "device": torch.cuda.get_device_name() if gpu else f"cpu ({platform.machine()})",
        **packages,
        "processes": str(ranks.world_size),
        "nodes": str(ranks.nodes),
        "threads_per_process": str(torch.get_num_threads()),
        "cores": str(len(os.sched_getaffinity(0))),
    } | ({"cuda": str(torch.version.cuda)} if gpu else {})
