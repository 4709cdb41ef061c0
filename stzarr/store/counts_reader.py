"""Counts of a box of tissue: only the tiles it touches are read, as one run of rows per row of tiles.

The rows of a table lie in the order of 32 x 32 tiles of cells (`layout.TILE_CELLS`), so neighbouring tiles are one
contiguous piece of every array, and reading a box costs a handful of slices, whatever the size of the slide.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import GeneError, SlideError, listing
from stzarr.space import lattice_from_json

if TYPE_CHECKING:
    import pandas as pd

    from stzarr.store.reader import StoreReader

_UINT32_MAX = np.iinfo(np.uint32).max

Box = tuple[int, int, int, int]
"""Cells (row0, row1, col0, col1) of the grid, half-open; may leave the grid, where there is nothing."""


@dataclass(frozen=True)
class GeneIndex:
    """The genes of a table in its order.

    Parameters
    ----------
    ids : tuple of str
        Unique identifiers, the key of every join.
    symbols : tuple of str
        Names made unique, as AnnData's ``var_names``.
    repeated : mapping of str to sequence of str
        Ids of every symbol that means several genes. (The second of symbol ``A`` is called ``A-1`` here, but a gene may
        bear that as its own name.)
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.ids)}

    @cached_property
    def _by_symbol(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.symbols)}

    def positions(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the positions of genes, named by id or else by symbol; see `CountsTable.gene_positions`."""
        return np.array([self._position(name) for name in names], np.int64)

    def _position(self, name: str) -> int:
        if name in self._by_id:
            return self._by_id[name]
        if name not in self._by_symbol:
            raise self._missing(name)
        if name in self.repeated:
            ids = self.repeated[name]
            raise GeneError("ST311", f"the symbol {name!r} means {len(ids)} genes", cure=f"name one of: {listing(ids)}")
        return self._by_symbol[name]

    def _missing(self, name: str) -> GeneError:
        folded = {symbol.casefold(): symbol for symbol in self.symbols}
        pool = [*folded, *self.ids] if name[:3].upper() == "ENS" else list(folded)
        near = [folded.get(match, match) for match in difflib.get_close_matches(name.casefold(), pool, n=4, cutoff=0.6)]
        cure = f"did you mean {listing(near)}?" if near else "slide.genes() lists the genes"
        return GeneError("ST310", f"there is no gene {name!r} among {len(self.ids)}", cure=cure)


@dataclass(frozen=True)
class CountsBox:
    """The non-zero counts of the cells in a box, in memory, as CSR over its cells.

    Parameters
    ----------
    rows : int64, shape (n,)
        Rows of the table, ascending.
    grid_row, grid_col : int32, shape (n,)
        Cell of each row.
    in_tissue : bool, shape (n,)
    indptr : int64, shape (n + 1,)
        Entries of row i are ``indptr[i]:indptr[i + 1]``.
    indices : int32, shape (nnz,)
        Genes.
    data : unsigned integer, shape (nnz,)
        Counts.
    n_vars : int
        Number of genes of the table.
    """

    rows: NDArray[np.int64]
    grid_row: NDArray[np.int32]
    grid_col: NDArray[np.int32]
    in_tissue: NDArray[np.bool_]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[Any]
    n_vars: int

    def keep(self, mask: NDArray[np.bool_]) -> CountsBox:
        """Return the rows where a mask, shape (n,), holds."""
        if mask.all():
            return self
        lengths = np.diff(self.indptr)
        entries = np.repeat(mask, lengths)
        return CountsBox(
            self.rows[mask],
            self.grid_row[mask],
            self.grid_col[mask],
            self.in_tissue[mask],
            np.concatenate([[0], np.cumsum(lengths[mask])]),
            self.indices[entries],
            self.data[entries],
            self.n_vars,
        )

    def dense(
        self, box: Box, genes: NDArray[np.int64] | None = None, factor: int = 1
    ) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Sum the counts into a dense grid over `box`, which may be any part of what was read.

        See `CountsTable.dense`, which reads and does this; for many grids from one reading call this.
        """
        _check_box(box, factor)
        r0, r1, c0, c1 = box
        height, width = (r1 - r0) // factor, (c1 - c0) // factor
        inside = (self.grid_row >= r0) & (self.grid_row < r1) & (self.grid_col >= c0) & (self.grid_col < c1)
        kept = self.keep(inside)
        cell = (kept.grid_row.astype(np.int64) - r0) // factor * width + (kept.grid_col - c0) // factor
        tissue = np.zeros(height * width, np.bool_)
        tissue[cell[kept.in_tissue]] = True
        counts = _scatter(kept, cell, height * width, genes, unique=factor == 1)
        return counts.reshape(len(counts), height, width), tissue.reshape(height, width)


def _scatter(
    kept: CountsBox, cell: NDArray[np.int64], num_cells: int, genes: NDArray[np.int64] | None, *, unique: bool
) -> NDArray[np.uint32]:
    """Add entries into (gene, cell); `unique` says that no two entries share a place. ST309 where 32 bit overflow."""
    cell_of_entry = np.repeat(cell, np.diff(kept.indptr))
    if genes is None:
        num_genes, repeated, slot, data = kept.n_vars, None, kept.indices, kept.data
    else:
        wanted, repeated = np.unique(genes, return_inverse=True)
        num_genes = len(wanted)
        lookup = np.full(kept.n_vars, -1, np.int32)
        lookup[wanted] = np.arange(num_genes, dtype=np.int32)
        slot = lookup[kept.indices]
        hit = slot >= 0
        slot, data, cell_of_entry = slot[hit], kept.data[hit], cell_of_entry[hit]
    small = int(data.sum(dtype=np.uint64)) <= _UINT32_MAX
    out: NDArray[Any] = np.zeros((num_genes, num_cells), np.uint32 if small else np.uint64)
    place = slot.astype(np.int64) * num_cells + cell_of_entry
    if unique:
        out.reshape(-1)[place] = data
    else:
        np.add.at(out.reshape(-1), place, data.astype(out.dtype))
    if not small and out.max() > _UINT32_MAX:
        raise SlideError("ST309", f"counts of a bin add up to {out.max()}, beyond 32 bit", cure="ask for smaller bins")
    out = out.astype(np.uint32, copy=False)
    return out if repeated is None else out[repeated]


def _check_box(box: Box, factor: int) -> None:
    r0, r1, c0, c1 = box
    if factor < 1 or r1 < r0 or c1 < c0 or (r1 - r0) % factor or (c1 - c0) % factor:
        raise SlideError(
            "ST307", f"a box of {r1 - r0} x {c1 - c0} cells is no whole number of bins of {factor} x {factor} cells"
        )


class CountsTable:
    """One table of counts of a store: bins of one size, or the spots.

    Attributes
    ----------
    name : str
        ``square_008um``, or ``table`` for spots.
    lattice : BinLattice or SpotLattice
    region : str
        Name of the labels or shapes that the rows annotate.
    n_obs, n_vars, nnz : int
    total, max : int
        Sum of all counts, largest count.
    """

    def __init__(self, reader: StoreReader, name: str, fields: dict[str, Any]) -> None:
        self._reader = reader
        self.name = name
        self.lattice = lattice_from_json(fields["lattice"])
        self.region: str = fields["region"]
        self.n_obs: int = fields["n_obs"]
        self.n_vars: int = fields["n_vars"]
        self.nnz: int = fields["nnz"]
        self.total: int = fields["total"]
        self.max: int = fields["max"]
        self.tile_cells: int = fields["tile_cells"]
        rows, cols = fields["tile_shape"]
        self.tile_shape: tuple[int, int] = (rows, cols)
        self._repeated_symbols: dict[str, list[str]] = fields.get("repeated_symbols", {})

    def __reduce__(self) -> tuple[object, ...]:
        return _table_of, (self._reader, self.name)

    @property
    def token(self) -> tuple[str, ...]:
        """What names this table's content in keys of Dask graphs."""
        return (*self._reader.token, self.name)

    @property
    def path(self) -> str:
        """Path of the table inside the store."""
        return f"tables/{self.name}"

    @property
    def cell_size_um(self) -> float:
        """Width of a cell: the bin, or the pitch of spots [µm]."""
        return self.lattice.cell_um[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type of the counts."""
        return np.dtype(self._array("X/data").dtype)

    def _array(self, path: str) -> Any:
        return self._reader.array(f"{self.path}/{path}")

    @cached_property
    def genes(self) -> GeneIndex:
        """Ids and symbols; read on first use."""
        return GeneIndex(
            tuple(map(str, self._array("var/gene_ids")[:])),
            tuple(map(str, self._array("var/_index")[:])),
            self._repeated_symbols,
        )

    @cached_property
    def var(self) -> pd.DataFrame:
        """All columns of the genes, as AnnData's ``var``; read on first use."""
        from stzarr.store import adata

        return adata.read_var(self._reader, self)

    def gene_positions(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the positions of genes, named by id or else by symbol, in the order of `names`.

        Raises
        ------
        GeneError
            ST310: no such gene (with the nearest names). ST311: a symbol that several ids share (with the ids).
        """
        return self.genes.positions(names)

    @cached_property
    def _tile_indptr(self) -> NDArray[np.int64]:
        return np.asarray(self._array("X/tile_indptr")[:], np.int64)

    def row_runs(self, r0: int, r1: int, c0: int, c1: int) -> list[tuple[int, int]]:
        """Return the runs of table rows, half-open, that hold the tiles touched by a box of cells.

        Tiles side by side are one run, and so are rows of tiles that touch the box over the grid's whole width.
        """
        num_rows, num_cols = self.lattice.grid_shape
        r0, r1, c0, c1 = max(r0, 0), min(r1, num_rows), max(c0, 0), min(c1, num_cols)
        if r0 >= r1 or c0 >= c1:
            return []
        first, last = c0 // self.tile_cells, (c1 - 1) // self.tile_cells
        runs: list[tuple[int, int]] = []
        for tile_row in range(r0 // self.tile_cells, (r1 - 1) // self.tile_cells + 1):
            left = tile_row * self.tile_shape[1]
            start, stop = int(self._tile_indptr[left + first]), int(self._tile_indptr[left + last + 1])
            if start == stop:
                continue
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, stop))
        return runs

    def read_box(self, r0: int, r1: int, c0: int, c1: int) -> CountsBox:
        """Read the counts of the cells in a box, half-open; only the tiles that it touches are read.

        Returns
        -------
        CountsBox
            Loaded; rows in the table's order, those outside the box left out.
        """
        pieces = [self._read_run(start, stop) for start, stop in self.row_runs(r0, r1, c0, c1)]
        whole = _joined(pieces, self.n_vars, self.dtype)
        inside = (whole.grid_row >= r0) & (whole.grid_row < r1) & (whole.grid_col >= c0) & (whole.grid_col < c1)
        return whole.keep(inside)

    def _read_run(self, start: int, stop: int) -> CountsBox:
        indptr = np.asarray(self._array("X/indptr")[start : stop + 1], np.int64)
        entries = slice(int(indptr[0]), int(indptr[-1]))
        return CountsBox(
            np.arange(start, stop),
            np.asarray(self._array("obs/grid_row")[start:stop], np.int32),
            np.asarray(self._array("obs/grid_col")[start:stop], np.int32),
            np.asarray(self._array("obs/in_tissue")[start:stop], np.bool_),
            indptr - indptr[0],
            np.asarray(self._array("X/indices")[entries], np.int32),
            np.asarray(self._array("X/data")[entries]),
            self.n_vars,
        )

    def dense(
        self, box: Box, genes: NDArray[np.int64] | None = None, factor: int = 1
    ) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Read a box and sum it into a dense grid.

        Parameters
        ----------
        box : tuple of int
            Cells (r0, r1, c0, c1), half-open; sides are multiples of `factor`. It may leave the grid.
        genes : int64, shape (g,), optional
            Positions of the genes wanted, in this order; None is all.
        factor : int
            Cells on a side of one bin; bins are laid from (r0, c0).

        Returns
        -------
        counts : uint32, shape (gene, y, x)
            Exact sums.
        tissue : bool, shape (y, x)
            Whether any cell of the bin is in tissue; a cell without a row in the table is not.

        Raises
        ------
        SlideError
            ST307: the sides are no multiples of `factor`. ST309: a sum is 2^32 or more.
        """
        _check_box(box, factor)
        return self.read_box(*box).dense(box, genes, factor)

    def tissue(self, box: Box, factor: int = 1) -> NDArray[np.bool_]:
        """Return the tissue mask of `dense` alone, without reading counts."""
        _check_box(box, factor)
        r0, r1, c0, c1 = box
        mask = np.zeros(((r1 - r0) // factor, (c1 - c0) // factor), np.bool_)
        for start, stop in self.row_runs(*box):
            row = np.asarray(self._array("obs/grid_row")[start:stop], np.int64) - r0
            col = np.asarray(self._array("obs/grid_col")[start:stop], np.int64) - c0
            wanted = np.asarray(self._array("obs/in_tissue")[start:stop], np.bool_)
            wanted &= (row >= 0) & (row < r1 - r0) & (col >= 0) & (col < c1 - c0)
            mask[row[wanted] // factor, col[wanted] // factor] = True
        return mask

    def read_rows(self, path: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read some rows, ascending, of an array along obs (``obs/in_tissue``, ``obsm/spatial``)."""
        array = self._array(path)
        pieces = [np.asarray(array[start:stop])[part - start] for start, stop, part in _near_runs(rows)]
        return np.concatenate(pieces) if pieces else np.asarray(array[:0])


def _table_of(reader: StoreReader, name: str) -> CountsTable:
    return reader.tables[name]


def _near_runs(rows: NDArray[np.int64], max_gap: int = 1 << 14) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Yield (start, stop, rows) of slices that cover ascending rows; a small gap is cheaper read than skipped."""
    if len(rows):
        for part in np.split(rows, np.flatnonzero(np.diff(rows) > max_gap) + 1):
            yield int(part[0]), int(part[-1]) + 1, part


def _joined(pieces: list[CountsBox], n_vars: int, dtype: np.dtype[Any]) -> CountsBox:
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        none = np.zeros(0, np.int32)
        empty = np.zeros(0, np.bool_)
        return CountsBox(
            none.astype(np.int64), none, none, empty, np.zeros(1, np.int64), none, none.astype(dtype), n_vars
        )
    offsets = np.cumsum([0] + [int(piece.indptr[-1]) for piece in pieces])
    indptr = [piece.indptr[1:] + offset for piece, offset in zip(pieces, offsets, strict=False)]
    return CountsBox(
        np.concatenate([piece.rows for piece in pieces]),
        np.concatenate([piece.grid_row for piece in pieces]),
        np.concatenate([piece.grid_col for piece in pieces]),
        np.concatenate([piece.in_tissue for piece in pieces]),
        np.concatenate([np.zeros(1, np.int64), *indptr]),
        np.concatenate([piece.indices for piece in pieces]),
        np.concatenate([piece.data for piece in pieces]),
        n_vars,
    )
