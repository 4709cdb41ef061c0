"""Gene panels: an ordered list of genes that is the same for every slide of a run, and how to choose one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import GeneError, StreamError
from stzarr.store.counts_reader import CountsBox, GeneIndex
from stzarr.stream.fetch import open_reader

if TYPE_CHECKING:
    from stzarr.stream.dataset import PatchStream

MAX_ALL_GENES = 1000
"""More genes than this are streamed only when they are named: a patch of all genes is a thousand dense grids."""


@dataclass(frozen=True)
class GenePanel:
    """Ordered genes of a stream: ids, the key of every join, and symbols."""

    ids: tuple[str, ...]
    symbols: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids in order, hexadecimal."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()

    def positions(self, index: GeneIndex) -> NDArray[np.int64]:
        """Return the position of every gene in a table, -1 where the table lacks it, shape (len(self),)."""
        place = {gene: position for position, gene in enumerate(index.ids)}
        return np.array([place.get(gene, -1) for gene in self.ids], dtype=np.int64)


def join_panel(indexes: Sequence[GeneIndex], names: Sequence[str] | None) -> GenePanel:
    """Resolve names over the tables of several slides.

    Parameters
    ----------
    indexes : sequence of GeneIndex
        Genes of each slide's table.
    names : sequence of str, optional
        Ids or symbols; an id wins. None is every gene of the first table, then those that only later ones have.

    Raises
    ------
    StreamError
        ST407: all genes are asked for and they are too many; a gene is named twice.
    GeneError
        ST310: no slide has the gene. ST311: a symbol that means several ids.
    """
    symbol_of: dict[str, str] = {}
    for index in indexes:
        for gene, symbol in zip(index.ids, index.symbols, strict=True):
            symbol_of.setdefault(gene, symbol)
    if names is None:
        if len(symbol_of) > MAX_ALL_GENES:
            raise StreamError(
                "ST407",
                f"all {len(symbol_of)} genes at once are too many to stream (at most {MAX_ALL_GENES})",
                cure="genes=[...] with a panel (stzarr.stream.panel.panel_by_counts chooses one), or genes=() for none",
            )
        ids = tuple(symbol_of)
    else:
        ids = tuple(_resolve(name, indexes, symbol_of) for name in names)
    repeated = sorted({gene for gene in ids if ids.count(gene) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise StreamError("ST407", f"the panel names a gene twice: {repeated[0]}", cure="name every gene once")
    return GenePanel(ids, tuple(symbol_of[gene] for gene in ids))


def _resolve(name: str, indexes: Sequence[GeneIndex], symbol_of: dict[str, str]) -> str:
    if name in symbol_of:
        return name
    found: dict[str, None] = {}
    missing: GeneError | None = None
    for index in indexes:
        try:
            found[index.ids[int(index.positions([name])[0])]] = None
        except GeneError as error:
            if error.code != "ST310":
                raise
            missing = missing or error
    if len(found) > 1:
        raise GeneError(
            "ST311", f"the symbol {name!r} means {len(found)} genes: {', '.join(found)}", cure="name the id instead"
        )
    if not found and missing is not None:
        raise missing
    return next(iter(found))


def panel_by_counts(stream: PatchStream, num: int) -> GenePanel:
    """Choose the genes with the largest total over the patches of a stream, largest first.

    Give it the *training* stream (``split="train", genes=()``), so that nothing of validation or test enters the
    choice. A cell that several patches cover counts as often. One block of patches is in memory at a time.

    Parameters
    ----------
    stream : PatchStream
        Its plan decides where counts are summed; its own panel does not matter.
    num : int
        Number of genes; fewer where fewer have counts.

    Raises
    ------
    StreamError
        ST408: the slides have no counts.
    """
    totals: dict[str, int] = {}
    symbol_of: dict[str, str] = {}
    for index, (path, table, factor) in enumerate(stream.tables):
        genes = open_reader(path).tables[table].genes
        for gene, symbol, total in zip(
            genes.ids, genes.symbols, _totals(stream, index, path, table, factor), strict=True
        ):
            totals[gene] = totals.get(gene, 0) + int(total)
            symbol_of.setdefault(gene, symbol)
    if not totals:
        raise StreamError("ST408", "the slides of this stream have no counts", cure="choose slides with expression")
    ranked = sorted((gene for gene, total in totals.items() if total), key=lambda gene: (-totals[gene], gene))[:num]
    return GenePanel(tuple(ranked), tuple(symbol_of[gene] for gene in ranked))


def _totals(stream: PatchStream, slide: int, path: str, table: str, factor: int) -> NDArray[np.int64]:
    """Sum the counts of every gene of one slide's table over the plan's patches, a block at a time."""
    source = open_reader(path).tables[table]
    mine = stream.plan.patches[stream.plan.patches["slide"] == slide]
    side = stream.plan.slides[slide].grid.patch * factor
    totals = np.zeros(source.n_vars, np.int64)
    for block in np.split(mine, np.flatnonzero(np.diff(mine["block"])) + 1) if len(mine) else []:
        corners = np.stack([block["r0"], block["c0"]], axis=-1).astype(np.int64) * factor
        (r0, c0), (r1, c1) = corners.min(axis=0), corners.max(axis=0) + side
        cover = np.zeros((r1 - r0, c1 - c0), np.int64)
        for row, col in (corners - [r0, c0]).tolist():
            cover[row : row + side, col : col + side] += 1
        totals += _weighted(source.read_box(int(r0), int(r1), int(c0), int(c1)), cover, int(r0), int(c0))
    return totals


def _weighted(box: CountsBox, cover: NDArray[np.int64], r0: int, c0: int) -> NDArray[np.int64]:
    weight = np.repeat(cover[box.grid_row - r0, box.grid_col - c0], np.diff(box.indptr))
    sums = np.bincount(box.indices, weights=box.data.astype(np.float64) * weight, minlength=box.n_vars)
    return sums.astype(np.int64)
