"""The batches of one process, as NumPy arrays: lanes in, reads ahead, patches copied into place."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.stream.ahead import ReadAhead, Runner
from stzarr.stream.fetch import Patches, Recipe, block_areas, read_patches
from stzarr.stream.lanes import Read
from stzarr.stream.plan import Plan
from stzarr.stream.prepare import Field

Batch = dict[str, Any]

SHARED = ("lr_area",)
"""Arrays that are the same for every sample and have no batch axis."""


@dataclass(frozen=True)
class BatchReader:
    """What a process needs to make its share of any batch; small, and sent to workers as it is.

    Parameters
    ----------
    plan : Plan
    recipes : tuple of Recipe
        Of every slide.
    fields : mapping
        Arrays of a batch.
    lookahead : int
        Steps to read ahead.
    buffer_bytes : int
        What all processes together may hold.
    """

    plan: Plan
    recipes: tuple[Recipe, ...]
    fields: Mapping[str, Field]
    lookahead: int
    buffer_bytes: int

    def batches(self, slots: Sequence[int], epoch: int, step: int, runner: Runner) -> Generator[Batch]:
        """Yield the batches of an epoch from a step on, for some slots of the global batch.

        Each also carries ``read_bytes``: what was read, decoded, since the one before. The runner is closed at the
        end, when the iterator is closed, and when a read fails, with the error of the read.
        """
        try:
            yield from _Epoch(self, slots, epoch, runner).batches(step)
        finally:
            runner.close()

    def empty(self, num: int) -> Batch:
        """Return a batch of `num` samples that are all padding."""
        batch: Batch = {name: np.zeros((num, *f.shape), f.dtype) for name, f in self.fields.items()}
        counts = self.recipes[0].counts
        if counts is not None:
            batch["gene_mask"] = np.zeros((num, len(counts.genes)), np.bool_)
            if counts.lr_cells is not None:
                batch["lr_area"] = block_areas(self.recipes[0].grid.patch, counts.lr_cells)
        batch["slide"] = np.full(num, -1, np.int64)
        batch["origin_um"] = np.zeros((num, 2))
        batch["sample"] = np.full(num, -1, np.int64)
        batch["valid"] = np.zeros(num, np.bool_)
        return batch


class _Epoch:
    """One pass over one epoch for some slots."""

    def __init__(self, reader: BatchReader, slots: Sequence[int], epoch: int, runner: Runner) -> None:
        self._reader, self._slots, self._epoch, self._runner = reader, slots, epoch, runner
        self._order = reader.plan.order(epoch)
        self._windows = reader.plan.windows(epoch)
        self._open: dict[int, tuple[Read, Patches]] = {}

    def batches(self, step: int) -> Iterator[Batch]:
        reader, lanes = self._reader, self._reader.plan.lanes
        ahead = ReadAhead(
            lanes.reads(reader.plan.patches["block"][self._order], self._slots, step),
            self._submit,
            lambda read: (read.stop - read.start) * reader.plan.spec.patch_bytes,
            reader.lookahead,
            reader.buffer_bytes * len(self._slots) // lanes.batch_size,
        )
        for current in range(step, lanes.steps):
            yield self._batch(current, ahead)

    def _submit(self, read: Read) -> Any:
        samples = self._order[read.start : read.stop]
        recipe = self._reader.recipes[self._reader.plan.patches["slide"][samples[0]]]
        return self._runner.submit(partial(read_patches, recipe, self._windows[samples]))

    def _batch(self, step: int, ahead: ReadAhead) -> Batch:
        ahead.advance(step)
        plan, batch, read_bytes = self._reader.plan, self._reader.empty(len(self._slots)), 0
        positions = plan.lanes.positions(step, self._slots)
        for index, (slot, position) in enumerate(zip(self._slots, positions.tolist(), strict=True)):
            if position < 0:
                continue
            lane = slot * plan.lanes.per_slot + step % plan.lanes.per_slot
            if lane not in self._open:
                read, (patches, num_bytes) = ahead.take()
                self._open[lane] = read, patches
                read_bytes += num_bytes
            read, patches = self._open[lane]
            for name, arrays in patches.items():
                batch[name][index] = arrays[position - read.start]
            if position == read.stop - 1:
                del self._open[lane]
                ahead.release(read)
        self._sign(batch, positions)
        return batch | {"epoch": self._epoch, "step": step + 1, "read_bytes": read_bytes}

    def _sign(self, batch: Batch, positions: NDArray[np.int64]) -> None:
        """Write where the samples come from."""
        valid = positions >= 0
        samples = self._order[positions[valid]]
        slides = self._reader.plan.patches["slide"][samples]
        batch["valid"][:] = valid
        batch["sample"][valid] = samples
        batch["slide"][valid] = slides
        batch["origin_um"][valid] = self._reader.plan.origins_um(samples, self._windows[samples])
        if "gene_mask" in batch:
            masks = [recipe.counts.genes >= 0 for recipe in self._reader.recipes if recipe.counts is not None]
            batch["gene_mask"][valid] = np.stack(masks)[slides]
