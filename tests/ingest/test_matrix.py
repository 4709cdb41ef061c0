"""The two layouts of 10x HDF5: the same counts come out, and damage has a code."""

from __future__ import annotations

import errno
from pathlib import Path

import h5py
import numpy as np
import pytest
import small_runs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import IngestError, MissingInputError
from stzarr.ingest.matrix import MexMatrix, TenxH5Matrix, open_matrix

BARCODES = [f"AAAC{number:04d}-1" for number in range(23)]
COUNTS = small.random_counts(23)


@pytest.mark.parametrize("index", ["int32", "uint32", "int64", "uint64"])
def test_counts_come_out_whatever_the_index_type(tmp_path: Path, index: str) -> None:
    matrix = open_matrix(small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES, index=index))
    assert (matrix.num_barcodes, matrix.num_nonzero) == (23, COUNTS.nnz)
    np.testing.assert_array_equal(small.dense_counts(matrix), COUNTS.toarray())
    np.testing.assert_array_equal(matrix.nonzero_per_barcode(), np.diff(COUNTS.indptr))
    assert [name.decode() for block in matrix.barcodes(5) for name in block] == BARCODES
    assert matrix.genes.ids == tuple(gene[0] for gene in small.GENES)
    assert matrix.genes.symbols[:3] == ("G0", "G0", "G1")
    assert set(matrix.genes.genomes) == {"GRCh38"}
    matrix.close()


@given(entries=st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_blocks_cover_every_entry_once_in_order(tmp_path_factory: pytest.TempPathFactory, entries: int) -> None:
    path = tmp_path_factory.mktemp("h5") / "m.h5"
    matrix = TenxH5Matrix(small.write_h5(path, COUNTS, BARCODES))
    blocks = list(matrix.blocks(entries))
    matrix.close()
    assert max(len(block.value) for block in blocks) <= entries
    np.testing.assert_array_equal(np.concatenate([block.gene for block in blocks]), COUNTS.indices)
    np.testing.assert_array_equal(np.concatenate([block.value for block in blocks]), COUNTS.data)
    barcode = np.concatenate([block.barcode for block in blocks])
    np.testing.assert_array_equal(barcode, np.repeat(np.arange(23), np.diff(COUNTS.indptr)))
    assert barcode.dtype == np.int64
    assert {block.gene.dtype for block in blocks} == {np.dtype(np.int32)}
    assert {block.value.dtype for block in blocks} == {np.dtype(np.uint32)}


def test_old_layout_by_genome(tmp_path: Path) -> None:
    matrix = TenxH5Matrix(small.write_h5_v2(tmp_path / "m.h5", COUNTS, BARCODES))
    np.testing.assert_array_equal(small.dense_counts(matrix), COUNTS.toarray())
    assert set(matrix.genes.genomes) == {"hg19"}
    assert set(matrix.genes.feature_types) == {"Gene Expression"}
    matrix.close()


def test_whole_floats_are_counts_and_values_beyond_uint32_keep_theirs(tmp_path: Path) -> None:
    def widen(arrays: dict) -> None:
        arrays["data"] = arrays["data"].astype(np.float64)
        arrays["data"][0] = 2.0**40

    matrix = TenxH5Matrix(small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES, change=widen))
    block = next(matrix.blocks(1 << 20))
    matrix.close()
    assert block.value.dtype == np.uint64
    assert block.value[0] == 1 << 40


def test_text_barcodes_of_varying_length(tmp_path: Path) -> None:
    path = small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES)
    with h5py.File(path, "r+") as file:
        del file["matrix/barcodes"]
        file["matrix"].create_dataset("barcodes", data=BARCODES, dtype=h5py.string_dtype())
    matrix = TenxH5Matrix(path)
    assert [name.decode() for block in matrix.barcodes() for name in block] == BARCODES
    matrix.close()


def _set(name: str, value):
    def change(arrays: dict) -> None:
        arrays[name] = value(arrays[name]) if callable(value) else value

    return change


def _at(position: int, value):
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[position] = value
        return values

    return change


OPENING = {
    "shape says more barcodes": ("ST132", _set("shape", np.array([7, 24]))),
    "fewer genes than the shape": ("ST132", _set("features/name", lambda names: names[:-1])),
    "indices shorter than data": ("ST132", _set("indices", lambda values: values[:-1])),
    "indptr beyond the data": ("ST132", _set("indptr", _at(-1, 10_000))),
    "repeated gene ids": ("ST133", _set("features/id", _at(3, b"ENSG00001"))),
}


@pytest.mark.parametrize("case", OPENING)
def test_contradictions_are_found_at_opening(tmp_path: Path, case: str) -> None:
    code, change = OPENING[case]
    path = small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES, change=change)
    with pytest.raises(IngestError) as error:
        open_matrix(path)
    assert error.value.code == code
    assert error.value.file == str(path)
    assert error.value.cure


STREAMING = {
    "negative": ("ST134", _set("data", _at(4, -1))),
    "fraction": ("ST134", _set("data", lambda data: data + 0.5)),
    "not a number": ("ST134", _set("data", lambda data: np.where(np.arange(len(data)) == 3, np.nan, data))),
    "gene out of range": ("ST135", _set("indices", _at(2, 7))),
    "indptr backwards": ("ST132", _set("indptr", _at(3, 60))),
    "stored zeros only": ("ST136", _set("data", lambda data: data * 0)),
}


@pytest.mark.parametrize("case", STREAMING)
def test_bad_entries_are_found_while_streaming(tmp_path: Path, case: str) -> None:
    code, change = STREAMING[case]
    matrix = TenxH5Matrix(small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES, change=change))
    with pytest.raises(IngestError) as error:
        list(matrix.blocks(10))
    matrix.close()
    assert error.value.code == code


def test_an_empty_matrix_opens_and_refuses_to_be_counted(tmp_path: Path) -> None:
    nothing = type(COUNTS)((len(small.GENES), 23), dtype=np.int32)
    matrix = TenxH5Matrix(small.write_h5(tmp_path / "e.h5", nothing, BARCODES))
    assert matrix.num_nonzero == 0
    for use in (matrix.nonzero_per_barcode, lambda: list(matrix.blocks())):
        with pytest.raises(IngestError, match="no counts") as error:
            use()
        assert error.value.code == "ST136"
    matrix.close()


def test_truncated_foreign_and_missing_files(tmp_path: Path) -> None:
    path = small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES)
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[:3000])
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    for bad in (cut, text):
        with pytest.raises(IngestError) as error:
            open_matrix(bad)
        assert error.value.code == "ST130"
    with pytest.raises(MissingInputError) as missing:
        open_matrix(tmp_path / "none.h5")
    assert missing.value.code == "ST103"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(IngestError) as error:
        open_matrix(tmp_path / "other.h5")
    assert error.value.code == "ST131"
    with pytest.raises(IngestError, match="hg19, mm10") as error:
        open_matrix(small.write_h5_v2(tmp_path / "two.h5", COUNTS, BARCODES, ("hg19", "mm10")))
    assert error.value.code == "ST131"


def test_errors_of_the_disk_are_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    matrix = TenxH5Matrix(path)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    for reading in (matrix.nonzero_per_barcode, lambda: list(matrix.blocks()), lambda: list(matrix.barcodes())):
        with pytest.raises(OSError, match="Input/output") as error:
            reading()
        assert type(error.value) is OSError
    matrix.close()
    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(OSError, match="Input/output") as error:
        TenxH5Matrix(path)
    assert type(error.value) is OSError


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    path = small.write_h5(tmp_path / "m.h5", COUNTS, BARCODES)
    with h5py.File(path, "r+") as file:
        del file["matrix/indptr"]
    with pytest.raises(IngestError, match="indptr") as error:
        open_matrix(path)
    assert error.value.code == "ST131"


@pytest.mark.real
def test_real_counts_are_equal_from_both_formats(real_data: Path) -> None:
    run = real_data / "visium_v2_mouse"
    h5 = open_matrix(run / "derived" / "filtered_feature_bc_matrix.h5")
    mex = open_matrix(run / "outs" / "filtered_feature_bc_matrix")
    assert isinstance(mex, MexMatrix)
    totals = []
    for matrix in (h5, mex):
        assert (len(matrix.genes.ids), matrix.num_barcodes, matrix.num_nonzero) == (19_465, 2_898, 1_069_459)
        assert len(matrix.genes.ids) - len(set(matrix.genes.symbols)) == 11
        genes, barcodes, mixed = np.zeros(19_465, np.int64), np.zeros(2_898, np.int64), 0
        for block in matrix.blocks(100_000):
            genes += np.bincount(block.gene, block.value, 19_465).astype(np.int64)
            barcodes += np.bincount(block.barcode, block.value, 2_898).astype(np.int64)
            mixed += int((block.value * (block.barcode + 1) * (block.gene + 7)).sum())
        totals.append((genes, barcodes, mixed, matrix.nonzero_per_barcode(), b"".join(next(matrix.barcodes()))))
        matrix.close()
    assert totals[0][0].sum() == 3_085_005
    assert totals[0][2] == totals[1][2]
    assert totals[0][4] == totals[1][4]
    for one, other in zip(totals[0], totals[1], strict=True):
        np.testing.assert_array_equal(one, other)
