"""Where bins and spots lie: array positions, cells of the grid, micrometres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stzarr.space.maps import Bounds, Homography

SPOT_PITCH_UM = 100.0
"""Distance of neighbouring Visium spots in a row; ``array_col`` steps by 2 over it."""


@dataclass(frozen=True)
class BinLattice:
    """Square bins of a Visium HD area (or of binned transcripts) in the ``um`` frame.

    Grid cell (r, c) covers ``[r, r + 1) x [c, c + 1)`` times `bin_um`. Where the map to pixels mirrors, the grid
    column runs against ``array_col``, so that tissue is never mirrored against its histology.

    Parameters
    ----------
    bin_um : float
        Side of a bin [µm].
    num_rows, num_cols : int
        Extent in bins; a multiple of every coarser bin of the run, so that coarse bins are whole on either side.
    mirrored : bool
        Whether the grid column is ``num_cols - 1 - array_col``.
    """

    bin_um: float
    num_rows: int
    num_cols: int
    mirrored: bool = False
    kind: Literal["bins"] = "bins"

    @property
    def cell_um(self) -> tuple[float, float]:
        """Size of a grid cell, (dx, dy) [µm]."""
        return (self.bin_um, self.bin_um)

    @property
    def origin_um(self) -> tuple[float, float]:
        """Upper left corner of grid cell (0, 0), (x, y) [µm]."""
        return (0.0, 0.0)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return (self.num_rows, self.num_cols)

    @property
    def bounds_um(self) -> Bounds:
        """The capture area."""
        return (0.0, 0.0, self.num_cols * self.bin_um, self.num_rows * self.bin_um)

    @property
    def array_to_um(self) -> Homography:
        """Map ``(array_col, array_row)`` to the bin's centre [µm]."""
        b = self.bin_um
        if self.mirrored:
            return Homography.scale_then_move(-b, b, (self.num_cols - 0.5) * b, 0.5 * b)
        return Homography.scale_then_move(b, b, 0.5 * b, 0.5 * b)

    def grid(self, array_row: NDArray, array_col: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the grid cell (row, column) of array positions; its own inverse."""
        rows, cols = np.asarray(array_row, np.int32), np.asarray(array_col, np.int32)
        return rows, (np.int32(self.num_cols - 1) - cols if self.mirrored else cols)

    def at(self, bin_um: float) -> BinLattice:
        """Return the lattice of the same area with other bins, which must divide it whole."""
        factor = bin_um / self.bin_um
        rows, cols = self.num_rows / factor, self.num_cols / factor
        if rows != int(rows) or cols != int(cols):
            raise ValueError(f"bins of {bin_um:g} µm do not divide {self.bounds_um}")
        return BinLattice(bin_um, int(rows), int(cols), self.mirrored)

    def centres_um(self, grid_row: NDArray, grid_col: NDArray) -> NDArray[np.float64]:
        """Return the centres of grid cells, shape (n, 2), xy [µm]."""
        return np.stack([(np.asarray(grid_col) + 0.5) * self.bin_um, (np.asarray(grid_row) + 0.5) * self.bin_um], -1)


@dataclass(frozen=True)
class SpotLattice:
    """The hexagonal lattice of Visium spots as a grid with one spot a cell, in the ``um`` frame.

    A spot lies at x = 50 (array_col' + 1), y = pitch (array_row + 1), where ``array_col'`` is ``array_col`` or, where
    the map to pixels mirrors, ``num_cols - 1 - array_col``. Grid cell (r, c) is ``(array_row, array_col' // 2)``; every
    other row (`shifted_parity`) lies 50 µm further right than the cell's centre, which the coordinates say and the
    grid does not.

    Parameters
    ----------
    row_pitch_um : float
        Distance of rows, fitted (87.0 on real runs) [µm].
    num_rows, num_cols : int
        Extent of ``array_row`` and ``array_col``.
    mirrored : bool
        Whether x runs against ``array_col``.
    """

    row_pitch_um: float
    num_rows: int
    num_cols: int
    mirrored: bool = False
    kind: Literal["spots"] = "spots"

    @property
    def shifted_parity(self) -> int:
        """``grid_row % 2`` of the rows that are shifted by 50 µm (row + col is even on every slide)."""
        return 1 if not self.mirrored or self.num_cols % 2 else 0

    @property
    def cell_um(self) -> tuple[float, float]:
        """Size of a grid cell, (dx, dy) [µm]."""
        return (SPOT_PITCH_UM, self.row_pitch_um)

    @property
    def origin_um(self) -> tuple[float, float]:
        """Upper left corner of grid cell (0, 0), (x, y) [µm]."""
        return (0.0, 0.5 * self.row_pitch_um)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return (self.num_rows, (self.num_cols + 1) // 2)

    @property
    def bounds_um(self) -> Bounds:
        """The area of all grid cells, the shifted rows' overhang included."""
        rows, cols = self.grid_shape
        return (0.0, 0.5 * self.row_pitch_um, cols * SPOT_PITCH_UM + 50.0, (rows + 0.5) * self.row_pitch_um)

    @property
    def array_to_um(self) -> Homography:
        """Map ``(array_col, array_row)`` to the spot's centre [µm]."""
        half, pitch = SPOT_PITCH_UM / 2, self.row_pitch_um
        if self.mirrored:
            return Homography.scale_then_move(-half, pitch, half * self.num_cols, pitch)
        return Homography.scale_then_move(half, pitch, half, pitch)

    def grid(self, array_row: NDArray, array_col: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the grid cell (row, column) of array positions."""
        rows, cols = np.asarray(array_row, np.int32), np.asarray(array_col, np.int32)
        return rows, (np.int32(self.num_cols - 1) - cols if self.mirrored else cols) // np.int32(2)

    def centres_um(self, grid_row: NDArray, grid_col: NDArray) -> NDArray[np.float64]:
        """Return the spots' centres, shape (n, 2), xy [µm], the 50 µm of shifted rows included."""
        rows = np.asarray(grid_row)
        shift = 0.5 * (rows % 2 == self.shifted_parity)
        return np.stack([(np.asarray(grid_col) + 0.5 + shift) * SPOT_PITCH_UM, (rows + 1.0) * self.row_pitch_um], -1)


Lattice = BinLattice | SpotLattice


def lattice_from_json(fields: dict[str, Any]) -> Lattice:
    """Rebuild a lattice from the fields of its dataclass."""
    return (BinLattice if fields["kind"] == "bins" else SpotLattice)(**fields)


def lattice_extent(num: int, bin_um: float, bins_um: Sequence[float]) -> int:
    """Round a number of the finest bins up, so that every bin size of the run divides the extent."""
    step = math.lcm(*(round(size / bin_um) for size in bins_um))
    return -(-num // step) * step
