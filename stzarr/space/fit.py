"""Maps fitted to all positions of a slide, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import GeometryError
from stzarr.space.maps import Homography

PointBatches = Callable[[], Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]]
"""Re-iterable source of matching points, ``(n, 2)`` each: from xy, to xy."""


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
        ST120: fewer than 4 points, or so many of them on one line that they fix no map.
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
    spectrum, vectors = np.linalg.eigh(normal)
    if spectrum[1] < 1e-10 * spectrum[-1]:
        raise GeometryError("ST120", "the positions lie too much in line to fix a map", cure="check the positions file")
    h = vectors[:, 0] / vectors[8, 0]
    for _ in range(3):
        h = h + _gauss_newton_step(h, batches, start, spread)
    inner = Homography.from_matrix(h.reshape(3, 3))
    fitted = Homography.from_matrix((spread.inverse() @ inner @ start).matrix, digits=13)
    affine = _affine(batches, start, spread)
    residual, num = _residual(fitted, batches)
    return MapFit(fitted, residual, affine, _residual(affine, batches)[0], num)


def fit_affine(batches: PointBatches) -> MapFit:
    """Fit the least-squares affine map over all points, in constant memory.

    Raises
    ------
    GeometryError
        ST120: fewer than 4 points, or all on one line.
    """
    affine = _affine(batches, *_normalisers(batches))
    residual, num = _residual(affine, batches)
    return MapFit(affine, residual, affine, residual, num)


def _normalisers(batches: PointBatches) -> tuple[Homography, Homography]:
    """Return the similarities that give both point sets mean 0 and mean square distance 2."""
    num, total, square, product = 0, np.zeros(4), np.zeros(4), 0.0
    shift: NDArray[np.float64] | None = None
    for src, dst in batches():
        both = np.concatenate([src, dst], axis=1).astype(np.float64)
        if shift is None and len(both):
            shift = both[0]
        if shift is not None:
            both = both - shift
            num, total, square = num + len(both), total + both.sum(0), square + (both**2).sum(0)
            product += float(both[:, 0] @ both[:, 1])
    if shift is None or num < 4:
        raise GeometryError("ST120", f"{num} positions are too few to fit a map", cure="check the positions file")
    mean = total / num
    variance = square / num - mean**2
    if not np.isfinite(variance).all():
        raise GeometryError("ST120", "some positions are no numbers", cure="check the positions file")
    covariance = product / num - mean[0] * mean[1]
    thin, long = np.linalg.eigvalsh([[variance[0], covariance], [covariance, variance[1]]])
    if thin < 1e-9 + 1e-12 * long:
        raise GeometryError("ST120", "all positions lie on one line", cure="check the positions file")
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
