"""Tables of counts: AnnData whose rows lie in tile order, so that a patch of tissue is a few contiguous runs.

A table may hold 1e8 and more entries in any order of barcodes; memory stays at a few integers a barcode and one shard
of entries a thread (`stzarr.store.buckets`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from stzarr.errors import IngestError, listing
from stzarr.space import Frame
from stzarr.store import anndata_format, layout
from stzarr.store.anndata_format import ARRAY, array_at, create_array, group_at, write_array, write_strings
from stzarr.store.buckets import ENTRY_BYTES, EntryBuckets, Totals
from stzarr.store.journal import Journal
from stzarr.store.source import CountsSource, Genes
from stzarr.store.units import Progress, Unit

_PX_STEP = 2.0**-20
"""Positions in full-resolution px are rounded to this: builds of BLAS agree, and the zeros compress."""


@dataclass(frozen=True)
class TileOrder:
    """Which barcode each row of a table is, and where the rows lie.

    Parameters
    ----------
    barcode : int64, shape (n,)
        Position in the matrix of the barcode of every row.
    grid_row, grid_col : int32, shape (n,)
        Cell of the lattice of every row.
    tile_indptr : int64, shape (tile_rows * tile_cols + 1,)
        Rows of tile t are ``tile_indptr[t]:tile_indptr[t + 1]``.
    tile_shape : (int, int)
        Rows and columns of tiles.
    """

    barcode: NDArray[np.int64]
    grid_row: NDArray[np.int32]
    grid_col: NDArray[np.int32]
    tile_indptr: NDArray[np.int64]
    tile_shape: tuple[int, int]


@dataclass(frozen=True)
class TableResult:
    """A written table: its entry of the root attributes, and the order of its rows for its region."""

    attrs: dict[str, Any]
    order: TileOrder


def tile_order(counts: CountsSource) -> TileOrder:
    """Order barcodes by (tile, grid row, grid column).

    Raises
    ------
    IngestError
        ST140: two barcodes lie in one cell. ST141: a position lies outside the lattice.
    """
    (num_rows, num_cols), side = counts.lattice.grid_shape, layout.TILE_CELLS
    row, col = counts.lattice.grid(counts.array_row, counts.array_col)
    outside = np.flatnonzero((row < 0) | (row >= num_rows) | (col < 0) | (col >= num_cols))
    if outside.size:
        raise IngestError(
            "ST141",
            f"{outside.size} barcodes lie outside the lattice of {num_rows} x {num_cols} cells, the first at "
            f"{_where(counts, int(outside[0]))}",
            file=counts.matrix.path,
            cure="check that positions and matrix are of one run",
        )
    tile_shape = (-(-num_rows // side), -(-num_cols // side))
    tile = (row // side).astype(np.int64) * tile_shape[1] + col // side
    key = (tile * side + row % side) * side + col % side
    barcode = np.argsort(key)
    key = key[barcode]
    same = np.flatnonzero(key[1:] == key[:-1])
    if same.size:
        raise IngestError(
            "ST140",
            f"{same.size} cells of the lattice have more than one barcode, the first at "
            f"{_where(counts, int(barcode[same[0]]))}",
            file=counts.matrix.path,
            cure="check the positions file for repeated array positions",
        )
    tile_indptr = np.searchsorted(key, np.arange(tile_shape[0] * tile_shape[1] + 1, dtype=np.int64) * side**2)
    return TileOrder(barcode, row[barcode], col[barcode], tile_indptr.astype(np.int64), tile_shape)


def unique_symbols(symbols: Sequence[str]) -> list[str]:
    """Make names unique as AnnData does: the second ``A`` becomes ``A-1`` unless that is taken, then ``A-2``."""
    taken, seen, next_suffix = set(symbols), set[str](), Counter[str]()
    unique = []
    for symbol in symbols:
        name = symbol
        if symbol in seen:
            while name in taken:
                next_suffix[symbol] += 1
                name = f"{symbol}-{next_suffix[symbol]}"
            taken.add(name)
        seen.add(symbol)
        unique.append(name)
    return unique


def repeated_symbols(genes: Genes) -> dict[str, list[str]]:
    """Return the ids of every symbol that means several; ``A-1`` alone does not tell, it may be a gene's own name."""
    ids: dict[str, list[str]] = {}
    for symbol, gene_id in zip(genes.symbols, genes.ids, strict=True):
        ids.setdefault(symbol, []).append(gene_id)
    return {symbol: same for symbol, same in ids.items() if len(same) > 1}


def write_table(
    root: zarr.Group,
    counts: CountsSource,
    *,
    slide_id: str,
    frame: Frame,
    scratch: Path,
    journal: Journal,
    threads: int = 1,
    progress: Progress | None = None,
) -> TableResult:
    """Write ``tables/<name>``, streaming; finished parts of an earlier call are kept.

    Parameters
    ----------
    root : zarr.Group
        Root of the store, of the journal's own Zarr store.
    counts : CountsSource
        The matrix is read once, and not again when the journal says that its entries are written.
    slide_id : str
        Part of the name of the region that the table annotates.
    frame : Frame
        For positions in full-resolution px, ``obsm["spatial"]``: the fitted map of the lattice, which Visium v1's
        published integers are roundings of.
    scratch : Path
        Folder for bucket files (12 bytes an entry). If it outlives an interruption, so does the pass over the matrix.
    journal : Journal
    threads : int
        Shards that are sorted and written at a time; about 130 MB of memory each.
    progress : callable, optional

    Raises
    ------
    IngestError
        ST140, ST141: see `tile_order`. ST142-ST144: see `stzarr.store.buckets`. ST145: there are no counts.
        ST146: a gene id repeats.
    """
    return _TableWriter(root, counts, slide_id, frame, scratch, journal, threads, progress).write()


class _TableWriter:
    """One call of `write_table`: what its steps share."""

    def __init__(
        self,
        root: zarr.Group,
        counts: CountsSource,
        slide_id: str,
        frame: Frame,
        scratch: Path,
        journal: Journal,
        threads: int,
        progress: Progress | None,
    ) -> None:
        _check_genes(counts)
        self._root, self._counts, self._frame, self._journal = root, counts, frame, journal
        self._threads, self._progress = threads, progress
        self._path = f"tables/{counts.name}"
        self._scratch = scratch / counts.name
        self._region = layout.region_name(slide_id, counts.name)
        self._key = layout.instance_key(counts.lattice.kind)
        self._order = tile_order(counts)
        self._n_obs, self._n_vars = len(self._order.barcode), len(counts.matrix.genes.ids)
        per_row = counts.matrix.nonzero_per_barcode()[self._order.barcode]
        self._indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_row, dtype=np.int64)])
        if not self._indptr[-1]:
            raise _no_counts(counts)

    def write(self) -> TableResult:
        entries = self._journal.once(f"{self._path}/entries", self._write_entries)
        spans = _spans(self._n_obs, layout.block_shape(self._n_obs, layout.ROWS_PER_CHUNK, layout.ROWS_PER_SHARD)[1])
        rows = [Unit(f"{self._path}/rows/{lo}", self._rows_job(lo, hi), (hi - lo) * 64) for lo, hi in spans]
        self._run("rows", rows)
        attrs = {
            "lattice": dict(vars(self._counts.lattice)),
            "region": self._region,
            "n_obs": self._n_obs,
            "n_vars": self._n_vars,
            "nnz": int(self._indptr[-1]),
            **entries,
            "tile_cells": layout.TILE_CELLS,
            "tile_shape": list(self._order.tile_shape),
            "repeated_symbols": repeated_symbols(self._counts.matrix.genes),
        }
        return TableResult(attrs, self._order)

    def _run(self, what: str, units: Sequence[Unit]) -> None:
        stage = f"{what} of {self._counts.name}"
        self._journal.run(units, stage=stage, threads=self._threads, progress=self._progress)

    # ------------------------------------------------------------------------------------------------- entries

    def _write_entries(self) -> dict[str, int]:
        """Create the table and write all that depends on the matrix; return the sums over it."""
        matrix, name = self._counts.matrix, self._counts.name
        row_of = np.empty(self._n_obs, np.int32)
        row_of[self._order.barcode] = np.arange(self._n_obs, dtype=np.int32)
        buckets = EntryBuckets(self._scratch, row_of, self._indptr, self._n_vars)
        totals = buckets.fill(matrix, self._progress, f"sorting of {name}")
        if not totals.total:
            raise _no_counts(self._counts)
        self._run("names", [Unit(f"{self._path}/create", lambda: self._create(totals))])
        self._run("names", [Unit(f"{self._path}/consolidate", self._consolidate)])
        jobs = [(self._shard_job(buckets, index, totals.dtype), *buckets.bounds(index)) for index in range(buckets.num)]
        self._run("counts", [Unit(f"{self._path}/X/{lo}", job, (hi - lo) * ENTRY_BYTES) for job, lo, hi in jobs])
        buckets.drop()
        return {"total": totals.total, "max": totals.max}

    def _shard_job(self, buckets: EntryBuckets, index: int, dtype: np.dtype[Any]) -> Callable[[], None]:
        def write() -> None:
            data, indices = buckets.shard(index, self._counts.matrix)
            where = slice(*buckets.bounds(index))
            array_at(self._root, f"{self._path}/X/data")[where] = data.astype(dtype)
            array_at(self._root, f"{self._path}/X/indices")[where] = indices

        return write

    # -------------------------------------------------------------------------------------------- names and rows

    def _create(self, totals: Totals) -> None:
        """Create all groups and arrays, and fill those that are small."""
        table = anndata_format.create_table(self._root, self._counts.name, region=self._region, instance_key=self._key)
        x = anndata_format.create_csr(table, (self._n_obs, self._n_vars), int(self._indptr[-1]), totals.dtype)
        array_at(x, "indptr")[...] = self._indptr
        tiles = {"tile_cells": layout.TILE_CELLS, "tile_shape": list(self._order.tile_shape)}
        write_array(x, "tile_indptr", self._order.tile_indptr, tiles)
        for name in ("spatial", "spatial_um"):
            create_array(group_at(table, "obsm"), name, (self._n_obs, 2), np.dtype(np.float64), attributes=ARRAY)
        self._create_var(table, totals)
        self._create_obs(table)

    def _consolidate(self) -> None:
        """Copy the table's metadata into its group: `anndata.experimental.read_lazy` of its path asks for that."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
            zarr.consolidate_metadata(self._root.store, path=self._path, zarr_format=3)

    def _create_var(self, table: zarr.Group, totals: Totals) -> None:
        genes = self._counts.matrix.genes
        strings = {"gene_ids": genes.ids, "feature_types": genes.feature_types, "genome": genes.genomes}
        var = anndata_format.create_dataframe(table, "var", [*strings, "total_counts"])
        write_strings(var, "_index", unique_symbols(genes.symbols))
        for name, values in strings.items():
            write_strings(var, name, values)
        write_array(var, "total_counts", totals.per_gene, ARRAY)

    def _create_obs(self, table: zarr.Group) -> None:
        columns = self._columns(0, 0)
        obs = anndata_format.create_dataframe(table, "obs", [self._key, "region", *columns])
        for name, values in columns.items():
            create_array(obs, name, (self._n_obs,), values.dtype, attributes=ARRAY)
        create_array(obs, self._key, (self._n_obs,), np.dtype(np.int32), attributes=ARRAY)
        anndata_format.write_categorical(obs, "region", self._n_obs, self._region)
        if self._counts.lattice.kind == "bins":  # millions of strings would cost seconds at every opening
            create_array(obs, "_index", (self._n_obs,), np.dtype(np.int32), attributes=ARRAY)
        else:
            barcodes = np.concatenate(list(self._counts.matrix.barcodes()))[self._order.barcode]
            write_strings(obs, "_index", [barcode.decode() for barcode in barcodes])

    def _columns(self, lo: int, hi: int) -> dict[str, NDArray[Any]]:
        """Return rows `lo` to `hi` of the columns of obs that hold numbers, but for the row's own."""
        barcode = self._order.barcode[lo:hi]
        return {
            "array_row": self._counts.array_row[barcode].astype(np.int32, copy=False),
            "array_col": self._counts.array_col[barcode].astype(np.int32, copy=False),
            "in_tissue": self._counts.in_tissue[barcode].astype(np.uint8),
            "grid_row": self._order.grid_row[lo:hi],
            "grid_col": self._order.grid_col[lo:hi],
        }

    def _rows_job(self, lo: int, hi: int) -> Callable[[], None]:
        def write() -> None:
            table = group_at(self._root, self._path)
            numbers = np.arange(lo + 1, hi + 1, dtype=np.int32)
            columns = self._columns(lo, hi) | {self._key: numbers}
            if self._counts.lattice.kind == "bins":
                columns["_index"] = numbers
            for name, values in columns.items():
                array_at(table, f"obs/{name}")[lo:hi] = values
            um = self._counts.lattice.centres_um(self._order.grid_row[lo:hi], self._order.grid_col[lo:hi])
            array_at(table, "obsm/spatial_um")[lo:hi] = um
            array_at(table, "obsm/spatial")[lo:hi] = np.round(self._frame.um_to_px(um) / _PX_STEP) * _PX_STEP

        return write


def _spans(num: int, step: int) -> list[tuple[int, int]]:
    return [(lo, min(lo + step, num)) for lo in range(0, num, step)]


def _where(counts: CountsSource, barcode: int) -> str:
    return f"array_row {counts.array_row[barcode]}, array_col {counts.array_col[barcode]}"


def _check_genes(counts: CountsSource) -> None:
    repeated = [name for name, num in Counter(counts.matrix.genes.ids).items() if num > 1]
    if repeated:
        raise IngestError(
            "ST146",
            f"{len(repeated)} gene ids occur more than once: {listing(repeated)}",
            file=counts.matrix.path,
            cure="the id is the key of every join: give each feature its own",
        )


def _no_counts(counts: CountsSource) -> IngestError:
    return IngestError(
        "ST145",
        f"the matrix of {counts.name} holds no counts: all of its values are zero",
        file=counts.matrix.path,
        cure="check that the run finished; positions alone make no store",
    )
