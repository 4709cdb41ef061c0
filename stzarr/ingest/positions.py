"""Tissue positions as a stream: eleven million bins of a Visium HD area are never held as rows or strings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stzarr.errors import IngestError
from stzarr.space import Bounds

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_TYPES = dict(zip(COLUMNS, (pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.float64(), pa.float64()), strict=True))

MAX_ARRAY = 1 << 15
"""Rows and columns that an array can have at most: 65 mm of 2 µm bins. Beyond it the file is damaged."""

_ROWS_AT_ONCE = 1 << 17
_READ_BYTES = 1 << 20
_CSV_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Places:
    """Some positions.

    barcode : bytes, fixed width; in_tissue : bool; array_row, array_col : int32; all of shape (n,).
    xy_px : float64, shape (n, 2), full-resolution pixels, x first.
    """

    barcode: NDArray[np.bytes_]
    in_tissue: NDArray[np.bool_]
    array_row: NDArray[np.int32]
    array_col: NDArray[np.int32]
    xy_px: NDArray[np.float64]


class Positions:
    """A ``tissue_positions`` file: parquet, or CSV with or without a header.

    Raises
    ------
    IngestError
        ST111: unreadable, columns missing, values missing or out of their range.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._has_header = path.suffix != ".parquet" and self._first_line().startswith(("barcode", '"barcode"'))
        with self._reading():
            found = pq.read_schema(path).names if path.suffix == ".parquet" else self._csv_names()
        missing = [name for name in COLUMNS if name not in found]
        if missing:
            raise self._bad(f"columns are missing: {', '.join(missing)}")

    def places(self) -> Iterator[Places]:
        """Yield all positions in the file's order."""
        for columns in self._batches(COLUMNS):
            in_tissue = columns["in_tissue"]
            if not np.isin(in_tissue, (0, 1)).all():
                raise self._bad("in_tissue is neither 0 nor 1")
            yield Places(
                fixed_bytes(columns["barcode"]),
                in_tissue.astype(bool),
                self._indices(columns["array_row"]),
                self._indices(columns["array_col"]),
                self._xy_px(columns),
            )

    def points(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield ``(array_col, array_row)`` and ``(x, y)`` in full-resolution pixels, shape (n, 2) each."""
        for columns in self._batches(COLUMNS[2:]):
            array = np.stack([self._indices(columns["array_col"]), self._indices(columns["array_row"])], axis=1)
            yield array.astype(np.float64), self._xy_px(columns)

    def extent(self) -> tuple[int, int]:
        """Return the number of rows and columns that the array must have."""
        rows = cols = 0
        for columns in self._batches(COLUMNS[2:4]):
            if len(columns["array_row"]):
                rows = max(rows, int(self._indices(columns["array_row"]).max()) + 1)
                cols = max(cols, int(self._indices(columns["array_col"]).max()) + 1)
        if not rows:
            raise self._bad("it holds no positions")
        return rows, cols

    def _batches(self, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Yield columns: barcodes as an Arrow array, all others as NumPy arrays."""
        with self._reading():
            for batch in self._parquet(names) if self.path.suffix == ".parquet" else self._csv(names):
                columns: dict[str, Any] = {}
                for name in names:
                    column = batch.column(name).cast(_TYPES[name])
                    if column.null_count:
                        raise self._bad(f"{column.null_count} values of {name} are missing")
                    columns[name] = column if name == "barcode" else column.to_numpy()
                yield columns

    def _parquet(self, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=_READ_BYTES) as file:
            yield from file.iter_batches(_ROWS_AT_ONCE, columns=list(names), use_threads=False)

    def _csv(self, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        read = pacsv.ReadOptions(
            block_size=_CSV_BLOCK_BYTES, use_threads=False, column_names=None if self._has_header else list(COLUMNS)
        )
        convert = pacsv.ConvertOptions(include_columns=list(names), column_types={name: _TYPES[name] for name in names})
        with pacsv.open_csv(self.path, read_options=read, convert_options=convert) as batches:
            yield from batches

    def _csv_names(self) -> list[str]:
        fields = [field.strip('" \r\n') for field in self._first_line().split(",")]
        if self._has_header:
            return fields
        return list(COLUMNS) if len(fields) == len(COLUMNS) else []

    def _first_line(self) -> str:
        with self.path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.readline()

    def _indices(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        if len(values) and not (values.min() >= 0 and values.max() < MAX_ARRAY):
            raise self._bad(f"array positions run from {values.min()} to {values.max()}")
        return values

    def _xy_px(self, columns: dict[str, Any]) -> NDArray[np.float64]:
        xy: NDArray[np.float64] = np.stack([columns["pxl_col_in_fullres"], columns["pxl_row_in_fullres"]], axis=1)
        if not np.isfinite(xy).all():
            raise self._bad("pixel coordinates are not finite")
        return xy

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except IngestError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._bad(str(error).splitlines()[0]) from error

    def _bad(self, what: str) -> IngestError:
        return IngestError(
            "ST111",
            f"the positions cannot be used: {what}",
            file=self.path,
            cure="copy the file again; it must be Space Ranger's tissue_positions",
        )


def fixed_bytes(texts: Any) -> NDArray[np.bytes_]:
    """Return an Arrow string array as fixed-width bytes; without a copy where all are equally long."""
    if not len(texts):
        return np.empty(0, "S1")
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    widths = np.diff(offsets)
    if widths[0] and (widths == widths[0]).all():
        data = np.frombuffer(texts.buffers()[2], np.uint8)
        return data[offsets[0] : offsets[-1]].view(f"S{widths[0]}")
    return np.array([text.encode() for text in texts.to_pylist()], np.bytes_)


def bounds_px(bounds: Bounds | None, xy: NDArray[np.float64]) -> Bounds | None:
    """Return bounds grown by some points; None where there are none yet."""
    if not len(xy):
        return bounds
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    if bounds is not None:
        x0, y0, x1, y1 = min(x0, bounds[0]), min(y0, bounds[1]), max(x1, bounds[2]), max(y1, bounds[3])
    return (float(x0), float(y0), float(x1), float(y1))
