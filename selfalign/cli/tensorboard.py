"""A model's loss curve as TensorBoard reads it."""

from __future__ import annotations

import contextlib
import importlib
import time
from pathlib import Path
from typing import Any

from selfalign.errors import needing
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
    with needing("--tensorboard needs tensorboardX", "tensorboard"):
        writers: Any = importlib.import_module("tensorboardX.event_file_writer")
        events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        scalar: Any = importlib.import_module("tensorboardX.summary").scalar
    with os_errors("--tensorboard", "write"):
        for old in target.glob("events.out.tfevents.*"):
            old.unlink()
        target.mkdir(parents=True, exist_ok=True)
        # not SummaryWriter, whose thread dies of a full disk and is waited for without end
        with contextlib.closing(writers.EventsWriter(str(target / "events"))) as writer:
            for point in curve:
                for name in sorted(point.keys() - {"step"}):
                    summary = scalar(f"train/{name}", point[name])
                    step, now = int(point["step"]), time.time()
                    writer.write_event(events.Event(summary=summary, step=step, wall_time=now))
    return target
