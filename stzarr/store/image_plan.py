"""One image element of a store: what it is made from, its pixels, where they lie, and the attributes that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stzarr.space import Frame, Homography, PixelGrid
from stzarr.store import layout
from stzarr.store.source import ImageSource

AXES = "cyx"
_COLOURS = {"r": "FF0000", "g": "00FF00", "b": "0000FF"}
_OTHERS = ("FF0000", "00FF00", "0000FF", "FFFF00", "FF00FF", "00FFFF")


@dataclass(frozen=True)
class ImagePlan:
    """An image element: what it is made from, its pixels, and where they lie.

    Parameters
    ----------
    name : str
        Name of the element, ``<id>_image_um``.
    source : ImageSource
    frame : "um" or "native"
        Resampled onto the ``um`` frame, or copied in the source's own pixels.
    grid : PixelGrid
        The pixels [µm]; of a native picture along its own axes, from its upper left corner.
    num_levels : int
    factor : int
        Samples on the side of a resampled pixel, see `stzarr.store.warp.oversampling`.
    """

    name: str
    source: ImageSource
    frame: Literal["um", "native"]
    grid: PixelGrid
    num_levels: int
    factor: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels, the source's."""
        return self.source.handle.dtype

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self.source.handle.channels

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Shape (c, h, w) of every level."""
        grids = [self.grid.level(index) for index in range(self.num_levels)]
        return [(self.source.handle.shape[0], grid.height, grid.width) for grid in grids]

    @property
    def bytes(self) -> int:
        """Size of all levels, not compressed."""
        return sum(c * h * w for c, h, w in self.shapes) * self.dtype.itemsize

    @property
    def resampling(self) -> str:
        """How its pixels came from the source's, for provenance."""
        if self.frame == "native":
            return "none"
        return "linear" if self.factor == 1 else f"mean of {self.factor} x {self.factor} linear samples"

    def attributes(self) -> dict[str, Any]:
        """Return the picture's entry of the root attributes."""
        handle = self.source.handle
        native = self.frame == "native"
        return {
            "grid": None if native else dict(vars(self.grid)),
            "um_to_px": self.source.um_to_px.tolist() if native else None,
            "frame": self.frame,
            "channels": list(self.channels),
            "dtype": self.dtype.name,
            "levels": [f"s{index}/image" for index in range(self.num_levels)],
            "shape": list(self.shapes[0]),
            "source": {
                "image": self.source.name,
                "file": handle.path.name,
                "shape": list(handle.shape),
                "compression": handle.compression,
                "scale": self.source.scale,
                "resampling": self.resampling,
            },
        }


def element_attributes(picture: ImagePlan, frame: Frame, slide_id: str) -> dict[str, Any]:
    """Return the attributes of an image element: NGFF, and what SpatialData wants otherwise."""
    levels = layout.pixel_levels(picture.grid, picture.num_levels)
    datasets = [
        {
            "path": f"s{index}/image",
            "coordinateTransformations": layout.scale_then_move(AXES, level["scale"], level["move"]),
        }
        for index, level in enumerate(levels)
    ]
    systems = [layout.to_system(AXES, name, steps) for name, steps in _systems(picture, frame, slide_id).items()]
    return {
        "ome": {
            "version": layout.NGFF_VERSION,
            "multiscales": [
                {
                    "name": picture.name,
                    "axes": [
                        {"name": "c", "type": "channel"},
                        {"name": "y", "type": "space", "unit": "micrometer"},
                        {"name": "x", "type": "space", "unit": "micrometer"},
                    ],
                    "datasets": datasets,
                    "coordinateTransformations": systems,
                }
            ],
            "omero": {"channels": _channels(picture)},
        },
        "spatialdata_attrs": {"version": layout.RASTER_VERSION},
    }


def _channels(picture: ImagePlan) -> list[dict[str, Any]]:
    top = int(np.iinfo(picture.dtype).max)
    window = {"min": 0, "max": top, "start": 0, "end": top}
    grey = len(picture.channels) == 1
    return [
        {
            "label": name,
            "color": "FFFFFF" if grey else _COLOURS.get(name.lower(), _OTHERS[index % len(_OTHERS)]),
            "window": window,
            "active": True,
        }
        for index, name in enumerate(picture.channels)
    ]


def _systems(picture: ImagePlan, frame: Frame, slide_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return the NGFF steps from the element's pixels to each coordinate system.

    The pixels of SpatialData and NGFF elements are counted from the corner: the centre of the first is 0.5. ``<id>``
    is the vendor's, full-resolution px with the centre of the first at 0; ``<id>_downscaled_hires`` is ``<id>`` times
    the scale factor. A map that is a homography is there as its nearest affine.
    """
    if picture.frame == "um":
        grid = picture.grid
        to_um = Homography.scale_then_move(grid.mpp, grid.mpp, grid.x0_um, grid.y0_um)
        um = layout.scale_then_move(AXES, (grid.mpp, grid.mpp), (grid.y0_um, grid.x0_um))
        return {layout.FRAME: um, slide_id: [_affine(frame.um_to_px_affine @ to_um)]}
    corner = Homography.scale_then_move(1.0, 1.0, -0.5, -0.5)
    to_full = frame.um_to_px @ picture.source.um_to_px.inverse() @ corner
    systems = {
        layout.FRAME: [_affine(frame.um_to_px_affine.inverse() @ _exact_affine(to_full))],
        slide_id: [_affine(to_full)],
    }
    if picture.source.name != "full":
        scale = picture.source.scale
        down = Homography.scale_then_move(scale, scale, 0.0, 0.0)
        systems[f"{slide_id}_downscaled_{picture.source.name}"] = [_affine(down @ to_full)]
    return systems


def _affine(map_: Homography) -> dict[str, Any]:
    return layout.affine_step(AXES, _exact_affine(map_))


def _exact_affine(map_: Homography) -> Homography:
    """Return a map that is affine but for rounding, as one, rounded so that builds of BLAS agree."""
    matrix = map_.matrix.round(12)
    matrix[2] = (0.0, 0.0, 1.0)
    return Homography.from_matrix(matrix)
