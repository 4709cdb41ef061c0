"""The join of matrices and positions: every barcode finds its place, or the first that does not is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_runs as small
from hypothesis import given
from hypothesis import strategies as st

from stzarr.errors import IngestError
from stzarr.ingest.matrix import TenxH5Matrix
from stzarr.ingest.placing import BinMap, Placed, SpotMap, parse_bins
from stzarr.ingest.positions import Positions

SPOTS, BINS = small.spot_positions(), small.bin_positions(2)


def matrix_of(folder: Path, barcodes: list[str]) -> TenxH5Matrix:
    return TenxH5Matrix(small.write_h5(folder / "m.h5", small.random_counts(len(barcodes)), barcodes))


def join(folder: Path, positions: pd.DataFrame, barcodes: list[str]) -> Placed:
    """Write positions and a matrix, and place the barcodes of one in the other."""
    kind = "parquet" if barcodes[0].startswith("s_") else "csv"
    stream = Positions(small.write_positions(folder, positions, kind))
    matrix = matrix_of(folder, barcodes)
    try:
        return (BinMap(stream, 2.0) if kind == "parquet" else SpotMap(stream)).place(matrix)
    finally:
        matrix.close()


@pytest.mark.parametrize("positions", [SPOTS, BINS], ids=["spots", "bins"])
def test_every_barcode_finds_its_row(tmp_path: Path, positions: pd.DataFrame) -> None:
    wanted = positions.sample(60, random_state=0)
    placed = join(tmp_path, positions.sample(frac=1, random_state=1), wanted.barcode.tolist())
    np.testing.assert_array_equal(placed.array_row, wanted.array_row)
    np.testing.assert_array_equal(placed.array_col, wanted.array_col)
    np.testing.assert_array_equal(placed.in_tissue, wanted.in_tissue == 1)
    assert (placed.array_row.dtype, placed.in_tissue.dtype) == (np.int32, bool)


@pytest.mark.parametrize("positions", [SPOTS, BINS], ids=["spots", "bins"])
def test_the_first_barcode_without_a_position_is_named(tmp_path: Path, positions: pd.DataFrame) -> None:
    missing = positions.barcode[7]
    with pytest.raises(IngestError, match=missing) as error:
        join(tmp_path, positions.drop(index=7), positions.barcode.tolist())
    assert error.value.code == "ST115"
    assert "tissue_positions" in str(error.value.file)


def test_a_bin_outside_the_array_has_no_position(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="s_002um_00000_09999-1") as error:
        join(tmp_path, BINS, ["s_002um_00000_00001-1", "s_002um_00000_09999-1"])
    assert error.value.code == "ST115"


@pytest.mark.parametrize("positions", [SPOTS, BINS], ids=["spots", "bins"])
def test_repeats(tmp_path: Path, positions: pd.DataFrame) -> None:
    names = positions.barcode.tolist()
    with pytest.raises(IngestError) as error:
        join(tmp_path, positions, [*names[:5], names[2]])
    assert error.value.code == "ST117"
    with pytest.raises(IngestError) as error:
        join(tmp_path, pd.concat([positions, positions.iloc[[4]]]), names[:5])
    assert error.value.code == "ST112"


def test_two_spots_in_one_place_and_one_off_the_lattice(tmp_path: Path) -> None:
    names = SPOTS.barcode.tolist()
    with pytest.raises(IngestError, match="row 0, column 0") as error:
        join(tmp_path, SPOTS.assign(array_row=SPOTS.array_row.replace(2, 0)), names)
    assert error.value.code == "ST112"
    with pytest.raises(IngestError, match="their sum is even") as error:
        join(tmp_path, SPOTS.assign(array_col=SPOTS.array_col.replace(4, 5)), names)
    assert error.value.code == "ST113"


def test_a_barcode_that_contradicts_its_row(tmp_path: Path) -> None:
    spoiled = BINS.assign(array_row=BINS.array_row.where(BINS.index != 50, 0))
    with pytest.raises(IngestError, match=str(BINS.barcode[50])) as error:
        join(tmp_path, spoiled, BINS.barcode.tolist()[:3])
    assert error.value.code == "ST113"


def test_bounds_of_tissue(tmp_path: Path) -> None:
    bins = BinMap(Positions(small.write_positions(tmp_path, BINS, "parquet")), 2.0)
    inside = BINS[BINS.in_tissue == 1]
    x, y = inside.pxl_col_in_fullres, inside.pxl_row_in_fullres
    assert bins.in_tissue_px == pytest.approx((x.min(), y.min(), x.max(), y.max()))


@given(st.lists(st.tuples(st.integers(0, 99_999), st.integers(0, 99_999)), min_size=1, max_size=30))
def test_barcodes_of_bins_hold_row_and_column(places: list[tuple[int, int]]) -> None:
    names = np.array([f"s_016um_{row:05d}_{col:05d}-1".encode() for row, col in places])
    row, col = parse_bins(names, 16.0, Path("m.h5"))
    assert list(zip(row.tolist(), col.tolist(), strict=True)) == places


@pytest.mark.parametrize(
    "name",
    [b"AAACAACGAATAGTTC-1", b"s_008um_00001_00002-1", b"s_002um_0000a_00002-1", b"s_002um_00001_00002-1x", b"cellid_1"],
)
def test_names_that_are_no_bins(name: bytes) -> None:
    names = np.array([b"s_002um_00001_00002-1", name])
    with pytest.raises(IngestError, match=name.decode()) as error:
        parse_bins(names, 2.0, Path("m.h5"))
    assert error.value.code == "ST114"
