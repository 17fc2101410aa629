"""Checkpoints: published whole, taken up only by the training that wrote them.

A checkpoint is the Trainer's directory (weights, optimiser, schedule, random states, history)
and `selfalign.json`: the step, and the digest of what the training was made of.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from selfalign.config import TrainConfig
from selfalign.errors import DataError, EngineError, PermanentError, TemporaryError
from selfalign.records import digest
from selfalign.store.files import sync_file
from selfalign.training.processes import Ranks
from selfalign.training.stored import StoreCheckpoints

_log = structlog.get_logger(__name__)

_IDENTITY_FILE = "selfalign.json"
_TRAINER_STATE = "trainer_state.json"
# Sizes that are tried until one takes long enough to tell a rate. So a slow store takes no longer
# than a few times that, and a fast one shows more than its latency.
_TRIED_BYTES = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
_TELLING_SECONDS = 0.5
# How the work is divided, never what a step sees: the global batch is the same on any number of
# processes, so a checkpoint of two nodes continues on one.
_EXECUTION_ONLY = {
    "checkpoint_every_steps",
    "gradient_checkpointing",
    "micro_batch_size",
    "num_processes",
    "num_shards",
}
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load reads it, whatever its caller asks for
_PACKAGES = ("transformers", "peft", "accelerate", "numpy")


# What DeepSpeed's own files hold beside tensors and plain values.
_DEEPSPEED_CLASSES = (
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)


@contextmanager
def without_code(step: int | None, *, deepspeed: bool) -> Iterator[None]:
    """Let torch read tensors and plain values alone within the block: a checkpoint comes from the
    store, and DeepSpeed would run whatever the pickles in it say.

    Args:
        step: of the checkpoint that is resumed from, for the message.

    Raises DataError for a file that holds anything else.
    """
    from torch.serialization import safe_globals

    classes = (
        [getattr(import_module(m), name) for m, name in _DEEPSPEED_CLASSES] if deepspeed else []
    )
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        with safe_globals(classes):
            yield
    except pickle.UnpicklingError as error:
        raise DataError(
            f"the checkpoint of step {step} holds more than tensors: {str(error)[:200]}",
            remedy="delete checkpoints/saved.json beside it in the store: the training starts anew",
        ) from error
    finally:
        os.environ.pop(_TENSORS_ONLY)
        if before is not None:
            os.environ[_TENSORS_ONLY] = before


def versions() -> dict[str, str]:
    """Of the packages that decide which bytes come out."""
    import torch

    # The package's metadata does not always say for which CUDA it was built.
    return {"torch": str(torch.__version__), **{name: version(name) for name in _PACKAGES}}


def training_identity(config: TrainConfig, ranks: Ranks, seed: int, examples_sha256: str) -> str:
    """Digest of what must be the same for a checkpoint to be taken up."""
    return digest(
        {
            "config": config.model_dump(mode="json", exclude=_EXECUTION_ONLY),
            "examples": examples_sha256,
            "seed": seed,
            # DeepSpeed's shares of the optimiser fit this number of processes alone.
            "processes": None if config.deepspeed is None else ranks.world_size,
            "versions": versions(),
        }
    )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on the local disk."""

    directory: Path
    step: int

    def history(self) -> list[dict[str, Any]]:
        """What the Trainer logged up to here."""
        state = json.loads((self.directory / _TRAINER_STATE).read_text(encoding="utf-8"))
        entries: list[dict[str, Any]] = state["log_history"]
        return entries


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training. All methods but `bytes_per_second` are collective."""

    sink: StoreCheckpoints
    ranks: Ranks
    identity: str

    def publish(self, step: int, directory: Path) -> None:
        """Hand a complete local checkpoint to the sink; returns when it is kept.

        Every process writes its own random state and, with ZeRO, its share of the optimiser's, so
        every node uploads what it has.
        """
        self.ranks.barrier()  # every process has written its files
        if self.ranks.main:
            text = json.dumps({"step": step, "identity": self.identity}, indent=1)
            (directory / _IDENTITY_FILE).write_text(text + "\n", encoding="utf-8")
        mine = self.sink.upload(step, directory) if self.ranks.node_leader else []
        # Where several nodes have a file, the main process's counts.
        files = {file.name: file for node in reversed(self.ranks.gather(mine)) for file in node}
        if self.ranks.main:
            self.sink.publish(step, [files[name] for name in sorted(files)])
        self.ranks.barrier()  # nobody deletes or dies before it is kept
        if self.ranks.node_leader:  # the Trainer would do this on the main process's node alone
            for old in directory.parent.glob("checkpoint-*"):
                if old != directory:
                    shutil.rmtree(old, ignore_errors=True)

    def bytes_per_second(self, size: int, scratch: Path) -> float | None:
        """How fast a checkpoint of `size` bytes would be saved; None where that cannot be told.

        Files of random bytes, at most as large, are written into `scratch`, uploaded and removed.
        """
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                for tried in (min(size, each) for each in _TRIED_BYTES):
                    content = os.urandom(tried)
                    began = time.monotonic()
                    with Path(directory, "rehearsal").open("wb") as file:
                        file.write(content)
                        sync_file(file)  # large checkpoints outgrow the cache
                    self.sink.rehearse(Path(directory))
                    seconds = time.monotonic() - began
                    if seconds >= _TELLING_SECONDS or tried == size:
                        break
        except (OSError, PermanentError, TemporaryError) as error:  # a training needs no estimate
            _log.warning("training.checkpoint_not_rehearsed", error=str(error))
            return None
        return tried / seconds

    def restore(self, directory: Path) -> Checkpoint | None:
        """The newest checkpoint of this very training, fetched into `directory`, or None."""
        step = self._fetch(directory) if self.ranks.node_leader else None
        steps = {
            step for step, leader in self.ranks.gather((step, self.ranks.node_leader)) if leader
        }
        if len(steps) > 1:
            raise EngineError(f"nodes found different newest checkpoints: steps {steps}")
        (step,) = steps
        if step is None:
            return None
        if self.ranks.main:
            _log.info("training.resumed", step=step)
        return Checkpoint(directory, step)

    def _fetch(self, directory: Path) -> int | None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        step = self.sink.latest(directory)
        if step is None:
            return None
        try:
            found = json.loads((directory / _IDENTITY_FILE).read_text(encoding="utf-8"))
            state = json.loads((directory / _TRAINER_STATE).read_text(encoding="utf-8"))
            agree = found["step"] == state["global_step"] == step
        except (OSError, ValueError, KeyError) as e:
            raise DataError(f"the checkpoint of step {step} is not whole: {e}") from e
        if not agree:
            raise DataError(
                f"the checkpoint of step {step} says step {found['step']} in {_IDENTITY_FILE} and "
                f"{state['global_step']} in {_TRAINER_STATE}",
                remedy="delete it; training starts over from the one before, or from the base",
            )
        if found["identity"] != self.identity:
            _log.warning("training.checkpoint_of_another_training", step=step)
            return None
        return step
