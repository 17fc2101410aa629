"""The training loop: transformers' Trainer, fed by our batches and watched at every step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from selfalign.errors import EngineError
from selfalign.training.base import TrainingProgress
from selfalign.training.batches import MicroBatches, collate, token_loss
from selfalign.training.examples import EncodedExamples
from selfalign.training.ranks import Ranks
from selfalign.training.signals import StopRequest

_GPU_ROW_MULTIPLE = 8  # bf16 tensor cores want dimensions that are multiples of 8


@dataclass(slots=True)
class StepWatch:
    """Looks at every step: numbers sane? asked to stop? time for a checkpoint?

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


def build_trainer(
    *, model: Any, arguments: Any, examples: EncodedExamples, watch: StepWatch, pad_token_id: int
) -> Any:
    """A transformers.Trainer whose batches, loss and checkpoints are ours."""
    from torch.utils.data import DataLoader
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    class ResponseTrainer(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> DataLoader[Any]:
            multiple = 1 if arguments.device.type == "cpu" else _GPU_ROW_MULTIPLE
            return DataLoader(
                examples,  # type: ignore[arg-type]  # a sequence will do
                batch_sampler=watch.batches,
                collate_fn=partial(collate, pad_token_id=pad_token_id, multiple=multiple),
            )

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
