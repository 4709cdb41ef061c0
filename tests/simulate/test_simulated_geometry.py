"""Positions follow a mirrored homography of real magnitude, and all of them lie in the picture."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_run import Run

from stzarr.errors import IngestError
from stzarr.simulate.geometry import Area, choose_landmarks, lay_out
from stzarr.space import fit_homography

BINS = (2.0, 8.0, 16.0)


def area(
    size_um: tuple[float, float] = (6700.0, 6700.0),
    bins_um: tuple[float, ...] = BINS,
    turn: int = 0,
    mirror: bool = True,
) -> Area:
    return lay_out(size_um, bins_um, mpp=0.2738, rotation_deg=2.0, turn=turn, mirror=mirror)


@pytest.mark.parametrize("bin_um", [2, 8, 16])
def test_positions_are_an_exact_mirrored_homography(run: Run, bin_um: int) -> None:
    where = run.positions(bin_um)
    array = np.stack([where["array_col"], where["array_row"]], -1).astype(float)
    pixel = np.stack([where["pxl_col_in_fullres"], where["pxl_row_in_fullres"]], -1)
    fit = fit_homography(lambda: [(array, pixel)])
    middle = array.max(axis=0) / 2
    assert fit.residual_px < 1e-6
    assert fit.affine_residual_px > 100 * fit.residual_px
    assert fit.map.mirrors(middle)
    factors = run.scale_factors(bin_um)
    assert bin_um / fit.map.scale(middle) == pytest.approx(factors["microns_per_pixel"], rel=1e-3)
    assert factors["bin_size_um"] / factors["spot_diameter_fullres"] == pytest.approx(factors["microns_per_pixel"])
    assert factors["fiducial_diameter_fullres"] * factors["microns_per_pixel"] == pytest.approx(330)
    height, width, _ = run.pixels().shape
    assert (pixel > 0).all()
    assert (pixel < (width - 1, height - 1)).all()


def test_coarse_bins_lie_in_the_middle_of_their_fine_bins(run: Run) -> None:
    fine, coarse = run.positions(2), run.positions(8)
    matrix = np.array(run.about["array_to_px"]["matrix"])
    for row, col in ((0, 0), (5, 11)):
        index = np.flatnonzero((coarse["array_row"] == row) & (coarse["array_col"] == col))[0]
        x, y, w = matrix @ (4 * col + 1.5, 4 * row + 1.5, 1)
        assert (coarse["pxl_col_in_fullres"][index], coarse["pxl_row_in_fullres"][index]) == pytest.approx(
            (x / w, y / w), abs=1e-9
        )
    assert fine["array_row"].max() // 4 == coarse["array_row"].max()


def test_full_size_is_beyond_an_affine() -> None:
    full = area()
    rows, cols = np.meshgrid(np.arange(0, 3350, 67.0), np.arange(0, 3350, 67.0), indexing="ij")
    array = np.stack([cols.ravel(), rows.ravel()], -1)
    fit = fit_homography(lambda: [(array, full.array_to_px(array))])
    assert 3 < fit.affine_residual_px < 10
    assert full.array_to_px.rows[2][0] == pytest.approx(1.30e-7, rel=0.01)
    assert full.array_to_px.rows[2][1] == pytest.approx(7.57e-8, rel=0.01)
    assert 24_000 < full.width < 27_000


@pytest.mark.parametrize("mirror", [True, False])
def test_a_turn_keeps_the_hand_and_moves_pixels_like_rot90(mirror: bool) -> None:
    plain, turned = area((400.0, 300.0), mirror=mirror), area((400.0, 300.0), turn=90, mirror=mirror)
    assert (turned.width, turned.height) == (plain.height, plain.width)
    array = np.array([[0.0, 0.0], [17.0, 120.0], [199.0, 149.0]])
    before, after = plain.array_to_px(array), turned.array_to_px(array)
    assert np.allclose(after, np.stack([before[:, 1], plain.width - 1 - before[:, 0]], -1), atol=1e-9)
    assert plain.array_to_px.mirrors((100, 75)) is mirror
    assert turned.array_to_px.mirrors((100, 75)) is mirror


def test_px_to_um_inverts_positions() -> None:
    full = area()
    array = np.array([[0.0, 0.0], [3349.0, 0.0], [1000.0, 3349.0]])
    assert np.allclose(full.px_to_um(full.array_to_px(array)), (array + 0.5) * 2.0, atol=1e-8)


def test_landmarks_include_the_corner_bins() -> None:
    chosen = choose_landmarks(area((400.0, 300.0)))
    assert len({(mark.array_row, mark.array_col) for mark in chosen}) == 25
    assert {(0, 0), (0, 199), (149, 0), (149, 199)} <= {(mark.array_row, mark.array_col) for mark in chosen}


@pytest.mark.parametrize(
    ("size_um", "bins_um", "code"),
    [
        ((0.0, 200.0), BINS, "ST150"),
        ((200.0, -2.0), BINS, "ST150"),
        ((float("nan"), 200.0), BINS, "ST150"),
        ((201.0, 200.0), BINS, "ST150"),
        ((14.0, 200.0), BINS, "ST150"),
        ((200_000.0, 200.0), BINS, "ST150"),
        ((200.0, 200.0), (2.0, 5.0), "ST151"),
        ((200.0, 200.0), (0.5, 8.0), "ST151"),
        ((200.0, 200.0), (2.0, 2.0), "ST151"),
        ((200.0, 200.0), (), "ST151"),
        ((2002.0, 2002.0), (2.0, 14.0, 22.0, 26.0), "ST151"),
    ],
)
def test_impossible_sizes_are_refused(size_um: tuple[float, float], bins_um: tuple[float, ...], code: str) -> None:
    with pytest.raises(IngestError) as caught:
        area(size_um, bins_um)
    assert caught.value.code == code


def test_landmarks_need_room() -> None:
    with pytest.raises(IngestError, match="ST150"):
        choose_landmarks(area((90.0, 400.0)))
