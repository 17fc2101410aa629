"""Shared by all tests: no network beyond loopback, no user's caches, library warnings named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported

from selfalign.load import load_config
from tests.pipeline_world import run_stages, write_base_model, write_world

# Continuous integration judges a change, not its luck; at a desk, every run explores anew.
settings.register_profile("selfalign", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("selfalign")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """What a test configures or binds ends with it."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFALIGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("SELFALIGN_CONFIG", "SELFALIGN_STORE", "SELFALIGN_LOG", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=8, help="SIGKILLs in tests/kill")
    parser.addoption("--corruptions", type=int, default=44, help="of tests/test_corruptions.py")
    parser.addoption("--kill-seed", type=int, default=0, help="which moments they come at")


LONG = ("kill/test_kill", "test_histories", "test_corruptions", "test_a_year_of_nights")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: begun last, it would leave the other workers idle."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model, made once per worker."""
    directory = tmp_path_factory.mktemp("base") / "model"
    write_base_model(directory)
    return directory


@pytest.fixture
def world(tmp_path: Path, tiny_base_model: Path) -> Path:
    """A directory with seeds, data and selfalign.yaml; the path of the latter."""
    directory = tmp_path / "world"
    directory.mkdir()
    return write_world(directory, tiny_base_model)


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path) -> Path:
    """The store of `world` after all eight stages, made once per worker. Copy it."""
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFALIGN_CACHE_DIR", str(directory / "cache"))
        run_stages(load_config(write_world(directory, tiny_base_model), ()).config)
    return directory / "store"


@pytest.fixture
def finished(world: Path, finished_store: Path) -> Path:
    """`world` with a copy of `finished_store`: its stages have nothing to do."""
    shutil.copytree(finished_store, world.parent / "store")
    return world
