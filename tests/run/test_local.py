"""What goes wrong around the stages of a local run, and what is told of it."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from selfalign.cli.main import cli
from selfalign.config import RunConfig
from selfalign.errors import DataError, Interrupted, SelfAlignError, StorageFull
from selfalign.identity import Inputs
from selfalign.load import load_config
from selfalign.run.executors.display import RunConsole, RunDisplay
from selfalign.run.executors.local import LocalRun
from selfalign.run.executors.workers import run_workers
from selfalign.run.record import read_status, status_to_show
from selfalign.run.view import next_action
from selfalign.store.local import LocalStore

FAILS = """
import sys
print("Loading weights: 100%", file=sys.stderr)
print('{"event": "stage.failed", "error": "no soap", "remedy": "buy some"}', file=sys.stderr)
sys.exit(3)
"""
KILLED = """
import os, signal, sys, tempfile
print(tempfile.mkdtemp(), file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def run(world: Path, tmp_path: Path) -> LocalRun:
    config: RunConfig = load_config(world, ()).config
    seeds = dict.fromkeys(path.name for path in config.seeds.directory.iterdir())
    inputs = Inputs(seeds=dict.fromkeys(seeds, "0"), base_model="0", data={})
    store = LocalStore(tmp_path / "store")
    display = RunDisplay(Console(file=io.StringIO()))
    return LocalRun("toy", config, inputs, store, tmp_path / "log", display)


def fails(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(f"selfalign.run.executors.local.{name}", fail)


def test_the_remedy_of_a_stage_reaches_the_status(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "selfalign.run.executors.local.stage_command",
        lambda *_, **__: [sys.executable, "-c", FAILS],
    )
    status = run.run()
    assert (status.phase, status.remedy) == ("Failed", "buy some")
    assert (status.stage, status.exit_code) == ("instruct", 3)
    assert status.message.endswith("no soap")
    assert read_status(run.store, "toy") == status
    assert next_action(status).startswith("buy some")


@pytest.mark.parametrize(
    ("error", "phase"),
    [(DataError("torn", remedy="mend it"), "Failed"), (Interrupted(2), "Interrupted")],
)
def test_an_error_while_planning_is_no_interruption(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch, error: SelfAlignError, phase: str
) -> None:
    fails(monkeypatch, "plan_from_store", error)
    with pytest.raises(type(error)):
        run.run()
    status = read_status(run.store, "toy")
    assert (status.phase, status.remedy) == (phase, error.remedy)


def test_a_full_disk_is_told_though_the_status_cannot_be_written(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    fails(monkeypatch, "write_resolved", full)
    fails(monkeypatch, "write_status", full)
    with pytest.raises(StorageFull, match="log: No space left") as caught:
        run.run()
    assert caught.value.exit_code == 74
    assert caught.value.remedy
    status = status_to_show(run.store, "toy")
    assert (status.phase, status.reason) == ("Interrupted", "NoStatus")


def test_every_line_of_the_log_is_an_event() -> None:
    log, events = io.StringIO(), []
    run_workers([[sys.executable, "-c", FAILS]], log, events.append)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["stage.output", "stage.failed"]
    assert lines[0]["line"] == "Loading weights: 100%"


def test_a_worker_that_is_killed_leaves_no_temporary_files() -> None:
    log = io.StringIO()
    (result,) = run_workers([[sys.executable, "-c", KILLED]], log, lambda _event: None)
    left = Path(json.loads(log.getvalue())["line"])
    assert (result.exit_code, left.exists(), left.parent.exists()) == (-9, False, False)


def test_a_closed_pipe_ends_the_display_and_not_the_run() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, RunDisplay(RunConsole(file=pipe)) as display:
        display.attempt_failed("align", 1, "told to nobody", again=True)
        display.attempt_failed("align", 2, "told to nobody", again=True)


@pytest.mark.parametrize("command", ["instruct", "chat"])
def test_libraries_draw_no_bars_into_a_stage_s_output(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))
    CliRunner().invoke(cli, [command, "--config", "absent.yaml"])
    assert os.environ["TQDM_DISABLE"] == os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
