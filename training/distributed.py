"""One process or many: rank, device and the few collective operations that the loop needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stzarr.errors import TrainingError


@dataclass(frozen=True)
class World:
    """This process among its peers; `size` 1 means that no process group exists."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Tell whether this process writes files and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def share(self, model: nn.Module) -> nn.Module:
        """Wrap a model so that gradients are averaged over processes.

        DDP regroups its gradient buckets after the first step unless it looks for unused parameters; the regrouping
        changes the order of float sums, and on three or more processes a resumed run would differ in its last bits
        from one that never stopped. torch remarks once that it found none: that is meant.
        """
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, or stand alone.

    Raises
    ------
    TrainingError
        ST540: CUDA is asked for and not there.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size > 1:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size, place)
    finally:
        if size > 1:
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        found = f"process {local_rank} of this machine has no GPU ({torch.cuda.device_count()} found)"
        raise TrainingError("ST540", f"{found}.", cure="fewer processes (--nproc-per-node), or --device cpu")
    place = torch.device("cuda", local_rank)
    torch.cuda.set_device(place)
    return place
