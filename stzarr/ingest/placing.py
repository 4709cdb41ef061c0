"""Where each barcode of a matrix lies: the join of matrices and positions, for spots by name, for bins by number.

A spot's barcode is a random word, so positions are looked up by name; there are a few thousand. A bin's barcode,
``s_002um_RRRRR_CCCCC-1``, holds its row and column, so millions are placed with a map of flags over the array.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import IngestError
from stzarr.ingest.positions import Places, Positions, bounds_px
from stzarr.space import Bounds
from stzarr.store.source import MatrixHandle

_PRESENT, _IN_TISSUE, _USED = np.uint8(1), np.uint8(2), np.uint8(4)
_BARCODES_AT_ONCE = 1 << 18
_PATTERN = b"s_???um_?????_?????-?"


@dataclass(frozen=True)
class Placed:
    """The place of every barcode of a matrix, in its order; shapes (num_barcodes,)."""

    array_row: NDArray[np.int32]
    array_col: NDArray[np.int32]
    in_tissue: NDArray[np.bool_]


class SpotMap:
    """All spots of a Visium run by barcode.

    Raises
    ------
    IngestError
        ST112: a barcode or an array position occurs twice; ST113: a position that is not on the spots' lattice.
    """

    def __init__(self, positions: Positions) -> None:
        self.path = positions.path
        self.extent = positions.extent()
        parts = list(positions.places())
        barcodes = np.concatenate([part.barcode for part in parts])
        order = np.argsort(barcodes)
        self._barcodes = barcodes[order]
        self._row, self._col, self._in_tissue = (
            np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("array_row", "array_col", "in_tissue")
        )
        xy = np.concatenate([part.xy_px for part in parts])[order]
        self.in_tissue_px: Bounds | None = bounds_px(None, xy[self._in_tissue])
        self._check()

    def place(self, matrix: MatrixHandle) -> Placed:
        """Return where each barcode lies; ST115 if one has no position, ST117 if one occurs twice."""
        found = [np.empty(0, np.int64)]
        for block in matrix.barcodes(_BARCODES_AT_ONCE):
            index = np.minimum(np.searchsorted(self._barcodes, block), len(self._barcodes) - 1)
            missing = self._barcodes[index] != block
            if missing.any():
                raise _unplaced(block[np.argmax(missing)], matrix, self.path)
            found.append(index)
        index = np.concatenate(found)
        if (worst := _first_repeated(index)) is not None:
            raise _repeated(self._barcodes[index[worst]], matrix)
        return Placed(self._row[index], self._col[index], self._in_tissue[index])

    def _check(self) -> None:
        twice = self._barcodes[1:] == self._barcodes[:-1]
        if twice.any():
            raise _duplicate(self.path, f"barcode {self._barcodes[1:][twice][0].decode(errors='replace')}")
        cells = self._row.astype(np.int64) << 32 | self._col
        if (worst := _first_repeated(cells)) is not None:
            raise _duplicate(self.path, f"array position (row {self._row[worst]}, column {self._col[worst]})")
        odd = (self._row + self._col) % 2 == 1
        if odd.any():
            worst = int(np.argmax(odd))
            name = self._barcodes[worst].decode(errors="replace")
            raise IngestError(
                "ST113",
                f"{name} lies at row {self._row[worst]}, column {self._col[worst]}; on the lattice of spots their sum "
                "is even",
                file=self.path,
                cure="use the positions file of the same run, unchanged",
            )


class BinMap:
    """Which bins of a Visium HD array have a position, and which lie in tissue: one byte a bin.

    Raises
    ------
    IngestError
        ST112: a bin occurs twice; ST113: a barcode that contradicts its row and column; ST114: a barcode that is no
        bin of this size.
    """

    def __init__(self, positions: Positions, bin_um: float) -> None:
        self.path, self.bin_um = positions.path, bin_um
        self.extent = positions.extent()
        self.in_tissue_px: Bounds | None = None
        self._flags = np.zeros(self.extent, np.uint8)
        num = 0
        for part in positions.places():
            self._check(part)
            self._flags[part.array_row, part.array_col] |= _PRESENT + _IN_TISSUE * part.in_tissue
            self.in_tissue_px = bounds_px(self.in_tissue_px, part.xy_px[part.in_tissue])
            num += len(part.barcode)
        if np.count_nonzero(self._flags) < num:
            raise _duplicate(self.path, f"{num - np.count_nonzero(self._flags)} bins")

    def place(self, matrix: MatrixHandle) -> Placed:
        """Return where each barcode lies; ST114, ST115 if one has no position, ST117 if one occurs twice."""
        row, col = np.empty(matrix.num_barcodes, np.int32), np.empty(matrix.num_barcodes, np.int32)
        num, (rows, cols) = 0, self.extent
        for block in matrix.barcodes(_BARCODES_AT_ONCE):
            r, c = parse_bins(block, self.bin_um, matrix.path)
            outside = (r >= rows) | (c >= cols)
            missing = outside | (self._flags[np.where(outside, 0, r), np.where(outside, 0, c)] & _PRESENT == 0)
            if missing.any():
                raise _unplaced(block[np.argmax(missing)], matrix, self.path)
            self._flags[r, c] |= _USED
            row[num : num + len(r)], col[num : num + len(r)] = r, c
            num += len(r)
        if np.count_nonzero(self._flags & _USED) < num:
            worst = _first_repeated(row.astype(np.int64) * cols + col)
            raise _repeated(f"at row {row[worst]}, column {col[worst]}".encode(), matrix)
        self._flags &= ~_USED
        return Placed(row, col, self._flags[row, col] & _IN_TISSUE > 0)

    def _check(self, part: Places) -> None:
        row, col = parse_bins(part.barcode, self.bin_um, self.path)
        wrong = (row != part.array_row) | (col != part.array_col)
        if wrong.any():
            worst = int(np.argmax(wrong))
            raise IngestError(
                "ST113",
                f"{part.barcode[worst].decode(errors='replace')} is said to lie at row {part.array_row[worst]}, column "
                f"{part.array_col[worst]}",
                file=self.path,
                cure="use the positions file of the same run, unchanged",
            )


def parse_bins(barcodes: NDArray[np.bytes_], bin_um: float, path: Path) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return (row, column) of barcodes ``s_008um_RRRRR_CCCCC-1``, digit by digit over the whole array.

    Raises
    ------
    IngestError
        ST114: a barcode that is not of this form, or of another bin size.
    """
    width = len(_PATTERN)
    if not len(barcodes):
        return np.empty(0, np.int32), np.empty(0, np.int32)
    letters = np.ascontiguousarray(barcodes).view(np.uint8).reshape(len(barcodes), -1)
    if letters.shape[1] < width:
        raise _no_bin(barcodes[0], bin_um, path)
    wanted = np.frombuffer(_PATTERN, np.uint8)
    digit = wanted == ord("?")
    head = letters[:, :width]
    fits = (head[:, ~digit] == wanted[~digit]).all(axis=1)
    fits &= (head[:, digit] - np.uint8(ord("0")) <= 9).all(axis=1) & (letters[:, width:] == 0).all(axis=1)
    size, row, col = (_number(head[:, low:high]) for low, high in ((2, 5), (8, 13), (14, 19)))
    fits &= size == bin_um
    if not fits.all():
        raise _no_bin(barcodes[np.argmin(fits)], bin_um, path)
    return row, col


def _number(digits: NDArray[np.uint8]) -> NDArray[np.int32]:
    value = np.zeros(len(digits), np.int32)
    for column in digits.T:
        value = value * np.int32(10) + (column - np.uint8(ord("0")))
    return value


def _unplaced(barcode: bytes, matrix: MatrixHandle, positions: Path) -> IngestError:
    return IngestError(
        "ST115",
        f"barcode {barcode.decode(errors='replace')} of {matrix.path.name} has no position",
        file=positions,
        cure="use the matrix and the positions of one run",
    )


def _duplicate(path: Path, what: str) -> IngestError:
    return IngestError("ST112", f"positions occur twice: {what}", file=path, cure="copy the file again, unchanged")


def _first_repeated(values: NDArray[np.int64]) -> int | None:
    """Return an index of a value that occurs more than once, None if all are different."""
    unique, first, number = np.unique(values, return_index=True, return_counts=True)
    return None if len(unique) == len(values) else int(first[np.argmax(number > 1)])


def _repeated(barcode: bytes, matrix: MatrixHandle) -> IngestError:
    return IngestError(
        "ST117",
        f"a barcode occurs twice in the matrix: {barcode.decode(errors='replace')}",
        file=matrix.path,
        cure="use the matrix as Space Ranger wrote it",
    )


def _no_bin(barcode: bytes, bin_um: float, path: Path) -> IngestError:
    return IngestError(
        "ST114",
        f"{barcode.decode(errors='replace')!r} is not the barcode of a {bin_um:g} µm bin",
        file=path,
        cure=f"barcodes of bins read s_{int(bin_um):03d}um_RRRRR_CCCCC-1: use the files of one bin size",
    )
