from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfalign.errors import EngineError
from selfalign.training.batches import MicroBatches
from selfalign.training.examples import EncodedExamples
from selfalign.training.processes import Ranks, StopRequest
from selfalign.training.watch import CheckpointPace, StepWatch

STEPS = 6


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_watch(told: list[int], read_seconds: float, every_steps: int | None = None) -> StepWatch:
    lengths = np.full(STEPS, 3)
    examples = EncodedExamples(
        tokens=np.zeros(3 * STEPS, dtype=np.int32),
        bounds=np.cumsum([0, *lengths]),
        prompt_lengths=np.ones(STEPS, dtype=np.int32),
        truncated=0,
        dropped={},
    )

    def on_progress(step: int, total_steps: int, loss: float, tokens_per_second: float) -> None:
        told.append(step)

    return StepWatch(
        batches=MicroBatches(lengths, global_batch_size=1),
        examples=examples,
        ranks=Ranks(),
        stop=StopRequest(),
        pace=CheckpointPace(every_steps),
        total_steps=STEPS,
        on_progress=on_progress,
        publish=lambda step, directory: None,
        read_seconds=read_seconds,
    )


def end_step(watch: StepWatch, step: int, history: list[dict[str, Any]], loss: float) -> Any:
    import torch

    watch.micro_batch_ended(torch.tensor(loss / 2))
    watch.micro_batch_ended(torch.tensor(loss / 2))
    watch.gradient_norm = torch.tensor(1.0)
    return watch.step_ended(step, step / STEPS, history)


def test_losses_stay_unread_until_they_are_due_and_none_is_lost() -> None:
    told: list[int] = []
    history: list[dict[str, Any]] = []
    watch = make_watch(told, read_seconds=3600)
    seen = []
    for step in range(1, STEPS + 1):
        end_step(watch, step, history, float(step))
        seen.append(len(told))
    assert seen == [1, 1, 1, 1, 1, STEPS]  # the first, to see a broken start, and at the end
    assert told == list(range(1, STEPS + 1))
    assert [entry["loss"] for entry in history] == [float(step) for step in told]


def test_every_loss_is_read_at_once_where_that_costs_nothing() -> None:
    told: list[int] = []
    watch = make_watch(told, read_seconds=0.0)
    for step in range(1, 4):
        end_step(watch, step, [], 1.0)
        assert told[-1] == step


def test_losses_are_read_before_a_checkpoint_so_that_a_broken_model_is_never_kept() -> None:
    told: list[int] = []
    watch = make_watch(told, read_seconds=3600, every_steps=3)
    assert end_step(watch, 1, [], 1.0) == (False, False)
    assert end_step(watch, 2, [], float("nan")) == (False, False)
    with pytest.raises(EngineError, match="diverged at step 2 of 6"):
        end_step(watch, 3, [], 1.0)


def pace_and_clock() -> tuple[CheckpointPace, Clock, Callable[[float], None]]:
    clock = Clock()
    pace = CheckpointPace(None, clock=clock)

    def save(seconds: float) -> None:
        pace.saving()
        clock.now += seconds
        pace.saved()

    return pace, clock, save


@pytest.mark.parametrize("cost", [1.0, 60.0])
def test_checkpoints_take_at_most_two_per_cent_of_the_time(cost: float) -> None:
    pace, clock, save = pace_and_clock()
    clock.now = 299.0
    assert not pace.due(1)
    clock.now = 300.0
    assert pace.due(1)
    save(cost)
    began, saves = clock.now, 0
    for step in range(40_000):
        clock.now += 1.0
        if pace.due(step):
            save(cost)
            saves += 1
    assert saves > 10
    assert saves * cost <= 0.02 * (clock.now - began)


def test_a_number_of_steps_between_checkpoints_is_kept_to() -> None:
    pace = CheckpointPace(4, clock=Clock())
    assert [step for step in range(1, 10) if pace.due(step)] == [4, 8]


def test_publishing_a_checkpoint_starts_the_time_to_the_next(tmp_path: Path) -> None:
    clock = Clock()
    watch = make_watch([], read_seconds=0.0)
    watch.pace = CheckpointPace(None, clock=clock)
    clock.now = 400.0
    assert end_step(watch, 1, [], 1.0) == (True, False)
    clock.now = 410.0
    watch.saved(1, tmp_path)
    clock.now = 410.0 + 489.0
    assert end_step(watch, 2, [], 1.0) == (False, False)
    clock.now = 410.0 + 490.0  # 10 of 500 seconds
    assert end_step(watch, 3, [], 1.0) == (True, False)
