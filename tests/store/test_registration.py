"""Landmarks at known bins are found where they belong in the registered image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pictures import MemoryPicture, bin_slide, turned

from stzarr.ingest.readers import ReadOptions, open_source
from stzarr.simulate import SIMULATED, simulate
from stzarr.space import BinLattice, PixelGrid
from stzarr.store.reader import StoreReader
from stzarr.store.writer import WriteOptions, write_store

MEAN_UM, WORST_UM = 0.1, 0.3


def found_um(pixels: np.ndarray, grid: PixelGrid, where_um: np.ndarray, reach_um: float) -> np.ndarray:
    """Return the centroid of the dark mark around each expected position, (n, 2) [µm]."""
    dark = pixels.max() - pixels.astype(np.float64).mean(axis=0)
    found = []
    for x, y in where_um:
        left, top = (grid.centres_to_um.inverse()((x - reach_um, y - reach_um))).round().astype(int)
        r0, r1, c0, c1 = top, top + round(2 * reach_um / grid.mpp), left, left + round(2 * reach_um / grid.mpp)
        part = dark[r0:r1, c0:c1] - np.median(dark[r0:r1, c0:c1])
        part = np.where(part > 0.2 * part.max(), part, 0)
        rows, cols = np.mgrid[r0:r1, c0:c1]
        centre = np.array([(part * cols).sum(), (part * rows).sum()]) / part.sum()
        found.append(grid.centres_to_um(centre))
    return np.array(found)


@pytest.mark.parametrize(
    ("angle", "mirror", "mpp"),
    [(3.0, True, 0.2738), (-47.0, False, 0.6), (90.0, True, 0.35), (181.5, False, 0.2), (-90.0, True, 0.2738)],
)
def test_dots_of_known_position_are_found(tmp_path, angle, mirror, mpp):
    size, side = 200.0, round(420.0 / mpp)
    to_px = turned(angle, mpp, (side / 2 + 3.3, side / 2 - 7.7), mirror, 2e-6)
    at = np.array([(x, y) for x in np.linspace(1, size - 1, 5) for y in np.linspace(1, size - 1, 5)])
    dots = to_px(at - size / 2)
    pixels = np.full((3, side, side), 230.0)
    reach = np.arange(-20, 21)
    for x, y in dots:
        cols, rows = round(x) + reach, round(y) + reach
        dot = np.exp(-0.5 * ((rows[:, None] - y) ** 2 + (cols - x) ** 2) / 3.0**2)
        pixels[:, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] -= 200 * dot
    picture = MemoryPicture(tmp_path / "dots.tif", np.round(pixels).astype(np.uint8))
    store = write_store(bin_slide(picture, to_px, size, mpp), tmp_path / "s.zarr")
    image = StoreReader(store).default_image()
    grid = image.levels[0]
    errors = np.linalg.norm(
        found_um(image.read(0, 0, grid.height, 0, grid.width), grid, at, reach_um=12 * mpp) - at, axis=1
    )
    assert errors.mean() < MEAN_UM
    assert errors.max() < WORST_UM


@pytest.mark.parametrize("turn", [0, 90])
@pytest.mark.parametrize("mirror", [True, False])
def test_landmarks_of_a_simulated_run_are_found(tmp_path, turn, mirror):
    image = simulate(
        tmp_path / "outs",
        size_um=(320.0, 240.0),
        num_genes=20,
        bins_um=(2.0, 8.0),
        landmarks=True,
        turn=turn,
        mirror=mirror,
        rotation_deg=2.5,
    )
    about = json.loads((tmp_path / "outs" / SIMULATED).read_text())
    source = open_source(tmp_path / "outs", ReadOptions(image=image))
    try:
        store = write_store(source, tmp_path / "s.zarr", WriteOptions())
    finally:
        source.close()
    reader = StoreReader(store)
    lattice = reader.frame.lattice
    assert isinstance(lattice, BinLattice)
    marks = about["landmarks"]
    rows, cols = lattice.grid([mark["array_row"] for mark in marks], [mark["array_col"] for mark in marks])
    at = lattice.centres_um(rows, cols)
    picture = reader.default_image()
    grid = picture.levels[0]
    pixels = picture.read(0, 0, grid.height, 0, grid.width)
    errors = np.linalg.norm(found_um(pixels, grid, at, reach_um=4 * about["landmark_sigma_um"]) - at, axis=1)
    assert len(errors) == 25
    assert errors.mean() < MEAN_UM
    assert errors.max() < WORST_UM
