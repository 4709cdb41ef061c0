"""What a store is made from: lazy handles and geometry, never a slide or a matrix.

Readers (`stzarr.ingest`) build a `Source`; the writer beside this file turns it into a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import IngestError
from stzarr.space import Frame, Homography, Lattice

SIMULATED = "SIMULATED.json"
"""File that marks an input folder as simulated; the simulator writes it, readers look for it."""


class ImageHandle(Protocol):
    """A picture that can be read in pieces. Safe to read from several threads."""

    path: Path
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    dtype: np.dtype[Any]
    """uint8 or uint16."""
    channels: tuple[str, ...]
    mpp: float | None
    """µm per pixel from the file's own metadata, if it says."""
    compression: str
    """Name of the file's codec, for provenance: "jpeg", "deflate", "none" ..."""
    random_access: bool
    """False where a small read decodes the whole file (PNG, JPEG, single strips)."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        """Return pixels, shape (c, y1 - y0, x1 - x0); the box lies inside the image."""
        ...

    def decoded(self, folder: Path) -> ImageHandle:
        """Return an equal handle with random access; itself where it has it already.

        Decodes the file once, in order, into one scratch file in `folder`, which the caller deletes with the folder
        after closing the handle.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@dataclass(frozen=True)
class Genes:
    """The features of a matrix in the file's order."""

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    feature_types: tuple[str, ...]
    genomes: tuple[str, ...]


@dataclass(frozen=True)
class CountBlock:
    """Non-zero counts of some barcodes, in any order.

    barcode : int64, shape (n,), position of the barcode in the matrix; gene : int32, shape (n,);
    value : unsigned integer, shape (n,).
    """

    barcode: NDArray[np.int64]
    gene: NDArray[np.int32]
    value: NDArray[Any]


class MatrixHandle(Protocol):
    """A sparse count matrix (genes x barcodes) that is read in blocks."""

    path: Path
    num_barcodes: int
    num_nonzero: int
    genes: Genes

    def barcodes(self, block: int = 1 << 20) -> Iterator[NDArray[np.bytes_]]:
        """Yield the barcodes in order, as fixed-width bytes, `block` at a time."""
        ...

    def nonzero_per_barcode(self) -> NDArray[np.int64]:
        """Return the number of stored entries of every barcode, shape (num_barcodes,)."""
        ...

    def blocks(self, entries: int = 1 << 22) -> Iterator[CountBlock]:
        """Yield all entries once, about `entries` at a time; of one barcode in the file's order of genes."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def empty_matrix(path: Path) -> IngestError:
    """Return the error of a matrix without a single count."""
    return IngestError(
        "ST136", "the matrix holds no counts", file=path, cure="use the matrix of a finished run, or --counts raw"
    )


@dataclass(frozen=True)
class CountsSource:
    """One matrix with the place of each of its barcodes.

    Parameters
    ----------
    name : str
        Name of the table in the store: ``square_008um``, or ``table`` for spots.
    matrix : MatrixHandle
    lattice : BinLattice or SpotLattice
        Lattice of these bins or spots.
    array_row, array_col : int32, shape (num_barcodes,)
    in_tissue : bool, shape (num_barcodes,)
    """

    name: str
    matrix: MatrixHandle
    lattice: Lattice
    array_row: NDArray[np.int32]
    array_col: NDArray[np.int32]
    in_tissue: NDArray[np.bool_]

    @property
    def bin_um(self) -> float | None:
        """Side of a bin [µm]; None for spots."""
        return self.lattice.bin_um if self.lattice.kind == "bins" else None


@dataclass(frozen=True)
class ImageSource:
    """A picture and where its pixels lie.

    Parameters
    ----------
    name : str
        ``full``, ``hires`` or ``lowres``.
    handle : ImageHandle
    um_to_px : Homography
        µm to the pixel centres of *this* picture, counted from 0.
    scale : float
        Pixels of this picture per full-resolution pixel (``tissue_hires_scalef``); 1 for ``full``.
    """

    name: Literal["full", "hires", "lowres"]
    handle: ImageHandle
    um_to_px: Homography
    scale: float = 1.0


@dataclass(frozen=True)
class Source:
    """Everything a store is made from.

    Parameters
    ----------
    id : str
        Name of the slide; part of the names of its elements.
    assay : str
        ``"Visium HD"``, ``"Visium"`` or ``"slide"``.
    frame : Frame
    images : tuple of ImageSource
        Best first: full, hires, lowres.
    counts : tuple of CountsSource
        Finest first; empty for a plain slide.
    files : tuple of Path
        Every file that was or will be read, for sizes and digests in the store.
    details : dict
        Facts for provenance and reports that have no other place: scale factors, software versions, notes, checks.
    warnings : tuple of str
        What the user should know, each said once.
    """

    id: str
    assay: str
    frame: Frame
    images: tuple[ImageSource, ...]
    counts: tuple[CountsSource, ...]
    files: tuple[Path, ...]
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def close(self) -> None:
        """Release all files."""
        for image in self.images:
            image.handle.close()
        for counts in self.counts:
            counts.matrix.close()
