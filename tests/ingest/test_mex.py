"""Matrix Market folders: compression by magic bytes, chunks of text, and counts that must match the header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_runs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import IngestError, MissingInputError
from stzarr.ingest.mex import MexMatrix

BARCODES = [f"AAAC{number:04d}-1" for number in range(23)]
COUNTS = small.random_counts(23)
SEVEN_BY_23 = {"counts": COUNTS, "barcodes": BARCODES}


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("features", ["features.tsv", "genes.tsv"])
def test_counts_come_out_compressed_or_not(tmp_path: Path, gz: bool, features: str) -> None:
    matrix = MexMatrix(small.write_mex(tmp_path / "m", **SEVEN_BY_23, gz=gz, features=features))
    np.testing.assert_array_equal(small.dense_counts(matrix, 3), COUNTS.toarray())
    np.testing.assert_array_equal(matrix.nonzero_per_barcode(), np.diff(COUNTS.indptr))
    assert [name.decode() for block in matrix.barcodes(4) for name in block] == BARCODES
    assert matrix.warnings == ()
    assert set(matrix.genes.feature_types) == {"Gene Expression"}
    assert len(matrix.files) == 3


def test_plain_text_called_gz_is_read_with_one_warning(tmp_path: Path) -> None:
    matrix = MexMatrix(small.write_mex(tmp_path / "m", **SEVEN_BY_23, gz=True, compressed=False))
    np.testing.assert_array_equal(small.dense_counts(matrix), COUNTS.toarray())
    (warning,) = matrix.warnings
    assert all(name in warning for name in ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"))


@given(seed=st.integers(0, 1000), entries=st.integers(1, 60), blank=st.sampled_from([" ", "\t", "  "]))
@settings(max_examples=20, deadline=None)
def test_any_order_of_lines_and_any_chunk(tmp_path_factory, seed: int, entries: int, blank: str) -> None:
    coo = COUNTS.tocoo()
    order = np.random.default_rng(seed).permutation(coo.nnz)
    rows, cols = (axis[order] + 1 for axis in coo.coords)
    lines = [blank.join(map(str, line)) for line in zip(rows, cols, coo.data[order], strict=True)]
    matrix = MexMatrix(small.write_mex(tmp_path_factory.mktemp("mex"), **SEVEN_BY_23, lines=lines, gz=False))
    np.testing.assert_array_equal(small.dense_counts(matrix, entries), COUNTS.toarray())


def test_values_written_as_whole_floats_and_quoted_names(tmp_path: Path) -> None:
    coo = COUNTS.tocoo()
    lines = [f"{r + 1} {c + 1} {v}.0" for r, c, v in zip(*coo.coords, coo.data, strict=True)]
    folder = small.write_mex(
        tmp_path / "m",
        COUNTS,
        [f'"{name}"' for name in BARCODES],
        lines=lines,
        gz=False,
        header="%%MatrixMarket matrix coordinate real general",
    )
    matrix = MexMatrix(folder)
    np.testing.assert_array_equal(small.dense_counts(matrix), COUNTS.toarray())
    assert next(matrix.barcodes())[0] == BARCODES[0].encode()


STREAMING = {
    "fewer entries than the header says": ("ST137", {"nnz": COUNTS.nnz + 1}),
    "more entries than the header says": ("ST137", {"nnz": COUNTS.nnz - 1}),
    "negative": ("ST134", {"lines": ["1 1 -3"], "nnz": 1}),
    "fraction": ("ST134", {"lines": ["1 1 0.5"], "nnz": 1}),
    "gene 0": ("ST135", {"lines": ["0 1 1"], "nnz": 1}),
    "gene beyond": ("ST135", {"lines": ["8 1 1"], "nnz": 1}),
    "barcode beyond": ("ST135", {"lines": ["1 24 1"], "nnz": 1}),
    "two columns": ("ST137", {"lines": ["1 1"], "nnz": 1}),
    "words": ("ST137", {"lines": ["1 1 many"], "nnz": 1}),
    "zeros only": ("ST136", {"lines": ["1 1 0"], "nnz": 1}),
    "nothing": ("ST136", {"lines": [], "nnz": 0}),
}


@pytest.mark.parametrize("case", STREAMING)
def test_bad_entries_have_codes(tmp_path: Path, case: str) -> None:
    code, changes = STREAMING[case]
    matrix = MexMatrix(small.write_mex(tmp_path / "m", **SEVEN_BY_23, **changes))
    with pytest.raises(IngestError) as error:
        matrix.nonzero_per_barcode()
    assert error.value.code == code
    assert "matrix.mtx.gz" in error.value.file


@pytest.mark.parametrize(
    ("code", "header"),
    [
        ("ST137", "%%MatrixMarket matrix array real general"),
        ("ST137", "%%MatrixMarket matrix coordinate pattern general"),
        ("ST137", "gene barcode count"),
    ],
)
def test_foreign_headers(tmp_path: Path, code: str, header: str) -> None:
    folder = small.write_mex(tmp_path / "m", **SEVEN_BY_23, header=header)
    with pytest.raises(IngestError) as error:
        MexMatrix(folder)
    assert error.value.code == code


def test_lengths_that_contradict_the_header(tmp_path: Path) -> None:
    folder = small.write_mex(tmp_path / "m", **SEVEN_BY_23, gz=False)
    (folder / "barcodes.tsv").write_text("\n".join(BARCODES[:-1]))
    with pytest.raises(IngestError) as error:
        list(MexMatrix(folder).barcodes())
    assert error.value.code == "ST132"
    features = folder / "features.tsv"
    features.write_text(features.read_text() + "ENSG9\tG9\tGene Expression\n")
    with pytest.raises(IngestError) as error:
        MexMatrix(folder)
    assert error.value.code == "ST132"


def test_missing_truncated_and_repeated(tmp_path: Path) -> None:
    folder = small.write_mex(tmp_path / "m", **SEVEN_BY_23)
    matrix = folder / "matrix.mtx.gz"
    whole = matrix.read_bytes()
    matrix.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IngestError) as error:
        list(MexMatrix(folder).blocks())
    assert error.value.code == "ST130"
    matrix.write_bytes(whole)
    (folder / "features.tsv.gz").write_text("A\tx\tt\n" * 7)
    with pytest.raises(IngestError) as error:
        MexMatrix(folder)
    assert error.value.code == "ST133"
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(MissingInputError) as missing:
        MexMatrix(folder)
    assert missing.value.code == "ST103"


@pytest.mark.real
def test_real_plain_text_called_gz(real_data: Path) -> None:
    folder = real_data / "visium_hd_empty/outs/binned_outputs/square_002um/filtered_feature_bc_matrix"
    matrix = MexMatrix(folder)
    assert matrix.warnings == (
        "named .gz but plain text, read as such: features.tsv.gz, barcodes.tsv.gz in filtered_feature_bc_matrix",
    )
    assert matrix.genes.ids[0] == "ENSMUSG00000051951"
    assert next(matrix.barcodes())[0] == b"s_002um_02448_01644-1"
    with pytest.raises(IngestError, match="no counts"):
        matrix.nonzero_per_barcode()
