"""What a sample holds, against the dense truth of stores written by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stzarr.space import PixelGrid
from stzarr.store.counts_reader import CountsTable
from stzarr.store.means import block_means
from stzarr.store.reader import ImagePyramid
from stzarr.stream.fetch import area_resample, block_areas, block_sums, open_reader, read_patches
from stzarr.stream.prepare import Request, aligned_level, prepare
from stzarr.stream.split import CellGrid
from tests.store.handmade import Made


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_low_resolution_sums_lose_nothing(patch: int, side: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 2**20, (2, patch, patch), dtype=np.uint32)
    low, areas = block_sums(counts, side), block_areas(patch, side)
    assert low.shape[-2:] == areas.shape == (-(-patch // side),) * 2
    assert low.sum() == counts.sum()
    assert np.allclose(areas.sum() * side**2, patch**2)
    for i, j in np.ndindex(areas.shape):
        cut = counts[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
        assert np.array_equal(low[:, i, j], cut.sum(axis=(1, 2)))
        assert areas[i, j] == pytest.approx(cut[0].size / side**2)


def test_spot_pitch_on_a_patch_that_it_does_not_divide() -> None:
    """2560 µm at 20 µm, LR of 100 µm: 26 pixels, the last of 60 µm."""
    areas = block_areas(128, 5)
    assert areas.shape == (26, 26)
    assert areas[0, -1] == pytest.approx(0.6)
    assert areas[-1, -1] == pytest.approx(0.36)


def test_means_are_exact_and_round_half_up() -> None:
    pixels = np.array([[[0, 1, 255, 255], [1, 0, 255, 254]]], np.uint8)
    assert block_means(pixels, 2).tolist() == [[[1, 255]]]
    assert block_means(pixels, 1) is pixels


@given(st.integers(1, 9), st.integers(0, 99), st.data())
def test_area_resampling_is_the_mean_over_the_area(size: int, seed: int, data: st.DataObject) -> None:
    """Against a picture drawn so fine that every edge falls between pixels."""
    fine = 4 * size
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 5, 7), dtype=np.uint8)
    big = pixels.repeat(fine, axis=1).repeat(fine, axis=2).astype(float)

    def edges(limit: int) -> tuple[int, int]:
        """Draw a span in steps of a quarter of a pixel."""
        start = data.draw(st.integers(0, 4 * limit - 1))
        return start, data.draw(st.integers(start + 1, 4 * limit))

    (top, bottom), (left, right) = edges(5), edges(7)
    cut = big[:, top * size : bottom * size, left * size : right * size]
    wanted = cut.reshape(2, size, bottom - top, size, right - left).mean(axis=(2, 4))
    found = area_resample(pixels, (top / 4, bottom / 4), (left / 4, right / 4), size)
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("bin_um", "lr_bin_um"), [(2.0, 10.0), (8.0, 16.0), (4.0, None)])
def test_bins_equal_the_truth(bins: Made, bin_um: float, lr_bin_um: float | None) -> None:
    genes = ("VIM", "ENSG000", "ACTB")
    recipe = prepare([str(bins.path)], Request(32.0, None, bin_um, lr_bin_um, genes)).recipes[0]
    windows = np.array([[0, 0], [3, 5], [2, 1]], np.int32)
    found, num_bytes = read_patches(recipe, windows)
    f, side = int(bin_um) // 2, int(32 / bin_um)
    for index, (row, col) in enumerate(windows.tolist()):
        rows, cols = slice(row * f, (row + side) * f), slice(col * f, (col + side) * f)
        fine = bins.counts["square_002um"][[7, 0, 8], rows, cols]
        wanted = fine.reshape(3, side, f, side, f).sum(axis=(2, 4))
        assert np.array_equal(found["hr_counts"][index], wanted)
        if lr_bin_um is not None:
            lr = int(lr_bin_um / bin_um)
            assert found["lr_counts"][index].sum() == wanted.sum()
            assert found["lr_counts"][index][1, 0, 0] == wanted[1, :lr, :lr].sum()
    assert found["tissue"].shape == (3, side, side)
    assert num_bytes > 0
    assert set(found) == {"hr_counts", "tissue"} | ({"lr_counts"} if lr_bin_um else set())


@pytest.mark.parametrize(("mpp", "level", "factor"), [(0.5, 0, 1), (1.0, 1, 1), (2.0, 2, 1), (4.0, 2, 2)])
def test_pixels_of_bins_are_the_level_or_exact_means(bins: Made, mpp: float, level: int, factor: int) -> None:
    recipe = prepare([str(bins.path)], Request(32.0, mpp, 8.0, genes=())).recipes[0]
    assert recipe.counts is None
    assert recipe.image is not None
    assert (recipe.image.level, recipe.image.factor) == (level, factor)
    windows = np.array([[4, 8], [8, 4]], np.int32)
    found, _ = read_patches(recipe, windows)
    origin = open_reader(str(bins.path)).images["hd1_image_um"].levels[level]
    for index, (row, col) in enumerate(windows.tolist()):
        y, x = round((row * 8 - origin.y0_um) / origin.mpp), round((col * 8 - origin.x0_um) / origin.mpp)
        size = round(32 / origin.mpp)
        cut = bins.image[level][:, y : y + size, x : x + size].astype(int)
        wanted = cut.reshape(3, size // factor, factor, size // factor, factor).mean(axis=(2, 4))
        assert np.array_equal(found["image"][index], np.floor(wanted + 0.5))


@pytest.mark.parametrize(("step", "found"), [(8, (2, 1)), (4, (1, 2)), (2, (0, 4)), (3, None)])
def test_a_level_that_patches_do_not_meet_gives_way_to_a_finer_one(step: int, found: tuple[int, int] | None) -> None:
    """Patches every 4 cells of 1 µm do not start at whole pixels of 8 µm: means of 4 µm pixels are taken."""
    levels = [PixelGrid(2.0 * 2**index, -16.0, -16.0, 99, 99) for index in range(3)]
    pyramid = SimpleNamespace(levels=levels, level_for=lambda mpp: (2, 1))
    grid = CellGrid((1.0, 1.0), (0.0, 0.0), (100, 100), 16)
    assert aligned_level(pyramid, 8.0, grid, step) == found  # type: ignore[arg-type]


def test_spots_are_windows_of_the_lattice_with_their_picture(spots: Made) -> None:
    prepared = prepare([str(spots.path)], Request(400.0, 25.0, None, 200.0, ("EPCAM", "VIM")))
    windows = np.array([[0, 0], [3, 2]], np.int32)
    found, _ = read_patches(prepared.recipes[0], windows)
    level = open_reader(str(spots.path)).images["v1_image_um"].levels[0]
    assert prepared.recipes[0].image is not None
    assert prepared.recipes[0].image.level == 0
    for index, (row, col) in enumerate(windows.tolist()):
        counts = spots.counts["table"][[0, 7], row : row + 4, col : col + 4]
        assert np.array_equal(found["hr_counts"][index], counts)
        assert np.array_equal(found["lr_counts"][index], counts.reshape(2, 2, 2, 2, 2).sum(axis=(2, 4)))
        top, left = ((row + 0.5) * 87.0 - level.y0_um) / level.mpp, (col * 100.0 - level.x0_um) / level.mpp
        span = 4 * np.array([87.0, 100.0]) / level.mpp
        wanted = area_resample(spots.image[0], (top, top + span[0]), (left, left + span[1]), 16)
        assert np.abs(found["image"][index].astype(int) - wanted).max() <= 1


def test_one_read_touches_image_and_counts_once(bins: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(kind: type, name: str) -> None:
        inner = getattr(kind, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return inner(*args, **kwargs)

        monkeypatch.setattr(kind, name, call)

    counted(ImagePyramid, "read")
    counted(CountsTable, "read_box")
    recipe = prepare([str(bins.path)], Request(32.0, 1.0, 8.0)).recipes[0]
    read_patches(recipe, np.array([[0, 0], [0, 4], [4, 0], [4, 4]], np.int32))
    assert sorted(calls) == ["read", "read_box"]
