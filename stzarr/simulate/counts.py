"""Counts of a simulated run: drawn band by band from the tissue, summed exactly into every bin size.

A band is as many rows of the finest bins as all bin sizes divide, over the whole width, so every coarse bin lies in one
band. Each band has its own random stream: results depend neither on order nor on threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stzarr.simulate.genes import NUM_PROGRAMS, GenePrograms
from stzarr.simulate.geometry import Area, band_rows
from stzarr.simulate.tissue import Tissue, TissueSample

_COUNTS = 21
_STRIP_BINS = 1024
"""Bins along x that are evaluated at once."""
_SAMPLES_PER_SIDE = 2
"""Places per side of a bin at which the tissue is looked at."""
_LEVEL = np.array([1.15, 0.85, 1.1, 0.7], np.float32)
"""Total RNA of the regions."""
_NUCLEAR, _BETWEEN, _CYTOPLASM = 1.75, 0.45, 1.5
"""RNA under a nucleus, between cells, and added by cytoplasm, of a full bin; their mean over a section is about 1."""


@dataclass(frozen=True)
class BandCounts:
    """One bin size's part of a band.

    Parameters
    ----------
    row0 : int
        First row of bins.
    in_tissue : bool, shape (rows, columns)
    nonzero : int64, shape (in_tissue.sum(),)
        Number of genes of each in-tissue bin, row-major.
    genes : int32, values : int32, shape (nonzero.sum(),)
        Genes ascending within a bin.
    """

    row0: int
    in_tissue: NDArray[np.bool_]
    nonzero: NDArray[np.int64]
    genes: NDArray[np.int32]
    values: NDArray[np.int32]


@dataclass(frozen=True)
class CountsModel:
    """Everything that counts follow from.

    Parameters
    ----------
    umi_per_um2 : float
        Mean number of UMI per µm² of tissue, about.
    """

    seed: int
    area: Area
    tissue: Tissue
    programs: GenePrograms
    bins_um: tuple[float, ...]
    umi_per_um2: float

    @property
    def num_bands(self) -> int:
        """Number of bands of the area."""
        return -(-self.area.num_rows // band_rows(self.bins_um))

    def band(self, index: int) -> tuple[BandCounts, ...]:
        """Draw one band and return it for each of `bins_um`."""
        height = band_rows(self.bins_um)
        row0, row1 = index * height, min((index + 1) * height, self.area.num_rows)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, _COUNTS, index])))
        rates, in_tissue = self._rates(row0, row1)
        drawn = generator.poisson(rates).ravel()
        slot = np.repeat(np.arange(len(drawn)), drawn)
        gene = self.programs.draw(slot % NUM_PROGRAMS, generator)
        key, value = _collapse(slot // NUM_PROGRAMS * self.programs.num_genes + gene, np.ones(len(gene), np.int32))
        return tuple(self._coarsen(size, row0, in_tissue, key, value) for size in self.bins_um)

    def _rates(self, row0: int, row1: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return expected UMI, shape (bins, NUM_PROGRAMS), 0 outside tissue, and in_tissue, shape (rows, columns)."""
        strips = []
        for col0 in range(0, self.area.num_cols, _STRIP_BINS):
            col1 = min(col0 + _STRIP_BINS, self.area.num_cols)
            strips.append(self._look(row0, row1, col0, col1))
        rates = np.concatenate([rate for rate, _ in strips], axis=1)
        in_tissue = np.concatenate([coverage for _, coverage in strips], axis=1) > 0.5
        rates[~in_tissue] = 0
        return rates.reshape(-1, NUM_PROGRAMS), in_tissue

    def _look(self, row0: int, row1: int, col0: int, col1: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        step = self.area.bin_um / _SAMPLES_PER_SIDE
        xs = (np.arange(col0 * _SAMPLES_PER_SIDE, col1 * _SAMPLES_PER_SIDE) + 0.5) * step
        ys = (np.arange(row0 * _SAMPLES_PER_SIDE, row1 * _SAMPLES_PER_SIDE) + 0.5) * step
        sample = self.tissue.sample(*np.meshgrid(xs, ys))
        weights = _mean_per_bin(_program_weights(sample)).astype(np.float64)
        coverage = _mean_per_bin(sample.coverage[..., None])[..., 0]
        return weights * (self.umi_per_um2 * self.area.bin_um**2), coverage

    def _coarsen(
        self,
        bin_um: float,
        row0: int,
        in_tissue: NDArray[np.bool_],
        key: NDArray[np.int64],
        value: NDArray[np.int32],
    ) -> BandCounts:
        """Sum the finest counts of a band; a coarse bin is in tissue where one of its finest bins is."""
        factor, num_genes = self.area.factor(bin_um), self.programs.num_genes
        rows, cols = -(-in_tissue.shape[0] // factor), -(-in_tissue.shape[1] // factor)
        fine, gene = np.divmod(key, num_genes)
        if factor > 1:
            fine_row, fine_col = np.divmod(fine, in_tissue.shape[1])
            key, value = _collapse((fine_row // factor * cols + fine_col // factor) * num_genes + gene, value)
            padded = np.zeros((rows * factor, cols * factor), bool)
            padded[: in_tissue.shape[0], : in_tissue.shape[1]] = in_tissue
            in_tissue = np.any(padded.reshape(rows, factor, cols, factor), axis=(1, 3))
            fine, gene = np.divmod(key, num_genes)
        nonzero = np.bincount(fine, minlength=rows * cols)[in_tissue.ravel()]
        return BandCounts(row0 // factor, in_tissue, nonzero, gene.astype(np.int32), value)


def _collapse(key: NDArray[np.int64], value: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sort by key and add up the values of equal keys."""
    if not len(key):
        return key, value
    order = np.argsort(key, kind="stable")
    key, value = key[order], value[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return key[first], np.add.reduceat(value, first, dtype=np.int32)


def _program_weights(sample: TissueSample) -> NDArray[np.float32]:
    """Return the RNA of every program at every place, shape (h, w, NUM_PROGRAMS)."""
    total = sample.regions * _LEVEL * sample.coverage[..., None]
    outside = (1 - sample.stain) * (_BETWEEN + _CYTOPLASM * sample.halo)
    weights = np.stack([total * (_NUCLEAR * sample.stain)[..., None], total * outside[..., None]], axis=-1)
    return weights.reshape(*total.shape[:2], NUM_PROGRAMS)


def _mean_per_bin(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average the places of each bin, shape (h, w, n) to (rows, columns, n)."""
    n = _SAMPLES_PER_SIDE
    h, w, channels = field.shape
    return field.reshape(h // n, n, w // n, n, channels).mean(axis=(1, 3))
