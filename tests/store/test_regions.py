from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import zarr
from counts_samples import bins, frame_of, random_counts, spots

from stzarr.space import BinLattice, PixelGrid
from stzarr.store import layout, regions
from stzarr.store.counts import TableResult, tile_order
from stzarr.store.journal import Journal
from stzarr.store.source import CountsSource


def written(path: Path, counts: CountsSource, threads: int = 1, **options) -> str:
    journal = Journal.open(path, {})
    result = TableResult({}, tile_order(counts))
    frame = frame_of(counts.lattice)
    try:
        return regions.write_region(
            journal.root, counts, result, slide_id="s1", frame=frame, journal=journal, threads=threads, **options
        )
    finally:
        journal.close()


def raster_of(counts: CountsSource) -> np.ndarray:
    """Return the labels over the whole grid, made the simple way."""
    order = tile_order(counts)
    raster = np.zeros(counts.lattice.grid_shape, np.int32)
    raster[order.grid_row, order.grid_col] = np.arange(1, len(order.grid_row) + 1)
    return raster


def step(attrs, name: str) -> dict:
    (found,) = (s for s in attrs if s["output"]["name"] == name)
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_labels_hold_each_row_at_its_cell(threads, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "IMAGE_CHUNK_PX", 16)
    monkeypatch.setattr(layout, "SHARD_PX", 48)
    counts = bins()
    path = written(tmp_path / "a.zarr", counts, threads)
    assert path == "labels/s1_square_002um_labels"
    labels = zarr.open_array(tmp_path / "a.zarr" / path / "s0" / "image", mode="r")
    whole = raster_of(counts)
    rows, cols = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
    assert labels.dtype == np.int32
    assert labels.shards == (48, 48)
    np.testing.assert_array_equal(labels[:], whole[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1])


def test_labels_start_at_the_least_row_and_column(tmp_path):
    counts = random_counts(BinLattice(8.0, 80, 70), name="square_008um")
    inside = (counts.array_row >= 37) & (counts.array_col >= 41)
    order = np.flatnonzero(inside)
    part = CountsSource(
        counts.name, counts.matrix, counts.lattice, counts.array_row[order], counts.array_col[order], inside[order]
    )
    path = written(tmp_path / "a.zarr", part)
    group = zarr.open_group(tmp_path / "a.zarr" / path, mode="r")
    (multiscale,) = group.attrs["ome"]["multiscales"]
    row, col = part.array_row.min(), part.array_col.min()
    to_um = step(multiscale["coordinateTransformations"], "um")
    assert to_um["transformations"][0]["scale"] == [8.0, 8.0]
    assert to_um["transformations"][1]["translation"] == [8.0 * row, 8.0 * col]
    (level,) = multiscale["datasets"]
    assert level["coordinateTransformations"][0]["scale"] == [8.0, 8.0]
    assert level["coordinateTransformations"][1]["translation"] == [8.0 * row + 4, 8.0 * col + 4]
    (yy, yx, ty), (xy, xx, tx) = step(multiscale["coordinateTransformations"], "s1")["affine"]
    affine = frame_of(counts.lattice).um_to_px_affine
    x, y = affine((8.0 * (col + 2.5), 8.0 * (row + 1.5)))
    np.testing.assert_allclose([yy * 1.5 + yx * 2.5 + ty, xy * 1.5 + xx * 2.5 + tx], [y, x], rtol=1e-12)


def test_labels_of_two_tables_are_both_listed(tmp_path):
    written(tmp_path / "a.zarr", bins())
    written(tmp_path / "a.zarr", random_counts(BinLattice(8.0, 9, 9), name="square_008um"))
    labels = json.loads((tmp_path / "a.zarr" / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert labels == ["s1_square_002um_labels", "s1_square_008um_labels"]


def test_shards_cover_the_raster_once():
    grid = PixelGrid(2.0, 0.0, 0.0, layout.SHARD_PX * 2 + 1, layout.SHARD_PX)
    boxes = regions.shard_boxes(grid)
    assert len(boxes) == 3
    assert sum((r1 - r0) * (c1 - c0) for r0, r1, c0, c1 in boxes) == grid.width * grid.height


def test_circles_are_spots_in_um(tmp_path):
    counts = spots()
    path = written(tmp_path / "a.zarr", counts, spot_radius_um=32.5)
    assert path == "shapes/s1"
    circles = geopandas.read_parquet(tmp_path / "a.zarr" / path / "shapes.parquet")
    order = tile_order(counts)
    array = np.stack([counts.array_col[order.barcode], counts.array_row[order.barcode]], axis=1)
    centres = counts.lattice.array_to_um(array)
    np.testing.assert_allclose(circles.geometry.x, centres[:, 0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(circles.geometry.y, centres[:, 1], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(circles.index, np.arange(1, len(circles) + 1))
    assert circles.index.name == "spot_id"
    assert (circles.radius == 32.5).all()
    systems = json.loads((tmp_path / "a.zarr" / path / "zarr.json").read_text())["attributes"]
    assert step(systems["coordinateTransformations"], "um")["type"] == "identity"
    assert step(systems["coordinateTransformations"], "s1")["affine"] == [[3.6, 0.2, 40.0], [-0.1, 3.7, 900.0]]


def test_circles_have_equal_bytes_every_time(tmp_path):
    files = []
    for name in ("a", "b"):
        path = written(tmp_path / name, spots(), spot_radius_um=35.0)
        files.append((tmp_path / name / path / "shapes.parquet").read_bytes())
    assert files[0] == files[1]


def test_spots_without_a_radius_are_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="spot_radius_um"):
        written(tmp_path / "a.zarr", spots())
