"""The full-resolution picture of a simulated run: rendered tile by tile, written as it comes, never held whole."""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from stzarr.simulate.geometry import LANDMARK_CLEAR_UM, Area, Landmark
from stzarr.simulate.parallel import ordered_map
from stzarr.simulate.tissue import Tissue, TissueSample

ImageFormat = Literal["btf", "deflate", "jpeg"]
Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]

TILE_PX = 512
_STRIP_PX = 16
_HIRES_PX, _LOWRES_PX = 4000, 600
_JPEG_QUALITY = 90

_REGION_RGB = np.array([[214, 150, 196], [236, 174, 190], [201, 172, 214], [248, 226, 226]], np.float32)
"""Between cells, per region."""
_CYTOPLASM_RGB = (176.0, 108.0, 172.0)
_NUCLEUS_RGB = (70.0, 44.0, 118.0)
_BACKGROUND_RGB = (243.0, 241.0, 244.0)
_LANDMARK_RGB = (12.0, 24.0, 96.0)
_CLEAR_RGB = (246.0, 246.0, 246.0)
_FIBRE_DEPTH, _GRAIN_DEPTH = 0.045, 0.02


@dataclass(frozen=True)
class Renderer:
    """Draw any part of the picture.

    Parameters
    ----------
    area : Area
    tissue : Tissue
    landmarks : sequence of Landmark
    """

    area: Area
    tissue: Tissue
    landmarks: Sequence[Landmark] = ()

    @property
    def landmark_sigma_um(self) -> float:
        """Standard deviation of a landmark: 1 µm, or more where pixels are too large to sample that."""
        return max(1.0, 1.5 * self.area.mpp)

    def tile(self, row: int, column: int) -> Pixels:
        """Render one tile, shape (TILE_PX, TILE_PX, 3); beyond the picture's edge it goes on."""
        ys = np.arange(row * TILE_PX, (row + 1) * TILE_PX, dtype=np.float64)
        xs = np.arange(column * TILE_PX, (column + 1) * TILE_PX, dtype=np.float64)
        x_um, y_um = self._to_um(xs, ys)
        planes = _stained(self.tissue.sample(x_um, y_um))
        for mark in self.landmarks:
            self._paint(mark, planes, x_um, y_um)
        return cv2.merge([np.rint(np.clip(plane, 0, 255)).astype(np.uint8) for plane in planes])

    def _to_um(
        self, xs: NDArray[np.float64], ys: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Map a grid of pixels; sums of a row and a column, since a homography is a quotient of linear terms."""
        h = self.area.px_to_um.matrix
        over = 1 / ((h[2, 0] * xs + h[2, 2])[None, :] + (h[2, 1] * ys)[:, None])
        x = (h[0, 0] * xs + h[0, 2])[None, :] + (h[0, 1] * ys)[:, None]
        y = (h[1, 0] * xs + h[1, 2])[None, :] + (h[1, 1] * ys)[:, None]
        return x * over, y * over

    def _paint(self, mark: Landmark, planes: list[Plane], x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> None:
        """Paint a Gaussian spot on a blank disc, its profile evaluated at each pixel's centre."""
        b = self.area.bin_um
        distance = np.hypot(x_um - (mark.array_col + 0.5) * b, y_um - (mark.array_row + 0.5) * b)
        near = distance < LANDMARK_CLEAR_UM
        if near.any():
            spot = np.exp(-0.5 * (distance[near] / self.landmark_sigma_um) ** 2).astype(np.float32)
            for plane, clear, dark in zip(planes, _CLEAR_RGB, _LANDMARK_RGB, strict=True):
                plane[near] = clear + spot * (dark - clear)


def _stained(sample: TissueSample) -> list[Plane]:
    """Colour a sample as haematoxylin and eosin would: red, green and blue, float32, not yet clipped."""
    shade = 1 + _FIBRE_DEPTH * sample.fibre + _GRAIN_DEPTH * sample.grain
    nucleus = 0.92 * sample.stain * (1 + 2 * _GRAIN_DEPTH * sample.grain)
    planes = list(cv2.split(cv2.transform(sample.regions, _REGION_RGB.T)))
    for plane, *colours in zip(planes, _CYTOPLASM_RGB, _NUCLEUS_RGB, _BACKGROUND_RGB, strict=True):
        plane *= shade
        for colour, share in zip(colours, (0.55 * sample.halo, nucleus, 1 - sample.coverage), strict=True):
            plane += (np.float32(colour) - plane) * share
    return planes


class Previews:
    """Means of the picture over squares of whole pixels, collected from its tiles."""

    def __init__(self, area: Area) -> None:
        longest = max(area.width, area.height)
        self.factors = {"hires": _halvings(longest, _HIRES_PX, 2)}
        self.factors["lowres"] = _halvings(longest, _LOWRES_PX, 2 * self.factors["hires"])
        self._pixels = {
            name: np.zeros((-(-area.height // factor), -(-area.width // factor), 3), np.uint8)
            for name, factor in self.factors.items()
        }

    def add(self, row: int, column: int, tile: Pixels) -> None:
        """Take the means of one tile; different tiles may be added from several threads."""
        for name, factor in self.factors.items():
            side = TILE_PX // factor
            means = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)
            target = self._pixels[name][row * side : (row + 1) * side, column * side : (column + 1) * side]
            target[:] = means[: target.shape[0], : target.shape[1]]

    def save(self, folders: Sequence[Path]) -> None:
        """Write ``tissue_hires_image.png`` and ``tissue_lowres_image.png`` into every folder."""
        for name, pixels in self._pixels.items():
            file = f"tissue_{name}_image.png"
            Image.fromarray(pixels).save(folders[0] / file)
            for other in folders[1:]:
                shutil.copyfile(folders[0] / file, other / file)


def _halvings(longest_px: int, limit_px: int, least: int) -> int:
    """Return the smallest power of two, `least` or more, that brings a length under a limit; a tile at most."""
    factor = 2 ** max(0, math.ceil(math.log2(longest_px / limit_px)))
    return min(TILE_PX, max(least, factor))


def write_image(
    path: Path,
    renderer: Renderer,
    image_format: ImageFormat,
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> Previews:
    """Render and write the whole picture, and return its previews.

    Memory is that of one row of tiles.
    """
    area = renderer.area
    down, across = -(-area.height // TILE_PX), -(-area.width // TILE_PX)
    previews = Previews(area)

    def tile(place: tuple[int, int]) -> Pixels:
        rendered = renderer.tile(*place)
        previews.add(*place, rendered)
        return rendered

    def tiles() -> Iterator[Pixels]:
        places = [(row, column) for row in range(down) for column in range(across)]
        for done, rendered in enumerate(ordered_map(tile, places, threads), start=1):
            progress(done * rendered.nbytes, len(places) * rendered.nbytes)
            yield rendered

    shape = (area.height, area.width, 3)
    with tifffile.TiffWriter(path, bigtiff=image_format == "btf" or math.prod(shape) > 3 << 30) as file:
        file.write(
            _strips(tiles(), across, shape) if image_format == "deflate" else tiles(),
            shape=shape,
            dtype=np.uint8,
            photometric="rgb",
            resolution=(1e4 / area.mpp, 1e4 / area.mpp),
            resolutionunit="CENTIMETER",
            description="simulated",
            software=False,
            metadata=None,
            **_storage(image_format),
        )
    return previews


def _storage(image_format: ImageFormat) -> dict[str, Any]:
    if image_format == "deflate":
        return {"rowsperstrip": _STRIP_PX, "compression": "adobe_deflate"}
    if image_format == "jpeg":
        return {
            "tile": (TILE_PX, TILE_PX),
            "compression": "jpeg",
            "compressionargs": {"level": _JPEG_QUALITY},
            "maxworkers": 1,
        }
    return {"tile": (TILE_PX, TILE_PX)}


def _strips(tiles: Iterator[Pixels], across: int, shape: tuple[int, int, int]) -> Iterator[bytes]:
    """Join rows of tiles and yield them as deflated strips."""
    for top in range(0, shape[0], TILE_PX):
        band = np.concatenate([next(tiles) for _ in range(across)], axis=1)[: shape[0] - top, : shape[1]]
        for first in range(0, len(band), _STRIP_PX):
            yield zlib.compress(band[first : first + _STRIP_PX].tobytes(), 6)
