from __future__ import annotations

import numpy as np
import pytest
from counts_samples import bins, random_counts, spots
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box

from stzarr.space import BinLattice, PixelGrid
from stzarr.store.tissue import area_share, tissue_of_counts, tissue_of_pixels


def cells(bounds, mpp: float = 16.0) -> PixelGrid:
    x0, y0, x1, y1 = bounds
    return PixelGrid(mpp, x0, y0, int(np.ceil((x1 - x0) / mpp)), int(np.ceil((y1 - y0) / mpp)))


@pytest.mark.parametrize("bin_um", [2.0, 8.0, 16.0, 10.0])
def test_of_bins_it_is_the_share_of_their_area(bin_um):
    counts = random_counts(BinLattice(bin_um, 40, 33, mirrored=True), name="x")
    grid = cells(counts.lattice.bounds_um)
    fine = np.zeros((40, 33), bool)
    rows, cols = counts.lattice.grid(counts.array_row, counts.array_col)
    fine[rows, cols] = counts.in_tissue
    side = int(bin_um)
    um = np.zeros((grid.height * 16, grid.width * 16))
    um[: 40 * side, : 33 * side] = np.kron(fine, np.ones((side, side)))
    expected = um.reshape(grid.height, 16, grid.width, 16).mean(axis=(1, 3))
    assert np.allclose(tissue_of_counts(counts, grid), expected, atol=1e-6)


def test_of_spots_it_is_the_share_of_their_cells():
    counts = spots(share=0.1)
    grid = cells(counts.lattice.bounds_um)
    share = tissue_of_counts(counts, grid)
    rows, cols = counts.lattice.grid(counts.array_row, counts.array_col)
    centres = counts.lattice.centres_um(rows, cols)[counts.in_tissue]
    assert share.sum() * 256 == pytest.approx(len(centres) * 100 * 87, rel=1e-5)
    for x, y in centres[:5]:
        spot = box(x - 50, y - 43.5, x + 50, y + 43.5)
        for row in range(int((y - 43.5 - grid.y0_um) // 16), int((y + 43.5 - grid.y0_um) // 16) + 1):
            col = int((x - grid.x0_um) // 16)
            cell = box(col * 16, grid.y0_um + row * 16, col * 16 + 16, grid.y0_um + row * 16 + 16)
            assert share[row, col] >= spot.intersection(cell).area / 256 - 1e-6
    assert share.dtype == np.float32
    assert share.max() <= 1


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.5, 40), st.floats(-30, 30), st.integers(0, 99))
def test_areas_are_kept(rows, cols, size, origin, seed):
    mask = np.random.default_rng(seed).random((rows, cols)) < 0.5
    grid = PixelGrid(16.0, -48.0, -48.0, 40, 40)
    share = area_share(mask, (size, 1.5 * size), (origin, -origin), grid)
    assert share.sum() * 256 == pytest.approx(mask.sum() * 1.5 * size**2)


def test_of_a_stained_slide_it_is_what_is_coloured():
    rng = np.random.default_rng(0)
    pixels = rng.integers(238, 246, (3, 200, 300)).astype(np.uint8)
    pixels[:, 60:140, 80:200] = np.array([190, 120, 170])[:, None, None] + rng.integers(0, 20, (3, 80, 120))
    pixels[:, 190:, :] = 0
    share = tissue_of_pixels(pixels, PixelGrid(4.0, 0.0, 0.0, 300, 200), PixelGrid(16.0, 0.0, 0.0, 75, 50))
    assert np.all(share[16:34, 21:49] == 1)
    assert share[:14].max() == share[48:].max() == 0


def test_tissue_alone_is_not_split():
    rng = np.random.default_rng(0)
    pixels = (np.array([180, 110, 160])[:, None, None] + rng.integers(0, 30, (3, 64, 64))).astype(np.uint8)
    share = tissue_of_pixels(pixels, PixelGrid(4.0, 0.0, 0.0, 64, 64), PixelGrid(16.0, 0.0, 0.0, 16, 16))
    assert share.min() == 1


@pytest.mark.parametrize("glow", [True, False])
def test_of_one_channel_the_border_is_background(glow):
    inside, outside = (3000, 200) if glow else (200, 3000)
    pixels = np.full((1, 96, 96), outside, np.uint16)
    pixels[:, 32:64, 32:64] = inside
    share = tissue_of_pixels(pixels, PixelGrid(16.0, 0.0, 0.0, 96, 96), PixelGrid(16.0, 0.0, 0.0, 96, 96))
    assert share.sum() == 32 * 32
    assert np.all(share[32:64, 32:64] == 1)


def test_bins_not_in_tissue_do_not_count():
    counts = bins()
    counts.in_tissue[:] = False
    assert tissue_of_counts(counts, cells(counts.lattice.bounds_um)).max() == 0
