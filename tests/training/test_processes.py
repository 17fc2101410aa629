from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError
from selfalign.training.base import TrainResult
from selfalign.training.loop import deepspeed_config
from selfalign.training.processes import is_main_process, launch_command, needs_launch
from tests.engines.server_process import free_port

from .worlds import CONFIG, LORA, Attempt, Failure, files, newest, start

CLUSTER = {
    "SELFALIGN_NUM_NODES": "3",
    "SELFALIGN_MASTER_ADDR": "engrave-0.engrave",
    "SELFALIGN_MASTER_PORT": "12345",
    "JOB_COMPLETION_INDEX": "2",
}


def together(
    config: TrainConfig, base: Path, root: Path, first: dict[str, Any], second: dict[str, Any]
) -> list[Any]:
    """Outcomes of two processes on two nodes: each has its own working directory."""
    port = str(free_port())
    children = [
        start(
            Attempt(config, base, root, work=f"work-{rank}", **fields),
            RANK=str(rank),
            LOCAL_RANK="0",
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            DS_ACCELERATOR="cpu",
        )
        for rank, fields in enumerate((first, second))
    ]
    return [child.outcome() for child in children]


ZERO_3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize("deepspeed", [None, ZERO_3], ids=["ddp", "zero3"])
def test_two_nodes_train_what_one_process_trains(
    full: tuple[Attempt, TrainResult], tmp_path: Path, deepspeed: dict[str, Any] | None
) -> None:
    """Same examples in every step, same loss up to rounding; stopped on the way and resumed, by one
    process too."""
    root, alone_root = tmp_path / "root", tmp_path / "alone"
    shares = {"rng_state_0.pth", "rng_state_1.pth", "selfalign.json"}
    if deepspeed is not None:
        pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
        # The optimiser's state exists once, a share on each node.
        shares |= {
            f"global_step21/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)
        }
    attempt, alone = full
    config = attempt.config.model_copy(
        update={"checkpoint_every_steps": 100, "deepspeed": deepspeed}
    )
    stopped = together(config, attempt.base, root, {"signals": {20: signal.SIGTERM}}, {})
    for outcome in stopped:
        assert isinstance(outcome, Failure)
        assert outcome.name == "Interrupted", outcome.trace
    assert newest(root, tmp_path / "saved") == 21
    assert shares <= set(files(tmp_path / "saved"))
    shutil.copytree(root, alone_root)

    resumed = together(config, attempt.base, root, {}, {})
    for outcome in resumed:
        assert isinstance(outcome, TrainResult), outcome
        assert outcome.resumed_from == 21
        assert outcome.engine["processes"] == "2"
        assert outcome.engine["nodes"] == "2"
    assert set(files(root / "output")) == set(files(attempt.output))
    assert not files(root / "work-0")
    assert not files(root / "work-1")
    results = [resumed[0]]
    if deepspeed is None:  # whose checkpoints are as many shares as there were processes
        results.append(Attempt(config, attempt.base, alone_root).run())
        assert results[1].resumed_from == 21
    for result in results:
        assert [point["step"] for point in result.loss_curve] == list(range(1, 41))
        curve = [point["loss"] for point in result.loss_curve]
        assert curve == pytest.approx([point["loss"] for point in alone.loss_curve], rel=0.02)


def test_a_node_that_dies_fails_the_others(base: Path, tmp_path: Path) -> None:
    survivor, victim = together(LORA, base, tmp_path, {}, {"dies_fetching": True})
    assert victim == -signal.SIGKILL
    assert isinstance(survivor, Failure)
    assert survivor.name == "EngineError", survivor.trace


def test_one_process_needs_no_launcher() -> None:
    several = CONFIG.model_copy(update={"num_processes": 2})
    assert not needs_launch(CONFIG, {})
    assert needs_launch(several, {})
    assert needs_launch(CONFIG, {"SELFALIGN_NUM_NODES": "2"})
    assert needs_launch(CONFIG.model_copy(update={"deepspeed": {}}), {})
    assert not needs_launch(several, {"RANK": "1"})  # already launched


def test_rank_zero_is_the_main_process() -> None:
    assert is_main_process({})
    assert is_main_process({"RANK": "0"})
    assert not is_main_process({"RANK": "1"})


def test_nodes_meet_at_the_address_of_index_zero() -> None:
    config = CONFIG.model_copy(update={"num_processes": 4})
    command = launch_command(config, ["-m", "selfalign", "engrave"], CLUSTER)
    assert command == [
        *(sys.executable, "-m", "selfalign.training.torchrun"),
        *("--nproc-per-node", "4", "--nnodes", "3", "--max-restarts", "0"),
        *("--rdzv-backend", "static", "--rdzv-conf", "timeout=1800", "--node-rank", "2"),
        *("--master-addr", "engrave-0.engrave", "--master-port", "12345"),
        *("--", "-m", "selfalign", "engrave"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SELFALIGN_NUM_NODES", "two", "SELFALIGN_NUM_NODES is 'two', expected an integer"),
        ("SELFALIGN_MASTER_ADDR", "", "SELFALIGN_MASTER_ADDR is not set"),
        ("SELFALIGN_MASTER_PORT", "0", "SELFALIGN_MASTER_PORT is '0'"),
        ("JOB_COMPLETION_INDEX", "3", "JOB_COMPLETION_INDEX is 3, expected less than"),
    ],
)
def test_a_cluster_variable_that_is_wrong_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        launch_command(CONFIG, ["x.py"], CLUSTER | {name: value})


def test_a_missing_node_index_is_named() -> None:
    environ = {name: value for name, value in CLUSTER.items() if name != "JOB_COMPLETION_INDEX"}
    with pytest.raises(ConfigurationError, match="JOB_COMPLETION_INDEX is None"):
        launch_command(CONFIG, ["x.py"], environ)


WORKER = """
    import os, signal, sys, time
    rank, mode = int(os.environ["RANK"]), sys.argv[1]
    with open(f"{__file__}.{rank}", "w") as file:
        file.write(os.environ["WORLD_SIZE"] + os.environ["OMP_NUM_THREADS"])
    if mode == "fail" and rank == 1:
        sys.exit(3)
    if mode == "stop":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        if rank == 1:  # both workers are up: the parent may send the signal
            os.kill(os.getppid(), signal.SIGTERM)
    if mode != "succeed":
        time.sleep(60)
"""


@pytest.mark.parametrize(("mode", "code"), [("succeed", 0), ("fail", 3), ("stop", 143)])
def test_the_launcher_ends_with_its_workers_exit_code(tmp_path: Path, mode: str, code: int) -> None:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    config = CONFIG.model_copy(update={"num_processes": 2})
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        launch_command(config, [str(script), mode], {}),
        env=environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    if mode == "succeed":
        assert [Path(f"{script}.{rank}").read_text() for rank in range(2)] == [f"2{threads}"] * 2


def test_deepspeed_gets_its_batch_sizes_and_gathers_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("deepspeed", reason="the package deepspeed is not installed")
    monkeypatch.setenv("RANK", "0")
    config = {"zero_optimization": {"stage": 3}, "gradient_clipping": 0.5}
    filled = deepspeed_config(config)
    assert filled["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert filled["gradient_clipping"] == 0.5
    assert filled["train_micro_batch_size_per_gpu"] == "auto"
    assert config == {"zero_optimization": {"stage": 3}, "gradient_clipping": 0.5}
