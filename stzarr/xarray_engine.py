"""The xarray engine: ``xr.open_datatree(path, engine="stzarr")`` shows pictures, labels and tissue with µm coordinates.

Every level of a picture is a group of its own, since levels differ in size. Data is read when it is indexed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from stzarr.errors import SlideError, listing
from stzarr.labelled import axis_coords, centres, image_attrs, image_coords
from stzarr.lazy import LazyImage
from stzarr.space import PixelGrid
from stzarr.store.reader import ImagePyramid, StoreReader

_Builder = Callable[[], xr.Dataset]


class StzarrBackend(BackendEntrypoint):
    """Opens stores of stzarr; registered with xarray under the name ``stzarr``.

    Groups: ``images/<name>/s0``, ``s1`` ... with ``image`` (c, y, x); ``labels/<name>`` with ``labels`` (y, x), row of
    the table + 1; ``tissue`` with ``tissue`` (y, x), a share. Counts are sparse: `stzarr.open` gives them.
    """

    description: ClassVar[str] = "Open spatial omics slides converted by stzarr (images, labels, tissue) in µm"
    open_dataset_parameters: ClassVar[tuple[str, ...] | None] = ("filename_or_obj", "drop_variables", "group")
    supports_groups: ClassVar[bool] = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | Path,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
    ) -> xr.Dataset:
        """Open one group of a store, lazily; the root holds attributes only.

        Raises
        ------
        StoreError
            ST201-ST204: see `stzarr.open`.
        SlideError
            ST308: there is no such group.
        """
        builders = _builders(StoreReader(filename_or_obj))
        name = (group or "").strip("/")
        if name not in builders:
            names = listing([key for key in builders if key], limit=20)
            raise SlideError("ST308", f"there is no group {group!r}", file=filename_or_obj, cure=f"one of: {names}")
        return builders[name]().drop_vars(_names(drop_variables), errors="ignore")

    def open_groups_as_dict(  # type: ignore[override]
        self, filename_or_obj: str | Path, *, drop_variables: str | Iterable[str] | None = None
    ) -> dict[str, xr.Dataset]:
        """Open every group of a store, lazily, as path -> Dataset."""
        dropped = _names(drop_variables)
        builders = _builders(StoreReader(filename_or_obj))
        return {f"/{name}": build().drop_vars(dropped, errors="ignore") for name, build in builders.items()}

    def open_datatree(  # type: ignore[override]
        self, filename_or_obj: str | Path, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.DataTree:
        """Open a store as a tree of its groups, lazily."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is a folder whose root metadata names stzarr."""
        if not isinstance(filename_or_obj, str | Path):
            return False
        try:
            metadata = json.loads((Path(filename_or_obj) / "zarr.json").read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(metadata, dict) and "stzarr" in metadata.get("attributes", {})


def _names(drop_variables: str | Iterable[str] | None) -> list[str]:
    return [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())


def _builders(reader: StoreReader) -> dict[str, _Builder]:
    """Return what opens each group; nothing is opened yet, so one group of many costs one."""
    builders: dict[str, _Builder] = {"": lambda: _root(reader)}
    for image in reader.images.values():
        for level in range(len(image.levels)):
            builders[f"images/{image.name}/s{level}"] = lambda image=image, level=level: _image(image, level)  # type: ignore[misc]
    for table in reader.tables.values():
        if table.lattice.kind == "bins":
            builders[f"labels/{table.region}"] = lambda name=table.region: _labels(reader, name)  # type: ignore[misc]
    if reader.tissue is not None:
        grid = reader.tissue.grid
        attrs = {"long_name": "share of tissue", "origin": reader.tissue.origin}
        builders["tissue"] = lambda: _raster(reader, "stzarr/tissue", "tissue", grid, attrs)
    return builders


def _root(reader: StoreReader) -> xr.Dataset:
    facts = {"id": reader.id, "assay": reader.assay, "bounds_um": reader.area_um, "mpp_source": reader.frame.mpp}
    return xr.Dataset(attrs=dict(reader.attrs.get("meta", {})) | facts)


def _image(image: ImagePyramid, level: int) -> xr.Dataset:
    grid = image.levels[level]
    lazy = LazyImage(image, level, 1, (0, grid.height), (0, grid.width))
    chunks = dict(zip(("c", "y", "x"), (sizes[0] for sizes in lazy.chunks), strict=True))
    variable = _variable(("c", "y", "x"), lazy, chunks, image_attrs(lazy, grid))
    return xr.Dataset({"image": variable}, coords=image_coords(lazy, grid))


def _labels(reader: StoreReader, name: str) -> xr.Dataset:
    """Open a raster of labels at the place that its own NGFF metadata gives."""
    ome: Any = reader.group(f"labels/{name}").attrs["ome"]
    dataset = ome["multiscales"][0]["datasets"][0]
    steps = {step["type"]: step for step in dataset["coordinateTransformations"]}
    (_, size), (y, x) = steps["scale"]["scale"], steps["translation"]["translation"]
    path = f"labels/{name}/{dataset['path']}"
    height, width = reader.array(path).shape
    grid = PixelGrid(size, x - size / 2, y - size / 2, width, height)
    return _raster(reader, path, "labels", grid, {"long_name": "row of the table + 1, 0 is nothing"})


def _raster(reader: StoreReader, path: str, name: str, grid: PixelGrid, attrs: dict[str, Any]) -> xr.Dataset:
    array = reader.array(path)
    chunks = dict(zip(("y", "x"), array.shards or array.chunks, strict=True))
    y = centres(grid.y0_um, grid.mpp, (0, grid.height))
    x = centres(grid.x0_um, grid.mpp, (0, grid.width))
    return xr.Dataset({name: _variable(("y", "x"), array, chunks, attrs)}, coords=axis_coords(y, x, "um"))


def _variable(dims: tuple[str, ...], array: Any, chunks: dict[str, int], attrs: dict[str, Any]) -> xr.Variable:
    data = indexing.LazilyIndexedArray(_OnIndex(array))
    return xr.Variable(dims, data, attrs=attrs, encoding={"preferred_chunks": chunks})


class _OnIndex(BackendArray):
    """Reads an array when xarray indexes it."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        return self.array[key]
