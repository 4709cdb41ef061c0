"""The genes of a simulated run: names, abundance, and in which regions and compartments each is expressed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stzarr.simulate.tissue import REGIONS

NUM_PROGRAMS = 2 * len(REGIONS)
"""Program 2 k is the nuclear RNA of region k, program 2 k + 1 its cytoplasmic RNA."""

_GENES = 20
_HOMES = (-1, 0, 1, -1, 2, 3)
"""Home region of successive genes; -1 is expressed everywhere."""
_PREFIX = {-1: "ALL", 0: "TUM", 1: "STR", 2: "IMM", 3: "ADI"}
_SPREAD = 1.6
_REPEATED_SYMBOLS = 11


@dataclass(frozen=True)
class GenePrograms:
    """Genes and the categorical distribution over them of each program.

    Parameters
    ----------
    ids, symbols : tuple of str
        Ids are unique; a few symbols repeat, as in real runs. A symbol's letters name the gene's home region.
    shares : float64, shape (NUM_PROGRAMS, num_genes)
        Rows sum to 1.
    keep, other : shape (NUM_PROGRAMS * num_genes,)
        Alias tables of all programs: draw a slot, keep its gene with probability `keep`, else take `other`.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    shares: NDArray[np.float64]
    keep: NDArray[np.float32]
    other: NDArray[np.int32]

    @property
    def num_genes(self) -> int:
        """Number of genes."""
        return len(self.ids)

    def draw(self, program: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw one gene for every entry of `program`."""
        place = generator.random(len(program)) * self.num_genes
        gene = place.astype(np.int64)
        slot = program * self.num_genes + gene
        return np.where(place - gene < self.keep[slot], gene, self.other[slot])


def make_programs(seed: int, num_genes: int) -> GenePrograms:
    """Make up genes: log-normal abundance, 8 to 30 times more at home, a third of them leaning to each compartment."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _GENES])))
    abundance = np.exp(_SPREAD * generator.standard_normal(num_genes))
    home = np.resize(_HOMES, num_genes)
    gain = generator.uniform(8, 30, num_genes)
    nuclear = generator.choice([0.08, 0.5, 0.92], num_genes)
    rows = []
    for region in range(len(REGIONS)):
        expressed = abundance * np.where(home == -1, 1.0, np.where(home == region, gain, 1.0) / 4)
        rows += [expressed * nuclear, expressed * (1 - nuclear)]
    shares = np.array(rows)
    shares /= shares.sum(axis=1, keepdims=True)
    tables = [_alias_table(row) for row in shares]
    return GenePrograms(
        tuple(f"ENSG99{index:09d}" for index in range(num_genes)),
        _symbols(home),
        shares,
        np.concatenate([keep for keep, _ in tables]),
        np.concatenate([other for _, other in tables]),
    )


def _symbols(home: NDArray[np.int64]) -> tuple[str, ...]:
    symbols = [f"{_PREFIX[int(region)]}{index + 1}" for index, region in enumerate(home)]
    for index in range(min(_REPEATED_SYMBOLS, len(symbols) // 20)):
        symbols[-1 - index] = symbols[index]
    return tuple(symbols)


def _alias_table(shares: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Build the table of Vose, "A linear algorithm for generating random numbers with a given distribution" (1991)."""
    scaled = (shares * len(shares)).tolist()
    keep, other = [1.0] * len(scaled), list(range(len(scaled)))
    small = [index for index, value in enumerate(scaled) if value < 1]
    large = [index for index, value in enumerate(scaled) if value >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], other[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return np.array(keep, np.float32), np.array(other, np.int32)
