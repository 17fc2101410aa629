"""Fine-tuning of the base model on (prompt, response) pairs: stages engrave and clone.

    result = train(config, base_model=..., examples=..., output=..., work=..., checkpoints=...)

Importing this package imports no torch; calling `train` does.
"""

from __future__ import annotations

from selfalign.training.base import CheckpointSink, Example, TrainingProgress, TrainResult
from selfalign.training.finetune import train
from selfalign.training.processes import (
    is_main_process,
    launch_command,
    needs_launch,
    wait_for_everyone,
)

__all__ = [
    "CheckpointSink",
    "Example",
    "TrainResult",
    "TrainingProgress",
    "is_main_process",
    "launch_command",
    "needs_launch",
    "train",
    "wait_for_everyone",
]
