"""transformers' Trainer, configured by a stage, fed by our batches and checked at every step."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError
from selfalign.training.batches import MicroBatches, collate, collate_packed, token_loss
from selfalign.training.examples import EncodedExamples
from selfalign.training.processes import Ranks
from selfalign.training.watch import StepWatch

_log = structlog.get_logger(__name__)

_GATHER = "stage3_gather_16bit_weights_on_model_save"
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
CHECKPOINTING = {"use_reentrant": False}  # of torch's two kinds, the one that works with DDP
_GPU_ROW_MULTIPLE = 8  # bf16 tensor cores want dimensions that are multiples of 8


def numpy_seed(seed: int) -> int:
    """What numpy's global generator accepts of a seed."""
    return seed % 2**32


def training_arguments(
    config: TrainConfig,
    *,
    ranks: Ranks,
    batches: MicroBatches,
    total_steps: int,
    seed: int,
    directory: Path,
) -> Any:
    """transformers.TrainingArguments; starts torch.distributed when there are several processes.

    Raises ConfigurationError.
    """
    import torch
    from transformers import TrainingArguments

    on_cpu = not torch.cuda.is_available()
    if config.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            "optimizer adamw_8bit needs the package bitsandbytes, which is not installed",
            remedy="install selfalign[qlora], or set optimizer to adamw",
        )
    try:
        arguments = TrainingArguments(
            output_dir=str(directory),
            max_steps=total_steps,
            per_device_train_batch_size=batches.micro_batch_size,
            gradient_accumulation_steps=batches.accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.precision == "bfloat16",
            gradient_checkpointing=bool(config.gradient_checkpointing),
            gradient_checkpointing_kwargs=CHECKPOINTING,
            seed=numpy_seed(seed),
            use_cpu=on_cpu,
            ddp_backend="gloo" if on_cpu and ranks.world_size > 1 else None,
            ddp_find_unused_parameters=False,
            deepspeed=deepspeed_config(config.deepspeed),
            remove_unused_columns=False,
            logging_strategy="no",  # it reads the loss, hence waits for the device, at every log
            logging_nan_inf_filter=False,  # it looks at every loss, which waits too
            optim=_OPTIMIZERS[config.optimizer],
            save_strategy="no",  # StepWatch says when
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            log_level_replica="error",
        )
    except (ValueError, ImportError) as e:
        raise ConfigurationError(f"training configuration: {e}") from e
    if config.deepspeed is not None and on_cpu:
        import deepspeed

        # On GPUs accelerate does this. Without it, DeepSpeed takes this process for the only one.
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    if not on_cpu:
        # Several GPUs in one process mean torch's DataParallel, and another batch size.
        arguments._n_gpu = 1
    return arguments


def forget_deepspeed() -> None:
    """Load models whole from here on; under ZeRO-3 every load is shared by all processes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def deepspeed_config(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The configuration with what the stage's own fields decide filled in.

    Raises ConfigurationError without the package, or outside a process group.
    """
    if config is None:
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigurationError(
            "deepspeed is configured, and the package deepspeed is not installed",
            remedy="install selfalign[deepspeed], or set deepspeed to null",
        )
    if "RANK" not in os.environ:
        raise ConfigurationError(
            "deepspeed is configured, and this process was not started by torchrun",
            remedy="run the command that launch_command returns",
        )
    filled = deepcopy(config)
    for name in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        filled.setdefault(name, "auto")
    filled.setdefault("bf16", {"enabled": "auto"})
    zero = filled.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get(_GATHER):
        # Without it, a checkpoint of a whole model holds no weights anyone else can read.
        zero[_GATHER] = True
        _log.info("training.deepspeed_forced", field=_GATHER, value=True)
    return filled


def build_trainer(
    *,
    model: Any,
    arguments: Any,
    examples: EncodedExamples,
    watch: StepWatch,
    pad_token_id: int,
    packed: bool,
) -> Any:
    """A transformers.Trainer whose batches, loss, log and checkpoints are ours."""
    from torch.utils.data import DataLoader
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    collate_fn = collator(arguments, pad_token_id, packed=packed)

    class ResponseTrainer(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(
                examples,  # type: ignore[arg-type]  # a sequence will do
                batch_sampler=watch.batches,
                collate_fn=collate_fn,
                pin_memory=arguments.device.type != "cpu",
            )

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            # Copied here, a copy does not wait for the work the device still has.
            moved = (_on_device(batch, device) for batch in epoch_iterator)
            return super().get_batch_samples(moved, num_batches, device)

        def training_step(self, *rest: Any, **named: Any) -> Any:
            loss = super().training_step(*rest, **named)
            watch.micro_batch_ended(loss)
            return loss

        def _get_grad_norm(self, *rest: Any, **named: Any) -> Any:
            watch.gradient_norm = super()._get_grad_norm(*rest, **named)
            return watch.gradient_norm

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # nobody reads it, and counting parameters costs time at every batch

    trainer = ResponseTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        compute_loss_func=token_loss,
        callbacks=[_callback(watch)],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout
    return trainer


def collator(arguments: Any, pad_token_id: int, *, packed: bool) -> Any:
    """What makes tensors of examples for the arguments' device."""
    return partial(
        collate_packed if packed else collate,
        pad_token_id=pad_token_id,
        multiple=1 if arguments.device.type == "cpu" else _GPU_ROW_MULTIPLE,
    )


def _on_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    return {
        name: part.to(device, non_blocking=True) if hasattr(part, "to") else part
        for name, part in batch.items()
    }


def _callback(watch: StepWatch) -> Any:
    from transformers import TrainerCallback

    class WatchCallback(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.epoch_begins(state.global_step)

        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, lr_scheduler: Any, **_: Any
        ) -> None:
            watch.learning_rate = float(lr_scheduler.get_last_lr()[0])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            save, stop = watch.step_ended(state.global_step, state.epoch, state.log_history)
            control.should_save |= save
            control.should_training_stop |= stop

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.saved(
                state.global_step, Path(args.output_dir) / f"checkpoint-{state.global_step}"
            )

    return WatchCallback()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no chatter from transformers within the block."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
