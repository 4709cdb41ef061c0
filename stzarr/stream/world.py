"""Who owns which slots of the global batch: arithmetic over ranks and workers, no torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from stzarr.errors import StreamError


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise StreamError(
                "ST402", f"rank {self.rank} is not one of {self.size} ranks", cure="0 <= rank < world_size"
            )

    @classmethod
    def find(cls, rank: int | None = None, size: int | None = None) -> World:
        """Return the world from arguments, else from torch.distributed, else from RANK and WORLD_SIZE, else one rank.

        Torch is looked at only where the process has already imported it.

        Raises
        ------
        StreamError
            ST402: one of rank and world size alone, or a rank outside the world.
        """
        if (rank is None) != (size is None):
            raise StreamError("ST402", "rank and world_size go together", cure="pass both, or neither")
        if rank is not None and size is not None:
            return cls(rank, size)
        dist = getattr(sys.modules.get("torch"), "distributed", None)
        if dist is not None and dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        return cls()

    def slots(self, batch_size: int, worker: int = 0, num_workers: int = 1) -> range:
        """Return the slots of the global batch that a worker of this rank fills.

        Raises
        ------
        StreamError
            ST401: the global batch is not a whole number of slots for every rank and worker.
        """
        parts = self.size * num_workers
        if batch_size % parts:
            works = ", ".join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)
            raise StreamError(
                "ST401",
                f"a global batch of {batch_size} cannot be shared by {self.size} ranks x {num_workers} workers",
                cure=f"ranks x workers that work: {works}; or batch_size={-(-batch_size // parts) * parts}",
            )
        per_part = batch_size // parts
        first = (self.rank * num_workers + worker) * per_part
        return range(first, first + per_part)
