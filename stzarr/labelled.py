"""Lazy arrays with their coordinates: what xarray users see of pictures and counts."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from stzarr.lazy import LazyArray, LazyCounts, LazyImage, Span
from stzarr.space import PixelGrid


def _dask(lazy: LazyArray) -> da.Array:
    name = f"{type(lazy).__name__.lower()}-{tokenize(lazy)}"
    return da.from_array(lazy, chunks=lazy.chunks, name=name, meta=np.empty((0, 0, 0), lazy.dtype))


def centres(origin: float, step: float, span: Span) -> NDArray[np.float64]:
    """Return the centres of the cells of a span."""
    return origin + (np.arange(*span, dtype=np.float64) + 0.5) * step


def axis_coords(y: NDArray[np.float64], x: NDArray[np.float64], units: str) -> dict[str, Any]:
    """Return y and x as coordinates that say their unit."""
    return {"y": ("y", y, {"units": units}), "x": ("x", x, {"units": units})}


def image_coords(lazy: LazyImage, grid: PixelGrid) -> dict[str, Any]:
    """Return the coordinates of (part of) a picture: channel names, pixel centres."""
    y, x = centres(grid.y0_um, grid.mpp, lazy.rows), centres(grid.x0_um, grid.mpp, lazy.cols)
    return {"c": list(lazy.image.channels)} | axis_coords(y, x, "um" if lazy.image.registered else "px")


def image_attrs(lazy: LazyImage, grid: PixelGrid) -> dict[str, Any]:
    """Return what a picture says of itself: ``frame``, and ``mpp`` or ``um_to_px``."""
    if lazy.image.um_to_px is None:
        return {"frame": "um", "mpp": grid.mpp}
    return {"frame": "native", "um_to_px": lazy.image.um_to_px.tolist()}


def image_array(lazy: LazyImage, grid: PixelGrid) -> xr.DataArray:
    """Wrap a picture for Dask and xarray."""
    return xr.DataArray(
        _dask(lazy),
        dims=("c", "y", "x"),
        coords=image_coords(lazy, grid),
        attrs=image_attrs(lazy, grid),
        name=lazy.image.name,
    )


def counts_array(lazy: LazyCounts) -> xr.DataArray:
    """Wrap a grid of counts for Dask and xarray, with symbols, ids and bin centres."""
    lattice, genes, factor = lazy.table.lattice, lazy.table.genes, lazy.factor
    (dx, dy), (ox, oy) = lattice.cell_um, lattice.origin_um
    coords: dict[str, Any] = {
        "gene": [genes.symbols[position] for position in lazy.genes],
        "gene_id": ("gene", [genes.ids[position] for position in lazy.genes]),
    } | axis_coords(centres(oy, dy * factor, lazy.rows), centres(ox, dx * factor, lazy.cols), "um")
    if lattice.kind == "spots":
        coords |= _spot_coords(lazy)
    return xr.DataArray(
        _dask(lazy),
        dims=("gene", "y", "x"),
        coords=coords,
        attrs={"units": "count", "bin_um": dx * factor, "table": lazy.table.name},
        name="counts",
    )


def _spot_coords(lazy: LazyCounts) -> dict[str, Any]:
    """Return the mask of cells in tissue, and the spots' true x where a cell is one spot."""
    f, (r0, r1), (c0, c1) = lazy.factor, lazy.rows, lazy.cols
    mask = lazy.table.tissue((r0 * f, r1 * f, c0 * f, c1 * f), f)
    coords: dict[str, Any] = {"in_tissue": (("y", "x"), mask)}
    if f == 1:
        rows, cols = np.mgrid[r0:r1, c0:c1]
        coords["x_spot"] = (("y", "x"), lazy.table.lattice.centres_um(rows, cols)[..., 0], {"units": "um"})
    return coords
