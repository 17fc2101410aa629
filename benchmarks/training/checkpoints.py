"""What checkpoints cost: the share of a training's time that saving takes.

    python benchmarks/training/checkpoints.py [--seconds 120] [--first 0.1] [--model DIR]
                                              [--method full] [--batch 16]

A real training with a real store, at the pace that `checkpoint_every_steps: null` keeps, except
that the least time between two checkpoints is `--first` seconds instead of 300: so a short run
saves as often as the 2% allow. Without `--model` it trains a Llama of 0.76M parameters with random
weights. Prints one JSON object: the first checkpoint as it was expected and as it was, and the
share of the time that all took, by the end and had the training ended right after the worst.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog

from benchmarks.training.overhead import FORM, SEED, build_base, make_examples
from selfalign.config import TrainConfig
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore
from selfalign.training import finetune, watch
from selfalign.training.finetune import train
from selfalign.training.stored import StoreCheckpoints


class MeasuredPace(watch.CheckpointPace):
    """The product's pace, which also notes how long each checkpoint took, and the rehearsal."""

    paces: list[MeasuredPace] = []  # noqa: RUF012 - one training in this process

    def __post_init__(self) -> None:
        super().__post_init__()
        self.paces.append(self)
        self.started, self.expected, self.rehearsal = self.clock(), 0.0, 0.0
        self.costs: list[float] = []
        self.shares: list[float] = []

    def _expected(self) -> float:
        began = self.clock()
        cost = super()._expected()
        self.rehearsal = self.clock() - began
        self.expected = cost - self.rehearsal
        return cost

    def saved(self) -> None:
        super().saved()
        self.costs.append(self.clock() - self._began)
        self.shares.append(self.share())

    def share(self) -> float:
        return (self.rehearsal + sum(self.costs)) / (self.clock() - self.started)


def measure(config: TrainConfig, base: Path, directory: Path, seconds: float) -> dict[str, Any]:
    """Train for about this many seconds, and how much of them went into checkpoints."""
    began: list[float] = []

    def note(step: int, total_steps: int, loss: float, tokens_per_second: float) -> None:
        began.append(time.monotonic())
        if time.monotonic() - began[0] > seconds:
            raise TimeoutError

    writer = ArtifactWriter(
        LocalStore(directory / "store"),
        artifact="engraved_model",
        stage="engrave",
        key="0" * 20,
        identity={},
        parents={},
    )
    with contextlib.suppress(TimeoutError):
        train(
            config,
            base_model=base,
            revision=None,
            examples=make_examples(5000),
            form=FORM,
            output=directory / "output",
            work=directory / "work",
            checkpoints=StoreCheckpoints(writer),
            seed=SEED,
            on_progress=note,
        )
    (pace,) = MeasuredPace.paces
    return {
        "method": config.method,
        "seconds": round(time.monotonic() - pace.started, 1),
        "megabytes": round(pace.size / 1e6, 1),
        "seconds_of_the_rehearsal": round(pace.rehearsal, 2),
        "seconds_expected_of_the_first": round(pace.expected, 2),
        "seconds_of_checkpoints": [round(cost, 2) for cost in pace.costs],
        "share": round(pace.share(), 4),
        "largest_share": round(max(pace.shares), 4) if pace.shares else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--first", type=float, default=0.1)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    watch._CHECKPOINT_SECONDS = arguments.first
    finetune.CheckpointPace = MeasuredPace  # type: ignore[misc]
    config = TrainConfig(
        method=arguments.method,
        precision="float32",
        epochs=1000,
        warmup_steps=5,
        global_batch_size=arguments.batch,
    )
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        base = arguments.model or directory / "base"
        if arguments.model is None:
            build_base(base)
        print(json.dumps(measure(config, base, directory, arguments.seconds), indent=1))


if __name__ == "__main__":
    main()
