"""Several training processes: whether they are needed, and the command that starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError

# Pods of one Job may start minutes apart (image pulls, autoscaled nodes).
_RENDEZVOUS_SECONDS = 1800
_DEFAULT_PORT = 29500  # torchrun's


def needs_launch(config: TrainConfig, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process must start the training's processes rather than train itself."""
    if "RANK" in environ:  # torchrun started this one
        return False
    several = config.num_processes > 1 or _num_nodes(environ) > 1
    # DeepSpeed wants a process group even for one process.
    return several or config.deepspeed is not None


def launch_command(
    config: TrainConfig, argv: Sequence[str], environ: Mapping[str, str] = os.environ
) -> list[str]:
    """The command to exec so that `argv` runs once in every training process.

    Args:
        config: says how many processes there are per node.
        argv: a Python command line without the interpreter: ["-m", "package.module", ...] or
            ["script.py", ...].
        environ: on several nodes holds SELFALIGN_NUM_NODES, SELFALIGN_MASTER_ADDR (the address of
            node 0), SELFALIGN_MASTER_PORT (default 29500) and JOB_COMPLETION_INDEX (this node).

    Raises ConfigurationError when one of these is missing or wrong.
    """
    nodes = _num_nodes(environ)
    command = [
        sys.executable,
        "-m",
        "selfalign.training.torchrun",
        "--nproc-per-node",
        str(config.num_processes),
        "--nnodes",
        str(nodes),
        "--max-restarts",
        "0",  # another attempt is the Job's business
    ]
    if nodes == 1:
        return [*command, "--standalone", "--", *argv]
    index = _integer(environ, "JOB_COMPLETION_INDEX", minimum=0)
    if index >= nodes:
        raise ConfigurationError(
            f"JOB_COMPLETION_INDEX is {index}, expected less than SELFALIGN_NUM_NODES {nodes}",
            remedy="set the Job's completions and parallelism to the number of nodes",
        )
    if not environ.get("SELFALIGN_MASTER_ADDR"):
        raise ConfigurationError(
            f"SELFALIGN_MASTER_ADDR is not set, expected the address of node 0 of {nodes}",
            remedy="set it to the headless service's name for the pod with index 0",
        )
    port = _integer(environ, "SELFALIGN_MASTER_PORT", minimum=1, default=_DEFAULT_PORT)
    return [
        *command,
        "--rdzv-backend",
        "static",  # rank 0 must be where the address points
        "--rdzv-conf",
        f"timeout={_RENDEZVOUS_SECONDS}",
        "--node-rank",
        str(index),
        "--master-addr",
        environ["SELFALIGN_MASTER_ADDR"],
        "--master-port",
        str(port),
        "--",
        *argv,
    ]


def _num_nodes(environ: Mapping[str, str]) -> int:
    return _integer(environ, "SELFALIGN_NUM_NODES", minimum=1, default=1)


def _integer(
    environ: Mapping[str, str], name: str, *, minimum: int, default: int | None = None
) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise ConfigurationError(f"{name} is {text!r}, expected an integer of at least {minimum}")
    return value
