"""One read: the box of some patches of a slide, read once from image and counts, and the patches cut out of it.

A `Recipe` is small and goes to any thread or process; the store is opened there once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import StreamError, StzarrError
from stzarr.store.means import block_means
from stzarr.store.reader import StoreReader
from stzarr.stream.split import CellGrid

Patches = dict[str, NDArray[Any]]
"""Arrays of some patches, the first axis counts them."""


@dataclass(frozen=True)
class CountsRecipe:
    """Which counts of a slide.

    Parameters
    ----------
    table : str
    factor : int
        Cells of the table on a side of an HR cell.
    genes : int64, shape (g,)
        Position of every gene of the panel in the table, -1 where the slide lacks it.
    lr_cells : int, optional
        HR cells on a side of an LR pixel.
    """

    table: str
    factor: int
    genes: NDArray[np.int64]
    lr_cells: int | None


@dataclass(frozen=True)
class ImageRecipe:
    """Which pixels of a slide.

    Parameters
    ----------
    name : str
    level : int
    size_px : int
        Pixels on a side of a patch, P.
    factor : int, optional
        The patch is the exact mean over factor x factor pixels of the level; None resamples by area (spots, whose
        rows are not a whole number of pixels apart).
    """

    name: str
    level: int
    size_px: int
    factor: int | None


@dataclass(frozen=True)
class Recipe:
    """All that is read of one slide for a patch."""

    path: str
    grid: CellGrid
    counts: CountsRecipe | None
    image: ImageRecipe | None


def open_reader(path: str) -> StoreReader:
    """Open a store once in this process, and again where it was written anew."""
    root = Path(path) / "zarr.json"
    return _open_reader(path, root.stat().st_mtime_ns if root.exists() else 0)


@lru_cache(maxsize=64)
def _open_reader(path: str, written_ns: int) -> StoreReader:
    return StoreReader(path)


def read_patches(recipe: Recipe, windows: NDArray[np.int32]) -> tuple[Patches, int]:
    """Read patches that lie near each other.

    Parameters
    ----------
    recipe : Recipe
    windows : int32, shape (n, 2)
        First cell (row, column) of every patch.

    Returns
    -------
    patches : dict
        ``hr_counts`` (n, g, h, w) and ``lr_counts`` (n, g, lh, lw) in the narrowest unsigned type, ``tissue``
        (n, h, w) bool, ``image`` (n, c, P, P); what the recipe lacks is left out.
    num_bytes : int
        Bytes that were read, decoded.

    Raises
    ------
    StreamError
        ST412: a file of the store cannot be read or decoded.
    """
    try:
        return _read_patches(recipe, windows)
    except StzarrError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise StreamError(
            "ST412",
            f"patches cannot be read: {type(error).__name__}: {error}",
            file=recipe.path,
            cure=f"stzarr validate --deep {recipe.path}",
        ) from error


def _read_patches(recipe: Recipe, windows: NDArray[np.int32]) -> tuple[Patches, int]:
    reader, num_bytes = open_reader(recipe.path), 0
    patches: Patches = {}
    if recipe.counts is not None:
        found, num_bytes = _read_counts(reader, recipe.counts, recipe.grid.patch, windows)
        patches |= found
    if recipe.image is not None:
        patches["image"], more = _read_image(reader, recipe.image, recipe.grid, windows)
        num_bytes += more
    return patches, num_bytes


# ------------------------------------------------------------------------------------------------------- counts


def _read_counts(
    reader: StoreReader, recipe: CountsRecipe, patch: int, windows: NDArray[np.int32]
) -> tuple[Patches, int]:
    f = recipe.factor
    (r0, c0), (r1, c1) = windows.min(axis=0), windows.max(axis=0) + patch
    cells = (int(r0) * f, int(r1) * f, int(c0) * f, int(c1) * f)
    box = reader.tables[recipe.table].read_box(*cells)
    present = recipe.genes >= 0
    grid, covered = box.dense(cells, recipe.genes[present], f)
    hr = np.zeros((len(windows), len(recipe.genes), patch, patch), np.uint32)
    tissue = np.zeros((len(windows), patch, patch), np.bool_)
    for index, (row, col) in enumerate((windows - [r0, c0]).tolist()):
        window = np.s_[row : row + patch, col : col + patch]
        hr[index, present], tissue[index] = grid[:, *window], covered[window]
    found: Patches = {"hr_counts": _narrow(hr), "tissue": tissue}
    if recipe.lr_cells is not None:
        found["lr_counts"] = _narrow(block_sums(hr, recipe.lr_cells))
    parts = (box.rows, box.grid_row, box.grid_col, box.in_tissue, box.indptr, box.indices, box.data)
    return found, sum(part.nbytes for part in parts)


def _narrow(counts: NDArray[np.uint32]) -> NDArray[Any]:
    """Return counts in the narrowest type that holds them: what waits in the buffer is mostly zeros and ones."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))), copy=False)


def block_sums(counts: NDArray[np.uint32], side: int) -> NDArray[np.uint32]:
    """Sum over blocks of side x side cells from the upper left, the last ones cut off at the edge; sums stay equal."""
    rows, cols = (np.arange(0, length, side) for length in counts.shape[-2:])
    return np.add.reduceat(np.add.reduceat(counts, rows, axis=-2), cols, axis=-1)


def block_areas(patch: int, side: int) -> NDArray[np.float32]:
    """Return the share of a full block that each block of `block_sums` covers, shape (lh, lw)."""
    part = np.minimum(side, patch - np.arange(0, patch, side)) / side
    return np.outer(part, part).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- pixels


def _read_image(
    reader: StoreReader, recipe: ImageRecipe, grid: CellGrid, windows: NDArray[np.int32]
) -> tuple[NDArray[Any], int]:
    pyramid = reader.images[recipe.name]
    level = pyramid.levels[recipe.level]
    bounds = grid.bounds_um(windows[:, 0], windows[:, 1], grid.patch, grid.patch)
    edges = (bounds - [level.x0_um, level.y0_um] * 2) / level.mpp
    # Whole numbers but for rounding where the mean is exact: without this a patch could grow by a pixel.
    edges = edges.round(6)
    x0, y0 = np.floor(edges[:, :2].min(axis=0)).astype(int).tolist()
    x1, y1 = np.ceil(edges[:, 2:].max(axis=0)).astype(int).tolist()
    pixels = pyramid.read(recipe.level, y0, y1, x0, x1)
    cut = np.empty((len(windows), len(pixels), recipe.size_px, recipe.size_px), pixels.dtype)
    for index, (left, top, right, bottom) in enumerate((edges - [x0, y0] * 2).tolist()):
        if recipe.factor is None:
            cut[index] = area_resample(pixels, (top, bottom), (left, right), recipe.size_px)
        else:
            part = pixels[:, round(top) : round(bottom), round(left) : round(right)]
            cut[index] = block_means(part, recipe.factor)
    return cut, pixels.nbytes


def area_resample(pixels: NDArray[Any], y: tuple[float, float], x: tuple[float, float], size_px: int) -> NDArray[Any]:
    """Resample a box with fractional edges to (c, size_px, size_px): each pixel the mean over the area it covers.

    Exact for piecewise constant pixels: differences of the running sum, which is linear inside a pixel. OpenCV's
    INTER_AREA starts and ends at whole pixels and so shifts a patch by up to half of one.
    """
    rows = _area_means(pixels.astype(np.float64), y, size_px, axis=1)
    return np.floor(_area_means(rows, x, size_px, axis=2) + 0.5).astype(pixels.dtype)


def _area_means(values: NDArray[np.float64], span: tuple[float, float], num: int, axis: int) -> NDArray[np.float64]:
    edges = np.linspace(span[0], span[1], num + 1)
    sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis=axis)], axis=axis)
    whole = np.clip(edges.astype(np.int64), 0, values.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = num + 1
    part = (edges - whole).reshape(shape)
    at_edges = sums.take(whole, axis) * (1 - part) + sums.take(whole + 1, axis) * part
    return np.diff(at_edges, axis=axis) * (num / (span[1] - span[0]))
