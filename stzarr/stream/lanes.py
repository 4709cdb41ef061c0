"""The order of patches as a function of (seed, epoch) alone, and the lanes that cut it into batches.

The patches of an epoch are written one after another, block by block, and that sequence is cut into ``m B`` **lanes**,
B being the global batch. Step t takes for batch slot j the next patch of lane ``j m + (t mod m)``. A batch thus mixes
B places of the sequence, a slot's lanes belong to one process, and the place of every patch follows from the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_PURPOSES = {"blocks": 0, "patches": 1, "jitter": 2}


def draws(seed: int, epoch: int, purpose: Literal["blocks", "patches", "jitter"], num: int) -> NDArray[np.uint64]:
    """Return `num` random words, shape (num,), a function of (seed, epoch, purpose) alone.

    Word i belongs to block or sample i. Raw words of Philox (Salmon et al., SC 2011), which no release of NumPy
    changes, unlike the methods of its Generator.
    """
    mask = (1 << 64) - 1
    key = np.array([seed & mask, epoch & mask], dtype=np.uint64)
    counter = np.array([0, 0, 0, _PURPOSES[purpose]], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(num)


def epoch_order(block: NDArray[np.int32], seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute the blocks, and the patches inside each.

    Parameters
    ----------
    block : int32, shape (n,)
        Block of every patch, numbered from 0.
    seed, epoch : int

    Returns
    -------
    int64, shape (n,)
        Samples in the epoch's order; the patches of a block are neighbours in it.
    """
    if not len(block):
        return np.zeros(0, dtype=np.int64)
    num_blocks = int(block.max()) + 1
    place = np.empty(num_blocks, dtype=np.int64)
    place[np.argsort(draws(seed, epoch, "blocks", num_blocks), kind="stable")] = np.arange(num_blocks)
    return np.lexsort((draws(seed, epoch, "patches", len(block)), place[block])).astype(np.int64)


@dataclass(frozen=True)
class Read:
    """Consecutive patches of one block in one lane: what one task reads.

    `start` and `stop` are positions in the epoch's order, half-open; `step` is the first step that needs it.
    """

    lane: int
    start: int
    stop: int
    step: int


@dataclass(frozen=True)
class Lanes:
    """The cut of a sequence of patches into lanes.

    Parameters
    ----------
    num_patches : int
        Length of the sequence.
    batch_size : int
        Global batch, B.
    per_slot : int
        Lanes of a batch slot, m.
    padded : bool
        True: every patch comes once, lanes differ in length by one at most, and the last step is padded (needs m = 1).
        False: all lanes are equally long and the remainder, fewer than m B patches, is left out.
    """

    num_patches: int
    batch_size: int
    per_slot: int = 1
    padded: bool = False

    @property
    def num_lanes(self) -> int:
        """All lanes of the global batch."""
        return self.batch_size * self.per_slot

    @property
    def steps(self) -> int:
        """Global batches of an epoch."""
        if self.padded:
            return -(-self.num_patches // self.num_lanes)
        return self.num_patches // self.num_lanes * self.per_slot

    @property
    def left_out(self) -> int:
        """Patches that an epoch leaves out, others each epoch."""
        return 0 if self.padded else self.num_patches % self.num_lanes

    def bounds(self, lane: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first position of lanes and the one after the last."""
        if self.padded:
            return lane * self.num_patches // self.num_lanes, (lane + 1) * self.num_patches // self.num_lanes
        length = self.num_patches // self.num_lanes
        return lane * length, (lane + 1) * length

    def positions(self, step: int, slots: Sequence[int]) -> NDArray[np.int64]:
        """Return the position in the epoch's order that each slot takes at a step, -1 where it is padding."""
        lane = np.asarray(slots, dtype=np.int64) * self.per_slot + step % self.per_slot
        start, stop = self.bounds(lane)
        position = start + step // self.per_slot
        return np.where(position < stop, position, -1)

    def reads(self, block: NDArray[np.int32], slots: Sequence[int], step: int = 0) -> Iterator[Read]:
        """Yield what the slots read from a step on, in the order in which it is needed.

        Parameters
        ----------
        block : int32, shape (num_patches,)
            Block of every position of the epoch's order.
        slots : sequence of int
            Batch slots of this process.
        step : int
            First step that is wanted.
        """
        ends = np.append(np.flatnonzero(np.diff(block)) + 1, self.num_patches)
        read_to: dict[int, int] = {}
        for current in range(step, self.steps):
            lane = np.asarray(slots, dtype=np.int64) * self.per_slot + current % self.per_slot
            stops = self.bounds(lane)[1].tolist()
            for own, position, stop in zip(lane.tolist(), self.positions(current, slots).tolist(), stops, strict=True):
                if position < 0 or position < read_to.get(own, 0):
                    continue
                end = min(stop, int(ends[np.searchsorted(ends, position, side="right")]))
                read_to[own] = end
                yield Read(own, position, end, current)
