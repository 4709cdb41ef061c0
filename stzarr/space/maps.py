"""Plane projective maps between the array, micrometres and pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bounds = tuple[float, float, float, float]


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
        a, b, c = ((float(x), float(y), float(w)) for x, y, w in array)
        return cls((a, b, c))

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
