"""A model's loss curve as TensorBoard reads it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from selfalign.errors import ConfigurationError
from selfalign.stages.train import loss_curve
from selfalign.store.artifact import read_file
from selfalign.store.base import Store
from selfalign.store.files import os_errors
from selfalign.store.manifest import Manifest


def write_events(store: Store, model: Manifest, directory: Path) -> Path:
    """Write loss, learning rate and the like by step, once: DIRECTORY/<artifact>-<key>.

    Raises ConfigurationError where tensorboardX, which writes it, is not installed.
    """
    target = directory / f"{model.artifact}-{model.key}"
    curve = loss_curve(read_file(store, model, "loss.jsonl"))
    try:
        writers: Any = importlib.import_module("tensorboardX")
    except ImportError as error:
        raise ConfigurationError(
            "--tensorboard: tensorboardX, which writes it, is not installed",
            remedy="pip install 'selfalign[tensorboard]'",
        ) from error
    with os_errors("--tensorboard", "write"):
        for old in target.glob("events.out.tfevents.*"):
            old.unlink()
        with writers.SummaryWriter(str(target)) as writer:
            for point in curve:
                for name in sorted(point.keys() - {"step"}):
                    writer.add_scalar(f"train/{name}", point[name], int(point["step"]))
    return target
