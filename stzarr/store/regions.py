"""The regions that tables annotate: a raster of labels for bins, circles for spots.

Both carry two coordinate systems: ``um``, and ``<id>``, which is the vendor's full-resolution px as ``obsm["spatial"]``
holds them (by the nearest affine map, since SpatialData knows no homography).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from stzarr.space import Frame, Homography, Lattice, PixelGrid
from stzarr.store import layout
from stzarr.store.anndata_format import array_at
from stzarr.store.counts import TableResult, TileOrder
from stzarr.store.journal import Journal
from stzarr.store.source import CountsSource
from stzarr.store.units import Progress, Unit

Box = tuple[int, int, int, int]
"""Pixels (row0, row1, col0, col1) of a raster, half-open."""

RASTER = "s0/image"
"""Path of the one level of a labels element."""

_DIGITS = 13
"""Significant digits of written matrices: the last ones differ between builds of BLAS."""


def write_region(
    root: zarr.Group,
    counts: CountsSource,
    result: TableResult,
    *,
    slide_id: str,
    frame: Frame,
    journal: Journal,
    threads: int = 1,
    progress: Progress | None = None,
    spot_radius_um: float | None = None,
) -> str:
    """Write the region of a table and return its path in the store.

    Parameters
    ----------
    root : zarr.Group
        Root of the store, of the journal's own Zarr store.
    counts : CountsSource
    result : TableResult
        What `write_table` returned for these counts.
    slide_id : str
        Also the name of the coordinate system of full-resolution px.
    frame : Frame
    journal : Journal
    threads : int
    progress : callable, optional
    spot_radius_um : float, optional
        Radius of the circles [µm]; needed for spots. Space Ranger's ``spot_diameter_fullres`` gives 32.5 µm (v1) or
        35 µm (v2), as in spatialdata-io; the printed spots have 27.5 µm.
    """
    lattice, name = counts.lattice, layout.region_name(slide_id, counts.name)
    if lattice.kind == "spots":
        if spot_radius_um is None:
            raise ValueError("spots need spot_radius_um")
        return _write_circles(root, name, slide_id, lattice, result.order, frame, journal, spot_radius_um)
    grid = labels_grid(lattice, result.order.grid_row, result.order.grid_col)
    path = f"labels/{name}"
    attrs = _labels_attrs(name, slide_id, grid, frame)
    journal.run([Unit(f"{path}/create", lambda: _create_labels(root, name, attrs, grid))], stage=f"labels {name}")
    units = [
        Unit(f"{path}/{box[0]}.{box[2]}", _block_job(root, f"{path}/{RASTER}", result.order, grid, box), _area(box) * 4)
        for box in shard_boxes(grid)
    ]
    journal.run(units, stage=f"labels {name}", threads=threads, progress=progress)
    return path


# ------------------------------------------------------------------------------------------------------- labels


def labels_grid(lattice: Lattice, grid_row: NDArray[np.int32], grid_col: NDArray[np.int32]) -> PixelGrid:
    """Lay the raster over the cells that are used, from the least row and column (`rasterize_bins` needs that)."""
    size = lattice.cell_um[0]
    r0, c0 = int(grid_row.min()), int(grid_col.min())
    return PixelGrid(size, c0 * size, r0 * size, int(grid_col.max()) - c0 + 1, int(grid_row.max()) - r0 + 1)


def shard_boxes(grid: PixelGrid) -> list[Box]:
    """Return the boxes of the raster that are one shard each."""
    side = layout.SHARD_PX
    return [
        (r, min(r + side, grid.height), c, min(c + side, grid.width))
        for r in range(0, grid.height, side)
        for c in range(0, grid.width, side)
    ]


def labels_block(order: TileOrder, grid: PixelGrid, box: Box) -> NDArray[np.int32]:
    """Return a box of the raster: row of the table + 1, or 0 for nothing.

    Only the tiles under the box are looked at; a row of tiles is one run of rows.
    """
    first_row, first_col = round(grid.y0_um / grid.mpp), round(grid.x0_um / grid.mpp)
    r0, r1, c0, c1 = (edge + first for edge, first in zip(box, [first_row] * 2 + [first_col] * 2, strict=True))
    block = np.zeros((r1 - r0, c1 - c0), np.int32)
    side, num_cols = layout.TILE_CELLS, order.tile_shape[1]
    for tile_row in range(r0 // side, -(-r1 // side)):
        lo = int(order.tile_indptr[tile_row * num_cols + c0 // side])
        hi = int(order.tile_indptr[tile_row * num_cols + -(-c1 // side)])
        row, col = order.grid_row[lo:hi] - r0, order.grid_col[lo:hi] - c0
        inside = (row >= 0) & (row < r1 - r0) & (col >= 0) & (col < c1 - c0)
        block[row[inside], col[inside]] = np.flatnonzero(inside) + (lo + 1)
    return block


def _area(box: Box) -> int:
    r0, r1, c0, c1 = box
    return (r1 - r0) * (c1 - c0)


def _block_job(
    root: zarr.Group, path: str, order: TileOrder, grid: PixelGrid, box: tuple[int, int, int, int]
) -> Callable[[], None]:
    def write() -> None:
        r0, r1, c0, c1 = box
        array_at(root, path)[r0:r1, c0:c1] = labels_block(order, grid, box)

    return write


def _create_labels(root: zarr.Group, name: str, attrs: dict[str, Any], grid: PixelGrid) -> None:
    root.require_group("labels").attrs["ome"] = {"labels": _with(root, name)}
    element = root.create_group(f"labels/{name}", attributes=attrs, overwrite=True)
    rows = layout.block_shape(grid.height, layout.IMAGE_CHUNK_PX, layout.SHARD_PX)
    cols = layout.block_shape(grid.width, layout.IMAGE_CHUNK_PX, layout.SHARD_PX)
    element.create_array(
        RASTER,
        shape=(grid.height, grid.width),
        dtype=np.int32,
        chunks=(rows[0], cols[0]),
        shards=(rows[1], cols[1]),
        compressors=layout.codec(np.dtype(np.int32)),
        fill_value=0,
        dimension_names=("y", "x"),
    )


def _with(root: zarr.Group, name: str) -> list[str]:
    """Return the names that NGFF lists in ``labels/``, with one more."""
    listed: Any = root.require_group("labels").attrs.get("ome", {})
    return sorted({*listed.get("labels", []), name})


def _labels_attrs(name: str, slide_id: str, grid: PixelGrid, frame: Frame) -> dict[str, Any]:
    scale, move = (grid.mpp, grid.mpp), (grid.y0_um, grid.x0_um)
    physical = layout.pixel_levels(grid, 1)[0]
    # In SpatialData the first pixel's corner is 0, in the dataset's own scale its centre is.
    to_um = Homography.scale_then_move(grid.mpp, grid.mpp, grid.x0_um, grid.y0_um)
    to_px = Homography.from_matrix((frame.um_to_px_affine @ to_um).matrix, digits=_DIGITS)
    multiscale = {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"],
        "datasets": [{"path": RASTER, "coordinateTransformations": layout.scale_then_move("yx", **physical)}],
        "coordinateTransformations": [
            layout.to_system("yx", layout.FRAME, layout.scale_then_move("yx", scale, move)),
            layout.to_system("yx", slide_id, [layout.affine_step("yx", to_px)]),
        ],
    }
    return {
        "ome": {"version": layout.NGFF_VERSION, "multiscales": [multiscale], "image-label": {"version": "0.5"}},
        "spatialdata_attrs": {"version": layout.RASTER_VERSION},
    }


# ------------------------------------------------------------------------------------------------------ circles


def _write_circles(
    root: zarr.Group,
    name: str,
    slide_id: str,
    lattice: Lattice,
    order: TileOrder,
    frame: Frame,
    journal: Journal,
    radius_um: float,
) -> str:
    """Write ``shapes/<name>``: its attributes, and one GeoParquet file of circles in µm."""
    path = f"shapes/{name}"
    to_px = Homography.from_matrix(frame.um_to_px_affine.matrix, digits=_DIGITS)
    attrs: dict[str, Any] = {
        "encoding-type": "ngff:shapes",
        "axes": ["x", "y"],
        "coordinateTransformations": [
            layout.to_system("xy", layout.FRAME, [{"type": "identity"}]),
            layout.to_system("xy", slide_id, [layout.affine_step("xy", to_px)]),
        ],
        "spatialdata_attrs": {"version": layout.SHAPES_VERSION},
    }

    def write() -> None:
        root.create_group(path, attributes=attrs, overwrite=True)
        write_circles(
            journal.path / path / "shapes.parquet", lattice.centres_um(order.grid_row, order.grid_col), radius_um
        )
        journal.record(f"{path}/shapes.parquet")

    journal.run([Unit(path, write)], stage=f"circles {name}")
    return path


def write_circles(file: Path, centres_um: NDArray[np.float64], radius_um: float) -> None:
    """Write circles as GeoParquet 1.1 (WKB points, a radius, index ``spot_id`` from 1), as geopandas reads it."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    index = np.arange(1, len(centres_um) + 1, dtype=np.int32)
    points = pa.array(shapely.to_wkb(shapely.points(centres_um)), pa.binary())
    radius = np.full(len(centres_um), radius_um)
    table = pa.Table.from_pandas(pd.DataFrame({"radius": radius}, index=pd.Index(index, name="spot_id")))
    table = table.add_column(0, "geometry", points)
    column = {"encoding": "WKB", "crs": None, "geometry_types": ["Point"]}
    geo = {"primary_column": "geometry", "columns": {"geometry": column}, "version": "1.1.0"}
    table = table.replace_schema_metadata((table.schema.metadata or {}) | {b"geo": json.dumps(geo).encode()})
    pq.write_table(table, file, compression="snappy")
