"""Arrays that are read when indexed: the one shape in which Dask and xarray see a store.

They read the hull of what an index asks for, so a slice taken from a lazy array never costs its whole chunk.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.store.counts_reader import CountsTable
from stzarr.store.reader import ImagePyramid

IMAGE_CHUNK_PX = 1024
"""Side of a lazy chunk of an image, in pixels of the level that is read; a fraction of a shard."""
COUNTS_CHUNK_CELLS = 256
"""Largest side of a lazy chunk of counts, in cells of the table."""
COUNTS_CHUNK_BYTES = 64 << 20
"""Largest lazy chunk of counts, unless one step of tiles is more."""

Span = tuple[int, int]
"""Indices start, stop along one dimension."""


class LazyArray(ABC):
    """A read-only array of three dimensions; indexing reads.

    Takes what `dask.array` and xarray hand down: integers, slices of any step, None, and arrays of positions.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    ndim = 3

    @abstractmethod
    def window(self, lead: Span, rows: Span, cols: Span) -> NDArray[Any]:
        """Read a half-open window inside the array."""

    @property
    @abstractmethod
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of the chunks along every dimension; their edges are those of the storage."""

    @abstractmethod
    def __dask_tokenize__(self) -> object: ...

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Read what an index selects."""
        parts = list(key) if isinstance(key, tuple) else [key]
        used = sum(part is not None for part in parts)
        if Ellipsis in [part for part in parts if not isinstance(part, np.ndarray)]:
            at = parts.index(Ellipsis)
            parts[at : at + 1] = [slice(None)] * (self.ndim - used + 1)
        else:
            parts += [slice(None)] * (self.ndim - used)
        hulls: list[Span] = []
        rest: list[Any] = []
        sizes = iter(self.shape)
        for part in parts:
            if part is None:
                rest.append(None)
                continue
            span, left = _hull(part, next(sizes))
            hulls.append(span)
            rest.append(left)
        return self.window(*hulls)[tuple(rest)]


def _hull(part: Any, size: int) -> tuple[Span, Any]:
    """Return the least span that holds an index, and the index relative to it."""
    if isinstance(part, slice):
        picked = range(*part.indices(size))
        if not picked:
            return (0, 0), slice(0, 0)
        return (min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1), slice(None, None, picked.step)
    positions = np.asarray(part)
    if positions.dtype == np.bool_:
        positions = np.flatnonzero(positions)
    if not positions.size:
        return (0, 0), positions.astype(np.intp)
    positions = np.where(positions < 0, positions + size, positions)
    if positions.min() < 0 or positions.max() >= size:
        raise IndexError(f"index {part} is out of bounds for a dimension of {size}")
    low = int(positions.min())
    return (low, int(positions.max()) + 1), positions - low


def aligned_chunks(span: Span, step: int) -> tuple[int, ...]:
    """Cut a span at the multiples of `step`; one empty chunk for an empty span."""
    start, stop = span
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return tuple(b - a for a, b in pairwise(edges)) if stop > start else (0,)


@dataclass(frozen=True)
class LazyImage(LazyArray):
    """Part of one level of a picture, or of its means over `factor` x `factor` pixels; (c, y, x)."""

    image: ImagePyramid
    level: int
    factor: int
    rows: Span
    cols: Span

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Channels, height, width."""
        return (self.image.shape[0], self.rows[1] - self.rows[0], self.cols[1] - self.cols[0])

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        """Type of the pixels."""
        return self.image.dtype

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """All channels, by whole storage chunks."""
        step = max(1, IMAGE_CHUNK_PX // self.factor)
        return ((self.shape[0],), aligned_chunks(self.rows, step), aligned_chunks(self.cols, step))

    def window(self, lead: Span, rows: Span, cols: Span) -> NDArray[Any]:
        """Read a half-open window inside the part."""
        y, x = self.rows[0], self.cols[0]
        found = self.image.read(self.level, y + rows[0], y + rows[1], x + cols[0], x + cols[1], self.factor)
        return found[slice(*lead)]

    def __dask_tokenize__(self) -> object:
        return ("image", *self.image.token, self.level, self.factor, self.rows, self.cols)


@dataclass(frozen=True, eq=False)
class LazyCounts(LazyArray):
    """Part of the grid of a table, in bins of `factor` x `factor` cells, as dense uint32; (gene, y, x)."""

    table: CountsTable
    genes: NDArray[np.int64]
    factor: int
    rows: Span
    cols: Span
    dtype = np.dtype(np.uint32)

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Genes, rows, columns."""
        return (len(self.genes), self.rows[1] - self.rows[0], self.cols[1] - self.cols[0])

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """All genes, by whole tiles: reading a tile for one gene costs as much as for all."""
        step = math.lcm(self.table.tile_cells, self.factor)
        bytes_per_step = len(self.genes) * (step // self.factor) ** 2 * self.dtype.itemsize
        steps = min(COUNTS_CHUNK_CELLS // step, math.isqrt(COUNTS_CHUNK_BYTES // max(bytes_per_step, 1)))
        side = max(1, steps) * step // self.factor
        return ((self.shape[0],), aligned_chunks(self.rows, side), aligned_chunks(self.cols, side))

    def window(self, lead: Span, rows: Span, cols: Span) -> NDArray[Any]:
        """Read and sum a half-open window inside the part."""
        f, r, c = self.factor, self.rows[0], self.cols[0]
        box = ((r + rows[0]) * f, (r + rows[1]) * f, (c + cols[0]) * f, (c + cols[1]) * f)
        return self.table.dense(box, self.genes[slice(*lead)], f)[0]

    def __dask_tokenize__(self) -> object:
        return ("counts", *self.table.token, self.genes.tobytes(), self.factor, self.rows, self.cols)
