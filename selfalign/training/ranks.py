"""The processes that train together: who is who, and what they tell each other.

torchrun sets RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE. Without it there is one process,
and every method here returns at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

# What rank 0 does alone (upload a checkpoint, merge, publish) takes longer than the half hour
# that torch grants a collective. A dead process is noticed by torchrun, not by this.
_PATIENCE = timedelta(hours=6)


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
        """One process per node: the one that fetches files."""
        return self.local_rank == 0

    def connected(self) -> Ranks:
        """With a group for what the host tells. Collective; after torch.distributed started."""
        if self.world_size == 1:
            return self
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return Ranks(self.rank, self.local_rank, self.world_size, self.nodes, group)

    def highest(self, value: int) -> int:
        """The maximum over all processes. Collective."""
        if self.group is None:
            return value
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return int(tensor)

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
