"""Small count matrices with known content, for the tests of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from stzarr.space import BinLattice, Frame, Homography, Lattice, SpotLattice
from stzarr.store.source import CountBlock, CountsSource, Genes, ImageSource, Source


class MemoryMatrix:
    """A matrix handle over entries in memory, yielded in the given order.

    Parameters
    ----------
    barcode, gene, value : arrays, shape (nnz,)
    num_barcodes : int
    genes : Genes
    block : int
        Entries a block, whatever is asked for.
    """

    path = Path("matrix.h5")

    def __init__(self, barcode, gene, value, num_barcodes: int, genes: Genes, block: int = 1000) -> None:
        self.barcode, self.gene, self.value = np.int64(barcode), np.int32(gene), np.asarray(value)
        self.num_barcodes, self.genes, self._block = num_barcodes, genes, block
        self.num_nonzero = len(self.value)
        self.passes = 0

    def barcodes(self, block: int = 1 << 20) -> Iterator[NDArray[np.bytes_]]:
        names = np.array([f"BC{index:06d}-1" for index in range(self.num_barcodes)], dtype="S")
        yield from (names[lo : lo + block] for lo in range(0, self.num_barcodes, block))

    def nonzero_per_barcode(self) -> NDArray[np.int64]:
        return np.bincount(self.barcode, minlength=self.num_barcodes).astype(np.int64)

    def blocks(self, entries: int = 1 << 22) -> Iterator[CountBlock]:
        self.passes += 1
        for lo in range(0, self.num_nonzero, self._block):
            cut = slice(lo, lo + self._block)
            yield CountBlock(self.barcode[cut], self.gene[cut], self.value[cut])

    def close(self) -> None:
        pass


def genes_of(num: int) -> Genes:
    """Return genes of which every third shares the symbol of the one before it."""
    symbols = tuple(f"G{index - (index % 3 == 2)}" for index in range(num))
    ids = tuple(f"ENSG{index:05d}" for index in range(num))
    return Genes(ids, symbols, ("Gene Expression",) * num, ("GRCh38",) * num)


def random_counts(
    lattice: Lattice,
    *,
    name: str,
    seed: int = 0,
    num_genes: int = 12,
    share: float = 0.6,
    largest: int = 300,
    per_cell: float = 4.0,
    block: int = 1000,
) -> CountsSource:
    """Fill a random part of a lattice; entries come in random order over barcodes and genes."""
    rng = np.random.default_rng(seed)
    row, col = np.meshgrid(np.arange(lattice.num_rows), np.arange(lattice.num_cols), indexing="ij")
    kept = rng.random(row.shape) < share
    if lattice.kind == "spots":
        kept &= (row + col) % 2 == 0
    row, col = row[kept].astype(np.int32), col[kept].astype(np.int32)
    shuffled = rng.permutation(len(row))
    row, col = row[shuffled], col[shuffled]
    cells = np.arange(len(row) * num_genes)
    nonzero = rng.permutation(cells[rng.random(len(cells)) < per_cell / num_genes])
    value = rng.integers(1, largest + 1, len(nonzero)).astype(np.uint32)
    matrix = MemoryMatrix(nonzero // num_genes, nonzero % num_genes, value, len(row), genes_of(num_genes), block)
    return CountsSource(name, matrix, lattice, row, col, rng.random(len(row)) < 0.8)


def bins(**options) -> CountsSource:
    """Return a mirrored lattice of 2 µm bins, 90 x 75."""
    return random_counts(BinLattice(2.0, 90, 75, mirrored=True), name="square_002um", **options)


def spots(**options) -> CountsSource:
    """Return a lattice of Visium spots, 78 x 128."""
    return random_counts(SpotLattice(87.0, 78, 128), name="table", **options)


def frame_of(lattice: Lattice) -> Frame:
    """Return a frame with a perspective, and the affine that is nearest at its origin."""
    to_px = Homography.from_matrix([[3.6, 0.2, 40.0], [-0.1, 3.7, 900.0], [1e-7, 2e-7, 1.0]])
    affine = Homography.from_matrix([[3.6, 0.2, 40.0], [-0.1, 3.7, 900.0], [0.0, 0.0, 1.0]])
    return Frame(to_px, 0.27, 1e-9, affine, 0.5, lattice)


def expected(counts: CountsSource) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
    """Return the matrix in tile order, made the simple way, and the barcode of each row."""
    row, col = counts.lattice.grid(counts.array_row, counts.array_col)
    tile_cols = -(-counts.lattice.grid_shape[1] // 32)
    order = np.lexsort((col, row, (row // 32) * tile_cols + col // 32))
    matrix = counts.matrix
    shape = (matrix.num_barcodes, len(matrix.genes.ids))
    whole = sp.csr_matrix((matrix.value, (matrix.barcode, matrix.gene)), shape=shape)[order]
    whole.sort_indices()
    return whole, order


class MemoryImage:
    """An image handle over pixels in memory."""

    path = Path("he.tif")
    mpp = None
    compression = "none"
    random_access = True

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.shape, self.dtype = pixels.shape, pixels.dtype
        self.channels = ("r", "g", "b")[: len(pixels)]

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        return self._pixels[:, y0:y1, x0:x1]

    def decoded(self, folder: Path) -> MemoryImage:
        return self

    def close(self) -> None:
        pass


def source_of(*counts: CountsSource, image: bool = False, assay: str = "Visium HD") -> Source:
    """Return a slide with these counts, and a small picture of noise if asked for."""
    frame = frame_of(counts[0].lattice)
    images: tuple[ImageSource, ...] = ()
    if image:
        pixels = np.random.default_rng(1).integers(0, 255, (3, 120, 90), dtype=np.uint8)
        down = Homography.scale_then_move(0.1, 0.1, 0.0, 0.0)
        images = (ImageSource("hires", MemoryImage(pixels), down @ frame.um_to_px, 0.1),)
    details = {"scalefactors": {"spot_diameter_fullres": 240.0}}
    return Source("s1", assay, frame, images, counts, (), details)


def bins_source(**options) -> Source:
    """Return a slide with 2 µm and 8 µm bins."""
    coarse = BinLattice(8.0, 23, 19, mirrored=True)
    return source_of(bins(), random_counts(coarse, name="square_008um", seed=3), **options)


def spots_source(**options) -> Source:
    """Return a slide with spots."""
    return source_of(spots(), assay="Visium", **options)
