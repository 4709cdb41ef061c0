"""Small stores written by hand, array by array, with the dense truth beside them.

They pin down the layout that the reader relies on, apart from the writer's own code.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from stzarr.space import BinLattice, Frame, Homography, Lattice, PixelGrid, SpotLattice, registered_grid

GENE_IDS = [f"ENSG{number:03d}" for number in range(9)]
SYMBOLS = ["EPCAM", "KRT8", "Aldoa", "Aldoa-1", "Krtap13", "Krtap13-1", "MT-CO1", "VIM", "ACTB"]
REPEATED = {"Aldoa": ["ENSG002", "ENSG003"]}
TILE = 32


@dataclass(frozen=True)
class Made:
    """A store and what it holds: per table (gene, row, column) counts and whether a cell has a row."""

    path: Path
    counts: dict[str, NDArray[np.int64]]
    present: dict[str, NDArray[np.bool_]]
    image: list[NDArray[np.uint8]]
    native: NDArray[np.uint8]
    tissue: NDArray[np.float32]


def bins_store(path: Path, *, mirrored: bool = True, seed: int = 0) -> Made:
    """Write a Visium HD like store: 2 and 8 µm bins over 200 x 152 µm, three levels of 0.5 µm pixels."""
    rng = np.random.default_rng(seed)
    fine = BinLattice(2.0, 76, 100, mirrored)
    counts = rng.poisson(0.3, (len(GENE_IDS), *fine.grid_shape)) * rng.integers(1, 300, fine.grid_shape)
    present = rng.random(fine.grid_shape) < 0.8
    present[32:64, 32:64] = False  # a tile without a single row
    counts = np.where(present, counts, 0)
    tables = {"square_002um": (fine, counts, present)}
    coarse = fine.at(8.0)
    blocks = (coarse.num_rows, 4, coarse.num_cols, 4)
    tables["square_008um"] = (
        coarse,
        counts.reshape(-1, *blocks).sum((2, 4)),
        present.reshape(blocks).any((1, 3)),
    )
    return _write(path, "hd1", "Visium HD", tables, rng)


def spots_store(path: Path, *, mirrored: bool = False, seed: int = 0) -> Made:
    """Write a Visium like store: 10 rows of 6 spots."""
    rng = np.random.default_rng(seed)
    lattice = SpotLattice(87.0, 10, 12, mirrored)
    counts = rng.poisson(2.0, (len(GENE_IDS), *lattice.grid_shape))
    present = rng.random(lattice.grid_shape) < 0.7
    return _write(path, "v1", "Visium", {"table": (lattice, np.where(present, counts, 0), present)}, rng)


def _write(path: Path, slide_id: str, assay: str, tables: dict[str, Any], rng: np.random.Generator) -> Made:
    root = zarr.open_group(path, mode="w", zarr_format=3)
    lattice: Lattice = next(iter(tables.values()))[0]
    to_px = Homography.scale_then_move(2.0, 2.0, 10.0, 20.0)
    frame = Frame(to_px, 0.5, 0.0, to_px, 0.0, lattice)
    area = lattice.bounds_um
    grid = registered_grid(area, 0.5 if lattice.kind == "bins" else 4.0, margin_um=16.0, max_thumb_px=128)
    image = [rng.integers(0, 256, (3, grid.height, grid.width), np.uint8)]
    while len(image) < 3:
        c, h, w = image[-1].shape
        sums = image[-1].reshape(c, h // 2, 2, w // 2, 2).sum((2, 4), dtype=np.uint32)
        image.append(((sums + 2) // 4).astype(np.uint8))
    native = rng.integers(0, 256, (3, 30, 40), np.uint8)
    images = {
        f"{slide_id}_image_um": _image(root, f"{slide_id}_image_um", image, {"grid": vars(grid), "frame": "um"}),
        f"{slide_id}_hires_image": _image(
            root, f"{slide_id}_hires_image", [native], {"grid": None, "frame": "native", "um_to_px": to_px.tolist()}
        ),
    }
    tissue_grid = PixelGrid(16.0, 0.0, 0.0, -(-int(area[2]) // 16), -(-int(area[3]) // 16))
    tissue = rng.random((tissue_grid.height, tissue_grid.width)).astype(np.float32)
    root.create_group("stzarr", attributes={"manifest": {}})
    root.create_array("stzarr/tissue", data=tissue)
    root.attrs["spatialdata_attrs"] = {"version": "0.2"}
    root.attrs["stzarr"] = {
        "layout_version": 1,
        "id": slide_id,
        "assay": assay,
        "simulated": True,
        "frame": frame.to_json(),
        "area_um": list(area),
        "images": images,
        "tables": {name: _table(root, slide_id, name, *parts) for name, parts in tables.items()},
        "tissue": {"grid": vars(tissue_grid), "origin": "in_tissue"},
        "meta": {"donor": "D1"},
        "warnings": ["an <odd> warning"],
        "created": "2024-01-01T00:00:00Z",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: not yet in the specification
        zarr.consolidate_metadata(path)
    return Made(
        path,
        {name: parts[1] for name, parts in tables.items()},
        {name: parts[2] for name, parts in tables.items()},
        image,
        native,
        tissue,
    )


def _image(root: zarr.Group, name: str, levels: list[NDArray[np.uint8]], fields: dict[str, Any]) -> dict[str, Any]:
    for index, pixels in enumerate(levels):
        root.create_array(f"images/{name}/s{index}/image", data=pixels, chunks=(3, 64, 64), shards=(3, 128, 128))
    return fields | {
        "channels": ["r", "g", "b"],
        "dtype": "uint8",
        "levels": [f"s{index}/image" for index in range(len(levels))],
        "shape": list(levels[0].shape),
    }


def _table(
    root: zarr.Group, slide_id: str, name: str, lattice: Lattice, counts: NDArray[np.int64], present: NDArray[np.bool_]
) -> dict[str, Any]:
    tile_shape = tuple(-(-size // TILE) for size in lattice.grid_shape)
    row, col = np.nonzero(present)
    tile = row // TILE * tile_shape[1] + col // TILE
    order = np.lexsort((col, row, tile))
    row, col, tile = row[order].astype(np.int32), col[order].astype(np.int32), tile[order]
    of_cell = counts[:, row, col].T
    cell, gene = np.nonzero(of_cell)
    table = f"tables/{name}"
    bins = lattice.kind == "bins"
    key = "location_id" if bins else "spot_id"
    region = f"{slide_id}_{name}_labels" if bins else slide_id
    link = {"region": region, "region_key": "region", "instance_key": key}
    _group(root, table, "anndata", "0.1.0", link)
    for child in ("layers", "obsp", "uns", "varm", "varp", "obsm"):
        _group(root, f"{table}/{child}", "dict", "0.1.0")
    _group(root, f"{table}/X", "csr_matrix", "0.1.0", {"shape": [len(row), len(counts)]})
    _array(root, f"{table}/X/data", of_cell[cell, gene].astype(np.uint16))
    _array(root, f"{table}/X/indices", gene.astype(np.int32))
    _array(root, f"{table}/X/indptr", np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=len(row)))]))
    tile_indptr = np.searchsorted(tile, np.arange(tile_shape[0] * tile_shape[1] + 1))
    _array(root, f"{table}/X/tile_indptr", tile_indptr.astype(np.int64))
    centres = lattice.centres_um(row, col)
    _array(root, f"{table}/obsm/spatial", Homography.scale_then_move(2.0, 2.0, 10.0, 20.0)(centres))
    _array(root, f"{table}/obsm/spatial_um", centres)
    number = np.arange(1, len(row) + 1, dtype=np.int32)
    array_row, array_col = _array_position(lattice, row, col)
    columns = {
        key: number,
        "array_row": array_row,
        "array_col": array_col,
        "in_tissue": (number % 5 > 0).astype(np.uint8),
        "grid_row": row,
        "grid_col": col,
    }
    _group(root, f"{table}/obs", "dataframe", "0.2.0", {"column-order": [*columns, "region"], "_index": "_index"})
    for column, values in columns.items():
        _array(root, f"{table}/obs/{column}", values)
    _group(root, f"{table}/obs/region", "categorical", "0.2.0", {"ordered": False})
    _array(root, f"{table}/obs/region/codes", np.zeros(len(row), np.int8))
    _strings(root, f"{table}/obs/region/categories", [region])
    if bins:
        _array(root, f"{table}/obs/_index", number)
    else:
        _strings(root, f"{table}/obs/_index", [f"AC{n:04d}-1" for n in number])
    _group(root, f"{table}/var", "dataframe", "0.2.0", {"column-order": ["gene_ids"], "_index": "_index"})
    _strings(root, f"{table}/var/_index", SYMBOLS)
    _strings(root, f"{table}/var/gene_ids", GENE_IDS)
    if bins:
        _labels(root, region, lattice.cell_um[0], row, col)
    return {
        "lattice": vars(lattice),
        "region": region,
        "n_obs": len(row),
        "n_vars": len(counts),
        "nnz": len(cell),
        "total": int(counts.sum()),
        "max": int(counts.max()),
        "tile_cells": TILE,
        "tile_shape": list(tile_shape),
        "repeated_symbols": REPEATED,
    }


def _array_position(
    lattice: Lattice, row: NDArray[np.int32], col: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if lattice.kind == "bins":
        return lattice.grid(row, col)
    x = lattice.centres_um(row, col)[:, 0]
    return row, np.rint(replace(lattice).array_to_um.inverse()(np.stack([x, x], -1))[:, 0]).astype(np.int32)


def _labels(root: zarr.Group, region: str, size: float, row: NDArray[np.int32], col: NDArray[np.int32]) -> None:
    top, left = int(row.min()), int(col.min())
    raster = np.zeros((row.max() - top + 1, col.max() - left + 1), np.int32)
    raster[row - top, col - left] = np.arange(1, len(row) + 1)
    move = [(top + 0.5) * size, (left + 0.5) * size]
    steps = [{"type": "scale", "scale": [size, size]}, {"type": "translation", "translation": move}]
    multiscale = {"datasets": [{"path": "s0/image", "coordinateTransformations": steps}]}
    root.create_group(f"labels/{region}", attributes={"ome": {"multiscales": [multiscale]}})
    root.create_array(f"labels/{region}/s0/image", data=raster, chunks=(32, 32), shards=(64, 64))


def _group(root: zarr.Group, path: str, kind: str, version: str, more: dict[str, Any] | None = None) -> None:
    attributes = {"encoding-type": kind, "encoding-version": version} | (more or {})
    root.create_group(path, attributes=attributes)


def _array(root: zarr.Group, path: str, values: NDArray[Any]) -> None:
    encoding = {"encoding-type": "array", "encoding-version": "0.2.0"}
    chunks = (max(1, min(len(values), 512)), *values.shape[1:])
    root.create_array(path, data=values, chunks=chunks, attributes=encoding)


def _strings(root: zarr.Group, path: str, values: list[str]) -> None:
    encoding = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
    array = root.create_array(path, shape=(len(values),), dtype="string", attributes=encoding)
    array[:] = np.array(values, dtype=np.dtypes.StringDType())
