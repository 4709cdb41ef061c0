"""Slides of stores that ingest made, against the source's own files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import stzarr
from stzarr.errors import GeneError
from stzarr.ingest import ingest
from stzarr.ingest.readers import ReadOptions
from stzarr.simulate import simulate
from stzarr.slide import Slide

OPENING = """
import json, sys, time
import psutil, dask.array, xarray, zarr
process = psutil.Process()
before, start = process.memory_info().rss, time.perf_counter()
import stzarr
slide = stzarr.open(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": process.memory_info().rss - before,
                  "modules": [name for name in ("torch", "anndata", "cv2", "h5py") if name in sys.modules]}))
"""


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "outs"
    simulate(folder, size_um=(160, 128), seed=1, num_genes=40)
    return folder


@pytest.fixture(scope="module")
def slide(outs: Path) -> Slide:
    image = next(outs.glob("*.btf"))
    return stzarr.open(ingest(outs, outs.with_name("sim.zarr"), read=ReadOptions(image=image)))


def _source_counts(outs: Path, bin_um: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return the counts of a run (gene, array row, array column), read without stzarr, and its barcodes."""
    with h5py.File(outs / f"binned_outputs/square_{bin_um:03d}um/filtered_feature_bc_matrix.h5") as file:
        matrix = file["matrix"]
        names = [name.decode() for name in matrix["barcodes"][:]]
        place = np.array([name.split("-")[0].split("_")[2:] for name in names], np.int64)
        per_barcode = np.diff(matrix["indptr"][:].astype(np.int64))
        row, col = np.repeat(place, per_barcode, axis=0).T
        counts = np.zeros((matrix["shape"][0], 128 // bin_um, 160 // bin_um), np.int64)
        np.add.at(counts, (matrix["indices"][:], row, col), matrix["data"][:])
    return counts, names


@pytest.mark.parametrize("stored", [2, 8])
def test_counts_are_those_of_the_run(slide: Slide, outs: Path, stored: int) -> None:
    assert slide.reader.frame.mirrored
    truth = _source_counts(outs, stored)[0][:, :, ::-1]
    np.testing.assert_array_equal(slide.counts(stored).values, truth)
    np.testing.assert_array_equal(slide.genes()["total_counts"], truth.sum((1, 2)))


def test_ten_micrometres_are_sums_of_two(slide: Slide, outs: Path) -> None:
    truth = np.pad(_source_counts(outs, 2)[0][:, :, ::-1], ((0, 0), (0, 1), (0, 0)))
    np.testing.assert_array_equal(slide.counts(10).values, truth.reshape(-1, 13, 5, 16, 5).sum((2, 4)))


def test_names_are_the_barcodes_of_the_run(slide: Slide, outs: Path) -> None:
    names = set(_source_counts(outs, 8)[1])
    table = slide.table("square_008um", bounds_um=slide.bounds_um)
    assert set(table.obs_names) == names
    lazy = slide.table("square_008um")
    assert lazy.shape == table.shape
    np.testing.assert_array_equal(lazy.obsm["spatial"].compute(), table.obsm["spatial"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Transforming to str index")
def test_views_agree_with_spatialdata(slide: Slide) -> None:
    pytest.importorskip("spatialdata")
    data = slide.to_spatialdata()
    assert data.tables["square_002um"].X.sum() == int(slide.counts(2).sum())
    image = data.images[slide.reader.default_image().name]["scale0"].ds["image"]
    np.testing.assert_array_equal(image.values, slide.image().values)
    tree = xr.open_datatree(slide.reader.path, engine="stzarr", chunks={})
    for name, element in data.labels.items():
        np.testing.assert_array_equal(tree[f"labels/{name}"]["labels"].values, element.values)


def test_tissue_of_the_map_is_that_of_the_bins(slide: Slide) -> None:
    in_tissue = slide.table("square_002um", bounds_um=slide.bounds_um).obs["in_tissue"].sum()
    x0, y0, x1, y1 = slide.bounds_um
    share = slide.reader.tissue.share_of([slide.bounds_um])[0]
    assert share * (x1 - x0) * (y1 - y0) == pytest.approx(4 * in_tissue, rel=1e-6)


def test_opening_is_quick_and_small(slide: Slide) -> None:
    command = [sys.executable, "-c", OPENING, str(slide.reader.path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["seconds"] < 0.5
    assert found["bytes"] < 100e6
    assert not found["modules"]


@pytest.mark.real
def test_the_mouse_run(real_data: Path, tmp_path: Path) -> None:
    outs = real_data / "visium_v2_mouse" / "outs"
    read = ReadOptions(image=outs / "spatial" / "aligned_fiducials.jpg")
    slide = stzarr.open(ingest(outs, tmp_path / "mouse.zarr", read=read))
    assert slide.reader.frame.mpp == pytest.approx(4.6776, abs=5e-5)
    counts = slide.counts()
    assert counts.shape == (19465, 78, 64)
    assert int(counts.in_tissue.sum()) == 2898
    values = counts.values
    assert int(values.sum()) == 3_085_005
    assert int((values > 0).sum()) == 1_069_459
    np.testing.assert_array_equal(values.sum((1, 2)), slide.genes()["total_counts"])
    assert int(slide.counts(400, max_bytes=1 << 32).sum()) == 3_085_005
    assert slide.table(bounds_um=slide.bounds_um).X.sum() == 3_085_005
    with pytest.raises(GeneError, match=r"ST311(.|\n)*ENSMUSG00000090053, ENSMUSG00000038729"):
        slide.counts(genes=["Pakap"])
    assert list(slide.counts(genes=["Krtap13", "Krtap13-1"]).gene.values) == ["Krtap13", "Krtap13-1"]
    patch = slide.sel(x=slice(3000, 3255), y=slice(3000, 3255))
    assert patch.image().shape == (3, 64, 64)
    assert patch.table().n_obs == int(patch.counts(genes=[]).in_tissue.sum())
