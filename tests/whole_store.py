"""A store that holds an object of every kind there is."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from selfalign.cli.main import cli
from selfalign.errors import SelfAlignError
from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.run.record import Attempt, RunRecord, RunStatus, StageState, write_run, write_status
from selfalign.run.stage import run_stage
from selfalign.serving.signing import SIGNING_KEY
from selfalign.store.claims import Collection
from selfalign.store.local import LocalStore
from selfalign.store.pointer import Anchor, PromotedModel, move_pointer, read_pointer
from selfalign.store.signatures import SIGNING_VARIABLE
from selfalign.training.stored import StoreCheckpoints
from tests.forging import WHEN
from tests.pipeline_world import write_world
from tests.serving.test_signing import write_keys
from tests.store.test_signatures import new_keys


@dataclass(frozen=True)
class WholeStore:
    """A finished night whose store nothing was removed from.

    Attributes:
        config: names every input by its `store:` name.
        public: the key of models' signatures.
        verify: the key of documents' signatures, as the environment takes it.
    """

    config: Path
    store: LocalStore
    public: Path
    verify: str

    def restore(self) -> None:
        """Put back what a corruption and the commands after it changed."""
        root = Path(self.store.url)
        shutil.rmtree(root)
        shutil.copytree(root.with_name("kept"), root, copy_function=os.link)

    def objects(self) -> list[str]:
        return list(self.store.list(""))


def outcome(*arguments: str) -> tuple[int, str]:
    """Exit code and text of a command. Raises whatever would be a traceback."""
    result = CliRunner().invoke(cli, list(arguments), input="")
    if isinstance(result.exception, SelfAlignError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def build(directory: Path, base_model: Path) -> WholeStore:
    """Eight stages with every document signed, a study, an approval, checkpoints that outlived
    their training, a gc at work."""
    path = write_world(directory, base_model)
    resolved, store = directory / "resolved.yaml", LocalStore(directory / "store")
    private, public = write_keys(directory / "keys")
    secret, verify = new_keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFALIGN_CACHE_DIR", str(directory / "cache"))
        patch.setenv(SIGNING_VARIABLE, secret)
        patch.setenv(SIGNING_KEY, str(private))
        patch.setattr(StoreCheckpoints, "clear", lambda _: None)
        manual = ("--set", "promote.approval=manual")
        _done("inputs", "push", "--config", str(path), *manual, "--out", str(resolved))
        config = load_config(resolved, ("clone.checkpoint_every_steps=1",)).config
        states = []
        for stage in STAGES:
            manifest = run_stage(stage.name, config, store, run="r")
            if manifest is None:
                (request,) = Path(store.url).glob("artifacts/promotion/*/request.json")
                _write_run(store, config.model_dump(mode="json"), states, request.parent.name)
                named = ("--config", str(resolved))
                _done("approve", "r", "--as", "anna", "--reason", "good", *named)
                manifest = run_stage(stage.name, config, store, run="r")
            assert manifest is not None
            states.append(
                StageState(name=stage.name, phase="Done", key=manifest.key, digest=manifest.digest)
            )
        _done("ablate", "--principle", "1", "--config", str(resolved))
        _write_run(store, config.model_dump(mode="json"), states, states[-1].key)
        _fill_pointer(store, states)
    whole = WholeStore(resolved, store, public, verify)
    shutil.copytree(store.url, Path(store.url).with_name("kept"))
    return whole


def _done(*arguments: str) -> None:
    code, text = outcome(*arguments)
    assert code == 0, text


def _write_run(
    store: LocalStore, config: dict[str, Any], states: list[StageState], promotion: str
) -> None:
    """Run r as its driver wrote it, with an attempt; at first its promotion waits for a person."""
    store.delete("runs/r/run.json")
    write_run(store, RunRecord(id="r", created_at=WHEN, code_version="0", config=config))
    awaited = StageState(name="promote", phase="Running", key=promotion)
    status = RunStatus(
        id="r",
        phase="Succeeded" if states[-1].name == "promote" else "Running",
        started_at=WHEN,
        stages=states if states[-1].name == "promote" else [*states, awaited],
        attempts=[
            Attempt(
                stage="align",
                key=str(states[2].key),
                number=1,
                condition="Failed",
                cause="temporary",
                exit_code=70,
                message="the engine failed",
                started_at=WHEN,
                finished_at="2026-01-01T00:01:00+00:00",
                gpus=1,
            )
        ],
        notified={"HOOK": "0" * 32},
    )
    write_status(store, status)


def _fill_pointer(store: LocalStore, states: list[StageState]) -> None:
    """Every field of the pointer, of which the next evaluation reads none."""
    current = read_pointer(store)
    assert current is not None
    engraved = PromotedModel(
        artifact="engraved_model", key=str(states[3].key), digest=str(states[3].digest)
    )
    fields = {
        "history": [engraved],
        "rolled_back": [engraved],
        "anchor": Anchor(model=current.pointer.model, promotions=1),
    }
    move_pointer(store, current.pointer.model_copy(update=fields), current)
    notice = Collection(by="0" * 16, renewed_at=datetime.now(UTC), condemned=["runs/none"])
    store.write("gc.json", notice.to_bytes())
