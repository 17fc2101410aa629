"""transformers' Trainer, configured by a stage, fed by our batches and checked at every step."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError, EngineError
from selfalign.training.base import TrainingProgress
from selfalign.training.batches import MicroBatches, collate, collate_packed, token_loss
from selfalign.training.examples import EncodedExamples
from selfalign.training.processes import Ranks, StopRequest

_log = structlog.get_logger(__name__)

_GATHER = "stage3_gather_16bit_weights_on_model_save"
_GPU_ROW_MULTIPLE = 8  # bf16 tensor cores want dimensions that are multiples of 8


def numpy_seed(seed: int) -> int:
    """What numpy's global generator accepts of a seed."""
    return seed % 2**32


def training_arguments(
    config: TrainConfig,
    *,
    ranks: Ranks,
    accumulation: int,
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
    try:
        arguments = TrainingArguments(
            output_dir=str(directory),
            max_steps=total_steps,
            per_device_train_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.precision == "bfloat16",
            gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            seed=numpy_seed(seed),
            use_cpu=on_cpu,
            ddp_backend="gloo" if on_cpu and ranks.world_size > 1 else None,
            ddp_find_unused_parameters=False,
            deepspeed=deepspeed_config(config.deepspeed),
            remove_unused_columns=False,
            logging_steps=1,
            logging_nan_inf_filter=False,  # a loss that is no number must be seen
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


@dataclass(slots=True)
class StepWatch:
    """Checks every step's numbers, stops on a signal, and says when to save a checkpoint.

    `stopped_by` is the signal that ended the loop early, or 0.
    """

    batches: MicroBatches
    examples: EncodedExamples
    ranks: Ranks
    stop: StopRequest
    checkpoint_every_steps: int
    total_steps: int
    on_progress: TrainingProgress
    publish: Callable[[int, Path], None]
    stopped_by: int = 0
    _started: float = field(default_factory=time.monotonic)
    _tokens: int = 0

    def epoch_begins(self, steps_done: int) -> None:
        """Choose the epoch's order; also right for one that is resumed in its middle."""
        self.batches.epoch = steps_done // self.batches.steps_per_epoch

    def logged(self, step: int, logs: dict[str, Any]) -> None:
        """Raise EngineError for a loss or gradient that is no number; report progress.

        Runs before the step's checkpoint is written: a broken model is never kept.
        """
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        norm = logs.get("grad_norm")
        norm = 0.0 if norm is None else float(norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise EngineError(
                f"training diverged at step {step} of {self.total_steps}: loss {loss}, norm of "
                f"the gradient {norm}, at learning rate {logs.get('learning_rate')}",
                remedy="lower learning_rate, raise warmup_steps, or set precision to float32",
            )
        self._tokens += int(self.examples.lengths[self.batches.examples_of_step(step)].sum())
        if self.ranks.main:
            elapsed = max(time.monotonic() - self._started, 1e-9)
            self.on_progress(step, self.total_steps, loss, self._tokens / elapsed)

    def step_ended(self, step: int) -> tuple[bool, bool]:
        """Whether to save a checkpoint now, and whether to stop. Collective."""
        self.stopped_by = self.ranks.highest(self.stop.signal_number)
        stop = self.stopped_by != 0
        return stop or step % self.checkpoint_every_steps == 0, stop


class DeviceBatches:
    """Micro-batches copied to the device without the host waiting for its work."""

    def __init__(self, batches: Any, device: Any) -> None:
        self._batches = batches
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            yield {
                name: part.to(self._device, non_blocking=True) if hasattr(part, "to") else part
                for name, part in batch.items()
            }


def build_trainer(
    *,
    model: Any,
    arguments: Any,
    examples: EncodedExamples,
    watch: StepWatch,
    pad_token_id: int,
    packed: bool,
) -> Any:
    """A transformers.Trainer whose batches, loss and checkpoints are ours."""
    from torch.utils.data import DataLoader
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    class ResponseTrainer(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            on_cpu = arguments.device.type == "cpu"
            collator = partial(
                collate_packed if packed else collate,
                pad_token_id=pad_token_id,
                multiple=1 if on_cpu else _GPU_ROW_MULTIPLE,
            )
            batches: Any = DataLoader(
                examples,  # type: ignore[arg-type]  # a sequence will do
                batch_sampler=watch.batches,
                collate_fn=collator,
                pin_memory=not on_cpu,
            )
            return batches if on_cpu else DeviceBatches(batches, arguments.device)

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


def _callback(watch: StepWatch) -> Any:
    from transformers import TrainerCallback

    class WatchCallback(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.epoch_begins(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            watch.logged(state.global_step, logs)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            save, stop = watch.step_ended(state.global_step)
            control.should_save |= save
            control.should_training_stop |= stop

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            watch.publish(state.global_step, directory)

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
