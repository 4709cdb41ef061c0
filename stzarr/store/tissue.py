"""The tissue map: which share of every cell of `layout.TISSUE_UM` is tissue, so that planning scans nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from stzarr.space import BinLattice, Lattice, PixelGrid
from stzarr.store import layout
from stzarr.store.source import CountsSource

PATH = "stzarr/tissue"

_STRIP_CELLS = 32
_STRIP_PX = 512
_SATURATION_LIMITS = (13, 51)
"""Otsu's threshold is kept between 5 % and 20 %, so that a picture of tissue alone or glass alone is not split."""


def tissue_of_counts(counts: CountsSource, grid: PixelGrid) -> NDArray[np.float32]:
    """Return the share of every cell that positions in tissue cover.

    A bin covers its square; a spot covers its cell of the lattice (100 µm by the row pitch, centred on the spot).

    Parameters
    ----------
    counts : CountsSource
        Its positions and ``in_tissue``; the matrix is not touched.
    grid : PixelGrid
        Cells of the map [µm].

    Returns
    -------
    float32, shape (grid.height, grid.width)
        Exact areas; what lies outside the lattice is no tissue.
    """
    rows, cols = counts.lattice.grid(counts.array_row, counts.array_col)
    covered = np.zeros(counts.lattice.grid_shape, np.bool_)
    covered[rows[counts.in_tissue], cols[counts.in_tissue]] = True
    share = np.zeros((grid.height, grid.width))
    for part, (dx, dy), (x0, y0) in _parts(counts.lattice, covered):
        share += area_share(part, (dx, dy), (x0, y0), grid)
    return _stored(share)


def tissue_of_pixels(pixels: zarr.Array | NDArray[Any], pixel_grid: PixelGrid, grid: PixelGrid) -> NDArray[np.float32]:
    """Return the share of every cell that looks like tissue in a coarse level of a picture.

    Three channels are taken for a stain on white glass: tissue is where the saturation, (max - min) / max, exceeds
    Otsu's threshold (IEEE Trans. SMC 9, 62-66, 1979), which is kept between 5 and 20 %. Otherwise Otsu's threshold
    splits the mean of the channels, and the class that the picture's border mostly belongs to is the background.

    Parameters
    ----------
    pixels : uint8 or uint16, shape (c, h, w)
        Read in strips.
    pixel_grid, grid : PixelGrid
        Where the pixels and the cells lie [µm].
    """
    stained = pixels.shape[0] == 3
    values = np.empty(pixels.shape[1:], np.uint8)
    strips = [slice(top, top + _STRIP_PX) for top in range(0, len(values), _STRIP_PX)]
    brightest = 0 if stained else max(int(np.max(pixels[:, strip])) for strip in strips)
    for strip in strips:
        part = np.asarray(pixels[:, strip])
        values[strip] = _saturation(part) if stained else _brightness(part, brightest)
    threshold = float(cv2.threshold(values, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0])
    if stained:
        tissue = values > np.clip(threshold, *_SATURATION_LIMITS)
    else:
        bright = values > threshold
        border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
        tissue = bright != (border.mean() > 0.5)
    mpp = pixel_grid.mpp
    return _stored(area_share(tissue, (mpp, mpp), (pixel_grid.x0_um, pixel_grid.y0_um), grid))


def write_tissue(root: zarr.Group, share: NDArray[np.float32]) -> None:
    """Write the map as one array, in one shard where it is small."""
    (chunk_y, shard_y), (chunk_x, shard_x) = (
        layout.block_shape(size, layout.IMAGE_CHUNK_PX, layout.SHARD_PX) for size in share.shape
    )
    array = root.create_array(
        PATH,
        shape=share.shape,
        dtype=share.dtype,
        chunks=(chunk_y, chunk_x),
        shards=(shard_y, shard_x),
        compressors=layout.codec(share.dtype),
        fill_value=0,
        dimension_names=("y", "x"),
        overwrite=True,
    )
    array[...] = share


def area_share(
    mask: NDArray[np.bool_], size_um: tuple[float, float], origin_um: tuple[float, float], grid: PixelGrid
) -> NDArray[np.float64]:
    """Return the share of every cell of `grid` that the set boxes of a raster cover, in strips of cells.

    Parameters
    ----------
    mask : bool, shape (rows, cols)
    size_um, origin_um : (x, y)
        Size of a box and the upper left corner of the first [µm].
    grid : PixelGrid
    """
    x_edges = (grid.x0_um + grid.mpp * np.arange(grid.width + 1) - origin_um[0]) / size_um[0]
    y_edges = (grid.y0_um + grid.mpp * np.arange(grid.height + 1) - origin_um[1]) / size_um[1]
    share = np.zeros((grid.height, grid.width))
    for top in range(0, grid.height, _STRIP_CELLS):
        edges = np.clip(y_edges[top : top + _STRIP_CELLS + 1], 0, len(mask))
        first, last = int(edges[0]), min(int(edges[-1]) + 1, len(mask))
        if first < last:
            along_x = _between(mask[first:last].astype(np.float64), x_edges)
            share[top : top + _STRIP_CELLS] = _between(along_x.T, edges - first).T
    return share * (size_um[0] * size_um[1] / grid.mpp**2)


def _between(values: NDArray[np.float64], edges: NDArray[Any]) -> NDArray[np.float64]:
    """Integrate a piecewise constant function, shape (n, num), between successive edges given in its steps."""
    num = values.shape[1]
    edges = np.clip(edges, 0, num)
    step = np.minimum(edges.astype(np.int64), num - 1)
    sums = np.pad(values.cumsum(axis=1), ((0, 0), (1, 0)))
    return np.diff(sums[:, step] + (edges - step) * values[:, step], axis=1)


def _parts(
    lattice: Lattice, covered: NDArray[np.bool_]
) -> Sequence[tuple[NDArray[np.bool_], tuple[float, float], tuple[float, float]]]:
    """Split a lattice into regular rasters, (mask, box size, origin): spots' shifted rows are a raster of their own."""
    if isinstance(lattice, BinLattice):
        return [(covered, lattice.cell_um, lattice.origin_um)]
    shifted = np.arange(len(covered)) % 2 == lattice.shifted_parity
    x0, y0 = lattice.origin_um
    return [
        (covered & ~shifted[:, None], lattice.cell_um, (x0, y0)),
        (covered & shifted[:, None], lattice.cell_um, (x0 + lattice.cell_um[0] / 2, y0)),
    ]


def _saturation(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    high = pixels.max(axis=0).astype(np.float32)
    spread = high - pixels.min(axis=0).astype(np.float32)
    return np.round(255 * spread / np.maximum(high, 1)).astype(np.uint8)


def _brightness(pixels: NDArray[Any], brightest: int) -> NDArray[np.uint8]:
    return np.round(pixels.mean(axis=0, dtype=np.float64) * (255 / max(brightest, 1))).astype(np.uint8)


def _stored(share: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round away what is left of sums of fractions."""
    return np.clip(share.round(6), 0.0, 1.0).astype(np.float32)
