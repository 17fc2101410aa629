"""Trainings that several tests look at run once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # quiet in forked processes

from selfalign.training.base import TrainResult

from .worlds import CONFIG, LORA, Attempt, build_base

HOST = "a-machine-of-this-name"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("base"))


def undisturbed(attempt: Attempt) -> tuple[Attempt, TrainResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: HOST)
        return attempt, attempt.run()


@pytest.fixture(scope="session")
def full(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Attempt, TrainResult]:
    """A finished full fine-tuning that nothing disturbed."""
    return undisturbed(Attempt(CONFIG, base, tmp_path_factory.mktemp("full")))


@pytest.fixture(scope="session")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Attempt, TrainResult]:
    """A finished LoRA training that nothing disturbed."""
    return undisturbed(Attempt(LORA, base, tmp_path_factory.mktemp("lora")))
