"""From opened stores and a request in micrometres to what planning and reading need; every mismatch is named here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import SlideError, StreamError, listing
from stzarr.store.counts_reader import CountsTable
from stzarr.store.reader import ImagePyramid, StoreReader
from stzarr.store.validate import damaged_files
from stzarr.stream.fetch import CountsRecipe, ImageRecipe, Recipe, open_reader
from stzarr.stream.panel import GenePanel, join_panel
from stzarr.stream.plan import PlanSlide
from stzarr.stream.split import CellGrid, Share

_CONTENT = ("id", "layout_version", "frame", "area_um", "images", "tables", "tissue", "sources")


@dataclass(frozen=True)
class Request:
    """A patch in micrometres; see `PatchStream` for the meaning of each."""

    patch_um: float
    image_mpp: float | None = None
    bin_um: float | None = None
    lr_bin_um: float | None = None
    genes: tuple[str, ...] | None = None
    stride_um: float | None = None
    jitter: bool = False

    def __post_init__(self) -> None:
        for name in ("patch_um", "image_mpp", "bin_um", "lr_bin_um", "stride_um"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise StreamError("ST400", f"{name} = {value:g} is no length", cure=f"{name} > 0, in µm")


@dataclass(frozen=True)
class Field:
    """One array of a batch without its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    waiting_bytes: int


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before planning."""

    slides: tuple[PlanSlide, ...]
    shares: tuple[Share, ...]
    recipes: tuple[Recipe, ...]
    tables: tuple[tuple[str, str, int], ...]
    panel: GenePanel
    fields: dict[str, Field]
    stride: int
    lr_cells: int | None

    @property
    def patch_bytes(self) -> int:
        """Size of a patch that waits in the buffer, about: counts there are 16 bits at most as a rule."""
        return max(1, sum(field.waiting_bytes for field in self.fields.values()))


@dataclass(frozen=True)
class _Opened:
    path: str
    reader: StoreReader
    table: CountsTable | None
    factor: int
    grid: CellGrid

    @property
    def kind(self) -> str:
        return "plain slide" if self.table is None else self.table.lattice.kind


def prepare(paths: Sequence[str], request: Request) -> Prepared:
    """Open the stores and check that each can give what is asked.

    Raises
    ------
    StreamError
        ST400: a size that is no whole multiple of another. ST403: slides whose patches differ in kind or shape.
        ST408: a slide lacks what is asked, or cannot give it at this size. ST409: pixels that patches do not meet.
        ST411: files of a store are missing or cut off.
    GeneError
        ST310, ST311: as `join_panel`.
    StoreError
        ST2xx: as `StoreReader`.
    """
    if not paths:
        raise StreamError("ST400", "no store to stream from", cure="name at least one")
    opened = [_open(path, request) for path in paths]
    first = opened[0]
    for other in opened[1:]:
        if (other.kind, other.grid.patch) != (first.kind, first.grid.patch):
            raise StreamError(
                "ST403",
                f"slide {other.reader.id!r} gives patches of {other.grid.patch} cells of {other.kind}, "
                f"{first.reader.id!r} of {first.grid.patch} cells of {first.kind}",
                file=other.path,
                cure="one stream per kind of slide",
            )
    cell_um = first.grid.cell_um[0]
    stride = _whole(request.stride_um or request.patch_um, cell_um, "stride_um", "cells")
    lr_cells = None if request.lr_bin_um is None else _whole(request.lr_bin_um, cell_um, "lr_bin_um", "HR bins")
    tables = [one.table for one in opened if one.table is not None]
    panel = GenePanel((), ()) if request.genes == () else join_panel([table.genes for table in tables], request.genes)
    recipes = tuple(_recipe(one, request, panel, stride, lr_cells) for one in opened)
    return Prepared(
        slides=tuple(PlanSlide(one.reader.id, _content_digest(one.reader), one.grid) for one in opened),
        shares=tuple(_everywhere if one.reader.tissue is None else one.reader.tissue.share_of for one in opened),
        recipes=recipes,
        tables=tuple((one.path, one.table.name, one.factor) for one in opened if one.table is not None),
        panel=panel,
        fields=_fields(recipes, opened),
        stride=stride,
        lr_cells=lr_cells,
    )


def _open(path: str, request: Request) -> _Opened:
    reader = open_reader(path)
    damaged = damaged_files(path)
    if damaged:
        raise StreamError(
            "ST411",
            f"{len(damaged)} files of slide {reader.id!r} are damaged: {listing((f.file for f in damaged), limit=3)}",
            file=path,
            cure=f"stzarr validate {path}, then ingest again",
        )
    if not reader.tables:
        if request.bin_um is not None or request.lr_bin_um is not None or request.genes:
            raise StreamError(
                "ST408", f"slide {reader.id!r} has no counts", file=path, cure="leave bin_um, lr_bin_um and genes out"
            )
        return _Opened(path, reader, None, 1, _plain_grid(path, reader, request))
    try:
        table, factor = reader.table_for(request.bin_um)
    except SlideError as error:
        raise StreamError("ST408", f"slide {reader.id!r}: {error.what}", file=error.file, cure=error.cure) from error
    (dx, dy), (rows, cols) = table.lattice.cell_um, table.lattice.grid_shape
    patch = _whole(request.patch_um, dx * factor, "patch_um", "HR bins")
    grid = CellGrid((dx * factor, dy * factor), table.lattice.origin_um, (rows // factor, cols // factor), patch)
    return _Opened(path, reader, table, factor, grid)


def _plain_grid(path: str, reader: StoreReader, request: Request) -> CellGrid:
    """Return the grid of a slide without counts: its cells are the pixels asked for."""
    if request.image_mpp is None:
        raise StreamError("ST408", f"slide {reader.id!r} has no counts and no image is asked for", file=path,
                          cure="image_mpp=... for its pixels")  # fmt: skip
    x0, y0, x1, y1 = reader.area_um
    mpp = request.image_mpp
    shape = (math.floor(round((y1 - y0) / mpp, 6)), math.floor(round((x1 - x0) / mpp, 6)))
    return CellGrid((mpp, mpp), (x0, y0), shape, _whole(request.patch_um, mpp, "patch_um", "pixels"))


def _whole(size_um: float, unit_um: float, name: str, of: str) -> int:
    ratio = size_um / unit_um
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6:
        below = max(1, math.floor(ratio)) * unit_um
        raise StreamError(
            "ST400",
            f"{name} = {size_um:g} is no whole number of {of} of {unit_um:g} µm",
            cure=f"{name}={below:g} or {name}={below + unit_um:g}",
        )
    return round(ratio)


def _everywhere(bounds_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of tissue of a slide without a tissue map."""
    return np.ones(len(bounds_um))


def _content_digest(reader: StoreReader) -> str:
    """Digest what a store holds, by its sources, totals and geometry: not where it is or when it was written."""
    content = {key: reader.attrs.get(key) for key in _CONTENT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------ recipes


def _recipe(one: _Opened, request: Request, panel: GenePanel, stride: int, lr_cells: int | None) -> Recipe:
    counts = None
    if one.table is not None and len(panel):
        counts = CountsRecipe(one.table.name, one.factor, panel.positions(one.table.genes), lr_cells)
    image = None
    if request.image_mpp is not None:
        pyramid = one.reader.default_image()
        if pyramid is None:
            raise StreamError(
                "ST408",
                f"slide {one.reader.id!r} has no registered image",
                file=one.path,
                cure="leave image_mpp out, or ingest with --image and --image-frame um",
            )
        image = _image_recipe(one, pyramid, request, request.image_mpp, stride)
    return Recipe(one.path, one.grid, counts, image)


def _image_recipe(one: _Opened, pyramid: ImagePyramid, request: Request, mpp: float, stride: int) -> ImageRecipe:
    size_px = _whole(request.patch_um, mpp, "patch_um", "pixels")
    if one.kind == "spots":
        return ImageRecipe(pyramid.name, _resampled_level(one, pyramid, mpp), size_px, None)
    step = 1 if request.jitter else stride
    try:
        found = aligned_level(pyramid, mpp, one.grid, step)
    except SlideError as error:
        raise StreamError(
            "ST408", f"slide {one.reader.id!r}: {error.what}", file=error.file, cure=error.cure
        ) from error
    if found is not None:
        return ImageRecipe(pyramid.name, found[0], size_px, found[1])
    raise StreamError(
        "ST409",
        f"slide {one.reader.id!r}: patches every {step * one.grid.cell_um[0]:g} µm do not start at whole pixels of "
        f"{pyramid.levels[0].mpp:g} µm",
        file=one.path,
        cure="a stride_um that is a multiple of the finest pixel, and no jitter",
    )


def _resampled_level(one: _Opened, pyramid: ImagePyramid, mpp: float) -> int:
    """Return the coarsest level whose pixels at the edges of an output pixel weigh little: a quarter of it at most."""
    dx, dy = one.grid.cell_um
    finest = pyramid.levels[0].mpp
    if mpp * dy / dx < finest:
        raise StreamError(
            "ST408",
            f"slide {one.reader.id!r}: its image has pixels of {finest:g} µm, not of {mpp:g} µm",
            file=one.path,
            cure=f"image_mpp of {finest * dx / dy:.3g} or more",
        )
    limit = mpp * min(1.0, dy / dx) / 4
    return max((index for index, grid in enumerate(pyramid.levels) if grid.mpp <= limit), default=0)


def aligned_level(pyramid: ImagePyramid, mpp: float, grid: CellGrid, step: int) -> tuple[int, int] | None:
    """Find the coarsest level of which pixels of `mpp` are whole means, and at whose pixels all patches start.

    Returns
    -------
    level, factor : int
        None where patches do not start at whole pixels of any level.

    Raises
    ------
    SlideError
        ST303: as `ImagePyramid.level_for`.
    """
    for level in range(pyramid.level_for(mpp)[0], -1, -1):
        factor = mpp / pyramid.levels[level].mpp
        if abs(factor - round(factor)) < 1e-6 and _meets(pyramid, level, grid, step):
            return level, round(factor)
    return None


def _meets(pyramid: ImagePyramid, level: int, grid: CellGrid, step: int) -> bool:
    """Return whether every patch starts at whole pixels of a level."""
    pixels = pyramid.levels[level]
    (dx, dy), (ox, oy) = grid.cell_um, grid.origin_um
    lengths = np.array([ox - pixels.x0_um, oy - pixels.y0_um, step * dx, step * dy]) / pixels.mpp
    return bool((np.abs(lengths - lengths.round()) < 1e-6).all())


def _fields(recipes: Sequence[Recipe], opened: Sequence[_Opened]) -> dict[str, Field]:
    """Return the arrays of a batch; the slides must agree on them."""
    first: dict[str, Field] | None = None
    for recipe, one in zip(recipes, opened, strict=True):
        fields = _fields_of(recipe, one.reader)
        if first is not None and fields != first:
            name = next(key for key in first if fields.get(key) != first[key])
            raise StreamError(
                "ST403",
                f"slide {one.reader.id!r} gives another {name} than {opened[0].reader.id!r}: "
                f"{fields[name].shape} {fields[name].dtype}, not {first[name].shape} {first[name].dtype}",
                file=one.path,
                cure="one stream per kind of slide",
            )
        first = first or fields
    return first or {}


def _fields_of(recipe: Recipe, reader: StoreReader) -> dict[str, Field]:
    fields: dict[str, Field] = {}

    def add(name: str, shape: tuple[int, ...], dtype: Any, waiting: int) -> None:
        fields[name] = Field(shape, np.dtype(dtype), math.prod(shape) * waiting)

    side = recipe.grid.patch
    if recipe.counts is not None:
        num_genes = len(recipe.counts.genes)
        add("hr_counts", (num_genes, side, side), np.int32, 2)
        add("tissue", (side, side), np.bool_, 1)
        if recipe.counts.lr_cells is not None:
            lr_side = -(-side // recipe.counts.lr_cells)
            add("lr_counts", (num_genes, lr_side, lr_side), np.int32, 2)
    if recipe.image is not None:
        pyramid = reader.images[recipe.image.name]
        add(
            "image",
            (pyramid.shape[0], recipe.image.size_px, recipe.image.size_px),
            pyramid.dtype,
            pyramid.dtype.itemsize,
        )
    return fields
