"""Tables of a store as AnnData: a box of tissue in memory, or the whole slide lazily."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from stzarr.errors import StoreError
from stzarr.space import Bounds, Lattice
from stzarr.store.counts_reader import Box, CountsBox, CountsTable
from stzarr.store.layout import instance_key

if TYPE_CHECKING:
    from stzarr.store.reader import StoreReader

Span = tuple[int, int]


def read_var(reader: StoreReader, table: CountsTable) -> pd.DataFrame:
    """Read the genes of a table with all of their columns."""
    frame = anndata.io.read_elem(reader.group(f"{table.path}/var"))
    if not isinstance(frame, pd.DataFrame):
        raise StoreError("ST204", f"{table.path}/var is no dataframe", file=reader.path)
    return frame


def read_whole(reader: StoreReader, table: CountsTable) -> AnnData:
    """Open a whole table lazily; only the names of rows and genes are read."""
    with warnings.catch_warnings():
        # Rows of bins are named by number, which costs 0.3 s where barcodes cost 5: anndata says so each time.
        warnings.filterwarnings("ignore", message=".*Transforming to str index.*")
        return anndata.experimental.read_lazy(reader.group(table.path))


def read_part(table: CountsTable, rows: Span, cols: Span, bounds_um: Bounds | None) -> AnnData:
    """Read the rows that lie in a box of cells, and whose centres lie in half-open bounds if given [µm]."""
    (r0, r1), (c0, c1) = rows, cols
    if bounds_um is not None:
        top, bottom, left, right = _hull(table.lattice, bounds_um)
        r0, r1, c0, c1 = max(r0, top), min(r1, bottom), max(c0, left), min(c1, right)
    box = table.read_box(r0, r1, c0, c1)
    centres = table.lattice.centres_um(box.grid_row, box.grid_col)
    if bounds_um is not None:
        inside = np.all((centres >= bounds_um[:2]) & (centres < bounds_um[2:]), axis=1)
        box, centres = box.keep(inside), centres[inside]
    return _anndata(table, box, centres)


def _hull(lattice: Lattice, bounds_um: Bounds) -> Box:
    """Return the cells that may have their centre in a box; one more all around, for the shift of spots."""
    (dx, dy), (ox, oy), (rows, cols) = lattice.cell_um, lattice.origin_um, lattice.grid_shape
    x0, y0, x1, y1 = bounds_um

    def cells(low: float, high: float, origin: float, step: float, num: int) -> tuple[int, int]:
        first, last = np.clip((np.array([low, high]) - origin) / step, -1, num + 1)
        return int(first) - 1, int(last) + 2

    return (*cells(y0, y1, oy, dy, rows), *cells(x0, x1, ox, dx, cols))


def _anndata(table: CountsTable, box: CountsBox, centres: NDArray[np.float64]) -> AnnData:
    return AnnData(
        X=csr_matrix((box.data, box.indices, box.indptr), shape=(len(box.rows), table.n_vars)),
        obs=_obs(table, box),
        var=table.var.copy(),
        obsm={"spatial": table.read_rows("obsm/spatial", box.rows), "spatial_um": centres},
        uns={
            "spatialdata_attrs": {
                "region": table.region,
                "region_key": "region",
                "instance_key": instance_key(table.lattice.kind),
            }
        },
    )


def _obs(table: CountsTable, box: CountsBox) -> pd.DataFrame:
    key = instance_key(table.lattice.kind)
    columns: dict[str, Any] = {
        key: table.read_rows(f"obs/{key}", box.rows),
        "region": pd.Categorical([table.region] * len(box.rows), categories=[table.region]),
        "array_row": table.read_rows("obs/array_row", box.rows),
        "array_col": table.read_rows("obs/array_col", box.rows),
        "in_tissue": box.in_tissue,
        "grid_row": box.grid_row,
        "grid_col": box.grid_col,
    }
    return pd.DataFrame(columns, index=_names(table, box.rows, columns["array_row"], columns["array_col"]))


def _names(
    table: CountsTable, rows: NDArray[np.int64], array_row: NDArray[np.int32], array_col: NDArray[np.int32]
) -> pd.Index:
    """Return barcodes: of bins they follow from row and column, of spots they are stored."""
    if table.lattice.kind == "spots":
        return pd.Index([str(name) for name in table.read_rows("obs/_index", rows)], dtype=object)
    size = table.name.removeprefix("square_")
    pairs = zip(array_row.tolist(), array_col.tolist(), strict=True)
    return pd.Index([f"s_{size}_{row:05d}_{col:05d}-1" for row, col in pairs], dtype=object)
