"""A training that dies anywhere ends, after another attempt, in the bytes it would have had."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from selfalign.config import TrainConfig
from selfalign.errors import DataError, Interrupted, StoreUnavailable
from selfalign.training import watch
from selfalign.training.base import TrainResult
from selfalign.training.checkpoints import without_code
from selfalign.training.memory import checkpoint_bytes
from selfalign.training.model import BaseModel, load_for_training
from selfalign.training.stored import StoreCheckpoints

from . import worlds
from .worlds import CONFIG, LORA, Attempt, MortalSink, files, newest, sink, start

Run = tuple[Attempt, TrainResult]


def finish(attempt: Attempt, undisturbed: Run, resumed_from: int | None) -> None:
    """Run to the end in this process and compare."""
    reference, expected = undisturbed
    result = attempt.run()
    assert result.resumed_from == resumed_from
    assert result.loss_curve == expected.loss_curve
    assert files(attempt.output) == files(reference.output)
    assert not files(attempt.root / "work")


@pytest.mark.parametrize(
    ("method", "step", "resumed_from"),
    [
        ("full", 3, None),  # before the first checkpoint
        ("full", 17, 15),  # within an epoch
        ("lora", 12, 10),  # where an epoch ended: two steps make one
        ("lora", 39, 35),
    ],
)
def test_a_training_killed_at_any_step_ends_in_the_same_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, method: str, step: int, resumed_from: int | None
) -> None:
    undisturbed: Run = request.getfixturevalue(method)
    reference = undisturbed[0]
    killed = Attempt(reference.config, reference.base, tmp_path, signals={step: signal.SIGKILL})
    assert start(killed).outcome() == -signal.SIGKILL
    assert not files(killed.output)
    finish(Attempt(reference.config, reference.base, tmp_path), undisturbed, resumed_from)


def test_a_training_killed_while_saving_resumes_from_the_whole_checkpoint_before(
    lora: Run, tmp_path: Path
) -> None:
    config, base = lora[0].config, lora[0].base
    assert start(Attempt(config, base, tmp_path, dies_saving=15)).outcome() == -signal.SIGKILL
    assert (tmp_path / "work" / "checkpoints" / "checkpoint-15").is_dir()  # never resumed from
    finish(Attempt(config, base, tmp_path), lora, resumed_from=10)


@pytest.mark.parametrize(
    ("method", "number", "step"),
    [("full", signal.SIGTERM, 7), ("lora", signal.SIGINT, 22), ("full", signal.SIGTERM, 40)],
)
def test_a_stop_signal_saves_a_checkpoint_at_the_next_step(
    request: pytest.FixtureRequest, tmp_path: Path, method: str, number: int, step: int
) -> None:
    undisturbed: Run = request.getfixturevalue(method)
    reference = undisturbed[0]
    handler = signal.getsignal(number)
    stopped = Attempt(reference.config, reference.base, tmp_path, signals={step: number})
    with pytest.raises(Interrupted) as stopping:
        stopped.run()
    assert stopping.value.signal_number == number
    assert signal.getsignal(number) == handler
    # The signal comes while step `step` is reported: it is seen before the next step's end, or
    # within this one when that is the last.
    saved = min(step + 1, 40)
    assert newest(tmp_path, tmp_path / "saved") == saved
    finish(Attempt(reference.config, reference.base, tmp_path), undisturbed, saved)


def test_a_checkpoint_that_was_saved_replaces_the_local_one_before(
    base: Path, tmp_path: Path
) -> None:
    kept: list[set[str]] = []

    def look(step: int) -> None:
        kept.append({path.name for path in (tmp_path / "work" / "checkpoints").iterdir()})

    config = CONFIG.model_copy(update={"max_steps": 9, "checkpoint_every_steps": 2})
    Attempt(config, base, tmp_path, on_step=look).run()
    assert kept[-1] == {"checkpoint-8"}


def test_a_checkpoint_of_another_training_is_not_taken_up(
    full: Run, base: Path, tmp_path: Path
) -> None:
    shorter = CONFIG.model_copy(update={"max_steps": 5, "learning_rate": 1e-3})
    Attempt(shorter, base, tmp_path).run()
    assert newest(tmp_path, tmp_path / "saved") == 5
    finish(Attempt(CONFIG, base, tmp_path), full, resumed_from=None)


def test_how_often_checkpoints_are_made_changes_nothing(full: Run, tmp_path: Path) -> None:
    often = full[0].config.model_copy(update={"checkpoint_every_steps": 3})
    killed = Attempt(often, full[0].base, tmp_path, signals={11: signal.SIGKILL})
    assert start(killed).outcome() == -signal.SIGKILL
    finish(Attempt(full[0].config, full[0].base, tmp_path), full, resumed_from=9)


@pytest.mark.parametrize("config", [CONFIG, LORA], ids=["full", "lora"])
def test_the_size_of_a_checkpoint_is_known_before_it_is_written(
    base: Path, tmp_path: Path, config: TrainConfig
) -> None:
    expected = checkpoint_bytes(load_for_training(config, BaseModel(str(base))), config, nodes=1)
    with pytest.raises(Interrupted):
        Attempt(config, base, tmp_path, signals={3: signal.SIGTERM}).run()
    newest(tmp_path, tmp_path / "saved")
    written = sum(path.stat().st_size for path in (tmp_path / "saved").iterdir())
    assert expected < written < expected + 64_000  # histories, names and random states


@dataclass
class SlowSink(MortalSink):
    """The product's sink, which takes its time for a rehearsal, or fails."""

    rehearsal_seconds: float = 0.0
    rehearsal_fails: bool = False

    def rehearse(self, directory: Path) -> None:
        self.kept.rehearse(directory)
        time.sleep(self.rehearsal_seconds)
        if self.rehearsal_fails:
            raise StoreUnavailable("the answer was lost")


@pytest.mark.parametrize(("seconds", "fails"), [(1.0, False), (0.0, True)], ids=["slow", "fails"])
def test_the_first_checkpoint_waits_until_the_training_is_worth_it_if_that_is_known(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, fails: bool
) -> None:
    def slow(kept: StoreCheckpoints, *dies: Any) -> SlowSink:
        return SlowSink(kept, *dies, seconds, fails)

    monkeypatch.setattr(watch, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(worlds, "MortalSink", slow)
    config = CONFIG.model_copy(update={"checkpoint_every_steps": None, "max_steps": 3})
    with capture_logs() as logs:
        Attempt(config, base, tmp_path).run()
    events = {log["event"]: log for log in logs}
    assert ("checkpoint.saved" in events) == fails
    if fails:
        assert "the answer was lost" in events["training.checkpoint_not_rehearsed"]["error"]
    else:
        told = events["training.first_checkpoint"]
        assert 0 < told["bytes_per_second"] < told["bytes"]  # a second for as many or more
        assert told["in_seconds"] > 40
    assert not files(tmp_path / "work")
    assert not [name for name in files(tmp_path / "sink") if "rehearsal" in name]


class Code:
    """Unpickling it makes a directory."""

    def __init__(self, made: str) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.made,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "pytorch_model.bin"])
def test_code_in_a_checkpoint_is_not_run(base: Path, tmp_path: Path, name: str) -> None:
    import torch

    with pytest.raises(Interrupted):
        Attempt(CONFIG, base, tmp_path, signals={3: signal.SIGTERM}).run()
    checkpoint, made = tmp_path / "saved", tmp_path / "made"
    assert newest(tmp_path, checkpoint) == 4
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch.save(Code(str(made)), checkpoint / name)
    kept = sink(tmp_path / "sink")
    kept.publish(4, kept.upload(4, checkpoint))
    with pytest.raises(DataError, match="checkpoint of step 4 holds more than tensors"):
        Attempt(CONFIG, base, tmp_path).run()
    with without_code(4, deepspeed=False), pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint / name, weights_only=False)  # as DeepSpeed does
    assert not made.exists()


def test_a_checkpoint_that_lacks_files_is_a_data_error(base: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_steps": 5})
    Attempt(config, base, tmp_path).run()
    checkpoint = tmp_path / "saved"
    assert newest(tmp_path, checkpoint) == 5
    kept = sink(tmp_path / "sink")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps(state | {"global_step": 4}))
    kept.publish(5, kept.upload(5, checkpoint))
    with pytest.raises(DataError, match=r"step 5 says step 5 in selfalign\.json and 4 in"):
        Attempt(config, base, tmp_path).run()
    (checkpoint / "trainer_state.json").unlink()
    kept.publish(5, kept.upload(5, checkpoint))
    with pytest.raises(DataError, match="the checkpoint of step 5 is not whole"):
        Attempt(config, base, tmp_path).run()
