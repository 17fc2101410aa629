from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

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


class Store:
    """Takes `cost` seconds for a checkpoint, and `measuring` for telling how long that takes."""

    SIZE = 1 << 30

    def __init__(self, clock: Clock, cost: float, measuring: float = 0.0) -> None:
        self.clock, self.cost, self.measuring, self.asked = clock, cost, measuring, 0

    def measure(self, size: int) -> float | None:
        self.asked += 1
        self.clock.now += self.measuring
        return size / self.cost

    def pace(self) -> CheckpointPace:
        return CheckpointPace(None, self.SIZE, self.measure, clock=self.clock)


def test_a_first_checkpoint_that_costs_little_is_saved_after_five_minutes() -> None:
    store = Store(Clock(), cost=5.0, measuring=0.5)
    pace = store.pace()
    store.clock.now = 299.0
    assert not pace.due(1)
    assert not store.asked
    store.clock.now = 300.0
    with capture_logs() as logs:
        assert pace.due(2)
    assert logs == [
        {
            "event": "training.first_checkpoint", "log_level": "info", "bytes": Store.SIZE,
            "bytes_per_second": round(Store.SIZE / 5.0), "in_seconds": 0,
        }
    ]  # fmt: skip


def test_a_first_checkpoint_that_costs_much_waits_for_the_training_to_be_worth_it() -> None:
    store = Store(Clock(), cost=60.0, measuring=2.0)
    pace = store.pace()
    store.clock.now = 300.0
    with capture_logs() as logs:
        assert not pace.due(1)
    assert logs[0]["in_seconds"] == 62 * 50 - 302
    store.clock.now = 62 * 50 - 1
    assert not pace.due(2)  # a training that ends here has saved none
    store.clock.now = 62 * 50
    assert pace.due(3)
    assert store.asked == 1


def test_what_the_first_checkpoint_took_counts_from_then_on() -> None:
    store = Store(Clock(), cost=60.0)
    pace = store.pace()
    store.clock.now = 300.0
    assert not pace.due(1)
    pace.saving()  # a signal
    store.clock.now += 10.0
    pace.saved()
    store.clock.now += 499.0
    assert not pace.due(2)
    store.clock.now += 1.0
    assert pace.due(3)
    assert store.asked == 1


def test_where_the_rate_is_unknown_the_first_checkpoint_is_saved_after_five_minutes() -> None:
    clock = Clock()
    pace = CheckpointPace(None, Store.SIZE, lambda size: None, clock=clock)
    clock.now = 300.0
    assert pace.due(1)


def test_a_process_that_does_not_decide_measures_nothing() -> None:
    store = Store(Clock(), cost=60.0)
    others, steps = store.pace(), CheckpointPace(1, Store.SIZE, store.measure, clock=store.clock)
    others.size = 0
    store.clock.now = 300.0
    assert others.due(1)
    assert steps.due(1)
    assert not store.asked


@given(
    cost=st.floats(0.01, 1000.0),
    measuring=st.floats(0.0, 5.9),
    step_seconds=st.floats(1.0, 400.0),
    steps=st.integers(1, 1500),
)
@example(cost=60.0, measuring=2.0, step_seconds=10.0, steps=31)  # it ends after five minutes
def test_a_training_of_any_length_spends_less_than_two_per_cent_on_checkpoints(
    cost: float, measuring: float, step_seconds: float, steps: int
) -> None:
    store = Store(Clock(), cost, measuring)
    pace, clock, spent = store.pace(), store.clock, 0.0
    for step in range(1, steps + 1):
        clock.now += step_seconds
        if pace.due(step):
            pace.saving()
            clock.now += cost
            pace.saved()
            spent += cost
        assert spent + store.asked * measuring < 0.02 * clock.now


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
    clock.now = 410.0 + 499.0
    assert end_step(watch, 2, [], 1.0) == (False, False)
    clock.now = 410.0 + 500.0  # 10 of 510 seconds
    assert end_step(watch, 3, [], 1.0) == (True, False)
