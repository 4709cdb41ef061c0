"""Rasters of square pixels that are axis-aligned in the ``um`` frame, and the choice of the registered image's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stzarr.space.maps import Bounds, Homography


@dataclass(frozen=True)
class PixelGrid:
    """A raster of square pixels that is axis-aligned in the ``um`` frame.

    Pixel (row i, column j) covers ``[x0_um + j mpp, x0_um + (j + 1) mpp)`` and likewise in y.
    """

    mpp: float
    x0_um: float
    y0_um: float
    width: int
    height: int

    @property
    def bounds_um(self) -> Bounds:
        """The area that the pixels cover."""
        return (
            self.x0_um,
            self.y0_um,
            self.x0_um + self.width * self.mpp,
            self.y0_um + self.height * self.mpp,
        )

    @property
    def centres_to_um(self) -> Homography:
        """Map pixel indices (column, row) to the pixel's centre [µm]."""
        return Homography.scale_then_move(self.mpp, self.mpp, self.x0_um + 0.5 * self.mpp, self.y0_um + 0.5 * self.mpp)

    def level(self, index: int) -> PixelGrid:
        """Return the grid after halving `index` times, edges rounded up."""
        f = 2**index
        return PixelGrid(self.mpp * f, self.x0_um, self.y0_um, -(-self.width // f), -(-self.height // f))


def registered_mpp(native_mpp: float, bin_um: float | None) -> float:
    """Choose the pixel size of the registered image.

    With bins, ``bin / 2^k`` nearest to the native pixel; else the nearest of ``0.125 x 2^k`` µm ("nearest" by ratio).
    """
    base = bin_um if bin_um is not None else 0.125
    return float(base * 2.0 ** round(math.log2(native_mpp / base)))


def registered_grid(area_um: Bounds, mpp: float, *, margin_um: float = 100.0, max_thumb_px: int = 1024) -> PixelGrid:
    """Lay the registered image's pixels over an area and its margin.

    Its offset and its size are whole numbers of the coarsest level's pixel, so that every level is an exact mean of
    whole pixels. Levels are halved until the longer side is at most `max_thumb_px`.
    """
    x0, y0, x1, y1 = (
        area_um[0] - margin_um,
        area_um[1] - margin_um,
        area_um[2] + margin_um,
        area_um[3] + margin_um,
    )
    coarse = mpp * 2 ** (registered_levels(area_um, mpp, margin_um=margin_um, max_thumb_px=max_thumb_px) - 1)
    left, top = math.floor(round(x0 / coarse, 9)), math.floor(round(y0 / coarse, 9))
    right, bottom = math.ceil(round(x1 / coarse, 9)), math.ceil(round(y1 / coarse, 9))
    per = round(coarse / mpp)
    return PixelGrid(mpp, left * coarse, top * coarse, (right - left) * per, (bottom - top) * per)


def registered_levels(area_um: Bounds, mpp: float, *, margin_um: float = 100.0, max_thumb_px: int = 1024) -> int:
    """Return the number of levels of the registered image, by the area and margin that its pixels must cover."""
    x0, y0, x1, y1 = area_um
    return num_levels(math.ceil((max(x1 - x0, y1 - y0) + 2 * margin_um) / mpp), max_thumb_px)


def num_levels(longest_px: int, max_thumb_px: int = 1024) -> int:
    """Return how many pyramid levels bring `longest_px` down to `max_thumb_px`, level 0 included."""
    return 1 + max(0, math.ceil(math.log2(longest_px / max_thumb_px)))
