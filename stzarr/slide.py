"""A slide as people slice it: lazy xarray views in micrometres of everything that a store holds."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from stzarr.errors import BoundsError, SlideError, listing
from stzarr.labelled import counts_array, image_array
from stzarr.lazy import LazyCounts, LazyImage, Span
from stzarr.space import Bounds, Lattice
from stzarr.store.counts_reader import CountsTable
from stzarr.store.reader import ImagePyramid, StoreReader

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

Interval = tuple[float, float]
"""Closed interval of coordinates [µm]."""

EVERYWHERE: Interval = (-math.inf, math.inf)


def open(path: str | Path) -> Slide:
    """Open a store; reads its root metadata only, whatever the size of the slide.

    Parameters
    ----------
    path : path
        Folder of the store.

    Returns
    -------
    Slide

    Raises
    ------
    StoreError
        ST201: no store there. ST202: a store that was never finished. ST203: a layout newer than this version knows.
        ST204: damaged metadata.
    """
    return Slide(StoreReader(path))


@dataclass(frozen=True, repr=False)
class Slide:
    """An opened store, or the part of one that `sel` cut out; immutable, and nothing is read until asked for.

    Parameters
    ----------
    reader : StoreReader
    x, y : tuple of float
        Closed intervals of the slide frame that this view shows [µm].
    """

    reader: StoreReader
    x: Interval = EVERYWHERE
    y: Interval = EVERYWHERE

    @property
    def id(self) -> str:
        """Name of the slide."""
        return self.reader.id

    @property
    def bounds_um(self) -> Bounds:
        """Capture area (the picture of a plain slide), or the part of this view: (x0, y0, x1, y1) [µm]."""
        x0, y0, x1, y1 = self.reader.area_um
        left, right = self.x if self._is_cut_x else (x0, x1)
        top, bottom = self.y if self._is_cut_y else (y0, y1)
        return (left, top, right, bottom)

    @property
    def _is_cut_x(self) -> bool:
        return self.x != EVERYWHERE

    @property
    def _is_cut_y(self) -> bool:
        return self.y != EVERYWHERE

    # ---------------------------------------------------------------------------------------------------- views

    def sel(self, x: slice | None = None, y: slice | None = None) -> Slide:
        """Cut a box out of the slide: image, counts and table alike.

        Parameters
        ----------
        x, y : slice, optional
            ``slice(a, b)`` keeps the pixels and cells whose centres lie in [a, b], both ends included, as label
            slices of xarray do [µm]. An open end reaches to the edge. Cells of spots count by the centre of the cell,
            which the spots of every other row lie 50 µm right of.

        Returns
        -------
        Slide
            A view; nothing is read.

        Raises
        ------
        BoundsError
            ST301: the box does not touch the slide, or is empty.
        SlideError
            ST302: not a slice, or one with a step.
        """
        x0, y0, x1, y1 = self._extent_um
        return Slide(self.reader, _cut(self.x, x, (x0, x1), "x"), _cut(self.y, y, (y0, y1), "y"))

    @property
    def _extent_um(self) -> Bounds:
        """The capture area and the registered image's margin about it."""
        boxes = [self.reader.area_um]
        image = self.reader.default_image()
        if image is not None:
            boxes.append(image.levels[0].bounds_um)
        lows, highs = np.min(boxes, axis=0), np.max(boxes, axis=0)
        return (float(lows[0]), float(lows[1]), float(highs[2]), float(highs[3]))

    def image(self, mpp: float | None = None, name: str | None = None) -> xr.DataArray:
        """Return a picture of the slide.

        Parameters
        ----------
        mpp : float, optional
            Pixel size [µm]: that of a level, or a whole multiple of one, taken by exact mean. None is level 0.
        name : str, optional
            Element (``<id>_hires_image``, or ``hires_image``); None is the registered image.

        Returns
        -------
        DataArray, shape (c, y, x), uint8 or uint16, lazy
            y and x in µm (pixel centres). A picture in the source's own pixels has those as coordinates, counted from
            0, and is never cut by `sel`; ``attrs["frame"]`` says which.

        Raises
        ------
        SlideError
            ST303: no level divides `mpp`. ST305: no such picture.
        """
        pyramid = self._pyramid(name)
        level, factor = (0, 1) if mpp is None else pyramid.level_for(mpp)
        grid = pyramid.grid(level, factor)
        rows, cols = (0, grid.height), (0, grid.width)
        if pyramid.registered:
            rows = _inside(self.y, grid.y0_um, grid.mpp, grid.height)
            cols = _inside(self.x, grid.x0_um, grid.mpp, grid.width)
        return image_array(LazyImage(pyramid, level, factor, rows, cols), grid)

    def _pyramid(self, name: str | None) -> ImagePyramid:
        images = self.reader.images
        found = self.reader.default_image() if name is None else images.get(name, images.get(f"{self.id}_{name}"))
        if found is None:
            raise SlideError(
                "ST305",
                f"slide {self.id!r} has no {'registered image' if name is None else f'image {name!r}'}",
                cure=f"name one of: {listing(images)}" if images else "ingest again with --image",
            )
        return found

    def counts(
        self, bin_um: float | None = None, genes: Sequence[str] | None = None, *, max_bytes: int = 16 << 30
    ) -> xr.DataArray:
        """Return counts as a dense grid.

        Parameters
        ----------
        bin_um : float, optional
            A stored bin size or a multiple of one, summed exactly; of spots a multiple of 100, where 100 is the
            lattice itself. None is the finest. Bins are laid from the corner of the capture area, whole ones
            over its far edges.
        genes : sequence of str, optional
            Ids or symbols, in the order wanted; None is all.
        max_bytes : int
            Largest result that is accepted, in bytes once computed.

        Returns
        -------
        DataArray, shape (gene, y, x), uint32, lazy
            y and x in µm (bin centres); ``gene`` holds unique symbols, ``gene_id`` the ids. Of spots every other row
            lies 50 µm right of its cells' x: ``x_spot`` (y, x) holds the true centres, and ``in_tissue`` (y, x) tells
            cells without a spot in tissue from those without counts.

        Raises
        ------
        SlideError
            ST304: no stored bins add up to `bin_um`. ST305: the slide has no counts. ST306: above `max_bytes`.
        GeneError
            ST310: no such gene. ST311: a symbol that several ids share.
        """
        table, factor = self.reader.table_for(bin_um)
        names = [genes] if isinstance(genes, str) else genes
        positions = np.arange(table.n_vars) if names is None else table.gene_positions(names)
        rows, cols = self._cells(table.lattice, factor)
        lazy = LazyCounts(table, positions, factor, rows, cols)
        size = math.prod(lazy.shape) * lazy.dtype.itemsize
        if size > max_bytes:
            raise SlideError(
                "ST306",
                f"{_sizes(lazy.shape)} counts are {size / 2**30:.1f} GiB, above the limit of {max_bytes / 2**30:g} GiB",
                cure="genes=[...], a larger bin_um, slide.sel(x=..., y=...), or the sparse slide.table()",
            )
        return counts_array(lazy)

    def _cells(self, lattice: Lattice, factor: int) -> tuple[Span, Span]:
        """Return the rows and columns of bins whose centres lie in this view."""
        (dx, dy), (ox, oy), (num_rows, num_cols) = lattice.cell_um, lattice.origin_um, lattice.grid_shape
        return (
            _inside(self.y, oy, dy * factor, -(-num_rows // factor)),
            _inside(self.x, ox, dx * factor, -(-num_cols // factor)),
        )

    # --------------------------------------------------------------------------------------------------- tables

    def table(self, name: str | None = None, bounds_um: Bounds | None = None) -> AnnData:
        """Return sparse counts with their annotation.

        Parameters
        ----------
        name : str, optional
            ``square_008um``, or ``table`` for spots; None is the finest.
        bounds_um : tuple of float, optional
            (x0, y0, x1, y1), half-open [µm]: the bins or spots whose centres lie inside; of spots the true centres.

        Returns
        -------
        AnnData
            Of a box, or of a view cut by `sel`: in memory, CSR. Of a whole slide: lazy, through
            `anndata.experimental.read_lazy`, with row numbers as names.

        Raises
        ------
        BoundsError
            ST301: the box does not touch the slide.
        SlideError
            ST305: no such table.
        """
        from stzarr.store import adata

        table = self._table(name)
        if bounds_um is None and not (self._is_cut_x or self._is_cut_y):
            return adata.read_whole(self.reader, table)
        if bounds_um is not None:
            x0, y0, x1, y1 = bounds_um
            self.sel(x=slice(x0, x1), y=slice(y0, y1))  # refuses a box outside
        return adata.read_part(table, *self._cells(table.lattice, 1), bounds_um)

    def _table(self, name: str | None) -> CountsTable:
        if name is None:
            return self.reader.table_for(None)[0]
        if name not in self.reader.tables:
            raise SlideError(
                "ST305",
                f"slide {self.id!r} has no table {name!r}",
                cure=f"name one of: {listing(self.reader.tables)}" if self.reader.tables else "use its images",
            )
        return self.reader.tables[name]

    def genes(self, name: str | None = None) -> pd.DataFrame:
        """Return the genes of a table: symbols as index, ``gene_ids``, totals; loaded."""
        return self._table(name).var.copy()

    def to_spatialdata(self) -> SpatialData:
        """Open the whole store with `spatialdata.read_zarr`, which loads its tables and shapes."""
        import spatialdata

        return spatialdata.read_zarr(self.reader.path)

    # --------------------------------------------------------------------------------------------------- report

    def _lines(self) -> list[tuple[str, str]]:
        """Return (label, text) of what the slide holds."""
        reader, frame = self.reader, self.reader.frame
        x0, y0, x1, y1 = self.bounds_um
        mirrored = ", array mirrored" if frame.mirrored else ""
        lines = [
            ("assay", reader.assay + (", simulated" if reader.attrs.get("simulated") else "")),
            ("bounds", f"x {x0:g} to {x1:g}, y {y0:g} to {y1:g} µm ({x1 - x0:g} x {y1 - y0:g})"),
            ("source", f"{frame.mpp:.4f} µm per pixel, positions fit to {frame.residual_px:.1e} px{mirrored}"),
        ]
        for image in reader.images.values():
            unit = f"{', '.join(f'{grid.mpp:g}' for grid in image.levels)} µm" if image.registered else "own pixels"
            lines.append(("image", f"{image.name}  {_sizes(image.shape)} {image.dtype}, {unit}"))
        for table in reader.tables.values():
            what = f"{table.cell_size_um:g} µm {table.lattice.kind}, {table.n_obs:,} x {table.n_vars:,} genes"
            lines.append(("table", f"{table.name}  {what}, {table.nnz:,} non-zeros, {table.total:,} counts"))
        if reader.tissue is not None:
            share = float(reader.tissue.share_of([self.bounds_um])[0])
            lines.append(("tissue", f"{share:.0%} of the area, from {reader.tissue.origin.replace('_', ' ')}"))
        return lines + [("warning", str(text)) for text in reader.attrs.get("warnings", ())]

    def __repr__(self) -> str:
        return "\n".join([f"<stzarr.Slide {self.id!r}>", *(f"  {label:<8} {text}" for label, text in self._lines())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for label, text in self._lines()
        )
        return f"<table><caption>stzarr.Slide <b>{html.escape(self.id)}</b></caption>{rows}</table>"


# ------------------------------------------------------------------------------------------------------- helpers


def _cut(old: Interval, wanted: slice | None, extent: Interval, axis: str) -> Interval:
    if wanted is None or wanted == slice(None):
        return old
    if not isinstance(wanted, slice) or wanted.step is not None:
        raise SlideError("ST302", f"{axis}={wanted!r} is no plain slice", cure=f"{axis}=slice(start_um, stop_um)")
    low = max(old[0], extent[0], -math.inf if wanted.start is None else float(wanted.start))
    high = min(old[1], extent[1], math.inf if wanted.stop is None else float(wanted.stop))
    if not low <= high:
        a, b = max(old[0], extent[0]), min(old[1], extent[1])
        asked = f"{wanted.start} to {wanted.stop}"
        raise BoundsError("ST301", f"{axis} from {asked} µm holds nothing", cure=f"the slide has {axis} {a:g} to {b:g}")
    return (low, high)


def _inside(interval: Interval, origin: float, step: float, num: int) -> Span:
    """Return the cells whose centres lie in a closed interval, forgiving 1e-6 cells of rounding."""
    low, high = ((bound - origin) / step - 0.5 for bound in interval)
    start = 0 if low == -math.inf else min(max(math.ceil(low - 1e-6), 0), num)
    stop = num if high == math.inf else min(max(math.floor(high + 1e-6) + 1, 0), num)
    return start, max(start, stop)


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape)
