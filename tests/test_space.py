"""Geometry: maps, lattices and pixel grids, as properties."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stzarr.errors import GeometryError
from stzarr.space import (
    BinLattice,
    Frame,
    Homography,
    PixelGrid,
    PointBatches,
    SpotLattice,
    fit_affine,
    fit_homography,
    lattice_extent,
    lattice_from_json,
    num_levels,
    registered_grid,
    registered_mpp,
)


@st.composite
def projective_maps(draw: st.DrawFn, extent: float = 3350.0) -> Homography:
    """Draw a rotated, perhaps mirrored map with a mild perspective, as scanners and slides have."""
    angle = draw(st.floats(-math.pi, math.pi))
    scale = draw(st.floats(0.5, 20.0))
    squeeze = draw(st.floats(0.9, 1.1)) * draw(st.sampled_from([1, -1]))
    shear = draw(st.floats(-0.05, 0.05))
    move = [draw(st.floats(-5e4, 5e4)) for _ in range(2)]
    tilt = [draw(st.floats(-0.05, 0.05)) / extent for _ in range(2)]
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.array([[1.0, shear], [0.0, squeeze]]) * scale
    return Homography.from_matrix([[*linear[0], move[0]], [*linear[1], move[1]], [*tilt, 1.0]])


def batches_of(points: NDArray[np.float64], mapped: NDArray[np.float64], size: int = 100) -> PointBatches:
    return lambda: (
        (points[start : start + size], mapped[start : start + size]) for start in range(0, len(points), size)
    )


def lattice_points(extent: float = 3350.0, num: int = 18) -> NDArray[np.float64]:
    at = np.linspace(0, extent, num)
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)


# --------------------------------------------------------------------------------------------------------- maps


@settings(max_examples=60, deadline=None)
@given(projective_maps())
def test_fit_recovers_an_exact_homography(true: Homography) -> None:
    points = lattice_points()
    fit = fit_homography(batches_of(points, true(points)))
    elsewhere = np.random.default_rng(0).uniform(0, 3350, (50, 2))
    # 1e-8 px for maps of 10 thousand px; the matrix keeps 13 digits, so larger coordinates are as much less exact
    close = 1e-8 * max(1.0, (np.abs(true.matrix) @ (3350, 3350, 1)).max() / 1e4)
    assert fit.residual_px < close
    np.testing.assert_allclose(fit.map(elsewhere), true(elsewhere), rtol=0, atol=close)
    assert fit.num_points == len(points)
    assert fit.affine_residual_px > fit.residual_px - close
    assert fit.map.mirrors((1000, 1000)) == true.mirrors((1000, 1000))


@settings(max_examples=30, deadline=None)
@given(projective_maps(), st.integers(1, 400))
def test_fit_does_not_depend_on_batches(true: Homography, size: int) -> None:
    points = lattice_points()
    one, other = (fit_homography(batches_of(points, true(points), n)) for n in (400, size))
    np.testing.assert_allclose(one.map(points), other.map(points), rtol=0, atol=1e-6)


def test_fit_of_noisy_points_is_the_least_squares_map() -> None:
    rng = np.random.default_rng(3)
    true = Homography.from_matrix([[7.0, 0.3, 100.0], [-0.3, 7.1, 50.0], [1e-6, -2e-6, 1.0]])
    points = lattice_points()
    mapped = true(points) + rng.normal(0, 0.3, points.shape)
    fit = fit_homography(batches_of(points, mapped))
    error = ((fit.map(points) - mapped) ** 2).sum()
    for entry in itertools.product(range(3), range(3)):
        for step in (1e-6, -1e-6):
            moved = fit.map.matrix
            moved[entry] *= 1 + step
            if entry != (2, 2):
                assert ((Homography.from_matrix(moved)(points) - mapped) ** 2).sum() >= error - 1e-9
    assert 0.3 < fit.residual_px < 3


@settings(max_examples=30, deadline=None)
@given(projective_maps())
def test_affine_fit(true: Homography) -> None:
    affine = Homography.from_matrix(np.vstack([true.matrix[:2], [0, 0, 1]]))
    points = lattice_points()
    fit = fit_affine(batches_of(points, affine(points)))
    assert fit.map.is_affine
    assert fit.map is fit.affine
    np.testing.assert_allclose(fit.map(points), affine(points), rtol=0, atol=1e-7)
    rounded = fit_affine(batches_of(points, np.round(affine(points))))
    assert rounded.residual_px < 1.5


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0), (1, 0), (0, 1)],
        [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)],
        [(3, 0), (3, 5), (3, 7), (3, 8), (3, 9)],
        [(0, 0), (1, 1), (2, 2), (3, 3), (7, 7)],
        [(0, 0), (3, 1), (6, 2), (9, 3), (21, 7)],
        [(0, 0), (1, 0), (2, 0), (0, 5)],
        [(0, 0), (1, 0), (2, 0), (3, 0), (0, 5)],
        [(1, 1)] * 6,
        [(0, 0), (1, 0), (math.nan, 1), (1, 1), (5, 7)],
        [],
    ],
)
def test_positions_that_fix_no_homography(points: list[tuple[float, float]]) -> None:
    array = np.array(points, float).reshape(-1, 2)
    with pytest.raises(GeometryError, match="ST120"):
        fit_homography(batches_of(array, array * 3 + 1))


@pytest.mark.parametrize("points", [[(0, 0), (1, 1), (2, 2), (3, 3), (7, 7)], [(0, 1), (0, 2), (0, 5), (0, 9)]])
def test_positions_that_fix_no_affine(points: list[tuple[float, float]]) -> None:
    array = np.array(points, float)
    with pytest.raises(GeometryError, match="ST120"):
        fit_affine(batches_of(array, array * 3 + 1))


@settings(max_examples=60, deadline=None)
@given(projective_maps(), projective_maps(extent=1e6))
def test_inverse_and_composition(one: Homography, other: Homography) -> None:
    points = lattice_points()
    np.testing.assert_allclose(one.inverse()(one(points)), points, rtol=0, atol=1e-6)
    np.testing.assert_allclose((other @ one)(points), other(one(points)), rtol=1e-9, atol=1e-6)
    assert one.inverse().mirrors(one((5, 5))) == one.mirrors((5, 5))


@settings(max_examples=40, deadline=None)
@given(projective_maps(), st.tuples(st.floats(0, 3350), st.floats(0, 3350)))
def test_jacobian_is_the_derivative(true: Homography, point: tuple[float, float]) -> None:
    step = 1e-3
    steps = np.array([[step, 0], [0, step]])
    numeric = ((true(np.array(point) + steps) - true(np.array(point) - steps)) / (2 * step)).T
    np.testing.assert_allclose(true.jacobian(point), numeric, rtol=1e-4, atol=1e-5)
    assert true.scale(point) == pytest.approx(math.sqrt(abs(np.linalg.det(numeric))), rel=1e-4)
    assert true.mirrors(point) == (np.linalg.det(numeric) < 0)


@settings(max_examples=40, deadline=None)
@given(projective_maps())
def test_bounds_hold_the_mapped_box(true: Homography) -> None:
    x0, y0, x1, y1 = true.bounds((100, 200, 900, 700))
    inside = true(np.random.default_rng(0).uniform((100, 200), (900, 700), (500, 2)))
    assert (inside >= np.array([x0, y0]) - 1e-6).all()
    assert (inside <= np.array([x1, y1]) + 1e-6).all()


def test_maps_are_values() -> None:
    plain = Homography.scale_then_move(2, 3, 5, 7)
    np.testing.assert_allclose(plain((10, 10)), (25, 37))
    assert plain.is_affine
    assert plain.inverse().is_affine
    assert pickle.loads(pickle.dumps(plain)) == plain == Homography.from_matrix(plain.tolist())
    assert Homography.from_matrix(np.array(plain.tolist()) * 4) == plain
    with pytest.raises(ValueError, match="3 x 3"):
        Homography.from_matrix(np.eye(2))


# ----------------------------------------------------------------------------------------------------- lattices


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 500),
    cols=st.integers(1, 500),
    mirrored=st.booleans(),
    sizes=st.sampled_from([(2, 8, 16), (2,), (8, 16), (2, 10, 8)]),
)
def test_bins_of_all_sizes_are_aligned(rows: int, cols: int, mirrored: bool, sizes: tuple[int, ...]) -> None:
    fine_um = float(sizes[0])
    extents = [lattice_extent(num, fine_um, [float(size) for size in sizes]) for num in (rows, cols)]
    assert all(extent >= num for extent, num in zip(extents, (rows, cols), strict=True))
    fine = BinLattice(fine_um, *extents, mirrored)
    row, col = (axis.ravel() for axis in np.mgrid[: min(rows, 40), : min(cols, 40)])
    grid_row, grid_col = fine.grid(row, col)
    for size in sizes:
        coarse, factor = fine.at(float(size)), round(size / fine_um)
        assert coarse.bounds_um == fine.bounds_um
        # the parent of an array position is the cell over its own: coarse bins are whole in the grid, mirrored too
        parent = coarse.grid(row // factor, col // factor)
        np.testing.assert_array_equal(parent[0], grid_row // factor)
        np.testing.assert_array_equal(parent[1], grid_col // factor)
        centre = coarse.centres_um(*parent)
        apart = np.abs(fine.centres_um(grid_row, grid_col) - centre)
        assert (apart <= (size - fine_um) / 2 + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4000),
    cols=st.integers(1, 4000),
    mirrored=st.booleans(),
    seed=st.integers(0, 99),
    to_px=projective_maps(),
)
def test_bins_round_trip(rows: int, cols: int, mirrored: bool, seed: int, to_px: Homography) -> None:
    lattice = BinLattice(2.0, rows, cols, mirrored)
    rng = np.random.default_rng(seed)
    array_row, array_col = rng.integers(0, rows, 50), rng.integers(0, cols, 50)
    cell = lattice.grid(array_row, array_col)
    assert cell[0].dtype == cell[1].dtype == np.int32
    for found, expected in zip(lattice.grid(*cell), (array_row, array_col), strict=True):
        np.testing.assert_array_equal(found, expected)
    um = lattice.centres_um(*cell)
    np.testing.assert_allclose(um, lattice.array_to_um(np.stack([array_col, array_row], -1)), atol=1e-9)
    back = to_px.inverse()(to_px(um))
    np.testing.assert_array_equal(np.floor(back[:, 0] / 2), cell[1])
    np.testing.assert_array_equal(np.floor(back[:, 1] / 2), cell[0])
    x0, y0, x1, y1 = lattice.bounds_um
    assert ((um > (x0, y0)) & (um < (x1, y1))).all()


def test_bins_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        BinLattice(2.0, 10, 12).at(8.0)
    assert BinLattice(8.0, 3, 4).at(2.0) == BinLattice(2.0, 12, 16)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 130), cols=st.integers(2, 260), mirrored=st.booleans(), pitch=st.floats(80, 95))
def test_spots_are_a_grid_of_one_spot_a_cell(rows: int, cols: int, mirrored: bool, pitch: float) -> None:
    lattice = SpotLattice(pitch, rows, cols, mirrored)
    array_row, array_col = (axis.ravel() for axis in np.mgrid[:rows, :cols])
    real = (array_row + array_col) % 2 == 0
    array_row, array_col = array_row[real], array_col[real]
    row, col = lattice.grid(array_row, array_col)
    height, width = lattice.grid_shape
    assert ((row >= 0) & (row < height) & (col >= 0) & (col < width)).all()
    assert len(set(zip(row.tolist(), col.tolist(), strict=True))) == len(row)
    um = lattice.centres_um(row, col)
    np.testing.assert_allclose(um, lattice.array_to_um(np.stack([array_col, array_row], -1)), atol=1e-9)
    (dx, dy), (ox, oy) = lattice.cell_um, lattice.origin_um
    shift = um[:, 0] - (ox + (col + 0.5) * dx)
    np.testing.assert_allclose(shift, 50.0 * (row % 2 == lattice.shifted_parity), atol=1e-9)
    np.testing.assert_allclose(um[:, 1], oy + (row + 0.5) * dy)
    x0, y0, x1, y1 = lattice.bounds_um
    assert ((um > (x0, y0)) & (um < (x1, y1))).all()


def test_visium_slide_is_64_spots_wide() -> None:
    assert SpotLattice(87.0, 78, 128).grid_shape == (78, 64)
    np.testing.assert_allclose(
        SpotLattice(87.0, 78, 128).centres_um(np.array([0, 1]), np.array([0, 0])), [[50, 87], [100, 174]]
    )


def test_lattices_as_plain_values() -> None:
    for lattice in (BinLattice(2.0, 8, 12, True), SpotLattice(87.0, 78, 128)):
        assert lattice_from_json(dict(vars(lattice))) == lattice
        to_px = Homography.from_matrix([[7.0, 0.3, 100.0], [-0.3, 7.1, 50.0], [1e-6, -2e-6, 1.0]])
        frame = Frame(to_px, 0.27, 1e-9, to_px, 0.5, lattice)
        assert Frame.from_json(frame.to_json()) == frame
        assert frame.mirrored == lattice.mirrored


def test_plain_frame_starts_at_the_corner_of_the_first_pixel() -> None:
    frame = Frame.plain(0.5)
    np.testing.assert_allclose(frame.um_to_px((0.25, 0.25)), (0, 0), atol=1e-12)
    np.testing.assert_allclose(frame.um_to_px((0, 0)), (-0.5, -0.5))
    assert Frame.from_json(frame.to_json()) == frame
    assert not frame.mirrored


# -------------------------------------------------------------------------------------------------- pixel grids

positions = st.integers(-4000, 4000).map(lambda value: value / 8) | st.floats(-500, 500)


@settings(max_examples=150, deadline=None)
@given(
    x0=st.floats(-50, 50),
    y0=st.floats(0, 60),
    width=st.floats(10, 11000),
    height=st.floats(10, 11000),
    mpp=st.sampled_from([0.125, 0.25, 0.5, 1.0, 0.28, 4.6776]),
    margin=st.sampled_from([0.0, 16.0, 100.0]),
    thumb=st.sampled_from([256, 1024]),
)
def test_registered_grid_covers_in_whole_coarse_pixels(
    x0: float, y0: float, width: float, height: float, mpp: float, margin: float, thumb: int
) -> None:
    area = (x0, y0, x0 + width, y0 + height)
    grid = registered_grid(area, mpp, margin_um=margin, max_thumb_px=thumb)
    left, top, right, bottom = grid.bounds_um
    slack = 1e-6 * mpp * 1024
    assert left <= x0 - margin + slack
    assert top <= y0 - margin + slack
    assert right >= area[2] + margin - slack
    assert bottom >= area[3] + margin - slack
    levels = num_levels(math.ceil((max(width, height) + 2 * margin) / mpp), thumb)
    step = 2 ** (levels - 1)
    coarse = grid.mpp * step
    assert max(left - (x0 - margin), (area[2] + margin) - right) > -slack - coarse
    assert grid.width % step == grid.height % step == 0
    for origin in (left, top):
        assert abs(origin / coarse - round(origin / coarse)) < 1e-9
    assert max(grid.level(levels - 1).width, grid.level(levels - 1).height) <= thumb + 2
    assert right - left <= width + 2 * margin + 2 * coarse
    assert bottom - top <= height + 2 * margin + 2 * coarse


@given(st.integers(1, 100000), st.integers(0, 9))
def test_levels_halve_with_edges_rounded_up(size: int, index: int) -> None:
    grid = PixelGrid(0.25, 1.0, 2.0, size, 7)
    level = grid.level(index)
    halved = size
    for _ in range(index):
        halved = -(-halved // 2)
    assert level.width == halved
    assert level.mpp == 0.25 * 2**index
    assert (level.x0_um, level.y0_um) == (1.0, 2.0)
    assert level.bounds_um[2] >= grid.bounds_um[2]
    np.testing.assert_allclose(level.centres_to_um((0, 0)), (1 + level.mpp / 2, 2 + level.mpp / 2))


@given(st.integers(1, 1 << 20), st.sampled_from([256, 1000, 1024]))
def test_number_of_levels(longest: int, thumb: int) -> None:
    levels = num_levels(longest, thumb)
    assert longest / 2 ** (levels - 1) <= thumb
    assert levels == 1 or longest / 2 ** (levels - 2) > thumb


@settings(max_examples=60)
@given(st.floats(0.05, 12), st.sampled_from([None, 2.0, 8.0, 16.0]))
def test_registered_pixel_is_the_nearest_power(native: float, bin_um: float | None) -> None:
    mpp = registered_mpp(native, bin_um)
    base = bin_um or 0.125
    power = math.log2(mpp / base)
    assert power == round(power)
    assume(abs(abs(math.log2(mpp / native)) - 0.5) > 1e-9)
    assert abs(math.log2(mpp / native)) < 0.5
    assert registered_mpp(0.2738, 2.0) == 0.25
