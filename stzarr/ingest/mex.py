"""Matrix Market folders of 10x software (``matrix.mtx``, features, barcodes), parsed as a stream of chunks of text."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from stzarr.errors import IngestError, MissingInputError
from stzarr.ingest.entries import check_ids, count_block
from stzarr.ingest.outs import find_entry
from stzarr.store.source import CountBlock, Genes, empty_matrix

_BYTES_PER_ENTRY = 12
"""Length of a usual line of ``matrix.mtx``; turns a number of entries into a number of bytes to read."""


class MexMatrix:
    """A matrix as a Matrix Market folder, compressed or not; entries in any order.

    Compression is told by a file's first bytes. A file that is called ``.gz`` and is plain text is read, with one
    line in `warnings` for the folder.

    Parameters
    ----------
    path : Path
        Folder with ``matrix.mtx[.gz]``, ``features.tsv[.gz]`` (id, symbol, type) or ``genes.tsv[.gz]`` (id, symbol),
        and ``barcodes.tsv[.gz]``.

    Raises
    ------
    MissingInputError
        ST103: one of the three is missing.
    IngestError
        ST130: a truncated file; ST131: a features file without symbols; ST132: lengths contradict the header; ST133:
        repeated gene ids; ST137: not a Matrix Market header. While streaming also ST134, ST135, ST136 as
        `TenxH5Matrix`; ST137: lines that cannot be read, or another number of entries than the header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._matrix = _find(path, "matrix.mtx")
        self._features = _find(path, "features.tsv", "genes.tsv")
        self._barcodes = _find(path, "barcodes.tsv")
        self.files = (self._matrix, self._features, self._barcodes)
        plain = [file.name for file in self.files if file.suffix == ".gz" and not _is_gzip(file)]
        self.warnings: tuple[str, ...] = ()
        if plain:
            self.warnings = (f"named .gz but plain text, read as such: {', '.join(plain)} in {path.name}",)
        num_genes, self.num_barcodes, self.num_nonzero = self._header()
        self.genes = self._read_genes()
        if len(self.genes.ids) != num_genes:
            raise self._mismatch(self._features, f"{len(self.genes.ids)} genes, the matrix has {num_genes} rows")
        check_ids(self.genes.ids, self._features)

    def barcodes(self, block: int = 1 << 20) -> Iterator[NDArray[np.bytes_]]:
        """Yield the barcodes in order, as fixed-width bytes, `block` at a time; ST132 if their number is wrong."""
        num = 0
        with _open(self._barcodes) as file:
            while lines := _lines(file, block):
                num += len(lines)
                yield np.array([_fields(line)[0] for line in lines], np.bytes_)
        if num != self.num_barcodes:
            raise self._mismatch(self._barcodes, f"{num} barcodes, the matrix has {self.num_barcodes} columns")

    def nonzero_per_barcode(self) -> NDArray[np.int64]:
        """Return the number of stored entries of every barcode, shape (num_barcodes,); reads the file once."""
        if self.num_nonzero == 0:
            raise empty_matrix(self._matrix)
        counts = np.zeros(self.num_barcodes, np.int64)
        for block in self.blocks():
            counts += np.bincount(block.barcode, minlength=self.num_barcodes)
        return counts

    def blocks(self, entries: int = 1 << 22) -> Iterator[CountBlock]:
        """Yield all entries once, about `entries` at a time, in the file's order; ST136 if all are zero."""
        num, total = 0, 0
        with _open(self._matrix) as file:
            _skip_header(file)
            while text := _whole_lines(file, entries * _BYTES_PER_ENTRY):
                block = self._parse(text)
                num, total = num + len(block.gene), total + int(block.value.sum())
                yield block
        if num != self.num_nonzero:
            raise self._not_mtx(f"{num} entries, the header says {self.num_nonzero}")
        if total == 0:
            raise empty_matrix(self._matrix)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _parse(self, text: bytes) -> CountBlock:
        if b"  " in text or b"\t" in text:
            text = re.sub(rb"[ \t]+", b" ", text)
        try:
            row, col, value = _columns(text)
        except (pa.ArrowInvalid, ValueError) as error:
            raise self._not_mtx(f"lines that are not 'row column value': {error}") from error
        if len(col) and not (col.min() >= 1 and col.max() <= self.num_barcodes):
            worst = int(col.max() if col.max() > self.num_barcodes else col.min())
            raise IngestError(
                "ST135",
                f"an entry names column {worst}, there are {self.num_barcodes}",
                file=self._matrix,
                cure="download the file again",
            )
        return count_block(col - 1, row - 1, value, len(self.genes.ids), self._matrix)

    def _header(self) -> tuple[int, int, int]:
        """Return (genes, barcodes, entries) of the Matrix Market header."""
        with _open(self._matrix) as file:
            banner, sizes = _skip_header(file)
        words, numbers = banner.lower().split(), sizes.split()
        if words[:3] != [b"%%matrixmarket", b"matrix", b"coordinate"]:
            raise self._not_mtx(f"its first line is {_shown(banner)}")
        if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
            raise self._not_mtx(f"its size line is {_shown(sizes)}")
        # R calls an empty matrix "pattern symmetric"; without entries the kind says nothing.
        if int(numbers[2]) and (words[3:4] not in ([b"integer"], [b"real"]) or words[4:] != [b"general"]):
            raise self._not_mtx(f"entries are {_shown(b' '.join(words[3:]))}, not 'integer general'")
        return int(numbers[0]), int(numbers[1]), int(numbers[2])

    def _read_genes(self) -> Genes:
        with _open(self._features) as file:
            rows = [[field.decode() for field in _fields(line)] for line in file.read().splitlines() if line]
        if any(len(row) < 2 for row in rows):
            raise IngestError("ST131", "a line without id and symbol", file=self._features, cure="give the 10x file")
        ids, symbols = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        types = tuple(row[2] if len(row) > 2 else "Gene Expression" for row in rows)
        return Genes(ids, symbols, types, ("",) * len(ids))

    def _mismatch(self, file: Path, what: str) -> IngestError:
        return IngestError("ST132", f"the files contradict each other: {what}", file=file, cure="use one run's files")

    def _not_mtx(self, what: str) -> IngestError:
        return IngestError(
            "ST137", f"this is no whole Matrix Market file: {what}", file=self._matrix, cure="download the file again"
        )


def _find(folder: Path, *names: str) -> Path:
    """Return the one file of a folder that has one of these names, with or without ``.gz`` and a prefix."""
    found = find_entry(folder, *(wanted for name in names for wanted in (f"{name}.gz", name)))
    if found is not None:
        return found
    raise MissingInputError(
        "ST103", f"{names[0]}[.gz] is missing", file=folder, cure="copy the whole matrix folder, or use the .h5 file"
    )


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("latin-1").strip())


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file, decompressing if its first bytes say so; truncated or damaged compression is ST130."""
    try:
        with gzip.open(path, "rb") if _is_gzip(path) else path.open("rb") as file:
            yield io.BufferedReader(file, 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise IngestError(
            "ST130", f"the file is truncated or damaged: {error}", file=path, cure="copy or download the file again"
        ) from error


def _lines(file: BinaryIO, limit: int) -> list[bytes]:
    """Return up to `limit` non-empty lines."""
    lines: list[bytes] = []
    while len(lines) < limit and (line := file.readline()):
        if stripped := line.strip():
            lines.append(stripped)
    return lines


def _fields(line: bytes) -> list[bytes]:
    """Split at tabs and take off the quotes that R writes."""
    return [field.strip(b'" \r') for field in line.split(b"\t")]


def _skip_header(file: BinaryIO) -> tuple[bytes, bytes]:
    """Return the banner and the line of sizes; the file then stands at the first entry."""
    banner = file.readline()
    line = file.readline()
    while line.startswith(b"%") or (line and not line.strip()):
        line = file.readline()
    return banner, line


def _whole_lines(file: BinaryIO, size: int) -> bytes:
    """Return about `size` bytes up to the end of a line; nothing at the end of the file."""
    text = file.read(size)
    return text + file.readline() if text else text


def _columns(text: bytes) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Parse lines of three numbers; values as int64, or float64 where one is written so."""
    names = ["row", "col", "value"]
    if not text.strip():
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    for kind in (pa.int64(), pa.float64()):
        try:
            table = pacsv.read_csv(
                io.BytesIO(text),
                read_options=pacsv.ReadOptions(column_names=names, use_threads=False),
                parse_options=pacsv.ParseOptions(delimiter=" ", quote_char=False),
                convert_options=pacsv.ConvertOptions(
                    column_types={"row": pa.int64(), "col": pa.int64(), "value": kind}, null_values=[]
                ),
            )
            break
        except pa.ArrowInvalid:
            if kind == pa.float64():
                raise
    row, col, value = (table[name].to_numpy() for name in names)
    return row, col, value
