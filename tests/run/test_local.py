"""What goes wrong around the stages of a local run, and what is told of it."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from selfalign.cli.main import cli
from selfalign.config import RunConfig
from selfalign.errors import DataError, Interrupted, StorageFull, StoreUnavailable
from selfalign.identity import Inputs
from selfalign.load import load_config
from selfalign.run.drive import Backoff
from selfalign.run.executors.display import RunConsole, RunDisplay
from selfalign.run.executors.local import LocalRun
from selfalign.run.executors.workers import run_workers
from selfalign.run.record import RunStatus, read_status, status_to_show, write_status
from selfalign.run.view import next_action
from selfalign.store.base import Store
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
    [
        (DataError("torn", remedy="mend it"), "Failed"),
        (TypeError("a bug"), "Failed"),
        (Interrupted(15), "Interrupted"),
        (KeyboardInterrupt(), "Interrupted"),
    ],
)
def test_an_error_while_planning_is_no_interruption(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch, error: BaseException, phase: str
) -> None:
    fails(monkeypatch, "plan_from_store", error)
    with pytest.raises(type(error)):
        run.run()
    status = read_status(run.store, "toy")
    assert (status.phase, status.remedy) == (phase, getattr(error, "remedy", None))
    if phase == "Failed":
        assert (status.reason, status.message) == (type(error).__name__, str(error).split("\n")[0])


def work_as(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Every worker is this program; its arguments are its shard and how many there are."""
    monkeypatch.setattr(
        "selfalign.run.executors.local.stage_command",
        lambda *_, shard, num_shards, **__: [
            *(sys.executable, "-c", program, str(shard), str(num_shards))
        ],
    )


def test_a_delay_that_ran_out_while_the_status_was_written_is_no_error(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_as(monkeypatch, "raise SystemExit(70)")
    monkeypatch.setattr("selfalign.run.executors.local._BACKOFF", Backoff(first_seconds=0.2))
    real = write_status

    def slow(store: Store, status: RunStatus) -> None:
        real(store, status)
        if status.reason == "Waiting":
            time.sleep(0.3)

    monkeypatch.setattr("selfalign.run.executors.local.write_status", slow)
    run.max_attempts = 2
    status = run.run()
    assert (status.reason, status.exit_code) == ("AttemptsExhausted", 70)


def test_the_last_attempt_is_told_as_the_last_although_others_were_free_of_charge(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = (
        f"import pathlib; p = pathlib.Path({str(tmp_path / 'tries')!r}); p.open('a').write('x');"
    )
    work_as(monkeypatch, f"{count} raise SystemExit(73 if p.stat().st_size < 2 else 70)")
    monkeypatch.setattr("selfalign.run.executors.local._BACKOFF", Backoff(first_seconds=0))
    run.max_attempts = 1
    run.run()
    shown = run.display._console.file.getvalue()  # type: ignore[attr-defined]
    assert "attempt 1 failed, will be tried again" in shown
    assert "attempt 2 failed:" in shown


SHARD = """
import json, sys
for done in (10, 25):
    event = {"event": "stage.progress", "done": done + int(sys.argv[1]), "total": 50}
    print(json.dumps(event), file=sys.stderr, flush=True)
sys.exit(3)
"""


@pytest.mark.parametrize("store_fails", [False, True])
def test_progress_is_added_up_over_shards_and_a_store_that_refuses_it_ends_nothing(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch, store_fails: bool
) -> None:
    work_as(monkeypatch, SHARD)
    instruct = run.config.instruct.model_copy(update={"num_shards": 4})
    run.config = run.config.model_copy(update={"instruct": instruct})
    monkeypatch.setattr("selfalign.run.executors.local._STATUS_INTERVAL_SECONDS", 0.0)
    real, told = write_status, []

    def write(store: Store, status: RunStatus) -> None:
        progress = status.stages[0].done
        told.append((progress, status.stages[0].total))
        if store_fails and progress and status.phase == "Running":
            raise StoreUnavailable("gone")
        real(store, status)

    monkeypatch.setattr("selfalign.run.executors.local.write_status", write)
    assert run.run().exit_code == 3
    assert (4 * 25 + 1 + 2 + 3, 4 * 50) in told


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


def test_workers_that_were_started_end_with_one_that_cannot_be(tmp_path: Path) -> None:
    up = tmp_path / "up"
    waits = f"import pathlib, time; pathlib.Path({str(up)!r}).write_text(''); time.sleep(600)"
    begun: list[subprocess.Popen[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        real = subprocess.Popen

        def start(*arguments: Any, **options: Any) -> Any:
            if begun:
                raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
            begun.append(real(*arguments, **options))
            return begun[0]

        patch.setattr("subprocess.Popen", start)
        with pytest.raises(OSError, match="temporarily"):
            run_workers([[sys.executable, "-c", waits]] * 2, io.StringIO(), lambda _event: None)
    assert begun[0].wait(0) == -signal.SIGTERM


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
