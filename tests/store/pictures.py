"""Pictures with known pixels, and sources made of them, for the tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.space import BinLattice, Frame, Homography
from stzarr.store.source import ImageSource, Source


class MemoryPicture:
    """An image handle over an array (c, h, w) in memory; `path` is a file that stands for it."""

    compression = "none"
    mpp = None

    def __init__(self, path: Path, pixels: NDArray[Any], *, random_access: bool = True) -> None:
        self.path, self.pixels, self.random_access = path, pixels, random_access
        self.shape, self.dtype = pixels.shape, pixels.dtype
        self.channels = ("r", "g", "b") if len(pixels) == 3 else tuple(f"ch{i}" for i in range(len(pixels)))
        self.decoded_into: list[Path] = []
        self.largest_read_px = 0
        if not path.exists():
            path.write_bytes(b"pixels are in memory")

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        assert self.random_access
        assert 0 <= y0 < y1 <= self.shape[1]
        assert 0 <= x0 < x1 <= self.shape[2]
        self.largest_read_px = max(self.largest_read_px, y1 - y0, x1 - x0)
        return self.pixels[:, y0:y1, x0:x1]

    def decoded(self, folder: Path) -> MemoryPicture:
        if self.random_access:
            return self
        self.decoded_into.append(folder)
        (folder / "scratch").write_bytes(b"decoded")
        return MemoryPicture(self.path, self.pixels)

    def close(self) -> None:
        pass


def noise(shape: tuple[int, int, int], dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def plain_slide(picture: MemoryPicture, mpp: float, slide_id: str = "p1") -> Source:
    """Return a slide without counts."""
    frame = Frame.plain(mpp)
    image = ImageSource("full", picture, frame.um_to_px)
    return Source(slide_id, "slide", frame, (image,), (), (picture.path,))


def turned(angle_deg: float, mpp: float, centre_px: tuple[float, float], mirror: bool, tilt: float) -> Homography:
    """Return a map (µm from the middle of an area) -> px: rotation, mirror, scale and a perspective."""
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirror else 1.0, 1.0]) / mpp
    return Homography.from_matrix(
        [[*linear[0], centre_px[0]], [*linear[1], centre_px[1]], [tilt * mpp, -0.7 * tilt * mpp, 1.0]]
    )


def bin_slide(picture: MemoryPicture, from_middle: Homography, size_um: float, mpp: float, **more: Any) -> Source:
    """Return a slide with a lattice of 2 µm bins, whose middle is where `from_middle` starts."""
    num = round(size_um / 2)
    um_to_px = from_middle @ Homography.scale_then_move(1.0, 1.0, -size_um / 2, -size_um / 2)
    corners = um_to_px([(0, 0), (size_um, 0), (0, size_um), (size_um, size_um)])
    design = np.array([[0, 0, 1], [size_um, 0, 1], [0, size_um, 1], [size_um, size_um, 1]], float)
    rows = np.linalg.lstsq(design, corners, rcond=None)[0].T
    affine = Homography.from_matrix([*rows, [0, 0, 1]])
    lattice = BinLattice(2.0, num, num, mirrored=from_middle.mirrors((0.0, 0.0)))
    frame = Frame(um_to_px, mpp, 0.0, affine, 0.3, lattice)
    image = ImageSource("full", picture, um_to_px)
    return Source("b1", "Visium HD", frame, (image,), more.get("counts", ()), (picture.path,))
