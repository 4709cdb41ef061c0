"""What a store will hold, from geometry alone: the basis of ``--dry-run`` and of the writer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stzarr.errors import StoreError
from stzarr.space import (
    Bounds,
    Frame,
    PixelGrid,
    num_levels,
    registered_grid,
    registered_levels,
    registered_mpp,
)
from stzarr.store import layout
from stzarr.store.image_plan import ImagePlan
from stzarr.store.source import CountsSource, ImageSource, Source
from stzarr.store.warp import oversampling

MARGIN_UM = 100.0
"""What the registered image shows around the capture area [µm]."""

_IMAGE_RATIO = 1.6
_BYTES_PER_NONZERO = 2 / 3.75 + 4 / 2.83
_BYTES_PER_ROW = 12.0


@dataclass(frozen=True)
class WriteOptions:
    """How the user wants the store.

    Parameters
    ----------
    image_mpp : float, optional
        Pixel size of the registered image [µm]; else the nearest to the source's that bins are multiples of.
    image_frame : "um", "native" or "both"
        Resample the best picture onto the ``um`` frame, keep its pixels as they were, or both.
    meta : mapping of str to str
        ``--meta donor=D1``.
    overwrite : bool
        Whether a store that is there may be replaced. It stays as it is until the new one is whole, in the hidden
        folder ``.<name>.replacing`` beside it, so the disk must hold both.
    threads : int
        Units written at a time. The bytes do not depend on it.
    """

    image_mpp: float | None = None
    image_frame: Literal["um", "native", "both"] = "um"
    meta: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    threads: int = 2


@dataclass(frozen=True)
class StorePlan:
    """The elements of a store and where they lie; nothing of the matrix or the pixels has been read.

    Parameters
    ----------
    id, assay : str
    frame : Frame
    area_um : tuple of float
        Capture area, or the picture of a plain slide, half-open [µm].
    pictures : tuple of ImagePlan
        Image elements, the registered one first.
    counts : tuple of CountsSource
    tissue : PixelGrid
        Cells of the tissue map.
    warnings : tuple of str
        The source's.
    """

    id: str
    assay: str
    frame: Frame
    area_um: Bounds
    pictures: tuple[ImagePlan, ...]
    counts: tuple[CountsSource, ...]
    tissue: PixelGrid
    warnings: tuple[str, ...] = ()

    @property
    def estimated_bytes(self) -> int:
        """Rough size of the store on disk; pictures by the ratio of H&E, counts by that of real runs."""
        pictures = sum(picture.bytes for picture in self.pictures) / _IMAGE_RATIO
        entries = sum(counts.matrix.num_nonzero for counts in self.counts) * _BYTES_PER_NONZERO
        return round(pictures + entries + sum(counts.matrix.num_barcodes for counts in self.counts) * _BYTES_PER_ROW)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        return {
            "id": self.id,
            "assay": self.assay,
            "frame": self.frame.to_json(),
            "area_um": list(self.area_um),
            "images": {picture.name: _picture_json(picture) for picture in self.pictures},
            "tables": {
                counts.name: {
                    "lattice": dict(vars(counts.lattice)),
                    "region": layout.region_name(self.id, counts.name),
                    "barcodes": counts.matrix.num_barcodes,
                    "nonzero": counts.matrix.num_nonzero,
                    "tile_cells": layout.TILE_CELLS,
                    "entries_per_chunk": layout.ENTRIES_PER_CHUNK,
                    "entries_per_shard": layout.ENTRIES_PER_SHARD,
                }
                for counts in self.counts
            },
            "tissue": dict(vars(self.tissue)),
            "estimated_bytes": self.estimated_bytes,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        frame, (x0, y0, x1, y1) = self.frame, self.area_um
        lines = [
            f"slide    {self.id} ({self.assay})",
            f"area     {x1 - x0:g} x {y1 - y0:g} µm",
            f"map      {_described(frame)}",
            f"pixel    {frame.mpp:.6g} µm at full resolution",
        ]
        for picture in self.pictures:
            c, height, width = picture.shapes[0]
            size = f"{picture.grid.mpp:.6g} µm" if picture.frame == "um" else "native"
            lines.append(
                f"image    {picture.name}: {c} x {height} x {width} {picture.dtype.name}, {size}, "
                f"{picture.num_levels} levels, from {picture.source.handle.path.name} ({picture.resampling})"
            )
        for counts in self.counts:
            rows, cols = counts.lattice.grid_shape
            lines.append(
                f"table    {counts.name}: {counts.matrix.num_barcodes} of {rows} x {cols} {counts.lattice.kind}, "
                f"{counts.matrix.num_nonzero} non-zeros"
            )
        lines.append(f"store    about {self.estimated_bytes / 1e6:.0f} MB")
        lines += [f"warning  {text}" for text in self.warnings]
        return "\n".join(lines)


def plan_store(source: Source, options: WriteOptions) -> StorePlan:
    """Decide what the store of a source will hold.

    Raises
    ------
    StoreError
        ST220: `options.image_mpp` does not fit the bins. ST221: a source with neither pictures nor counts.
    """
    if not source.images and not source.counts:
        raise StoreError("ST221", f"{source.id} has neither counts nor a picture", cure="give --image")
    area = _area_um(source)
    tissue = PixelGrid(
        layout.TISSUE_UM,
        area[0],
        area[1],
        math.ceil(round((area[2] - area[0]) / layout.TISSUE_UM, 6)),
        math.ceil(round((area[3] - area[1]) / layout.TISSUE_UM, 6)),
    )
    pictures = _pictures(source, options, area)
    return StorePlan(source.id, source.assay, source.frame, area, pictures, source.counts, tissue, source.warnings)


def _area_um(source: Source) -> Bounds:
    if source.frame.lattice is not None:
        return source.frame.lattice.bounds_um
    _, height, width = source.images[0].handle.shape
    mpp = source.frame.mpp / source.images[0].scale
    return (0.0, 0.0, width * mpp, height * mpp)


def _pictures(source: Source, options: WriteOptions, area_um: Bounds) -> tuple[ImagePlan, ...]:
    pictures = []
    if source.images and options.image_frame in ("um", "both"):
        pictures.append(_registered(source, source.images[0], options, area_um))
    for image in source.images:
        if image.name != "full" or options.image_frame in ("native", "both"):
            _, height, width = image.handle.shape
            grid = PixelGrid(source.frame.mpp / image.scale, 0.0, 0.0, width, height)
            name = f"{source.id}_{image.name}_image"
            pictures.append(ImagePlan(name, image, "native", grid, num_levels(max(height, width))))
    return tuple(pictures)


def _registered(source: Source, image: ImageSource, options: WriteOptions, area_um: Bounds) -> ImagePlan:
    native_mpp = source.frame.mpp / image.scale
    lattice = source.frame.lattice
    bin_um = lattice.bin_um if lattice is not None and lattice.kind == "bins" else None
    mpp = registered_mpp(native_mpp, bin_um)
    if options.image_mpp is not None:
        mpp = _checked_mpp(options.image_mpp, bin_um)
    margin = 0.0 if lattice is None else MARGIN_UM
    grid = registered_grid(area_um, mpp, margin_um=margin)
    levels = registered_levels(area_um, mpp, margin_um=margin)
    return ImagePlan(f"{source.id}_image_um", image, "um", grid, levels, oversampling(mpp / native_mpp))


def _checked_mpp(mpp: float, bin_um: float | None) -> float:
    """Return a pixel size that divides the bins by a power of 2, or is a multiple of them; else raise ST220."""
    if not (math.isfinite(mpp) and mpp > 0):
        raise StoreError("ST220", f"{mpp:g} µm is no size of a pixel", cure="--mpp with a positive number of µm")
    if bin_um is None:
        return mpp
    if mpp >= bin_um:
        below, above = math.floor(mpp / bin_um) * bin_um, math.ceil(mpp / bin_um) * bin_um
    else:
        below = bin_um * 2.0 ** math.floor(math.log2(mpp / bin_um))
        above = bin_um * 2.0 ** math.ceil(math.log2(mpp / bin_um))
    nearest = min((below, above), key=lambda size: abs(size - mpp))
    if math.isclose(nearest, mpp, rel_tol=1e-9):
        return nearest
    raise StoreError(
        "ST220",
        f"bins of {bin_um:g} µm are no whole number of pixels of {mpp:g} µm, halved or multiplied",
        cure=f"--mpp {below:g} or --mpp {above:g}",
    )


def _described(frame: Frame) -> str:
    if frame.lattice is None:
        return "picture times its pixel size"
    kind = "affine" if frame.um_to_px.is_affine else "homography"
    text = f"{'mirrored ' if frame.mirrored else ''}{kind}, residual {frame.residual_px:.2g} px"
    if kind == "homography":
        text += f"; the nearest affine misses by {frame.affine_residual_px:.2g} px"
    return text


def _picture_json(picture: ImagePlan) -> dict[str, Any]:
    shape = picture.shapes[0]
    return picture.attributes() | {
        "shapes": [list(level) for level in picture.shapes],
        "chunk": [min(size, layout.IMAGE_CHUNK_PX) for size in shape[1:]],
        "shard": [layout.block_shape(size, layout.IMAGE_CHUNK_PX, layout.SHARD_PX)[1] for size in shape[1:]],
        "bytes": picture.bytes,
    }
