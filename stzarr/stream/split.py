"""Which patches are for training, validation and test: spatial blocks with a buffer, so that nothing leaks.

Blocks of tissue are held out for validation and test. Their patches lie wholly inside one block, training patches
wholly outside and a buffer away. Labels follow from the slide, its tissue, the patch's size and the split's own
parameters, never from stride, tissue threshold or LR grid, so that streams that differ in these share one split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import StreamError

SplitName = Literal["train", "val", "test"]
Share = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Share of tissue of boxes, (n, 4) µm -> (n,)."""

_LABELS: dict[SplitName, int] = {"train": 0, "val": 1, "test": 2}
_SIDES_IN_PATCHES = (4, 2, 1)
_MIN_BLOCKS = 10
_MIN_TISSUE = 0.5


@dataclass(frozen=True)
class SplitSpec:
    """What a split is asked to be.

    Parameters
    ----------
    fractions : (float, float, float)
        Share of the tissue for train, val and test; train includes the buffers.
    seed : int
        Chooses the blocks, together with the slide's id.
    split_um : float, optional
        Side of a block [µm], a multiple of the patch's. By default 4, 2 or 1 patches, the largest that leaves at
        least 10 blocks of tissue.
    buffer_um : float, optional
        Least distance of training patches from held-out blocks [µm]. By default one patch; where that would leave
        training less than half of its share, one LR pixel (without an LR grid a quarter of a patch).
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    split_um: float | None = None
    buffer_um: float | None = None

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or min(self.fractions) < 0 or not math.isclose(sum(self.fractions), 1.0):
            raise StreamError(
                "ST400",
                f"split_fractions = {self.fractions} are no shares of train, val and test that sum to 1",
                cure="for example (0.8, 0.1, 0.1)",
            )
        for name, value in (("split_um", self.split_um), ("buffer_um", self.buffer_um)):
            if value is not None and value < 0:
                raise StreamError("ST400", f"{name} = {value:g} is negative", cure="give micrometres >= 0")


@dataclass(frozen=True)
class CellGrid:
    """The grid of a slide's cells (bins, spots or pixels) and the patch on it.

    Parameters
    ----------
    cell_um : (float, float)
        Size of a cell, (dx, dy) [µm].
    origin_um : (float, float)
        Upper left corner of cell (0, 0), (x, y) [µm].
    shape : (int, int)
        Rows and columns.
    patch : int
        Cells on a side of a patch.
    """

    cell_um: tuple[float, float]
    origin_um: tuple[float, float]
    shape: tuple[int, int]
    patch: int

    def bounds_um(self, r0: NDArray, c0: NDArray, rows: int, cols: int) -> NDArray[np.float64]:
        """Return the boxes (x0, y0, x1, y1) of windows of cells, shape (n, 4) [µm]."""
        (dx, dy), (ox, oy) = self.cell_um, self.origin_um
        r, c = np.asarray(r0, np.float64), np.asarray(c0, np.float64)
        return np.stack([ox + c * dx, oy + r * dy, ox + (c + cols) * dx, oy + (r + rows) * dy], axis=-1)


@dataclass(frozen=True)
class SlideSplit:
    """The blocks of one slide and what each is for.

    Parameters
    ----------
    patch : int
        Side of a patch [cells].
    side : (int, int)
        Rows and columns of a block [cells]; blocks are anchored at cell (0, 0).
    buffer : (int, int)
        Rows and columns between training patches and held-out blocks [cells].
    label : uint8, shape (block rows, block columns)
        0 train, 1 val, 2 test.
    """

    patch: int
    side: tuple[int, int]
    buffer: tuple[int, int]
    label: NDArray[np.uint8]

    def members(self, r0: NDArray, c0: NDArray, split: SplitName) -> NDArray[np.bool_]:
        """Return which patches, by their first cell, belong to a split, shape (n,)."""
        rows, cols = np.asarray(r0, np.int64), np.asarray(c0, np.int64)
        if split == "train":
            return self._num_held_near(rows, cols) == 0
        (sr, sc), last = self.side, self.patch - 1
        whole = (rows // sr == (rows + last) // sr) & (cols // sc == (cols + last) // sc)
        return whole & (self.label[rows // sr, cols // sc] == _LABELS[split])

    def _num_held_near(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the held-out blocks that touch the patches grown by the buffer, by a summed area table."""
        table = np.pad((self.label > 0).astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))

        def span(first: NDArray[np.int64], axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            side, gap, num = self.side[axis], self.buffer[axis], self.label.shape[axis]
            start, stop = (first - gap) // side, (first + self.patch + gap - 1) // side + 1
            return np.clip(start, 0, num), np.clip(stop, 0, num)

        (a, b), (c, d) = span(rows, 0), span(cols, 1)
        return table[b, d] - table[a, d] - table[b, c] + table[a, c]

    def __str__(self) -> str:
        num = [int((self.label == code).sum()) for code in (1, 2)]
        return (
            f"blocks of {self.side[0]} x {self.side[1]} cells ({num[0]} val, {num[1]} test), "
            f"buffer {self.buffer[0]} x {self.buffer[1]}"
        )


def split_slide(grid: CellGrid, share: Share, slide_id: str, spec: SplitSpec, lr_cells: int | None) -> SlideSplit:
    """Choose the held-out blocks of a slide.

    Blocks come in the order of a hash of (seed, slide, position). Those that hold tissue for a whole patch are taken
    for val, then for test, while that brings the share of tissue nearer to the fraction; val gets at least one of two,
    test at least one of three.

    Parameters
    ----------
    grid : CellGrid
    share : callable
        Share of tissue of boxes in µm.
    slide_id : str
    spec : SplitSpec
    lr_cells : int, optional
        Cells on a side of an LR pixel.
    """
    r0, c0 = _tissue_patches(grid, share)
    side = _side(grid, spec, r0, c0)
    label = _labelled(grid, share, slide_id, spec, side, _blocks_with_room(grid, side, r0, c0))
    if spec.buffer_um is not None:
        return SlideSplit(grid.patch, side, _cells(grid, spec.buffer_um), label)
    wide = SlideSplit(grid.patch, side, (grid.patch, grid.patch), label)
    if _keeps_half(wide, grid, share, spec.fractions[0]):
        return wide
    small = lr_cells or max(1, grid.patch // 4)
    return SlideSplit(grid.patch, side, (small, small), label)


def _cells(grid: CellGrid, size_um: float) -> tuple[int, int]:
    """Return the rows and columns that cover a length, rounded up."""
    dx, dy = grid.cell_um
    return math.ceil(round(size_um / dy, 6)), math.ceil(round(size_um / dx, 6))


def _windows(grid: CellGrid, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = np.arange(0, grid.shape[0] - grid.patch + 1, step)
    cols = np.arange(0, grid.shape[1] - grid.patch + 1, step)
    return np.repeat(rows, len(cols)), np.tile(cols, len(rows))


def _tissue_patches(grid: CellGrid, share: Share, step: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the patches side by side (or every `step` cells) of which at least half is tissue."""
    r0, c0 = _windows(grid, step or grid.patch)
    tissue = share(grid.bounds_um(r0, c0, grid.patch, grid.patch)) >= _MIN_TISSUE
    return r0[tissue], c0[tissue]


def _blocks_with_room(grid: CellGrid, side: tuple[int, int], r0: NDArray, c0: NDArray) -> NDArray[np.int64]:
    """Return the blocks, (row, column) unique and sorted, shape (n, 2), that hold one of the patches whole."""
    last = grid.patch - 1
    whole = (r0 // side[0] == (r0 + last) // side[0]) & (c0 // side[1] == (c0 + last) // side[1])
    return np.unique(np.stack([r0[whole] // side[0], c0[whole] // side[1]], axis=-1), axis=0)


def _side(grid: CellGrid, spec: SplitSpec, r0: NDArray, c0: NDArray) -> tuple[int, int]:
    if spec.split_um is not None:
        patches = spec.split_um / (grid.patch * grid.cell_um[0])
        if patches < 1 or abs(patches - round(patches)) > 1e-6:
            raise StreamError(
                "ST400",
                f"split_um = {spec.split_um:g} is no whole number of patches of {grid.patch * grid.cell_um[0]:g} µm",
                cure="leave it out, or give a multiple of patch_um",
            )
        return round(patches) * grid.patch, round(patches) * grid.patch
    for patches in _SIDES_IN_PATCHES[:-1]:
        side = (patches * grid.patch, patches * grid.patch)
        if len(_blocks_with_room(grid, side, r0, c0)) >= _MIN_BLOCKS:
            return side
    return grid.patch, grid.patch


def _labelled(
    grid: CellGrid, share: Share, slide_id: str, spec: SplitSpec, side: tuple[int, int], room: NDArray[np.int64]
) -> NDArray[np.uint8]:
    shape = (-(-grid.shape[0] // side[0]), -(-grid.shape[1] // side[1]))
    rows, cols = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    tissue = share(grid.bounds_um(rows * side[0], cols * side[1], *side)).reshape(shape)
    label = np.zeros(shape, dtype=np.uint8)

    def key(block: tuple[int, int]) -> bytes:
        return hashlib.sha256(f"{spec.seed}/{slide_id}/{block[0]},{block[1]}".encode()).digest()

    queue = sorted(((int(r), int(c)) for r, c in room), key=key)
    for code, at_least in ((1, 2), (2, 3)):
        target = spec.fractions[code] * float(tissue.sum())
        taken, must = 0.0, len(room) >= at_least and target > 0
        while queue and (must or taken + tissue[queue[0]] / 2 <= target) and target > 0 and len(room) >= at_least:
            block = queue.pop(0)
            label[block] = code
            taken, must = taken + float(tissue[block]), False
    return label


def _keeps_half(split: SlideSplit, grid: CellGrid, share: Share, train_fraction: float) -> bool:
    """Return whether training keeps half of its share of the tissue, seen at half a patch's stride."""
    r0, c0 = _tissue_patches(grid, share, max(1, grid.patch // 2))
    return bool(split.members(r0, c0, "train").sum() >= 0.5 * train_fraction * len(r0))
