"""Reading a store: one small file to open it, then plain windows of pixels and cells. NumPy in, NumPy out.

`StoreReader` reads the root metadata only; arrays are opened when first used and kept. Everything here can be shared
by threads and sent to another process, which opens the store again by its path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from stzarr.errors import SlideError, StoreError, listing
from stzarr.space import Bounds, Frame, Homography, PixelGrid
from stzarr.store.counts_reader import CountsTable
from stzarr.store.layout import LAYOUT_VERSION
from stzarr.store.means import block_means

_MISSHAPEN = (AttributeError, LookupError, TypeError, ValueError)
"""What reading JSON of another shape than ours raises."""


class StoreReader:
    """An opened store.

    Parameters
    ----------
    path : path
        Folder of the store.

    Attributes
    ----------
    path : Path
    attrs : dict
        The root attribute ``stzarr``: geometry, provenance, ``meta``, ``warnings``.
    id, assay : str
    frame : Frame
    area_um : tuple of float
        Capture area, or the picture of a plain slide, half-open [µm].
    images : dict of str to ImagePyramid
    tables : dict of str to CountsTable
    tissue : TissueMap or None

    Raises
    ------
    StoreError
        ST201: no store there. ST202: a store that was never finished. ST203: a layout newer than this version knows.
        ST204: damaged metadata.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._group = _open_root(self.path)
        self._arrays: dict[str, zarr.Array] = {}
        attrs = _checked_attrs(self._group, self.path)
        self.attrs = attrs
        try:
            self.id: str = attrs["id"]
            self.assay: str = attrs["assay"]
            self.frame = Frame.from_json(attrs["frame"])
            x0, y0, x1, y1 = attrs["area_um"]
            self.area_um: Bounds = (x0, y0, x1, y1)
            self.images = {name: ImagePyramid(self, name, fields) for name, fields in attrs["images"].items()}
            self.tables = {name: CountsTable(self, name, fields) for name, fields in attrs["tables"].items()}
            self.tissue = TissueMap(self, attrs["tissue"]) if attrs["tissue"] else None
        except _MISSHAPEN as error:
            raise _damaged_root(self.path, error) from error

    def __repr__(self) -> str:
        return f"StoreReader({str(self.path)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return StoreReader, (self.path,)

    @property
    def token(self) -> tuple[str, str, str]:
        """What names this store's content in keys of Dask graphs: path, id and time of writing."""
        return (str(self.path.absolute()), self.id, str(self.attrs.get("created")))

    def array(self, path: str) -> zarr.Array:
        """Return an array of the store, opened from the root metadata and kept; ST204 where it is missing."""
        found = self._arrays.get(path)
        if found is None:
            found = self._member(path, zarr.Array)
            self._arrays[path] = found
        return found

    def group(self, path: str) -> zarr.Group:
        """Return a group of the store; ST204 where it is missing."""
        return self._member(path, zarr.Group)

    def _member(self, path: str, kind: type[Any]) -> Any:
        member = self._group.get(path)
        if not isinstance(member, kind):
            raise StoreError(
                "ST204",
                f"the store has no {kind.__name__.lower()} {path!r}",
                file=self.path,
                cure=f"stzarr validate {self.path}, or ingest again",
            )
        return member

    def default_image(self) -> ImagePyramid | None:
        """Return the registered image, or None where the store has only native pictures or none."""
        return next((image for image in self.images.values() if image.registered), None)

    def table_for(self, bin_um: float | None) -> tuple[CountsTable, int]:
        """Find the table to sum bins of a size from.

        Parameters
        ----------
        bin_um : float, optional
            Bin size [µm]; of spots a multiple of 100. None is the finest table as it is.

        Returns
        -------
        table : CountsTable
            The coarsest whose cells divide `bin_um`: the sums of the source itself where it gives them.
        factor : int
            Cells of the table on a side of one bin.

        Raises
        ------
        SlideError
            ST304: no stored size divides `bin_um`. ST305: the store has no counts.
        """
        if not self.tables:
            raise SlideError("ST305", f"slide {self.id!r} has no counts", file=self.path, cure="use its images")
        tables = sorted(self.tables.values(), key=lambda table: table.cell_size_um)
        if bin_um is None:
            return tables[0], 1
        for table in reversed(tables):
            factor = _whole_ratio(bin_um, table.cell_size_um)
            if factor:
                return table, factor
        sizes = listing(f"{table.cell_size_um:g}" for table in tables)
        raise SlideError(
            "ST304",
            f"no stored bins add up to bins of {bin_um:g} µm",
            file=f"{self.path} (stored: {sizes} µm)",
            cure=f"bin_um = one of {sizes}, or multiples of them",
        )


def _open_root(path: Path) -> zarr.Group:
    if not path.is_dir():
        raise StoreError("ST201", f"there is no store at {path}", file=path, cure="check the path")
    if not (path / "zarr.json").is_file():
        raise StoreError(
            "ST202",
            "the folder has no root metadata: it is no store, or one that was never finished",
            file=path,
            cure="run the same `stzarr ingest` again, it continues",
        )
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except (*_MISSHAPEN, FileNotFoundError) as error:
        raise _damaged_root(path, error) from error


def _damaged_root(path: Path, error: Exception) -> StoreError:
    what = f"the root metadata cannot be read: {type(error).__name__}: {error}"
    return StoreError("ST204", what, file=path / "zarr.json", cure="copy the store again, or ingest again")


def _checked_attrs(group: zarr.Group, path: Path) -> dict[str, Any]:
    attrs = group.attrs.get("stzarr")
    if not isinstance(attrs, dict) or "layout_version" not in attrs:
        raise StoreError(
            "ST201", "this Zarr group is not a store of stzarr", file=path, cure="`stzarr ingest` makes one"
        )
    version = attrs["layout_version"]
    if not isinstance(version, int) or version > LAYOUT_VERSION:
        raise StoreError(
            "ST203",
            f"the store has layout version {version}, this stzarr reads up to {LAYOUT_VERSION}",
            file=path,
            cure="pip install --upgrade stzarr",
        )
    missing = {"id", "assay", "frame", "area_um", "images", "tables", "tissue"} - attrs.keys()
    if missing:
        raise StoreError("ST204", f"the root metadata lacks {listing(sorted(missing))}", file=path / "zarr.json")
    return attrs


def _whole_ratio(size: float, unit: float) -> int:
    """Return size / unit where that is a whole number, else 0."""
    ratio = size / unit
    if not 0.5 < ratio < 1e9:  # nor what is no number
        return 0
    return round(ratio) if abs(ratio - round(ratio)) < 1e-9 * ratio else 0


# ------------------------------------------------------------------------------------------------------- images


class ImagePyramid:
    """One picture at all its levels.

    Attributes
    ----------
    name : str
        Name of the element.
    registered : bool
        Whether its pixels lie on the ``um`` frame; else they are the source's own.
    channels : tuple of str
    dtype : numpy.dtype
        uint8 or uint16.
    shape : tuple of int
        (c, height, width) of level 0.
    levels : tuple of PixelGrid
        Finest first [µm]; of a native picture in its own pixels: ``mpp`` is then pixels per pixel.
    um_to_px : Homography or None
        Of a native picture: µm to its pixel centres.
    """

    def __init__(self, reader: StoreReader, name: str, fields: dict[str, Any]) -> None:
        self._reader = reader
        self.name = name
        self.fields = fields
        self.registered: bool = fields["frame"] == "um"
        self.channels: tuple[str, ...] = tuple(fields["channels"])
        self.dtype: np.dtype[Any] = np.dtype(fields["dtype"])
        c, height, width = fields["shape"]
        self.shape: tuple[int, int, int] = (c, height, width)
        # The centre of a native picture's first pixel is 0, so its edge is -0.5.
        base = PixelGrid(**fields["grid"]) if self.registered else PixelGrid(1.0, -0.5, -0.5, width, height)
        self.levels = tuple(base.level(index) for index in range(len(fields["levels"])))
        self.um_to_px = None if self.registered else Homography.from_matrix(fields["um_to_px"])

    def __reduce__(self) -> tuple[object, ...]:
        return _image_of, (self._reader, self.name)

    @property
    def token(self) -> tuple[str, ...]:
        """What names this picture's content in keys of Dask graphs."""
        return (*self._reader.token, self.name)

    def level_for(self, mpp: float) -> tuple[int, int]:
        """Find the coarsest level whose pixels divide `mpp` a whole number of times.

        Returns
        -------
        level, factor : int
            Pixels of `mpp` are exact means of factor x factor pixels of the level.

        Raises
        ------
        SlideError
            ST303: no level divides `mpp`, or the picture is not on the ``um`` frame.
        """
        for level in reversed(range(len(self.levels) if self.registered else 0)):
            factor = _whole_ratio(mpp, self.levels[level].mpp)
            if factor:
                return level, factor
        if not self.registered:
            raise SlideError(
                "ST303", f"image {self.name!r} has the source's own pixels: it has no mpp in µm", cure="leave mpp out"
            )
        sizes = listing(f"{grid.mpp:g}" for grid in self.levels)
        raise SlideError(
            "ST303",
            f"image {self.name!r} has no level whose pixels add up to {mpp:g} µm",
            cure=f"mpp = one of {sizes}, or a whole multiple of one",
        )

    def grid(self, level: int, factor: int = 1) -> PixelGrid:
        """Return the pixels of a level, or of its means over factor x factor pixels."""
        g = self.levels[level]
        return PixelGrid(g.mpp * factor, g.x0_um, g.y0_um, -(-g.width // factor), -(-g.height // factor))

    def read(self, level: int, y0: int, y1: int, x0: int, x1: int, factor: int = 1) -> NDArray[Any]:
        """Read a window of a level.

        Parameters
        ----------
        level : int
        y0, y1, x0, x1 : int
            Rows and columns, half-open; the window may leave the raster.
        factor : int
            Take means over factor x factor pixels; the window then counts those.

        Returns
        -------
        ndarray, shape (c, y1 - y0, x1 - x0)
            Loaded; 0 outside the raster. Means are exact and rounded half up; those over the raster's edge are of the
            pixels that exist.
        """
        pixels = self._read_padded(level, y0 * factor, y1 * factor, x0 * factor, x1 * factor)
        if factor == 1:
            return pixels
        g = self.levels[level]
        rows, cols = _present(y0, y1, factor, g.height), _present(x0, x1, factor, g.width)
        return block_means(pixels, factor, rows[:, None] * cols)

    def _read_padded(self, level: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        g = self.levels[level]
        ya, yb = np.clip((y0, y1), 0, g.height)
        xa, xb = np.clip((x0, x1), 0, g.width)
        shape = (self.shape[0], max(y1 - y0, 0), max(x1 - x0, 0))
        if ya >= yb or xa >= xb:
            return np.zeros(shape, self.dtype)
        array = self._reader.array(f"images/{self.name}/{self.fields['levels'][level]}")
        found = np.asarray(array[:, ya:yb, xa:xb])
        if found.shape == shape:
            return found
        padded = np.zeros(shape, self.dtype)
        padded[:, ya - y0 : yb - y0, xa - x0 : xb - x0] = found
        return padded


def _image_of(reader: StoreReader, name: str) -> ImagePyramid:
    return reader.images[name]


def _present(start: int, stop: int, factor: int, size: int) -> NDArray[np.int64]:
    """Return how many of the `factor` fine pixels of each coarse pixel exist."""
    edges = np.clip(np.arange(start, stop + 1) * factor, 0, size)
    return np.diff(edges)


# ------------------------------------------------------------------------------------------------------- tissue


@dataclass(frozen=True)
class _Integral:
    """Summed area table, shape (height + 1, width + 1), of a piecewise constant map."""

    table: NDArray[np.float64]

    def __call__(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the integral over [0, y) x [0, x) in cells; exact, since it is bilinear inside a cell."""
        height, width = self.table.shape[0] - 1, self.table.shape[1] - 1
        y, x = np.clip(y, 0, height), np.clip(x, 0, width)
        i, j = np.minimum(y.astype(np.int64), height - 1), np.minimum(x.astype(np.int64), width - 1)
        v, u = y - i, x - j
        upper = (1 - u) * self.table[i, j] + u * self.table[i, j + 1]
        lower = (1 - u) * self.table[i + 1, j] + u * self.table[i + 1, j + 1]
        return (1 - v) * upper + v * lower


class TissueMap:
    """Share of tissue over the slide, one value a cell; loaded on first use.

    Attributes
    ----------
    grid : PixelGrid
        Its cells in the ``um`` frame.
    origin : str
        ``in_tissue`` or ``image``: what the map was made from.
    """

    def __init__(self, reader: StoreReader, fields: dict[str, Any]) -> None:
        self._reader = reader
        self.grid = PixelGrid(**fields["grid"])
        self.origin: str = fields["origin"]

    @cached_property
    def share(self) -> NDArray[np.float32]:
        """Share of each cell that is tissue, shape (y, x), in [0, 1]."""
        return np.asarray(self._reader.array("stzarr/tissue")[:], np.float32)

    @cached_property
    def _integral(self) -> _Integral:
        sums = self.share.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
        return _Integral(np.pad(sums, ((1, 0), (1, 0))))

    def share_of(self, bounds_um: ArrayLike) -> NDArray[np.float64]:
        """Return the share of boxes that is tissue.

        Parameters
        ----------
        bounds_um : array, shape (n, 4)
            Boxes (x0, y0, x1, y1) [µm].

        Returns
        -------
        float64, shape (n,)
            Exact mean of the map over each box, which counts as 0 outside the map; 0 for an empty box.
        """
        boxes = np.asarray(bounds_um, np.float64).reshape(-1, 4)
        g = self.grid
        x0, x1 = (boxes[:, 0] - g.x0_um) / g.mpp, (boxes[:, 2] - g.x0_um) / g.mpp
        y0, y1 = (boxes[:, 1] - g.y0_um) / g.mpp, (boxes[:, 3] - g.y0_um) / g.mpp
        whole = self._integral
        inside = whole(y1, x1) - whole(y0, x1) - whole(y1, x0) + whole(y0, x0)
        area = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
        return np.clip(np.divide(inside, area, out=np.zeros_like(inside), where=area > 0), 0.0, 1.0)
