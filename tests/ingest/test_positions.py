"""Positions in every format, streamed; damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_runs as small
from hypothesis import given
from hypothesis import strategies as st

from stzarr.errors import IngestError
from stzarr.ingest import positions as module
from stzarr.ingest.positions import Positions, fixed_bytes

SPOTS = small.spot_positions()


def read(positions: Positions) -> pd.DataFrame:
    """Gather a stream of positions into a frame."""
    parts = [
        pd.DataFrame(
            dict(
                zip(
                    small.COLUMNS,
                    (
                        [name.decode() for name in part.barcode],
                        part.in_tissue.astype(int),
                        part.array_row.astype(int),
                        part.array_col.astype(int),
                        part.xy_px[:, 1],
                        part.xy_px[:, 0],
                    ),
                    strict=True,
                )
            )
        )
        for part in positions.places()
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("kind", ["csv", "list", "list_header", "parquet"])
def test_formats(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 9)
    monkeypatch.setattr(module, "_CSV_BLOCK_BYTES", 600)
    positions = Positions(small.write_positions(tmp_path, SPOTS, kind))
    assert len(list(positions.places())) > 3
    pd.testing.assert_frame_equal(read(positions), SPOTS.reset_index(drop=True), check_dtype=False)
    assert positions.extent() == (small.SPOT_ROWS, small.SPOT_COLS)
    array, px = (np.concatenate(parts) for parts in zip(*positions.points(), strict=True))
    np.testing.assert_array_equal(array, SPOTS[["array_col", "array_row"]])
    np.testing.assert_allclose(px, SPOTS[["pxl_col_in_fullres", "pxl_row_in_fullres"]], rtol=1e-15)


def test_column_order_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "tissue_positions.csv"
    SPOTS[["barcode", *reversed(small.COLUMNS[1:])]].to_csv(path, index=False, encoding="utf-8-sig")
    pd.testing.assert_frame_equal(read(Positions(path)), SPOTS.reset_index(drop=True), check_dtype=False)


SPOILED = {
    "a column is missing": lambda spots: spots.drop(columns="array_col"),
    "a word for a number": lambda spots: spots.astype(object).replace({"array_row": {3: "three"}}),
    "negative": lambda spots: spots.replace({"array_row": {3: -1}}),
    "far outside": lambda spots: spots.replace({"array_row": {3: 99_999}}),
    "in_tissue is 2": lambda spots: spots.replace({"in_tissue": {1: 2}}),
    "pixels are missing": lambda spots: spots.assign(pxl_row_in_fullres=np.nan),
    "no rows": lambda spots: spots.iloc[:0],
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("case", SPOILED)
def test_damage(tmp_path: Path, case: str, kind: str) -> None:
    spots = SPOILED[case](SPOTS)
    path = tmp_path / f"tissue_positions.{kind}"
    spots.to_csv(path, index=False) if kind == "csv" else spots.astype({"array_row": str}).to_parquet(path)

    def use() -> None:
        positions = Positions(path)
        positions.extent()
        list(positions.places())

    with pytest.raises(IngestError) as error:
        use()
    assert error.value.code == "ST111"
    assert error.value.file == str(path)


def test_files_that_are_no_positions(tmp_path: Path) -> None:
    for name, data in {"a.parquet": b"PAR1", "b.csv": b"1,2,3\n", "c.csv": b"\x00\x01"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(IngestError) as error:
            Positions(tmp_path / name)
        assert error.value.code == "ST111"


def test_missing_values_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    columns = {name: pa.array(SPOTS[name]) for name in small.COLUMNS}
    columns["array_row"] = pa.array([None, *SPOTS.array_row[1:]], pa.int32())
    pq.write_table(pa.table(columns), path)
    with pytest.raises(IngestError, match="1 values of array_row are missing"):
        list(Positions(path).points())


@given(texts=st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8), max_size=20))
def test_fixed_bytes(texts: list[str]) -> None:
    whole = pa.array(["before", *texts, "after"], pa.string())
    assert [name.decode() for name in fixed_bytes(whole.slice(1, len(texts)))] == texts
