"""One ``square_*`` folder of a simulated run: the 10x HDF5 matrix and the positions, appended band by band."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stzarr.simulate.counts import BandCounts
from stzarr.simulate.genes import GenePrograms
from stzarr.simulate.geometry import Area

_GZIP: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
_CHUNK = 1 << 16
_ROW_GROUP = 1 << 19
_SCHEMA = pa.schema(
    [
        ("barcode", pa.string()),
        ("in_tissue", pa.int32()),
        ("array_row", pa.int32()),
        ("array_col", pa.int32()),
        ("pxl_row_in_fullres", pa.float64()),
        ("pxl_col_in_fullres", pa.float64()),
    ]
)


def barcodes(bin_um: float, array_row: NDArray[np.int32], array_col: NDArray[np.int32]) -> NDArray[np.bytes_]:
    """Return Space Ranger's names of bins, ``s_002um_RRRRR_CCCCC-1``, as fixed-width bytes."""
    template = f"s_{int(bin_um):03d}um_00000_00000-1".encode()
    text = np.tile(np.frombuffer(template, np.uint8), (len(array_row), 1))
    for values, end in ((array_row, -8), (array_col, -2)):
        text[:, end - 5 : end] += (values[:, None] // 10 ** np.arange(4, -1, -1) % 10).astype(np.uint8)
    return text.view(f"S{len(template)}")[:, 0]


class BinnedWriter:
    """Write the matrix of in-tissue bins and the positions of all bins of one size.

    Parameters
    ----------
    folder : Path
        The ``square_*`` folder; made here.
    area : Area
    bin_um : float
    programs : GenePrograms
        Names of the genes.
    software : str
        Recorded in the matrix file, beside the attribute ``simulated``.
    """

    def __init__(self, folder: Path, area: Area, bin_um: float, programs: GenePrograms, software: str) -> None:
        self._area, self._bin_um = area, bin_um
        self.num_bins = self.num_in_tissue = self.num_nonzero = self.num_umi = 0
        (folder / "spatial").mkdir(parents=True)
        self._positions = pq.ParquetWriter(folder / "spatial" / "tissue_positions.parquet", _SCHEMA)
        self._waiting: list[pa.Table] = []
        self._file = h5py.File(folder / "filtered_feature_bc_matrix.h5", "w")
        self._file.attrs.update(_attributes(software))
        self._matrix = self._file.create_group("matrix")
        _write_features(self._matrix.create_group("features"), programs)
        name = barcodes(bin_um, np.zeros(1, np.int32), np.zeros(1, np.int32))
        self._barcodes = self._growing("barcodes", name.dtype.str)
        self._data = self._growing("data", "int32")
        self._indices = self._growing("indices", "int64")
        self._indptr = self._growing("indptr", "int64")
        _append(self._indptr, np.zeros(1, np.int64))
        self._num_genes = programs.num_genes

    def _growing(self, name: str, dtype: str) -> h5py.Dataset:
        return self._matrix.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(_CHUNK,), **_GZIP)

    def append(self, band: BandCounts) -> None:
        """Add the next rows of bins."""
        num_rows, num_cols = band.in_tissue.shape
        in_tissue = band.in_tissue.ravel()
        rows = np.repeat(np.arange(band.row0, band.row0 + num_rows, dtype=np.int32), num_cols)
        cols = np.tile(np.arange(num_cols, dtype=np.int32), num_rows)
        names = barcodes(self._bin_um, rows, cols)
        self._append_positions(names, in_tissue, rows, cols)
        _append(self._barcodes, names[in_tissue])
        _append(self._indptr, self.num_nonzero + np.cumsum(band.nonzero))
        _append(self._indices, band.genes)
        _append(self._data, band.values)
        self.num_bins += len(rows)
        self.num_in_tissue += int(in_tissue.sum())
        self.num_nonzero += len(band.values)
        self.num_umi += int(band.values.sum(dtype=np.int64))

    def _append_positions(
        self,
        names: NDArray[np.bytes_],
        in_tissue: NDArray[np.bool_],
        rows: NDArray[np.int32],
        cols: NDArray[np.int32],
    ) -> None:
        centres = self._area.centres_px(self._bin_um, int(rows[0]), int(rows[-1]) + 1)
        offsets = np.arange(len(names) + 1, dtype=np.int32) * names.dtype.itemsize
        text = pa.StringArray.from_buffers(len(names), pa.py_buffer(offsets), pa.py_buffer(names))
        columns = [text, in_tissue.astype(np.int32), rows, cols, centres[:, 1].copy(), centres[:, 0].copy()]
        self._waiting.append(pa.table(columns, schema=_SCHEMA))
        if sum(table.num_rows for table in self._waiting) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            self._positions.write_table(table, row_group_size=table.num_rows)
            self._waiting.clear()

    def __enter__(self) -> BinnedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            self._matrix["shape"] = np.array([self._num_genes, self.num_in_tissue], np.int32)
        self._positions.close()
        self._file.close()


def _append(dataset: h5py.Dataset, values: NDArray[Any]) -> None:
    start = dataset.shape[0]
    dataset.resize((start + len(values),))
    dataset[start:] = values


def _attributes(software: str) -> dict[str, Any]:
    return {
        "chemistry_description": "simulated",
        "filetype": "matrix",
        "library_ids": np.array([b"simulated"]),
        "original_gem_groups": np.array([1]),
        "simulated": True,
        "software_version": software,
        "version": 2,
    }


def _write_features(group: h5py.Group, programs: GenePrograms) -> None:
    num = programs.num_genes
    columns = {
        "id": np.char.encode(programs.ids, "ascii"),
        "name": np.char.encode(programs.symbols, "ascii"),
        "feature_type": np.full(num, b"Gene Expression"),
        "genome": np.full(num, b"simulated"),
    }
    for name, values in columns.items():
        group.create_dataset(name, data=values, chunks=True, **_GZIP)
    group.create_dataset("_all_tag_keys", data=np.array([b"genome"]))
