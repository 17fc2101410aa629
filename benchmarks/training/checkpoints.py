"""What checkpoints cost: the share of a training's time that saving takes.

    python benchmarks/training/checkpoints.py [--seconds 120] [--first 0.1] [--model DIR]
                                              [--method full]

A real training with a real store, at the pace that `checkpoint_every_steps: null` keeps, except
that the least time between two checkpoints is `--first` seconds instead of 300: so a short run
saves as often as the 2% allow. Without `--model` it trains a Llama of 0.76M parameters with random
weights. Prints one JSON object; the first checkpoint stands apart, because its cost is not known
before.
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
from selfalign.stages.checkpoints import StoreCheckpoints
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore
from selfalign.training import finetune, train, watch


class MeasuredPace(watch.CheckpointPace):
    """The product's pace, which also notes how long each checkpoint took."""

    costs: list[float] = []  # noqa: RUF012 - one training in this process

    def saved(self) -> None:
        super().saved()
        self.costs.append(self._cost)


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
    total, costs = time.monotonic() - began[0], MeasuredPace.costs
    resting = watch._CHECKPOINT_SECONDS
    return {
        "method": config.method,
        "seconds": round(total, 1),
        "checkpoints": len(costs),
        "seconds_of_the_first": round(costs[0], 2) if costs else None,
        "seconds_of_the_others": [round(cost, 2) for cost in costs[1:]],
        "share": round(sum(costs) / total, 4),
        "share_without_the_first": round(sum(costs[1:]) / (total - resting - costs[0]), 4)
        if costs
        else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--first", type=float, default=0.1)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    watch._CHECKPOINT_SECONDS = arguments.first
    finetune.CheckpointPace = MeasuredPace  # type: ignore[misc]
    config = TrainConfig(method=arguments.method, precision="float32", epochs=1000, warmup_steps=5)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        base = arguments.model or directory / "base"
        if arguments.model is None:
            build_base(base)
        print(json.dumps(measure(config, base, directory, arguments.seconds), indent=1))


if __name__ == "__main__":
    main()
