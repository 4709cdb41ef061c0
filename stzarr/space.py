"""Pure geometry: how array positions, micrometres and pixels relate. No file is read or written here.

One slide has one frame, ``um``: x to the right, y down, in micrometres. Three conventions hold everywhere:

* a cell or a pixel is an area: cell ``i`` of size ``s`` covers ``[i s, (i + 1) s)``, and coordinates name its centre;
* full-resolution pixel coordinates are the vendors': the centre of the first pixel is 0, so pixel ``i`` covers
  ``[i - 0.5, i + 0.5)``;
* ``bounds_um`` is half-open, ``(x0, y0, x1, y1)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stzarr.errors import GeometryError

Bounds = tuple[float, float, float, float]
PointBatches = Callable[[], Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]]
"""Re-iterable source of matching points, ``(n, 2)`` each: from xy, to xy."""

SPOT_PITCH_UM = 100.0
"""Distance of neighbouring Visium spots in a row; ``array_col`` steps by 2 over it."""


# --------------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class Homography:
    """A plane projective map, ``(x, y, 1) -> H (x, y, 1)``, scaled so that ``H[2, 2] = 1``.

    Parameters
    ----------
    rows : 3 x 3 nested tuple of float
        Row-major matrix that acts on column vectors ``(x, y, 1)``.
    """

    rows: tuple[tuple[float, float, float], ...]

    @classmethod
    def from_matrix(cls, matrix: ArrayLike, *, digits: int | None = None) -> Homography:
        """Build from a 3 x 3 array; `digits` rounds to significant digits, so that builds of BLAS agree."""
        array = np.asarray(matrix, dtype=np.float64)
        if array.shape != (3, 3):
            raise ValueError(f"a homography is 3 x 3, not {array.shape}")
        array = array / array[2, 2]
        if digits is not None:
            array = np.array([float(f"{value:.{digits - 1}e}") for value in array.ravel()]).reshape(3, 3)
        return cls(tuple(tuple(float(v) for v in row) for row in array))  # type: ignore[arg-type]

    @classmethod
    def scale_then_move(cls, sx: float, sy: float, tx: float, ty: float) -> Homography:
        """Return the affine map ``(x, y) -> (sx x + tx, sy y + ty)``."""
        return cls(((sx, 0.0, tx), (0.0, sy, ty), (0.0, 0.0, 1.0)))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The matrix as a float64 array, shape (3, 3)."""
        return np.array(self.rows, dtype=np.float64)

    @property
    def is_affine(self) -> bool:
        """Whether the bottom row is exactly (0, 0, 1)."""
        return self.rows[2][0] == 0.0 and self.rows[2][1] == 0.0

    def __call__(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Map points, shape (..., 2) -> (..., 2)."""
        points = np.asarray(xy, dtype=np.float64)
        h = self.matrix
        mapped = points @ h[:2, :2].T + h[:2, 2]
        if self.is_affine:
            return mapped
        return mapped / (points @ h[2, :2] + 1.0)[..., None]

    def __matmul__(self, first: Homography) -> Homography:
        """Compose: ``(a @ b)(p) == a(b(p))``."""
        return Homography.from_matrix(self.matrix @ first.matrix)

    def inverse(self) -> Homography:
        """Return the map back."""
        return Homography.from_matrix(np.linalg.inv(self.matrix))

    def jacobian(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Return d(mapped)/d(x, y) at one point, shape (2, 2)."""
        x, y = np.asarray(xy, dtype=np.float64)
        h = self.matrix
        w = h[2, 0] * x + h[2, 1] * y + 1.0
        mapped = self((x, y))
        return (h[:2, :2] - np.outer(mapped, h[2, :2])) / w

    def mirrors(self, xy: ArrayLike) -> bool:
        """Whether the map turns left hands into right hands at this point (negative determinant)."""
        return bool(np.linalg.det(self.jacobian(xy)) < 0)

    def scale(self, xy: ArrayLike) -> float:
        """Return the local length factor at this point, the root of the area factor."""
        return float(math.sqrt(abs(np.linalg.det(self.jacobian(xy)))))

    def bounds(self, box: Bounds) -> Bounds:
        """Return the bounding box of a mapped box; exact, since lines stay lines."""
        x0, y0, x1, y1 = box
        corners = self([(x0, y0), (x1, y0), (x0, y1), (x1, y1)])
        return (*map(float, corners.min(axis=0)), *map(float, corners.max(axis=0)))  # type: ignore[return-value]

    def tolist(self) -> list[list[float]]:
        """Return the matrix as nested lists, for JSON."""
        return [list(row) for row in self.rows]


@dataclass(frozen=True)
class MapFit:
    """A map fitted to matching points, with how well it fits and what the nearest affine would miss."""

    map: Homography
    residual_px: float
    affine: Homography
    affine_residual_px: float
    num_points: int


def fit_homography(batches: PointBatches) -> MapFit:
    """Fit an exact plane projective map over all points, in constant memory.

    Normalised direct linear transform for the start (Hartley and Zisserman, Multiple View Geometry, 2nd ed.,
    algorithm 4.2), then Gauss-Newton steps on the distance in the target plane (their section 4.5), which also brings
    an exact map to full double precision. Passes over `batches` a few times; sums only are kept.

    Raises
    ------
    GeometryError
        Fewer than 4 points, or all on one line.
    """
    start, spread = _normalisers(batches)
    normal = np.zeros((9, 9))
    for src, dst in _normalised(batches, start, spread):
        x, y = src.T
        u, v = dst.T
        one, zero = np.ones_like(x), np.zeros_like(x)
        a = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], axis=1)
        b = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], axis=1)
        normal += a.T @ a + b.T @ b
    h = np.linalg.eigh(normal)[1][:, 0]
    h = h / h[8]
    for _ in range(3):
        h = h + _gauss_newton_step(h, batches, start, spread)
    inner = Homography.from_matrix(h.reshape(3, 3))
    fitted = Homography.from_matrix((spread.inverse() @ inner @ start).matrix, digits=13)
    affine = _affine(batches, start, spread)
    residual, num = _residual(fitted, batches)
    return MapFit(fitted, residual, affine, _residual(affine, batches)[0], num)


def fit_affine(batches: PointBatches) -> MapFit:
    """Fit the least-squares affine map over all points, in constant memory; see `fit_homography`."""
    affine = _affine(batches, *_normalisers(batches))
    residual, num = _residual(affine, batches)
    return MapFit(affine, residual, affine, residual, num)


def _normalisers(batches: PointBatches) -> tuple[Homography, Homography]:
    """Return the similarities that give both point sets mean 0 and mean square distance 2."""
    num, total, square = 0, np.zeros(4), np.zeros(4)
    shift: NDArray[np.float64] | None = None
    for src, dst in batches():
        both = np.concatenate([src, dst], axis=1).astype(np.float64)
        if shift is None and len(both):
            shift = both[0]
        if shift is not None:
            num, total, square = (
                num + len(both),
                total + (both - shift).sum(0),
                square + ((both - shift) ** 2).sum(0),
            )
    if shift is None or num < 4:
        raise GeometryError("ST120", f"{num} positions are too few to fit a map", cure="check the positions file")
    mean = total / num
    variance = square / num - mean**2
    if min(variance[0], variance[1]) < 1e-9 or not np.isfinite(variance).all():
        raise GeometryError("ST120", "all positions lie in one row or column", cure="check the positions file")
    mean = mean + shift

    def similarity(cx: float, cy: float, var: float) -> Homography:
        s = math.sqrt(2.0 / var)
        return Homography.scale_then_move(s, s, -s * cx, -s * cy)

    return (
        similarity(mean[0], mean[1], variance[0] + variance[1]),
        similarity(mean[2], mean[3], max(variance[2] + variance[3], 1e-12)),
    )


def _normalised(
    batches: PointBatches, start: Homography, spread: Homography
) -> Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    for src, dst in batches():
        yield start(src), spread(dst)


def _gauss_newton_step(
    h: NDArray[np.float64], batches: PointBatches, start: Homography, spread: Homography
) -> NDArray[np.float64]:
    normal, right = np.zeros((8, 8)), np.zeros(8)
    for src, dst in _normalised(batches, start, spread):
        design = np.concatenate([src, np.ones((len(src), 1))], axis=1) / (src @ h[6:8] + 1.0)[:, None]
        zero = np.zeros_like(design)
        for axis, target in enumerate(dst.T):
            mapped = design @ h[3 * axis : 3 * axis + 3]
            blocks = [zero, zero, -mapped[:, None] * design[:, :2]]
            blocks[axis] = design
            jacobian = np.concatenate(blocks, axis=1)
            normal += jacobian.T @ jacobian
            right += jacobian.T @ (target - mapped)
    return np.append(np.linalg.solve(normal, right), 0.0)


def _affine(batches: PointBatches, start: Homography, spread: Homography) -> Homography:
    normal, right = np.zeros((3, 3)), np.zeros((3, 2))
    for src, dst in _normalised(batches, start, spread):
        design = np.concatenate([src, np.ones((len(src), 1))], axis=1)
        normal += design.T @ design
        right += design.T @ dst
    inner = np.eye(3)
    inner[:2] = np.linalg.solve(normal, right).T
    matrix = (spread.inverse() @ Homography.from_matrix(inner) @ start).matrix
    matrix[2] = (0.0, 0.0, 1.0)
    return Homography.from_matrix(matrix, digits=13)


def _residual(fitted: Homography, batches: PointBatches) -> tuple[float, int]:
    """Return the largest distance between mapped and given points, and the number of points."""
    worst, num = 0.0, 0
    for src, dst in batches():
        if len(src):
            worst = max(worst, float(np.sqrt(((fitted(src) - dst) ** 2).sum(1)).max()))
            num += len(src)
    return worst, num


# ----------------------------------------------------------------------------------------------------- lattices


@dataclass(frozen=True)
class BinLattice:
    """Square bins of a Visium HD area (or of binned transcripts) in the ``um`` frame.

    Grid cell (r, c) covers ``[r, r + 1) x [c, c + 1)`` times `bin_um`. Where the map to pixels mirrors, the grid
    column runs against ``array_col``, so that tissue is never mirrored against its histology.

    Parameters
    ----------
    bin_um : float
        Side of a bin [µm].
    num_rows, num_cols : int
        Extent in bins; a multiple of every coarser bin of the run, so that coarse bins are whole on either side.
    mirrored : bool
        Whether the grid column is ``num_cols - 1 - array_col``.
    """

    bin_um: float
    num_rows: int
    num_cols: int
    mirrored: bool = False
    kind: Literal["bins"] = "bins"

    @property
    def cell_um(self) -> tuple[float, float]:
        """Size of a grid cell, (dx, dy) [µm]."""
        return (self.bin_um, self.bin_um)

    @property
    def origin_um(self) -> tuple[float, float]:
        """Upper left corner of grid cell (0, 0), (x, y) [µm]."""
        return (0.0, 0.0)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return (self.num_rows, self.num_cols)

    @property
    def bounds_um(self) -> Bounds:
        """The capture area."""
        return (0.0, 0.0, self.num_cols * self.bin_um, self.num_rows * self.bin_um)

    @property
    def array_to_um(self) -> Homography:
        """Map ``(array_col, array_row)`` to the bin's centre [µm]."""
        b = self.bin_um
        if self.mirrored:
            return Homography.scale_then_move(-b, b, (self.num_cols - 0.5) * b, 0.5 * b)
        return Homography.scale_then_move(b, b, 0.5 * b, 0.5 * b)

    def grid(self, array_row: NDArray, array_col: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the grid cell (row, column) of array positions."""
        rows, cols = np.asarray(array_row, np.int32), np.asarray(array_col, np.int32)
        return rows, (np.int32(self.num_cols - 1) - cols if self.mirrored else cols)

    def array(self, grid_row: NDArray, grid_col: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the array position (row, column) of grid cells; `grid` is its own inverse."""
        return self.grid(grid_row, grid_col)

    def at(self, bin_um: float) -> BinLattice:
        """Return the lattice of the same area with other bins, which must divide it whole."""
        factor = bin_um / self.bin_um
        rows, cols = self.num_rows / factor, self.num_cols / factor
        if rows != int(rows) or cols != int(cols):
            raise ValueError(f"bins of {bin_um:g} µm do not divide {self.bounds_um}")
        return BinLattice(bin_um, int(rows), int(cols), self.mirrored)

    def centres_um(self, grid_row: NDArray, grid_col: NDArray) -> NDArray[np.float64]:
        """Return the centres of grid cells, shape (n, 2), xy [µm]."""
        return np.stack([(np.asarray(grid_col) + 0.5) * self.bin_um, (np.asarray(grid_row) + 0.5) * self.bin_um], -1)


@dataclass(frozen=True)
class SpotLattice:
    """The hexagonal lattice of Visium spots as a grid with one spot a cell, in the ``um`` frame.

    A spot lies at x = 50 (array_col' + 1), y = pitch (array_row + 1), where ``array_col'`` is ``array_col`` or, where
    the map to pixels mirrors, ``num_cols - 1 - array_col``. Grid cell (r, c) is ``(array_row, array_col' // 2)``; every
    other row (`shifted_parity`) lies 50 µm further right than the cell's centre, which the coordinates say and the
    grid does not.

    Parameters
    ----------
    row_pitch_um : float
        Distance of rows, fitted (87.0 on real runs) [µm].
    num_rows, num_cols : int
        Extent of ``array_row`` and ``array_col``.
    mirrored : bool
        Whether x runs against ``array_col``.
    """

    row_pitch_um: float
    num_rows: int
    num_cols: int
    mirrored: bool = False
    kind: Literal["spots"] = "spots"

    @property
    def shifted_parity(self) -> int:
        """``grid_row % 2`` of the rows that are shifted by 50 µm (row + col is even on every slide)."""
        return 1 if not self.mirrored or self.num_cols % 2 else 0

    @property
    def cell_um(self) -> tuple[float, float]:
        """Size of a grid cell, (dx, dy) [µm]."""
        return (SPOT_PITCH_UM, self.row_pitch_um)

    @property
    def origin_um(self) -> tuple[float, float]:
        """Upper left corner of grid cell (0, 0), (x, y) [µm]."""
        return (0.0, 0.5 * self.row_pitch_um)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return (self.num_rows, (self.num_cols + 1) // 2)

    @property
    def bounds_um(self) -> Bounds:
        """The area of all grid cells, the shifted rows' overhang included."""
        rows, cols = self.grid_shape
        return (0.0, 0.5 * self.row_pitch_um, cols * SPOT_PITCH_UM + 50.0, (rows + 0.5) * self.row_pitch_um)

    @property
    def array_to_um(self) -> Homography:
        """Map ``(array_col, array_row)`` to the spot's centre [µm]."""
        half, pitch = SPOT_PITCH_UM / 2, self.row_pitch_um
        if self.mirrored:
            return Homography.scale_then_move(-half, pitch, half * self.num_cols, pitch)
        return Homography.scale_then_move(half, pitch, half, pitch)

    def grid(self, array_row: NDArray, array_col: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the grid cell (row, column) of array positions."""
        rows, cols = np.asarray(array_row, np.int32), np.asarray(array_col, np.int32)
        return rows, (np.int32(self.num_cols - 1) - cols if self.mirrored else cols) // np.int32(2)

    def centres_um(self, grid_row: NDArray, grid_col: NDArray) -> NDArray[np.float64]:
        """Return the spots' centres, shape (n, 2), xy [µm], the 50 µm of shifted rows included."""
        rows = np.asarray(grid_row)
        shift = 0.5 * (rows % 2 == self.shifted_parity)
        return np.stack([(np.asarray(grid_col) + 0.5 + shift) * SPOT_PITCH_UM, (rows + 1.0) * self.row_pitch_um], -1)


Lattice = BinLattice | SpotLattice


def lattice_from_json(fields: dict[str, Any]) -> Lattice:
    """Rebuild a lattice from the fields of its dataclass."""
    return (BinLattice if fields["kind"] == "bins" else SpotLattice)(**fields)


# -------------------------------------------------------------------------------------------------- pixel grids


@dataclass(frozen=True)
class PixelGrid:
    """A raster of square pixels that is axis-aligned in the ``um`` frame.

    Pixel (row i, column j) covers ``[x0_um + j mpp, x0_um + (j + 1) mpp)`` and likewise in y.
    """

    mpp: float
    x0_um: float
    y0_um: float
    width: int
    height: int

    @property
    def bounds_um(self) -> Bounds:
        """The area that the pixels cover."""
        return (
            self.x0_um,
            self.y0_um,
            self.x0_um + self.width * self.mpp,
            self.y0_um + self.height * self.mpp,
        )

    @property
    def centres_to_um(self) -> Homography:
        """Map pixel indices (column, row) to the pixel's centre [µm]."""
        return Homography.scale_then_move(self.mpp, self.mpp, self.x0_um + 0.5 * self.mpp, self.y0_um + 0.5 * self.mpp)

    def level(self, index: int) -> PixelGrid:
        """Return the grid after halving `index` times, edges rounded up."""
        f = 2**index
        return PixelGrid(self.mpp * f, self.x0_um, self.y0_um, -(-self.width // f), -(-self.height // f))

    def window(self, bounds_um: Bounds) -> tuple[int, int, int, int]:
        """Return the pixels whose centres lie in half-open bounds, as (row0, row1, col0, col1); not clipped."""
        x0, y0, x1, y1 = bounds_um

        def first(value: float, origin: float) -> int:
            return math.ceil(round((value - origin) / self.mpp - 0.5, 6))

        return (first(y0, self.y0_um), first(y1, self.y0_um), first(x0, self.x0_um), first(x1, self.x0_um))


def registered_mpp(native_mpp: float, bin_um: float | None) -> float:
    """Choose the pixel size of the registered image.

    With bins, ``bin / 2^k`` nearest to the native pixel; else the nearest of ``0.125 x 2^k`` µm ("nearest" by ratio).
    """
    base = bin_um if bin_um is not None else 0.125
    return float(base * 2.0 ** round(math.log2(native_mpp / base)))


def registered_grid(area_um: Bounds, mpp: float, *, margin_um: float = 100.0, max_thumb_px: int = 1024) -> PixelGrid:
    """Lay the registered image's pixels over an area and its margin.

    Its offset and its size are whole numbers of the coarsest level's pixel, so that every level is an exact mean of
    whole pixels. Levels are halved until the longer side is at most `max_thumb_px`.
    """
    x0, y0, x1, y1 = (
        area_um[0] - margin_um,
        area_um[1] - margin_um,
        area_um[2] + margin_um,
        area_um[3] + margin_um,
    )
    coarse = mpp * 2 ** (num_levels(math.ceil(max(x1 - x0, y1 - y0) / mpp), max_thumb_px) - 1)
    left, top = math.floor(round(x0 / coarse, 9)), math.floor(round(y0 / coarse, 9))
    right, bottom = math.ceil(round(x1 / coarse, 9)), math.ceil(round(y1 / coarse, 9))
    per = round(coarse / mpp)
    return PixelGrid(mpp, left * coarse, top * coarse, (right - left) * per, (bottom - top) * per)


def num_levels(longest_px: int, max_thumb_px: int = 1024) -> int:
    """Return how many pyramid levels bring `longest_px` down to `max_thumb_px`, level 0 included."""
    return 1 + max(0, math.ceil(math.log2(longest_px / max_thumb_px)))


# -------------------------------------------------------------------------------------------------------- frame


@dataclass(frozen=True)
class Frame:
    """A slide's ``um`` frame: the lattice in it and the map to the vendor's full-resolution pixels.

    Parameters
    ----------
    um_to_px : Homography
        µm to full-resolution pixel centres counted from 0.
    mpp : float
        µm per full-resolution pixel: from the lattice at its middle, or from the file of a plain slide.
    residual_px : float
        Largest distance between fitted and given positions [px]; 0 for a plain slide.
    um_to_px_affine : Homography
        The nearest affine map, for software that knows no homography.
    affine_residual_px : float
        Largest distance that the affine misses by, over the positions [px].
    lattice : BinLattice or SpotLattice, optional
        Lattice of the finest bins or of the spots; None for a plain slide.
    """

    um_to_px: Homography
    mpp: float
    residual_px: float
    um_to_px_affine: Homography
    affine_residual_px: float
    lattice: Lattice | None = None

    @classmethod
    def plain(cls, mpp: float) -> Frame:
        """Return the frame of a slide without expression: level-0 px times mpp from the top left corner."""
        to_px = Homography.scale_then_move(1 / mpp, 1 / mpp, -0.5, -0.5)
        return cls(to_px, mpp, 0.0, to_px, 0.0)

    @property
    def mirrored(self) -> bool:
        """Whether the array runs against the image in x."""
        return self.lattice is not None and self.lattice.mirrored

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for attributes and ``--json``."""
        return {
            "um_to_px": self.um_to_px.tolist(),
            "mpp": self.mpp,
            "residual_px": self.residual_px,
            "um_to_px_affine": self.um_to_px_affine.tolist(),
            "affine_residual_px": self.affine_residual_px,
            "lattice": None if self.lattice is None else dict(vars(self.lattice)),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Frame:
        """Rebuild a frame from `to_json`."""
        return cls(
            Homography.from_matrix(fields["um_to_px"]),
            fields["mpp"],
            fields["residual_px"],
            Homography.from_matrix(fields["um_to_px_affine"]),
            fields["affine_residual_px"],
            None if fields["lattice"] is None else lattice_from_json(fields["lattice"]),
        )


def lattice_extent(num: int, bin_um: float, bins_um: Sequence[float]) -> int:
    """Round a number of the finest bins up, so that every bin size of the run divides the extent."""
    step = math.lcm(*(round(size / bin_um) for size in bins_um))
    return -(-num // step) * step
