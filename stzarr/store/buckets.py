"""Sort the entries of a matrix that does not fit in memory: one pass into bucket files, then bucket by bucket.

A bucket holds what one shard of the sorted matrix is made of: all entries of every row that lies in the shard, in part
or in whole (so a row on a border is in two buckets, and genes can be sorted within whole rows). Which bucket an entry
belongs to follows from ``indptr`` alone, so one pass over the source in any order is enough.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import IngestError
from stzarr.store import layout
from stzarr.store.source import CountBlock, MatrixHandle
from stzarr.store.units import Progress

_FIELDS = {"row": np.dtype("<i4"), "gene": np.dtype("<i4"), "value": np.dtype("<u4")}
ENTRY_BYTES = sum(dtype.itemsize for dtype in _FIELDS.values())
"""Scratch space for one entry."""

_MAX_COUNT = 2**31 - 1

_BLOCK_ENTRIES = 1 << 20
"""Entries read at a time: larger blocks are no faster, and each entry takes some 70 bytes on its way."""


@dataclass(frozen=True)
class Totals:
    """Sums over a matrix, gathered in the pass over the source."""

    total: int
    max: int
    per_gene: NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest unsigned type that holds every count."""
        return np.min_scalar_type(self.max)


class EntryBuckets:
    """The bucket files of one matrix in a scratch folder.

    Parameters
    ----------
    folder : Path
        Scratch of this matrix alone.
    row_of : int32, shape (num_barcodes,)
        Row of the sorted matrix that a barcode becomes.
    indptr : int64, shape (num_barcodes + 1,)
        Row pointers of the sorted matrix.
    num_genes : int
    """

    def __init__(self, folder: Path, row_of: NDArray[np.int32], indptr: NDArray[np.int64], num_genes: int) -> None:
        self._folder, self._row_of, self._indptr, self._num_genes = folder, row_of, indptr, num_genes
        self._entries = int(indptr[-1])
        self.num = -(-self._entries // layout.ENTRIES_PER_SHARD)

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the entries of a shard in the sorted matrix, half-open."""
        first = index * layout.ENTRIES_PER_SHARD
        return first, min(first + layout.ENTRIES_PER_SHARD, self._entries)

    def fill(self, matrix: MatrixHandle, progress: Progress | None, stage: str) -> Totals:
        """Distribute all entries over the buckets, unless an earlier call has finished that."""
        totals = self._finished()
        if totals is not None:
            return totals
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        done, largest = 0, 0
        per_gene = np.zeros(self._num_genes, np.int64)
        for block in matrix.blocks(_BLOCK_ENTRIES):
            self._check(block, matrix)
            self._append(block)
            # Sums of float64 are exact below 2^53, as of 2^22 counts below 2^31; np.add.at is five times slower.
            per_gene += np.bincount(block.gene, block.value, self._num_genes).astype(np.int64)
            largest = max(largest, int(block.value.max(initial=0)))
            done += len(block.value)
            if progress is not None:
                progress(stage, done * ENTRY_BYTES, self._entries * ENTRY_BYTES)
        if done != self._entries:
            raise _inconsistent(matrix, f"{done} entries were read where its index says {self._entries}")
        total = int(per_gene.sum())
        self._note({"total": total, "max": largest, "per_gene": per_gene.tolist()})
        return Totals(total, largest, per_gene)

    def shard(self, index: int, matrix: MatrixHandle) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
        """Return (data, indices) of one shard: rows in order, genes ascending within a row.

        Raises
        ------
        IngestError
            ST142: an entry of the matrix occurs twice. ST143: the matrix contradicts its own index.
        """
        from scipy.sparse import csr_matrix  # 0.3 s to import, and only ingest needs it

        (lo, hi), (first, last) = self.bounds(index), self._rows(index)
        row, gene, value = (self._read(index, field) for field in _FIELDS)
        block = csr_matrix((value, (row - np.int32(first), gene)), shape=(last - first, self._num_genes))
        if block.nnz != len(value):
            raise IngestError(
                "ST142",
                f"{len(value) - block.nnz} entries of the matrix name a gene and a barcode a second time",
                file=matrix.path,
                cure="write the matrix again with each entry once",
            )
        if not np.array_equal(block.indptr, self._indptr[first : last + 1] - self._indptr[first]):
            raise _inconsistent(matrix, "barcodes have more or fewer entries than its index says")
        cut = slice(lo - int(self._indptr[first]), hi - int(self._indptr[first]))
        return block.data[cut], block.indices[cut].astype(np.int32, copy=False)

    def drop(self) -> None:
        """Delete the bucket files, all shards being written."""
        shutil.rmtree(self._folder)

    # ------------------------------------------------------------------------------------------------- the pass

    @property
    def _noted(self) -> Path:
        return self._folder / "totals.json"

    def _note(self, fields: dict[str, Any]) -> None:
        partial = self._noted.with_suffix(".partial")
        partial.write_text(json.dumps(fields))
        partial.replace(self._noted)

    def _finished(self) -> Totals | None:
        """Return the totals of a finished pass whose files are whole."""
        if not self._noted.is_file():
            return None
        fields = json.loads(self._noted.read_text())
        if not all(self._is_whole(index) for index in range(self.num)):
            return None
        return Totals(fields["total"], fields["max"], np.array(fields["per_gene"], np.int64))

    def _is_whole(self, index: int) -> bool:
        first, last = self._rows(index)
        entries = int(self._indptr[last] - self._indptr[first])
        paths = {self._path(index, name): dtype.itemsize for name, dtype in _FIELDS.items()}
        return all(path.is_file() and path.stat().st_size == entries * size for path, size in paths.items())

    def _rows(self, index: int) -> tuple[int, int]:
        """Return the rows that lie in a shard, in part or in whole, half-open."""
        lo, hi = self.bounds(index)
        first = int(np.searchsorted(self._indptr, lo, side="right")) - 1
        return first, int(np.searchsorted(self._indptr, hi, side="left"))

    def _path(self, index: int, field: str) -> Path:
        return self._folder / f"{index:05d}.{field}.bin"

    def _read(self, index: int, field: str) -> NDArray[Any]:
        return np.fromfile(self._path(index, field), _FIELDS[field])

    def _append(self, block: CountBlock) -> None:
        row = self._row_of[block.barcode]
        fields = {"row": row, "gene": block.gene, "value": block.value}
        for index, which in self._grouped(row):
            for name, dtype in _FIELDS.items():
                with self._path(index, name).open("ab") as file:
                    fields[name][which].astype(dtype, copy=False).tofile(file)

    def _grouped(self, row: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Yield (bucket, positions in the block) for every bucket that the block touches."""
        first = self._indptr[row] // layout.ENTRIES_PER_SHARD
        last = (self._indptr[row + 1] - 1) // layout.ENTRIES_PER_SHARD
        yield from _groups(first, np.arange(len(row)))
        beyond = np.flatnonzero(last > first)
        while beyond.size:
            first[beyond] += 1
            yield from _groups(first[beyond], beyond)
            beyond = beyond[last[beyond] > first[beyond]]

    def _check(self, block: CountBlock, matrix: MatrixHandle) -> None:
        """Refuse positions and counts that no matrix of this shape has."""
        if not len(block.value):
            return
        if int(block.value.max()) > _MAX_COUNT:
            raise IngestError("ST144", f"a count of {block.value.max()} is above {_MAX_COUNT}", file=matrix.path)
        ends = ((block.gene, self._num_genes, "gene"), (block.barcode, len(self._row_of), "barcode"))
        for values, num, what in ends:
            if int(values.min()) < 0 or int(values.max()) >= num:
                raise _inconsistent(matrix, f"an entry names a {what} outside 0..{num - 1}")


def _groups(bucket: NDArray[np.int64], positions: NDArray[np.intp]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield every bucket with the positions that belong to it, in their order."""
    narrow = bucket.astype(np.uint16) if bucket.size and bucket.max() < 2**16 else bucket  # 16 bits: a radix sort
    order = np.argsort(narrow, kind="stable")
    present, starts = np.unique(narrow[order], return_index=True)
    for index, which in zip(present, np.split(order, starts[1:]), strict=True):
        yield int(index), positions[which]


def _inconsistent(matrix: MatrixHandle, what: str) -> IngestError:
    return IngestError(
        "ST143",
        f"the matrix contradicts its own index: {what}",
        file=matrix.path,
        cure="the file is damaged: copy or download it again",
    )
