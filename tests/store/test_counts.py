from __future__ import annotations

import hashlib
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.utils import make_index_unique
from counts_samples import MemoryMatrix, bins, expected, frame_of, genes_of, random_counts, spots
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import IngestError
from stzarr.space import BinLattice
from stzarr.store import layout
from stzarr.store.counts import TableResult, unique_symbols, write_table
from stzarr.store.journal import Journal
from stzarr.store.source import CountsSource


@pytest.fixture
def small_shards(monkeypatch):
    """Many shards for few entries, so that rows lie on their borders."""
    monkeypatch.setattr(layout, "ENTRIES_PER_CHUNK", 64)
    monkeypatch.setattr(layout, "ENTRIES_PER_SHARD", 256)
    monkeypatch.setattr(layout, "ROWS_PER_CHUNK", 128)
    monkeypatch.setattr(layout, "ROWS_PER_SHARD", 512)


def written(path: Path, counts: CountsSource, threads: int = 1, progress=None) -> tuple[zarr.Group, TableResult]:
    journal = Journal.open(path, {})
    try:
        result = write_table(
            journal.root,
            counts,
            slide_id="s1",
            frame=frame_of(counts.lattice),
            scratch=path.parent / "scratch",
            journal=journal,
            threads=threads,
            progress=progress,
        )
    finally:
        journal.close()
    return zarr.open_group(path / "tables" / counts.name, mode="r"), result


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("make", [bins, spots])
def test_the_table_equals_the_matrix_in_tile_order(make, tmp_path, small_shards):
    counts = make()
    table, result = written(tmp_path / "a.zarr", counts)
    truth, order = expected(counts)
    x = anndata.io.read_elem(table["X"])
    assert x.dtype == np.uint16
    np.testing.assert_array_equal(x.indptr, truth.indptr)
    np.testing.assert_array_equal(x.indices, truth.indices)
    np.testing.assert_array_equal(x.data, truth.data)
    np.testing.assert_array_equal(table["obs/array_row"][:], counts.array_row[order])
    np.testing.assert_array_equal(table["obs/array_col"][:], counts.array_col[order])
    np.testing.assert_array_equal(table["obs/in_tissue"][:], counts.in_tissue[order])
    np.testing.assert_array_equal(table["var/total_counts"][:], truth.sum(axis=0).A1)
    assert result.attrs["total"] == truth.sum()
    assert result.attrs["max"] == truth.max()
    assert (result.attrs["n_obs"], result.attrs["n_vars"]) == truth.shape
    assert result.attrs["nnz"] == truth.nnz


@pytest.mark.parametrize("make", [bins, spots])
def test_tiles_are_runs_of_rows(make, tmp_path):
    counts = make()
    table, result = written(tmp_path / "a.zarr", counts)
    indptr, (rows, cols) = table["X/tile_indptr"][:], table["X/tile_indptr"].attrs["tile_shape"]
    grid_row, grid_col = table["obs/grid_row"][:], table["obs/grid_col"][:]
    assert len(indptr) == rows * cols + 1
    assert [rows, cols] == result.attrs["tile_shape"]
    assert indptr[-1] == len(grid_row)
    for tile in range(rows * cols):
        run = slice(indptr[tile], indptr[tile + 1])
        assert (grid_row[run] // 32 == tile // cols).all()
        assert (grid_col[run] // 32 == tile % cols).all()
        cell = grid_row[run].astype(np.int64) * 10_000 + grid_col[run]
        assert (np.diff(cell) > 0).all()


@pytest.mark.parametrize("make", [bins, spots])
def test_positions_are_the_lattice_in_um_and_in_full_resolution_px(make, tmp_path, small_shards):
    counts = make()
    table, _ = written(tmp_path / "a.zarr", counts)
    um, px = table["obsm/spatial_um"][:], table["obsm/spatial"][:]
    array = np.stack([table["obs/array_col"][:], table["obs/array_row"][:]], axis=1)
    np.testing.assert_allclose(um, counts.lattice.array_to_um(array), rtol=0, atol=1e-9)
    np.testing.assert_allclose(px, frame_of(counts.lattice).um_to_px(um), rtol=0, atol=1e-6)


def test_bytes_do_not_depend_on_threads_or_on_the_order_of_entries(tmp_path, small_shards):
    counts = bins()
    again = bins(block=37)
    shuffled = np.random.default_rng(5).permutation(again.matrix.num_nonzero)
    for field in ("barcode", "gene", "value"):
        setattr(again.matrix, field, getattr(again.matrix, field)[shuffled])
    written(tmp_path / "a" / "s.zarr", counts)
    written(tmp_path / "b" / "s.zarr", again, threads=3)
    assert digests(tmp_path / "a/s.zarr/tables") == digests(tmp_path / "b/s.zarr/tables")


def test_an_interrupted_write_continues_with_equal_bytes_and_no_second_pass(tmp_path, small_shards, monkeypatch):
    written(tmp_path / "a" / "s.zarr", bins())
    counts = bins()

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("counts") and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "b" / "s.zarr", counts, progress=stop)
    written(tmp_path / "b" / "s.zarr", counts)
    assert counts.matrix.passes == 1
    assert digests(tmp_path / "a/s.zarr/tables") == digests(tmp_path / "b/s.zarr/tables")
    assert not list((tmp_path / "b" / "scratch").rglob("*.bin"))
    written(tmp_path / "b" / "s.zarr", counts)
    assert counts.matrix.passes == 1


def test_a_pass_that_was_cut_off_is_done_again(tmp_path, small_shards):
    written(tmp_path / "a" / "s.zarr", bins())
    counts = bins()

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("sorting") and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "b" / "s.zarr", counts, progress=stop)
    written(tmp_path / "b" / "s.zarr", counts)
    assert counts.matrix.passes == 2
    assert digests(tmp_path / "a/s.zarr/tables") == digests(tmp_path / "b/s.zarr/tables")


@pytest.mark.parametrize(
    ("largest", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)]
)
def test_counts_take_the_narrowest_type(largest, dtype, tmp_path):
    counts = bins(largest=3)
    counts.matrix.value[7] = largest
    table, _ = written(tmp_path / "a.zarr", counts)
    assert table["X/data"].dtype == dtype
    assert table["X/data"][:].max() == largest


def test_few_files_and_explicit_shards(tmp_path):
    written(tmp_path / "a.zarr", bins())
    table = tmp_path / "a.zarr" / "tables" / "square_002um"
    nodes = {path.parent: json.loads(path.read_text()) for path in table.rglob("zarr.json")}
    for array in (path for path, node in nodes.items() if node["node_type"] == "array"):
        assert len([path for path in array.rglob("*") if path.is_file()]) <= 2
    data = zarr.open_array(table / "X" / "data", mode="r")
    assert data.shards is not None
    assert data.compressors[0].typesize == data.dtype.itemsize


def test_names_of_bins_are_numbers_and_of_spots_their_barcodes(tmp_path):
    table, _ = written(tmp_path / "a.zarr", bins())
    np.testing.assert_array_equal(table["obs/_index"][:], np.arange(1, table["obs/_index"].shape[0] + 1))
    np.testing.assert_array_equal(table["obs/_index"][:], table["obs/location_id"][:])
    counts = spots()
    table, _ = written(tmp_path / "b.zarr", counts)
    names = np.concatenate(list(counts.matrix.barcodes()))[expected(counts)[1]].astype(str)
    assert list(table["obs/_index"][:]) == list(names)


# ------------------------------------------------------------------------------------------------------ refusals


def with_entries(barcode, gene, value, *, num=4, lattice=None, rows=None, cols=None, genes=None) -> CountsSource:
    matrix = MemoryMatrix(barcode, gene, np.array(value, np.uint32), num, genes or genes_of(3))
    lattice = lattice or BinLattice(2.0, 8, 8)
    rows = np.arange(num) if rows is None else rows
    cols = np.zeros(num) if cols is None else cols
    return CountsSource("square_002um", matrix, lattice, np.int32(rows), np.int32(cols), np.ones(num, bool))


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        (with_entries([0, 1], [0, 1], [1, 1], rows=[0, 1, 1, 2]), "ST140"),
        (with_entries([0, 1], [0, 1], [1, 1], rows=[0, 1, 2, 8]), "ST141"),
        (with_entries([0, 1, 0], [2, 1, 2], [1, 1, 1]), "ST142"),
        (with_entries([0, 1], [0, 3], [1, 1]), "ST143"),
        (with_entries([0, 1], [0, 1], [1, 2**31]), "ST144"),
        (with_entries([], [], []), "ST145"),
        (with_entries([0, 1], [0, 1], [0, 0]), "ST145"),
        (
            with_entries([0], [0], [1], genes=genes_of(2).__class__(("E1", "E1"), ("a", "b"), ("G",) * 2, ("h",) * 2)),
            "ST146",
        ),
    ],
)
def test_bad_matrices_are_refused(counts, code, tmp_path):
    with pytest.raises(IngestError) as error:
        written(tmp_path / "a.zarr", counts)
    assert error.value.code == code
    assert error.value.file == "matrix.h5"


def test_a_matrix_that_contradicts_its_index_is_refused(tmp_path):
    counts = with_entries([0, 1, 1], [0, 1, 2], [1, 1, 1])
    counts.matrix.nonzero_per_barcode = lambda: np.array([1, 1, 1, 0])
    with pytest.raises(IngestError, match="contradicts its own index"):
        written(tmp_path / "a.zarr", counts)


# ---------------------------------------------------------------------------------------------------- properties


@given(st.lists(st.sampled_from(["A", "A-1", "A-2", "B", "A-1-1", ""]), max_size=12))
def test_symbols_are_made_unique_as_anndata_does(symbols):
    index = pd.Index(symbols, dtype=object)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anndata.utils.warnings.warn", lambda *_, **__: None)
        assert unique_symbols(symbols) == list(make_index_unique(index))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from([1, 7, 64]),
    st.sampled_from([0.3, 2.0, 9.0]),
)
def test_any_matrix_is_kept(tmp_path_factory, seed, num_rows, num_cols, mirrored, block, per_cell):
    lattice = BinLattice(8.0, num_rows, num_cols, mirrored)
    counts = random_counts(
        lattice, name="square_008um", seed=seed, per_cell=per_cell, block=block, share=0.3, num_genes=12
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ENTRIES_PER_CHUNK": 4, "ENTRIES_PER_SHARD": 8, "ROWS_PER_CHUNK": 512}.items():
            patch.setattr(layout, name, value)
        folder = tmp_path_factory.mktemp("any") / "s.zarr"
        if not counts.matrix.num_nonzero:
            with pytest.raises(IngestError, match="no counts"):
                written(folder, counts)
            return
        counts.matrix.barcode = counts.matrix.barcode[:40]
        counts.matrix.gene, counts.matrix.value = counts.matrix.gene[:40], counts.matrix.value[:40]
        counts.matrix.num_nonzero = len(counts.matrix.value)
        table, _ = written(folder, counts)
        x = anndata.io.read_elem(table["X"])
    truth, _ = expected(counts)
    np.testing.assert_array_equal(x.indptr, truth.indptr)
    np.testing.assert_array_equal(x.indices, truth.indices)
    np.testing.assert_array_equal(x.data, truth.data)
