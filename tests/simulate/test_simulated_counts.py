"""Counts add up over bin sizes, follow the seed only, and come in 10x's layout."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from simulated_run import Run

from stzarr.simulate.counts import CountsModel
from stzarr.simulate.genes import NUM_PROGRAMS, make_programs
from stzarr.simulate.geometry import lay_out
from stzarr.simulate.tissue import Tissue


def sums(fine: np.ndarray, factor: int) -> np.ndarray:
    genes, rows, cols = fine.shape
    padded = np.zeros((genes, -(-rows // factor) * factor, -(-cols // factor) * factor), fine.dtype)
    padded[:, :rows, :cols] = fine
    return padded.reshape(genes, -1, factor, padded.shape[2] // factor, factor).sum(axis=(2, 4))


@pytest.mark.parametrize("bin_um", [8, 16])
def test_coarse_counts_are_exact_sums_with_partial_last_bins(run: Run, bin_um: int) -> None:
    fine, coarse = run.grid(2), run.grid(bin_um)
    assert fine.shape[1:] == (106, 150)
    assert coarse.shape[1:] == (-(-212 // bin_um), -(-300 // bin_um))
    assert np.array_equal(sums(fine, bin_um // 2), coarse)
    assert coarse.sum() == run.about["totals"]["square_002um"]["umi"]


@pytest.mark.parametrize("bin_um", [2, 8, 16])
def test_matrix_holds_in_tissue_bins_in_the_order_of_positions(run: Run, bin_um: int) -> None:
    where = run.positions(bin_um)
    order = np.lexsort((where["array_col"], where["array_row"]))
    assert np.array_equal(order, np.arange(len(order)))
    names = [
        f"s_{bin_um:03d}um_{row:05d}_{col:05d}-1"
        for row, col in zip(where["array_row"], where["array_col"], strict=True)
    ]
    assert where["barcode"].tolist() == names
    with h5py.File(run.folder(bin_um) / "filtered_feature_bc_matrix.h5") as file:
        stored = file["matrix/barcodes"][:].astype(str)
    assert np.array_equal(stored, where["barcode"][where["in_tissue"] == 1].astype(str))
    for name in ("in_tissue", "array_row", "array_col"):
        assert where[name].dtype == np.int32
    matrix = run.matrix(bin_um)
    assert matrix.has_canonical_format
    assert matrix.data.min() >= 1
    totals = run.about["totals"][f"square_{bin_um:03d}um"]
    found = {"bins": len(names), "in_tissue": matrix.shape[1], "umi": matrix.data.sum(), "nonzero": matrix.nnz}
    assert totals == found


def test_hdf5_is_laid_out_as_10x_does(run: Run) -> None:
    with h5py.File(run.folder(2) / "filtered_feature_bc_matrix.h5") as file:
        assert file.attrs["simulated"]
        assert file.attrs["filetype"] == "matrix"
        matrix = file["matrix"]
        assert {name: matrix[name].dtype.str for name in ("barcodes", "data", "indices", "indptr", "shape")} == {
            "barcodes": "|S21",
            "data": "<i4",
            "indices": "<i8",
            "indptr": "<i8",
            "shape": "<i4",
        }
        for name in ("barcodes", "data", "indices", "indptr"):
            assert matrix[name].compression == "gzip"
            assert matrix[name].chunks is not None
        features = {name: matrix["features"][name][:].astype(str) for name in ("id", "name", "feature_type", "genome")}
    assert len(set(features["id"])) == 60
    assert 0 < len(features["name"]) - len(set(features["name"])) <= 11
    assert set(features["feature_type"]) == {"Gene Expression"}


def test_bands_depend_on_the_seed_only() -> None:
    area = lay_out((120.0, 100.0), (2.0, 8.0), mpp=0.2738, rotation_deg=2.0, turn=0, mirror=True)

    def model(seed: int) -> CountsModel:
        tissue = Tissue(seed, (120.0, 100.0))
        return CountsModel(seed, area, tissue, make_programs(seed, 40), (2.0, 8.0), 4.0)

    first, again, other = model(7), model(7), model(8)
    bands = range(first.num_bands)
    forward = [first.band(index) for index in bands]
    backward = [again.band(index) for index in reversed(bands)][::-1]
    for one, two in zip(forward, backward, strict=True):
        for a, b in zip(one, two, strict=True):
            assert np.array_equal(a.genes, b.genes)
            assert np.array_equal(a.values, b.values)
    assert not np.array_equal(forward[5][0].genes, other.band(5)[0].genes)


def test_draws_follow_the_shares() -> None:
    programs = make_programs(0, 50)
    generator = np.random.default_rng(0)
    for program in range(NUM_PROGRAMS):
        drawn = programs.draw(np.full(100_000, program), generator)
        expected = programs.shares[program] * 100_000
        found = np.bincount(drawn, minlength=50)
        assert (np.abs(found - expected) < 5 * np.sqrt(expected) + 5).all()


def test_real_sized_panel_is_sparse_and_heavy_tailed() -> None:
    size = (400.0, 320.0)
    area = lay_out(size, (2.0, 8.0, 16.0), mpp=0.2738, rotation_deg=2.0, turn=0, mirror=True)
    programs = make_programs(0, 18_085)
    model = CountsModel(0, area, Tissue(0, size), programs, (2.0, 8.0, 16.0), 4.0)
    fine = [model.band(index)[0] for index in range(8, 12)]
    num_bins = sum(int(band.in_tissue.sum()) for band in fine)
    values = np.concatenate([band.values for band in fine])
    assert 10 < len(values) / num_bins < 22
    assert (values == 1).mean() > 0.95
    average = np.sort(programs.shares.mean(axis=0))[::-1]
    assert average[:181].sum() > 0.12, "1 % of the genes hold an eighth of the RNA"
    assert len(set(programs.symbols)) == 18_085 - 11
