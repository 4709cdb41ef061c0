"""Where the bins of a simulated run lie: the array, its homography to the picture, and the landmarks.

The shape is that of a real Visium HD run: x mirrored, a small rotation, and a perspective whose denominator changes by
0.04 % along one side and 0.03 % along the other, so that the nearest affine is wrong by pixels on a full-size area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import IngestError
from stzarr.space import Homography

_TILT = (1.30e-7 * 3350, 7.57e-8 * 3350)
"""Projective terms over the longer side, from a real run of 3350 x 3350 bins; a smaller area gets the same over its."""
_MAX_BAND_BINS = 512
_LANDMARKS_PER_SIDE = 5
LANDMARK_CLEAR_UM = 8.0
"""Radius of the blank disc around a landmark [µm]."""


@dataclass(frozen=True)
class Area:
    """The capture area and the picture around it.

    Parameters
    ----------
    bin_um : float
        Side of the finest bins [µm].
    num_rows, num_cols : int
        Extent in finest bins.
    array_to_px : Homography
        ``(array_col, array_row)`` of the finest bins to full-resolution pixel centres (x, y), counted from 0.
    mpp : float
        µm per pixel in the middle of the area.
    width, height : int
        Size of the picture [px].
    """

    bin_um: float
    num_rows: int
    num_cols: int
    array_to_px: Homography
    mpp: float
    width: int
    height: int

    @property
    def px_to_um(self) -> Homography:
        """Map pixel centres to the tissue model's µm, which run along the array."""
        b = self.bin_um
        return Homography.scale_then_move(b, b, 0.5 * b, 0.5 * b) @ self.array_to_px.inverse()

    def factor(self, bin_um: float) -> int:
        """Return how many finest bins lie along a side of a bin."""
        return round(bin_um / self.bin_um)

    def shape(self, bin_um: float) -> tuple[int, int]:
        """Return rows and columns of bins; the last ones may lie partly outside the area."""
        factor = self.factor(bin_um)
        return -(-self.num_rows // factor), -(-self.num_cols // factor)

    def centres_px(self, bin_um: float, row0: int, row1: int) -> NDArray[np.float64]:
        """Return the centres of rows [row0, row1) of bins in row-major order, shape (n, 2), xy [px]."""
        factor = self.factor(bin_um)
        rows, cols = np.meshgrid(np.arange(row0, row1), np.arange(self.shape(bin_um)[1]), indexing="ij")
        return self.array_to_px(np.stack([cols.ravel(), rows.ravel()], -1) * factor + (factor - 1) / 2)


@dataclass(frozen=True)
class Landmark:
    """A mark painted on the centre of a known bin of the finest size."""

    array_row: int
    array_col: int
    x_px: float
    y_px: float


def lay_out(
    size_um: tuple[float, float],
    bins_um: Sequence[float],
    *,
    mpp: float,
    rotation_deg: float,
    turn: int,
    mirror: bool,
) -> Area:
    """Place an area in a picture with a margin; see `stzarr.simulate.simulate` for the parameters.

    Raises
    ------
    IngestError
        ST150: the size is no whole number of bins, is too small, or does not fit into barcodes.
        ST151: the bin sizes do not divide each other.
    """
    bin_um = _finest(bins_um)
    num_cols, num_rows = (_whole_bins(side, bin_um) for side in size_um)
    centre = np.array([(num_cols - 1) / 2, (num_rows - 1) / 2])
    scale, angle = bin_um / mpp, math.radians(rotation_deg)
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale * turned @ np.diag([-1.0 if mirror else 1.0, 1.0])
    tilt = np.array(_TILT) / max(num_cols, num_rows)
    about_centre = Homography.from_matrix(np.block([[linear, np.zeros((2, 1))], [tilt[None, :], np.ones((1, 1))]]))
    centred = about_centre @ Homography.scale_then_move(1, 1, -centre[0], -centre[1])

    margin = min(100.0, max(20.0, 0.1 * max(size_um))) / mpp
    x0, y0, x1, y1 = centred.bounds((-0.5, -0.5, num_cols - 0.5, num_rows - 0.5))
    width, height = math.ceil(x1 - x0 + 2 * margin), math.ceil(y1 - y0 + 2 * margin)
    placed = Homography.scale_then_move(1, 1, margin - x0 - 0.5, margin - y0 - 0.5) @ centred
    if turn == 90:
        placed = Homography(((0.0, 1.0, 0.0), (-1.0, 0.0, width - 1.0), (0.0, 0.0, 1.0))) @ placed
        width, height = height, width
    return Area(bin_um, num_rows, num_cols, Homography.from_matrix(placed.matrix, digits=15), mpp, width, height)


def _finest(bins_um: Sequence[float]) -> float:
    if not bins_um or min(bins_um) < 1 or any(size != int(size) for size in bins_um) or len({*bins_um}) < len(bins_um):
        raise IngestError("ST151", f"bin sizes {list(bins_um)} are not different whole µm", cure="try 2, 8 and 16")
    finest = min(bins_um)
    odd = [size for size in bins_um if size % finest]
    if odd:
        raise IngestError(
            "ST151", f"bins of {odd[0]:g} µm are no whole number of {finest:g} µm", cure="try 2, 8 and 16"
        )
    if band_rows(bins_um) > _MAX_BAND_BINS:
        raise IngestError("ST151", f"bin sizes {list(bins_um)} meet only every {band_rows(bins_um)} bins")
    return finest


def band_rows(bins_um: Sequence[float]) -> int:
    """Return the number of finest bins after which the edges of all bin sizes meet."""
    return math.lcm(*(round(size / min(bins_um)) for size in bins_um))


def _whole_bins(side_um: float, bin_um: float) -> int:
    num = round(side_um / bin_um) if math.isfinite(side_um) else 0
    if num < 8 or num > 99_999 or abs(num * bin_um - side_um) > 1e-6:
        raise IngestError(
            "ST150",
            f"an area of side {side_um:g} µm is not 8 to 99,999 whole bins of {bin_um:g} µm",
            cure=f"--size-um with multiples of {bin_um:g}, from {8 * bin_um:g}",
        )
    return num


def choose_landmarks(area: Area) -> tuple[Landmark, ...]:
    """Choose 5 x 5 bins over the area, its corner bins among them.

    Raises
    ------
    IngestError
        ST150: the area is so small that the marks would touch.
    """
    if min(area.num_rows, area.num_cols) * area.bin_um < 2.5 * LANDMARK_CLEAR_UM * _LANDMARKS_PER_SIDE:
        side = 2.5 * LANDMARK_CLEAR_UM * _LANDMARKS_PER_SIDE
        raise IngestError("ST150", f"25 landmarks need an area of {side:g} µm a side", cure=f"--size-um {side:g}")
    rows, cols = (np.linspace(0, num - 1, _LANDMARKS_PER_SIDE).round() for num in (area.num_rows, area.num_cols))
    chosen = [(int(row), int(col)) for row in rows for col in cols]
    places = area.array_to_px([(col, row) for row, col in chosen]).tolist()
    return tuple(Landmark(row, col, x, y) for (row, col), (x, y) in zip(chosen, places, strict=True))
