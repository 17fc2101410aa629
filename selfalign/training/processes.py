"""The processes that train together: their start, who is who, what they exchange, and signals.

torchrun sets RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE. Without it there is one process,
and every method of `Ranks` returns at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, Self

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError, Interrupted

# Pods of one Job may start minutes apart (image pulls, autoscaled nodes).
_RENDEZVOUS_SECONDS = 1800
_DEFAULT_PORT = 29500  # torchrun's
# What rank 0 does alone (upload a checkpoint, merge, publish) takes longer than the half hour
# that torch grants a collective. A dead process is noticed by torchrun, not by this.
_PATIENCE = timedelta(hours=6)
_STOPPING = (signal.SIGTERM, signal.SIGINT)


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
        *(sys.executable, "-m", "selfalign.training.torchrun"),
        *("--nproc-per-node", str(config.num_processes), "--nnodes", str(nodes)),
        *("--max-restarts", "0"),  # another attempt is the Job's business
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
        *("--rdzv-backend", "static"),  # rank 0 must be where the address points
        *("--rdzv-conf", f"timeout={_RENDEZVOUS_SECONDS}", "--node-rank", str(index)),
        *("--master-addr", environ["SELFALIGN_MASTER_ADDR"], "--master-port", str(port)),
        *("--", *argv),
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


def is_main_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process writes and publishes: rank 0, or the only one."""
    return int(environ.get("RANK", 0)) == 0


def wait_for_everyone() -> None:
    """Return once every process got here; ends their connection. Call after publication.

    Without it the other nodes' Jobs complete while rank 0 may still fail, and nobody would be
    there for its next attempt.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier(dist.new_group(backend="gloo", timeout=_PATIENCE))
        dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its peers. `group` is a gloo group over all, None when alone."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    nodes: int = 1
    group: Any = None

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read torchrun's variables."""
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        return cls(
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=world_size,
            nodes=world_size // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        )

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def node_leader(self) -> bool:
        """One process per node: the one that fetches and uploads files."""
        return self.local_rank == 0

    def connected(self) -> Ranks:
        """With a group over all processes. Collective; call after torch.distributed started."""
        if self.world_size == 1:
            return self
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return Ranks(self.rank, self.local_rank, self.world_size, self.nodes, group)

    def highest(self, value: int) -> int:
        """The maximum over all processes. Collective."""
        highest: int = max(self.gather(value))
        return highest

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, by rank, on every process. Collective; small values only."""
        if self.group is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Return once every process got here. Collective."""
        if self.group is not None:
            import torch.distributed as dist

            dist.barrier(self.group)


class StopRequest:
    """Within the `with` block, remembers a stop signal instead of dying of it.

    A second signal changes nothing: torchrun and a terminal both deliver the same one twice.
    Outside the main thread, where Python allows no handlers, it never sees a signal.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _STOPPING}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = self.signal_number or number

    @staticmethod
    def raise_if(signal_number: int) -> None:
        """Raise Interrupted when a signal came (its number is not 0)."""
        if signal_number:
            raise Interrupted(signal_number)
