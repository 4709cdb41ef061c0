"""Pixels of a registered picture: blocks of the ``um`` grid, resampled from the source through the fitted map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stzarr.space import Homography, PixelGrid
from stzarr.store.means import block_means
from stzarr.store.source import ImageHandle

BlockReader = Callable[[int, int, int, int], NDArray[Any]]
"""Returns pixels, shape (c, y1 - y0, x1 - x0), of a box (y0, y1, x0, x1) that lies inside the raster."""

PIECE_PX = 2048
"""Longest side of what one call of OpenCV makes [px]."""

MAX_SOURCE_PX = 4096
"""Longest side of what is read from the source at a time [px]; OpenCV's own limit is 32767."""

_MARGIN_PX = 2
_NEAR_ONE = 0.1


def halved(block: NDArray[Any]) -> NDArray[Any]:
    """Return means of 2 x 2 pixels, rounded half up; a last odd row or column is a mean of the pixels that exist.

    Parameters
    ----------
    block : uint8 or uint16, shape (c, h, w)

    Returns
    -------
    ndarray, shape (c, ceil(h / 2), ceil(w / 2)), same dtype
    """
    height, width = block.shape[1:]
    if height % 2 or width % 2:
        block = np.pad(block, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    wide: Any = np.uint16 if block.dtype == np.uint8 else np.uint32
    rows = block[:, 0::2].astype(wide)
    rows += block[:, 1::2]
    sums = rows[..., 0::2] + rows[..., 1::2]
    sums += 2
    sums >>= 2
    return sums.astype(block.dtype)


def oversampling(scale: float) -> int:
    """Return into how many samples a side a target pixel is divided, each at most about one source pixel wide.

    Parameters
    ----------
    scale : float
        Source pixels on the side of a target pixel. Up to 1.1 one bilinear sample serves; above it the mean of
        ``ceil(scale)`` squared samples is the area-weighted value that shrinking needs.
    """
    return max(1, math.ceil(scale - _NEAR_ONE))


@dataclass(frozen=True)
class Warp:
    """Read a grid of the ``um`` frame from a picture in its own pixels; a `BlockReader`.

    A pixel is bilinear where the picture is enlarged or kept, and a mean of bilinear samples where it is shrunk. A
    pixel whose centre lies outside the picture is 0; inside, the picture goes on with its edge pixels.

    Parameters
    ----------
    handle : ImageHandle
    um_to_px : Homography
        µm to the picture's pixel centres, counted from 0.
    grid : PixelGrid
        The pixels to make.
    factor : int
        Samples on the side of a pixel, see `oversampling`.
    """

    handle: ImageHandle
    um_to_px: Homography
    grid: PixelGrid
    factor: int = 1

    def __call__(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        """Return pixels of a box of the grid, shape (c, y1 - y0, x1 - x0)."""
        out = np.zeros((self.handle.shape[0], y1 - y0, x1 - x0), self.handle.dtype)
        step = max(1, PIECE_PX // self.factor)
        for top in range(y0, y1, step):
            for left in range(x0, x1, step):
                bottom, right = min(top + step, y1), min(left + step, x1)
                self._fill(out[:, top - y0 : bottom - y0, left - x0 : right - x0], top, left)
        return out

    def _fill(self, out: NDArray[Any], top: int, left: int) -> None:
        """Fill a view whose first pixel is (top, left) of the grid, in parts if its source is large."""
        height, width = out.shape[1:]
        to_px = self.um_to_px @ self.grid.centres_to_um @ Homography.scale_then_move(1.0, 1.0, left, top)
        whole = to_px.bounds((-0.5, -0.5, width - 0.5, height - 0.5))
        x0, y0 = (math.floor(value) - _MARGIN_PX for value in whole[:2])
        x1, y1 = (math.ceil(value) + _MARGIN_PX + 1 for value in whole[2:])
        rows, cols = self.handle.shape[1:]
        box = (max(y0, 0), min(y1, rows), max(x0, 0), min(x1, cols))
        if box[0] >= box[1] or box[2] >= box[3]:
            return
        if max(box[1] - box[0], box[3] - box[2]) > MAX_SOURCE_PX and max(height, width) > 1:
            half_h, half_w = -(-height // 2), -(-width // 2)
            for dy in range(0, height, half_h):
                for dx in range(0, width, half_w):
                    self._fill(out[:, dy : dy + half_h, dx : dx + half_w], top + dy, left + dx)
            return
        at_edge = box != (y0, y1, x0, x1)
        _resample(self.handle.read(*box), _moved(to_px, box), self.factor, out, at_edge)


def _moved(to_px: Homography, box: tuple[int, int, int, int]) -> Homography:
    """Return the map to the pixels of a box that was cut out."""
    return Homography.scale_then_move(1.0, 1.0, -box[2], -box[0]) @ to_px


def _resample(pixels: NDArray[Any], to_px: Homography, factor: int, out: NDArray[Any], at_edge: bool) -> None:
    """Fill `out` (c, h, w) through the map of its pixel indices to those of `pixels`."""
    height, width = out.shape[1:]
    fine = to_px @ Homography.scale_then_move(1 / factor, 1 / factor, 0.5 / factor - 0.5, 0.5 / factor - 0.5)
    size = (width * factor, height * factor)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for plane, target in zip(pixels, out, strict=True):
        source = np.ascontiguousarray(plane)
        warped = cv2.warpPerspective(source, fine.matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        target[...] = block_means(warped, factor)
    if at_edge:
        ones = np.ones(pixels.shape[1:], np.uint8)
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        out *= cv2.warpPerspective(ones, to_px.matrix, (width, height), flags=flags, borderValue=0)
