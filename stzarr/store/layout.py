"""The layout of a store: names, versions, shapes of chunks and shards, and the attributes of every element.

A store is a SpatialData container (Zarr v3) that plain `spatialdata.read_zarr` opens::

    zarr.json                          spatialdata_attrs, stzarr (layout, id, frame, provenance ...); written last
    images/<id>_image_um/              s0/image, s1/image ... (c, y, x), the picture registered onto the um frame
    images/<id>_full_image/            the same in the source's own pixels, if asked for (--image-frame)
    images/<id>_hires_image/ ..        the vendor's previews, as they were
    labels/<id>_square_008um_labels/   s0/image (y, x) int32, value = row of the table + 1 = location_id, 0 = nothing
    shapes/<id>/                       shapes.parquet, circles of spots
    tables/square_008um | table/       AnnData, CSR, rows in tile order, X/tile_indptr
    stzarr/tissue                      (y, x) float32, share of tissue per cell of TISSUE_UM
    stzarr/ (attributes)               manifest: path -> [bytes, sha256] of every other file
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from zarr.codecs import BloscCodec

from stzarr.errors import IngestError
from stzarr.space import Homography, PixelGrid

LAYOUT_VERSION = 1
SPATIALDATA_VERSION = "0.2"
RASTER_VERSION = "0.3"
SHAPES_VERSION = "0.3"
TABLE_VERSION = "0.2"
NGFF_VERSION = "0.5-dev-spatialdata"

IMAGE_CHUNK_PX = 256
SHARD_PX = 2048
ENTRIES_PER_CHUNK = 1 << 16
ENTRIES_PER_SHARD = 1 << 22
ROWS_PER_CHUNK = 1 << 16
ROWS_PER_SHARD = 1 << 20

TILE_CELLS = 32
"""Side of a tile of counts, in grid cells; its rows of the table are contiguous."""

TISSUE_UM = 16.0
"""Cell of the tissue map [µm]."""

FRAME = "um"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_TAKEN = re.compile(r"um|global|(?i:table|square_[\d.]+um)")
"""Names of coordinate systems, and of tables, which SpatialData compares without case."""


def codec(dtype: np.dtype[Any]) -> BloscCodec:
    """Return the compressor of every array of this type; shuffling by a wrong item size makes stores 1.7 x larger."""
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=dtype.itemsize)


def block_shape(num: int, chunk: int, shard: int) -> tuple[int, int]:
    """Return (chunk, shard) along one axis of `num` items: no longer than the axis, the shard whole chunks."""
    chunk = max(1, min(num, chunk))
    return chunk, min(-(-max(num, 1) // chunk) * chunk, shard // chunk * chunk)


def is_taken(name: str) -> bool:
    """Whether a coordinate system or a table can have this name, so that no slide may."""
    return _TAKEN.fullmatch(name) is not None


def check_id(slide_id: str) -> str:
    """Return the id if it can be the name of an element and a part of others, else raise ST110."""
    if is_taken(slide_id):
        raise IngestError(
            "ST110", f"the slide id {slide_id!r} has another meaning in a store", cure="--id with another name"
        )
    if not _ID.match(slide_id) or ".." in slide_id:
        raise IngestError(
            "ST110",
            f"the slide id {slide_id!r} cannot be part of a name",
            cure="--id with letters, digits, '_', '-' and '.'",
        )
    return slide_id


def table_name(bin_um: float) -> str:
    """Return the name of a table of bins: ``square_008um``; for part micrometres ``square_000.5um``."""
    return f"square_{int(bin_um):03d}um" if bin_um == int(bin_um) else f"square_{bin_um:05.1f}um"


def instance_key(kind: str) -> str:
    """Return the obs column that names the instance of the region: of bins the label, of spots the circle."""
    return "location_id" if kind == "bins" else "spot_id"


def region_name(slide_id: str, table: str) -> str:
    """Return the element that a table annotates: labels of bins, or the shapes of spots."""
    return slide_id if table == "table" else f"{slide_id}_{table}_labels"


def scale_then_move(axes: str, scale: tuple[float, float], move: tuple[float, float]) -> list[dict[str, Any]]:
    """Return NGFF transformations, scale before translation; `scale` and `move` are (y, x)."""
    lead = len(axes) - 2
    return [
        {"type": "scale", "scale": [1.0] * lead + list(scale)},
        {"type": "translation", "translation": [0.0] * lead + list(move)},
    ]


def to_system(axes: str, name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a transformation to a named coordinate system, as SpatialData reads it."""
    kinds = {"c": ("channel", None), "y": ("space", "unit"), "x": ("space", "unit")}

    def described(axis: str) -> dict[str, Any]:
        kind, unit = kinds[axis]
        return {"name": axis, "type": kind} | ({"unit": unit} if unit else {})

    def system(system_name: str) -> dict[str, Any]:
        return {"name": system_name, "axes": [described(axis) for axis in axes]}

    ends = {"input": system(axes), "output": system(name)}
    if len(steps) == 1:
        return steps[0] | ends
    return {"type": "sequence", "transformations": [step | ends for step in steps]} | ends


def affine_step(axes: str, affine: Homography) -> dict[str, Any]:
    """Return an affine map of (x, y) as an NGFF step in the order of `axes`."""
    (xx, xy, tx), (yx, yy, ty), _ = affine.rows
    if axes == "xy":
        return {"type": "affine", "affine": [[xx, xy, tx], [yx, yy, ty]]}
    lead = len(axes) - 2
    rows = [[float(i == j) for j in range(lead)] + [0.0, 0.0, 0.0] for i in range(lead)]
    return {
        "type": "affine",
        "affine": [*rows, [0.0] * lead + [yy, yx, ty], [0.0] * lead + [xy, xx, tx]],
    }


def pixel_levels(grid: PixelGrid, num: int) -> list[dict[str, Any]]:
    """Return the physical scale and the origin (centre of the first pixel) of every level, in µm."""
    levels = []
    for index in range(num):
        mpp = grid.mpp * 2**index
        levels.append({"scale": (mpp, mpp), "move": (grid.y0_um + mpp / 2, grid.x0_um + mpp / 2)})
    return levels
