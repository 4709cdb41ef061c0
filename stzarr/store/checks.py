"""What `validate` checks of each element: attributes, shapes, indexes, regions and sums, a shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from stzarr.errors import listing
from stzarr.space import lattice_from_json
from stzarr.store import layout, regions
from stzarr.store.anndata_format import array_at, group_at
from stzarr.store.counts import TileOrder
from stzarr.store.units import Progress

UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError)
"""What Zarr, its codecs and pyarrow raise on damaged metadata or chunks."""


@dataclass(frozen=True)
class Problem:
    """A finding without its cure."""

    code: str
    file: str
    what: str


Check = Callable[[zarr.Group, Progress | None], Iterator[Problem]]


@dataclass(frozen=True)
class Element:
    """Parts of a store that are checked together: their paths, and the check."""

    paths: tuple[str, ...]
    check: Check


def elements(attrs: dict[str, Any], store: Path) -> list[Element]:
    """Return the elements that the root attribute ``stzarr`` of a store speaks of."""
    found = [_image(f"images/{name}", fields) for name, fields in attrs["images"].items()]
    for name, fields in attrs["tables"].items():
        found.append(_table(f"tables/{name}", fields))
        found.append(_region(store, f"tables/{name}", fields))
    if attrs["tissue"]:
        found.append(_tissue(attrs["tissue"]))
    return found


def _missing(given: Any, wanted: dict[str, Any]) -> list[str]:
    return [key for key, value in wanted.items() if given.get(key) != value]


def _targets(systems: Any) -> set[str]:
    """Return the coordinate systems that a list of NGFF transformations leads to."""
    return {system["output"]["name"] for system in systems}


def _raster_attributes(root: zarr.Group, path: str) -> Iterator[Problem]:
    attrs: Any = group_at(root, path).attrs
    if attrs["ome"]["version"] != layout.NGFF_VERSION:
        yield Problem("ST255", path, f"ome.version is {attrs['ome']['version']!r}, not {layout.NGFF_VERSION!r}")
    if attrs["spatialdata_attrs"]["version"] != layout.RASTER_VERSION:
        yield Problem("ST255", path, f"spatialdata_attrs.version is not {layout.RASTER_VERSION!r}")
    if layout.FRAME not in _targets(attrs["ome"]["multiscales"][0]["coordinateTransformations"]):
        yield Problem("ST255", path, f"no transformation leads to {layout.FRAME!r}")


# ------------------------------------------------------------------------------------------------------- rasters


def _image(path: str, fields: dict[str, Any]) -> Element:
    def check(root: zarr.Group, progress: Progress | None) -> Iterator[Problem]:
        yield from _raster_attributes(root, path)
        attrs: Any = group_at(root, path).attrs
        labels = [channel["label"] for channel in attrs["ome"]["omero"]["channels"]]
        if labels != fields["channels"]:
            yield Problem("ST255", path, f"the channels are {listing(labels)}, not {listing(fields['channels'])}")
        listed = [level["path"] for level in attrs["ome"]["multiscales"][0]["datasets"]]
        if listed != fields["levels"]:
            yield Problem("ST255", path, f"the levels are {listing(listed)}, not {listing(fields['levels'])}")
        channels, height, width = fields["shape"]
        for index, level in enumerate(fields["levels"]):
            array = array_at(root, f"{path}/{level}")
            shape = (channels, -(-height // 2**index), -(-width // 2**index))
            if array.shape != shape or array.dtype != np.dtype(fields["dtype"]):
                yield _shaped(f"{path}/{level}", array, shape)

    return Element((path,), check)


def _tissue(fields: dict[str, Any]) -> Element:
    path = "stzarr/tissue"

    def check(root: zarr.Group, progress: Progress | None) -> Iterator[Problem]:
        array, shape = array_at(root, path), (fields["grid"]["height"], fields["grid"]["width"])
        if array.shape != shape:
            yield _shaped(path, array, shape)
            return
        share: Any = array[...]
        if not ((share >= 0) & (share <= 1)).all():
            yield Problem("ST257", path, "shares of tissue lie outside 0..1")

    return Element((path,), check)


def _shaped(path: str, array: zarr.Array, shape: tuple[int, ...]) -> Problem:
    return Problem("ST256", path, f"the array is {array.dtype} {array.shape} where {shape} was written")


# -------------------------------------------------------------------------------------------------------- tables


def _table(path: str, fields: dict[str, Any]) -> Element:
    def check(root: zarr.Group, progress: Progress | None) -> Iterator[Problem]:
        wrong = [*_table_attributes(root, path, fields), *_table_shapes(root, path, fields)]
        yield from wrong
        if not wrong:
            yield from _indexes(root, path, fields)
            yield from _sums(root, path, fields, progress)

    return Element((path,), check)


def _table_attributes(root: zarr.Group, path: str, fields: dict[str, Any]) -> Iterator[Problem]:
    link = {
        "region": fields["region"],
        "region_key": "region",
        "instance_key": layout.instance_key(fields["lattice"]["kind"]),
    }
    kind = {"encoding-type": "anndata", "spatialdata-encoding-type": "ngff:regions_table"}
    wrong = _missing(group_at(root, path).attrs, {**kind, **link, "version": layout.TABLE_VERSION})
    if wrong:
        yield Problem("ST255", path, f"attributes of the table are missing or wrong: {listing(wrong)}")
    uns = group_at(root, f"{path}/uns/spatialdata_attrs")
    given = {key: str(array_at(uns, key)[()]) for key in link if key in uns}
    if _missing(given, link):
        yield Problem("ST255", f"{path}/uns/spatialdata_attrs", f"wrong or missing: {listing(_missing(given, link))}")
    categories = [str(name) for name in np.atleast_1d(array_at(root, f"{path}/obs/region/categories")[:])]
    if categories != [fields["region"]]:
        yield Problem("ST255", f"{path}/obs/region", f"the rows belong to {listing(categories)}")


def _table_shapes(root: zarr.Group, path: str, fields: dict[str, Any]) -> Iterator[Problem]:
    n_obs, n_vars, nnz = fields["n_obs"], fields["n_vars"], fields["nnz"]
    tile_rows, tile_cols = fields["tile_shape"]
    x = {"data": nnz, "indices": nnz, "indptr": n_obs + 1, "tile_indptr": tile_rows * tile_cols + 1}
    obs = (
        "_index",
        layout.instance_key(fields["lattice"]["kind"]),
        "array_row",
        "array_col",
        "in_tissue",
        "grid_row",
        "grid_col",
        "region/codes",
    )
    var = ("_index", "gene_ids", "feature_types", "genome", "total_counts")
    shapes: dict[str, tuple[int, ...]] = {f"X/{name}": (num,) for name, num in x.items()}
    shapes |= {f"obs/{name}": (n_obs,) for name in obs} | {f"var/{name}": (n_vars,) for name in var}
    shapes |= {"obsm/spatial": (n_obs, 2), "obsm/spatial_um": (n_obs, 2)}
    for name, shape in shapes.items():
        array = array_at(root, f"{path}/{name}")
        if array.shape != shape:
            yield _shaped(f"{path}/{name}", array, shape)
    if group_at(root, f"{path}/X").attrs.get("shape") != [n_obs, n_vars]:
        yield Problem("ST256", f"{path}/X", f"the attribute shape is not {[n_obs, n_vars]}")
    tiles = {"tile_cells": fields["tile_cells"], "tile_shape": fields["tile_shape"]}
    if _missing(array_at(root, f"{path}/X/tile_indptr").attrs, tiles):
        yield Problem("ST255", f"{path}/X/tile_indptr", f"its attributes are not {tiles}")


def _indexes(root: zarr.Group, path: str, fields: dict[str, Any]) -> Iterator[Problem]:
    """Check that index arrays rise from 0 to their end, and that rows lie in their tiles, each cell once."""
    for name, end in (("indptr", fields["nnz"]), ("tile_indptr", fields["n_obs"])):
        indptr = _loaded(root, f"{path}/X/{name}")
        if indptr[0] != 0 or indptr[-1] != end or (np.diff(indptr) < 0).any():
            yield Problem("ST256", f"{path}/X/{name}", f"it does not rise from 0 to {end}")
            return
    order, side = _order(root, path, fields), fields["tile_cells"]
    tile = (order.grid_row // side).astype(np.int64) * order.tile_shape[1] + order.grid_col // side
    key = (tile * side + order.grid_row % side) * side + order.grid_col % side
    where = np.searchsorted(order.tile_indptr, np.arange(len(tile)), side="right") - 1
    if (np.diff(key) <= 0).any() or not np.array_equal(tile, where):
        yield Problem("ST256", f"{path}/X/tile_indptr", "rows of the table do not lie in their tiles in order")


def _sums(root: zarr.Group, path: str, fields: dict[str, Any], progress: Progress | None) -> Iterator[Problem]:
    """Sum the counts again, a shard at a time, and compare with what ingest recorded."""
    data, indices = array_at(root, f"{path}/X/data"), array_at(root, f"{path}/X/indices")
    per_gene, largest = np.zeros(fields["n_vars"], np.int64), 0
    step = (data.shards or data.chunks)[0]
    for lo in range(0, fields["nnz"], step):
        values: Any = data[lo : lo + step]
        genes: Any = indices[lo : lo + step]
        if genes.min() < 0 or genes.max() >= fields["n_vars"]:
            yield Problem("ST257", f"{path}/X/indices", f"entries name genes outside 0..{fields['n_vars'] - 1}")
            return
        # Sums of float64 are exact below 2^53, as of 2^22 counts below 2^31.
        per_gene += np.bincount(genes, values, fields["n_vars"]).astype(np.int64)
        largest = max(largest, int(values.max()))
        if progress is not None:
            progress(f"counts of {path}", min(lo + step, fields["nnz"]), fields["nnz"])
    if (int(per_gene.sum()), largest) != (fields["total"], fields["max"]):
        yield Problem(
            "ST257",
            f"{path}/X/data",
            f"counts add up to {per_gene.sum()} (largest {largest}) where {fields['total']} (largest {fields['max']}) "
            "was recorded",
        )
    wrong = np.flatnonzero(per_gene != _loaded(root, f"{path}/var/total_counts"))
    if wrong.size:
        yield Problem("ST257", f"{path}/var/total_counts", f"{wrong.size} genes add up to other totals")


def _loaded(root: zarr.Group, path: str) -> NDArray[Any]:
    return np.asarray(array_at(root, path)[...])


def _order(root: zarr.Group, path: str, fields: dict[str, Any]) -> TileOrder:
    row, col = (_loaded(root, f"{path}/obs/{name}") for name in ("grid_row", "grid_col"))
    rows, cols = fields["tile_shape"]
    return TileOrder(np.arange(len(row)), row, col, _loaded(root, f"{path}/X/tile_indptr"), (rows, cols))


# -------------------------------------------------------------------------------------------------------- regions


def _region(store: Path, table: str, fields: dict[str, Any]) -> Element:
    """Return the check of a region against its table; both must be whole."""
    if fields["lattice"]["kind"] == "bins":
        path = f"labels/{fields['region']}"
        return Element((path, table), lambda root, progress: _labels(root, path, table, fields, progress))
    path = f"shapes/{fields['region']}"
    return Element((path, table), lambda root, progress: _circles(root, store, path, fields))


def _labels(
    root: zarr.Group, path: str, table: str, fields: dict[str, Any], progress: Progress | None
) -> Iterator[Problem]:
    """Compare the raster with the table's rows, a shard at a time: each is there once, at its own cell."""
    yield from _raster_attributes(root, path)
    order = _order(root, table, fields)
    grid = regions.labels_grid(lattice_from_json(fields["lattice"]), order.grid_row, order.grid_col)
    raster = array_at(root, f"{path}/{regions.RASTER}")
    if raster.shape != (grid.height, grid.width):
        yield _shaped(f"{path}/{regions.RASTER}", raster, (grid.height, grid.width))
        return
    for box in regions.shard_boxes(grid):
        r0, r1, c0, c1 = box
        if not np.array_equal(raster[r0:r1, c0:c1], regions.labels_block(order, grid, box)):
            yield Problem(
                "ST258",
                f"{path}/{regions.RASTER}",
                f"rows {r0}:{r1}, columns {c0}:{c1} of the labels do not hold each of the table's rows once",
            )
        if progress is not None:
            progress(f"labels of {table}", r1 * grid.width * 4, grid.height * grid.width * 4)


def _circles(root: zarr.Group, store: Path, path: str, fields: dict[str, Any]) -> Iterator[Problem]:
    """Check attributes and instance ids of the circles."""
    import pyarrow.parquet as pq

    attrs: Any = group_at(root, path).attrs
    wrong = _missing(attrs, {"encoding-type": "ngff:shapes", "axes": ["x", "y"]})
    if wrong or layout.FRAME not in _targets(attrs["coordinateTransformations"]):
        yield Problem("ST255", path, f"attributes are wrong, or no transformation leads to {layout.FRAME!r}")
    ids = pq.read_table(store / path / "shapes.parquet", columns=["spot_id"])["spot_id"].to_numpy()
    if not np.array_equal(ids, np.arange(1, fields["n_obs"] + 1)):
        yield Problem("ST258", f"{path}/shapes.parquet", f"{len(ids)} circles for {fields['n_obs']} rows, or other ids")
