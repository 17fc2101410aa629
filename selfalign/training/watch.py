"""What happens between optimiser steps: losses read, progress told, signals and checkpoints.

To read a loss is to wait until the device has computed it, and a device that is waited for at
every step idles between steps. So losses stay on the device, and all that have gathered are read
together: every few seconds, before a checkpoint and at the end. None is skipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from selfalign.errors import EngineError
from selfalign.training.base import TrainingProgress
from selfalign.training.batches import MicroBatches
from selfalign.training.examples import EncodedExamples
from selfalign.training.processes import Ranks, StopRequest

_log = structlog.get_logger(__name__)

READ_SECONDS = 5.0  # between two readings; a reading costs a few milliseconds
_CHECKPOINT_SHARE = 0.02  # of the time; saving takes less
_CHECKPOINT_SECONDS = 300.0  # between two checkpoints, at least: what a killed worker may lose


@dataclass(slots=True)
class CheckpointPace:
    """When to save: every so many steps, or as often as costs little.

    Args:
        every_steps: None: every five minutes, or so seldom that saving takes less than 2% of the
            time.
        size: bytes of a checkpoint; 0 where another process decides.
        measure: how many bytes per second are saved, given the size; None where it cannot tell.
            Asked when five minutes have passed: what the first checkpoint costs is not known
            otherwise.
    """

    every_steps: int | None
    size: int = 0
    measure: Callable[[int], float | None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    _resting_since: float = field(init=False)
    _began: float = 0.0
    _cost: float | None = None

    def __post_init__(self) -> None:
        self._resting_since = self.clock()

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        if self.clock() - self._resting_since < _CHECKPOINT_SECONDS:
            return False
        if self._cost is None:
            self._cost = self._expected()
        return self.clock() - self._resting_since >= self._cost / _CHECKPOINT_SHARE

    def saving(self) -> None:
        """A checkpoint is about to be written."""
        self._began = self.clock()

    def saved(self) -> None:
        """It is kept."""
        self._resting_since = self.clock()
        self._cost = self._resting_since - self._began

    def _expected(self) -> float:
        """Seconds that the first checkpoint will take, and that it takes to find that out."""
        began = self.clock()
        rate = self.measure(self.size) if self.size else None
        if rate is None:
            return 0.0
        now = self.clock()
        cost = self.size / rate + now - began
        _log.info(
            "training.first_checkpoint",
            bytes=self.size,
            bytes_per_second=round(rate),
            in_seconds=round(max(0.0, self._resting_since + cost / _CHECKPOINT_SHARE - now)),
        )
        return cost


@dataclass(frozen=True, slots=True)
class _Unread:
    """A step whose numbers may still be on the device."""

    step: int
    epoch: float
    learning_rate: float
    loss: Any  # a tensor without dimensions
    gradient_norm: Any  # the same, a float, or None


@dataclass(slots=True)
class StepWatch:
    """Checks every step's numbers, stops on a signal, and says when to save a checkpoint.

    `stopped_by` is the signal that ended the loop early, or 0. `learning_rate` and
    `gradient_norm` are those of the step under way.

    Args:
        read_seconds: how long losses may stay unread; 0 reads each, right where that waits for
            nothing (on a CPU).
    """

    batches: MicroBatches
    examples: EncodedExamples
    ranks: Ranks
    stop: StopRequest
    pace: CheckpointPace
    total_steps: int
    on_progress: TrainingProgress
    publish: Callable[[int, Path], None]
    read_seconds: float = READ_SECONDS
    stopped_by: int = 0
    learning_rate: float = 0.0
    gradient_norm: Any = None
    _loss: Any = None
    _unread: list[_Unread] = field(default_factory=list)
    _read_at: float = 0.0  # so the first step is read: a broken start is seen at once
    _started: float = field(default_factory=time.monotonic)
    _tokens: int = 0

    def epoch_begins(self, steps_done: int) -> None:
        """Choose the epoch's order; also right for one that is resumed in its middle."""
        self.batches.epoch = steps_done // self.batches.steps_per_epoch

    def micro_batch_ended(self, loss: Any) -> None:
        """Add this process's share of the step's loss, a tensor that is left on its device."""
        self._loss = loss if self._loss is None else self._loss + loss

    def step_ended(
        self, step: int, epoch: float, history: list[dict[str, Any]]
    ) -> tuple[bool, bool]:
        """Whether to save a checkpoint now, and whether to stop. Collective.

        Appends what it reads to `history`. Raises EngineError for a loss or gradient that is no
        number, before the step's checkpoint is written: a broken model is never kept.
        """
        self._unread.append(
            _Unread(step, epoch, self.learning_rate, self._loss, self.gradient_norm)
        )
        self._loss = None
        now = time.monotonic()
        mine = (
            self.stop.signal_number,
            self.pace.due(step),
            now - self._read_at >= self.read_seconds,
        )
        everyone = self.ranks.gather(mine)
        self.stopped_by = max(signal_number for signal_number, _, _ in everyone)
        _, save, read = everyone[0]  # clocks differ: the main process's counts
        save = save or self.stopped_by != 0
        if save or read or step == self.total_steps:
            self._read(history)
            self._read_at = time.monotonic()
        if save:
            self.pace.saving()
        return save, self.stopped_by != 0

    def saved(self, step: int, directory: Path) -> None:
        """Publish the checkpoint in `directory`."""
        self.publish(step, directory)
        self.pace.saved()

    def _read(self, history: list[dict[str, Any]]) -> None:
        import torch

        unread, self._unread = self._unread, []
        losses = torch.stack([each.loss.detach().float() for each in unread]).tolist()
        norms = torch.stack([_tensor(each.gradient_norm, unread[0].loss) for each in unread])
        of_all = self.ranks.gather((losses, norms.tolist()))
        for place, each in enumerate(unread):
            # Each process's loss is its share times the number of processes.
            loss = sum(losses[place] for losses, _ in of_all) / len(of_all)
            norm = max((norms[place] for _, norms in of_all), key=lambda n: (math.isnan(n), n))
            self._check(each, loss, norm)
            history.append(
                {
                    "step": each.step,
                    "loss": loss,
                    "grad_norm": norm,
                    "learning_rate": each.learning_rate,
                    "epoch": each.epoch,
                }
            )
            seen = self.batches.examples_of_step(each.step)
            self._tokens += int(self.examples.lengths[seen].sum())
            if self.ranks.main:
                elapsed = max(time.monotonic() - self._started, 1e-9)
                self.on_progress(each.step, self.total_steps, loss, self._tokens / elapsed)

    def _check(self, each: _Unread, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise EngineError(
                f"training diverged at step {each.step} of {self.total_steps}: loss {loss}, norm "
                f"of the gradient {norm}, at learning rate {each.learning_rate}",
                remedy="lower learning_rate, raise warmup_steps, or set precision to float32",
            )


def _tensor(number: Any, like: Any) -> Any:
    """A gradient's norm as float32 on the losses' device; DeepSpeed gives a float, or None."""
    import torch

    if isinstance(number, torch.Tensor):
        return number.detach().float()
    return torch.tensor(float(number or 0.0), device=like.device)
