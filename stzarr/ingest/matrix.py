"""Count matrices of 10x software as lazy handles: HDF5 (both layouts) here, Matrix Market folders in `mex`.

Both check what they read: shapes and lengths at opening, entries while they stream. No more than a block of entries is
held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stzarr.errors import IngestError, MissingInputError, is_of_machine, listing
from stzarr.ingest.entries import check_ids, count_block, integers
from stzarr.ingest.mex import MexMatrix
from stzarr.store.source import CountBlock, Genes, empty_matrix

__all__ = ["MexMatrix", "TenxH5Matrix", "open_matrix"]

_BARCODES_AT_ONCE = 1 << 20
_NAMES_V3 = {"ids": "features/id", "symbols": "features/name"}
_NAMES_V2 = {"ids": "genes", "symbols": "gene_names"}


def open_matrix(path: Path) -> TenxH5Matrix | MexMatrix:
    """Open a 10x matrix: an ``.h5`` file, or a folder with ``matrix.mtx``, features and barcodes.

    Raises
    ------
    MissingInputError
        ST103: the file, or one of a folder, does not exist.
    IngestError
        ST130 to ST137: see `TenxH5Matrix` and `MexMatrix`.
    """
    if not path.exists():
        raise MissingInputError("ST103", "the count matrix does not exist", file=path, cure="check the path")
    return MexMatrix(path) if path.is_dir() else TenxH5Matrix(path)


class TenxH5Matrix:
    """A matrix in 10x HDF5: ``/matrix`` (version 3), or one group named after its genome (version 2).

    Parameters
    ----------
    path : Path

    Raises
    ------
    IngestError
        ST130: truncated, or not HDF5; ST131: not a 10x matrix; ST132: lengths contradict each other; ST133: repeated
        gene ids. While streaming also ST132: ``indptr`` runs backwards; ST134: negative or fractional values; ST135:
        a gene out of range; ST136: no counts at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: tuple[str, ...] = ()
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            if is_of_machine(error):
                raise
            raise _damaged(path, error) from error
        try:
            with _reading(path):
                self._group, names = self._find_group()
                self.genes = self._read_genes(names)
                self._check_lengths()
            check_ids(self.genes.ids, path)
        except IngestError:
            self.close()
            raise

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)

    def barcodes(self, block: int = _BARCODES_AT_ONCE) -> Iterator[NDArray[np.bytes_]]:
        """Yield the barcodes in order, as fixed-width bytes, `block` at a time."""
        for start in range(0, self.num_barcodes, block):
            with _reading(self.path):
                names = self._group["barcodes"][start : start + block]
            yield names if names.dtype.kind == "S" else np.array([_text(name).encode() for name in names], np.bytes_)

    def nonzero_per_barcode(self) -> NDArray[np.int64]:
        """Return the number of stored entries of every barcode, shape (num_barcodes,); ST136 if there are none."""
        if self.num_nonzero == 0:
            raise empty_matrix(self.path)
        counts = np.empty(self.num_barcodes, np.int64)
        for start, indptr in self._indptr():
            counts[start : start + len(indptr) - 1] = np.diff(indptr)
        return counts

    def blocks(self, entries: int = 1 << 22) -> Iterator[CountBlock]:
        """Yield all entries once, at most `entries` at a time, barcode by barcode; ST136 if all are zero."""
        total = 0
        for start, indptr in self._indptr():
            for low in range(int(indptr[0]), int(indptr[-1]), entries):
                high = min(low + entries, int(indptr[-1]))
                inside = np.diff(np.clip(indptr, low, high)).astype(np.int64)
                with _reading(self.path):
                    gene, value = self._group["indices"][low:high], self._group["data"][low:high]
                barcode = np.repeat(np.arange(start, start + len(inside)), inside)
                block = count_block(barcode, gene, value, len(self.genes.ids), self.path)
                total += int(block.value.sum())
                yield block
        if total == 0:
            raise empty_matrix(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _find_group(self) -> tuple[Any, dict[str, str]]:
        if "matrix" in self._file and "features" in self._file["matrix"]:
            return self._file["matrix"], _NAMES_V3
        genomes = [name for name, item in self._file.items() if isinstance(item, h5py.Group) and "genes" in item]
        if len(genomes) == 1:
            return self._file[genomes[0]], _NAMES_V2
        what = f"it has several genomes ({listing(genomes)})" if genomes else f"it holds: {listing(self._file)}"
        raise IngestError(
            "ST131", f"this HDF5 file is not one 10x matrix: {what}", file=self.path, cure="give *_feature_bc_matrix.h5"
        )

    def _read_genes(self, names: dict[str, str]) -> Genes:
        ids = self._texts(names["ids"])
        one = "Gene Expression"
        if names is _NAMES_V2:
            genome = str(self._group.name).strip("/")
            return Genes(ids, self._texts(names["symbols"]), (one,) * len(ids), (genome,) * len(ids))
        types = self._texts("features/feature_type") if "features/feature_type" in self._group else (one,) * len(ids)
        genomes = self._texts("features/genome") if "features/genome" in self._group else ("",) * len(ids)
        return Genes(ids, self._texts(names["symbols"]), types, genomes)

    def _texts(self, name: str) -> tuple[str, ...]:
        return tuple(_text(value) for value in self._group[name][:])

    def _check_lengths(self) -> None:
        """Compare ``shape`` with the lengths of all arrays."""
        group = self._group
        shape = integers(group["shape"][:], self.path, "shape")
        if len(shape) != 2:
            raise _mismatch(self.path, f"shape is {shape.tolist()}, not (genes, barcodes)")
        self.num_barcodes, self.num_nonzero = int(shape[1]), len(group["data"])
        expected = {
            "barcodes": (len(group["barcodes"]), self.num_barcodes),
            "indptr": (len(group["indptr"]), self.num_barcodes + 1),
            "indices": (len(group["indices"]), self.num_nonzero),
            "gene ids": (len(self.genes.ids), int(shape[0])),
            "gene symbols": (len(self.genes.symbols), int(shape[0])),
            "feature types": (len(self.genes.feature_types), int(shape[0])),
            "genomes": (len(self.genes.genomes), int(shape[0])),
        }
        for name, (found, wanted) in expected.items():
            if found != wanted:
                raise _mismatch(self.path, f"{found} {name} where shape and data say {wanted}")
        ends = (int(group["indptr"][0]), int(group["indptr"][-1]))
        if ends != (0, self.num_nonzero):
            raise _mismatch(
                self.path, f"indptr runs from {ends[0]} to {ends[1]}, the data from 0 to {self.num_nonzero}"
            )

    def _indptr(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield (first barcode, indptr of some barcodes and the end), checked to run forwards."""
        for start in range(0, self.num_barcodes, _BARCODES_AT_ONCE):
            with _reading(self.path):
                indptr = self._group["indptr"][start : start + _BARCODES_AT_ONCE + 1].astype(np.int64)
            if (np.diff(indptr) < 0).any() or indptr[0] < 0 or indptr[-1] > self.num_nonzero:
                first = start + int(np.argmax(np.diff(indptr) < 0))
                raise _mismatch(self.path, f"indptr runs backwards or out of the data at barcode {first}")
            yield start, indptr


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises on damaged files into ST130 and ST131."""
    try:
        yield
    except KeyError as error:
        raise IngestError(
            "ST131", f"this HDF5 file is not a 10x matrix: {error.args[0]}", file=path, cure="give another file"
        ) from error
    except IngestError:
        raise
    except (AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        if is_of_machine(error):
            raise
        raise _damaged(path, error) from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _damaged(path: Path, error: Exception) -> IngestError:
    return IngestError(
        "ST130", f"the matrix is truncated or not HDF5: {error}", file=path, cure="copy or download the file again"
    )


def _mismatch(path: Path, what: str) -> IngestError:
    return IngestError("ST132", f"the matrix contradicts itself: {what}", file=path, cure="download the file again")
