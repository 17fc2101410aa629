"""SIGKILL at random points of every stage ends in identical artifacts.

An uninterrupted run sets the reference. Then, in a fresh store, each stage is started, killed at
a random moment of its work, started again, killed again, and at last left to finish. The digest
of its artifact must be the reference's: the same records, weights and scores, to the byte.

`make kill-test` kills 50 times; `make test` a few.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import pytest
import torch
import yaml
from click.testing import CliRunner

from examples.toy_world.build import build
from selfalign.cli.main import cli
from selfalign.pipeline import BY_NAME, STAGES
from tests.forked import start
from tests.kill.world import CONFIG

PROJECT = Path(__file__).resolve().parents[2]
TOY = PROJECT / "examples" / "toy_world"

pytestmark = pytest.mark.kill


@dataclass(frozen=True)
class Finished:
    """How a stage that was left alone ended."""

    digest: str
    events: int  # log lines from the first one of its work to its end
    seconds: float  # likewise


def configuration(world: Path, directory: Path) -> Path:
    """Everything small, parts and checkpoints frequent: many places to die at."""
    heldout = (world / "evaluation" / "heldout.jsonl").read_text().splitlines()[::15]
    (directory / "heldout.jsonl").write_text("\n".join(heldout) + "\n")
    training = {
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},  # dropout: the RNG must be restored too
        "learning_rate": 0.003,
        "warmup_steps": 2,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "max_length": 128,
        "precision": "float32",
        "max_steps": 14,
        "checkpoint_every_steps": 2,
    }
    config = {
        "base_model": {"path": str(world / "base_model")},
        "seeds": {
            "directory": str(TOY / "seeds"),
            "general": 30,
            "topic_guided": 5,
            "principles": 5,
            "exemplars": 3,
        },
        "engine": {"kind": "transformers", "dtype": "float32", "batch_size": 8},
        "instruct": {
            "general_requests": 40,
            "general_sampling": {"max_new_tokens": 60},
            "topic_rounds": 2,
            "topic_requests_per_round": 1,
            "topic_sampling": {"max_new_tokens": 30},
            "question_sampling": {"max_new_tokens": 60},
            "records_per_part": 8,
        },
        "curate": {
            "novelty_threshold": 1.0,
            "near_duplicate_threshold": 1.0,
            "records_per_part": 20,
            "max_prompts": 64,
        },
        "align": {
            "sampling": {"temperature": 0.7, "max_new_tokens": 40},
            "min_answer_characters": 1,
            "require_cited_rule": False,
            "records_per_part": 8,
        },
        "engrave": training,
        "elaborate": {
            "sampling": {"temperature": 0.7, "max_new_tokens": 40},
            "min_unfinished_characters": 1,
            "records_per_part": 8,
        },
        "clone": training,
        "evaluate": {
            "heldout": str(directory / "heldout.jsonl"),
            "sampling": {"temperature": 0.0, "max_new_tokens": 30},
            "ablate_principles": [1, 2],
            "bootstrap_samples": 200,
        },
    }
    path = directory / "selfalign.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kill")
    small = replace(
        CONFIG,
        hidden_size=64,
        intermediate_size=172,
        num_layers=2,
        num_processes=1,
        docs_per_step=16,
    )
    build(directory / "world", small)
    return configuration(directory / "world", directory)


def command(stage: str, config: Path, store: Path) -> list[str]:
    options = ["--config", str(config), "--set", f"store={store}", "--json"]
    return ["--log-level", "debug", stage, *options]


def surroundings(store: Path) -> dict[str, str]:
    return {"SELFALIGN_LOG": "json", "SELFALIGN_CACHE_DIR": str(store.parent / "cache")}


@contextmanager
def started(stage: str, config: Path, store: Path) -> Iterator[tuple[BaseProcess, IO[str]]]:
    """A process of the stage and what it logs."""
    reader, writer = os.pipe()
    environment = {**os.environ, **surroundings(store), "OMP_NUM_THREADS": "1"}
    with Path(os.devnull).open("r+") as null, os.fdopen(reader) as lines:
        streams = (null.fileno(), null.fileno(), writer)
        process = start(command(stage, config, store), streams, environment)
        os.close(writer)
        yield process, lines
        process.join()


def undisturbed(stage: str, config: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Run a stage in this process: its strings have other hashes than the killed ones'."""
    for name, value in surroundings(store).items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli, command(stage, config, store))
    assert result.exit_code == 0, (result.stderr[-2000:], result.exception)
    events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    (first,) = (n for n, event in enumerate(events) if event["event"] == "stage.started")
    begin, end = (datetime.fromisoformat(events[n]["timestamp"]) for n in (first, -1))
    written = json.loads(result.stdout)
    assert written["published"]
    return Finished(written["digest"], len(events) - first, (end - begin).total_seconds())


def finish(stage: str, config: Path, store: Path) -> str:
    """Leave a stage to itself; the digest of its artifact."""
    with started(stage, config, store) as (process, lines):
        log = list(lines)
    assert process.exitcode == 0, "".join(log[-5:])
    (manifest,) = store.glob(f"artifacts/{BY_NAME[stage].writes}/*/manifest.json")
    digest: str = json.loads(manifest.read_bytes())["digest"]
    return digest


def kill(stage: str, config: Path, store: Path, events: int, seconds: float) -> bool:
    """Start a stage, SIGKILL it some events and seconds into its work; whether it lived then."""
    with started(stage, config, store) as (process, lines):
        seen = -1
        for line in lines:
            if seen >= 0 or '"stage.started"' in line:
                seen += 1
            if seen >= events:
                break
        time.sleep(seconds)
        process.kill()
    return process.exitcode == -signal.SIGKILL


def start_over(artifact: str, store: Path) -> None:
    """Forget an artifact that was finished before it could be killed."""
    shutil.rmtree(store / "artifacts" / artifact)
    (store / "current.json").unlink(missing_ok=True)


def kills_per_stage(total: int, order: random.Random) -> Iterator[tuple[str, int]]:
    """Spread the kills over the stages; those left over go to random ones."""
    names = [stage.name for stage in STAGES]
    counts = dict.fromkeys(names, total // len(names))
    for name in order.sample(names, total % len(names)):
        counts[name] += 1
    yield from counts.items()


def test_stages_killed_at_random_points_write_what_an_undisturbed_run_writes(
    config_path: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills: int = request.config.getoption("--kills")
    seed: int = request.config.getoption("--kill-seed")
    reference_store, store = tmp_path / "reference" / "store", tmp_path / "killed" / "store"
    torch.set_num_threads(1)  # sums in the same order as in the processes below
    reference = {
        stage.name: undisturbed(stage.name, config_path, reference_store, monkeypatch)
        for stage in STAGES
    }
    order = random.Random(seed)
    for stage, wanted in kills_per_stage(kills, order):
        landed = tried = 0
        while landed < wanted:
            tried += 1
            assert tried < 10 * kills, f"{stage} ends before it can be killed"
            # a share of the work each, so that later kills meet later parts of it
            events = order.randint(0, max(reference[stage].events // (2 * wanted), 1))
            moment = order.uniform(0, reference[stage].seconds / (4 * wanted))
            if kill(stage, config_path, store, events, moment):
                landed += 1
            elif landed < wanted:
                start_over(BY_NAME[stage].writes, store)
        assert finish(stage, config_path, store) == reference[stage].digest, stage
        print(f"{stage}: {landed} kills, same artifact {reference[stage].digest[:12]}")
    leftovers = [p for p in store.rglob("checkpoints/*") if p.is_file()]
    assert leftovers == []
    shutil.rmtree(tmp_path / "killed")
