"""Checks that every count matrix passes, whatever file it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import IngestError, listing
from stzarr.store.source import CountBlock


def check_ids(ids: tuple[str, ...], path: Path) -> None:
    """Raise ST133 if a gene id occurs twice; symbols may."""
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    repeated = [name for name in ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    raise IngestError(
        "ST133",
        f"gene ids are repeated: {listing(dict.fromkeys(repeated))}",
        file=path,
        cure="ids are the key of a gene: merge those rows, or use the matrix as Space Ranger wrote it",
    )


def integers(values: NDArray[Any], path: Path, what: str) -> NDArray[Any]:
    """Return values as integers; ST134 if some are negative, fractional or not finite. Never wraps around."""
    if values.dtype.kind == "f":
        if not (np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2.0**53)).all():
            wrong = values[~(np.isfinite(values) & (values == np.rint(values)))]
            raise _not_counts(path, f"{what} holds {wrong[0] if len(wrong) else values.max():g}")
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise _not_counts(path, f"{what} is of type {values.dtype}")
    if values.dtype.kind == "i" and len(values) and values.min() < 0:
        raise _not_counts(path, f"{what} holds {values.min()}")
    return values


def count_block(
    barcode: NDArray[np.int64], gene: NDArray[Any], value: NDArray[Any], num_genes: int, path: Path
) -> CountBlock:
    """Check some entries and bring them to the types of `CountBlock`; values become uint32, or uint64 if they must."""
    counts = integers(value, path, "the matrix")
    if len(gene) and not (gene.min() >= 0 and gene.max() < num_genes):
        worst = int(gene.max() if gene.max() >= num_genes else gene.min())
        raise IngestError(
            "ST135", f"an entry names gene {worst}, there are {num_genes}", file=path, cure="download the file again"
        )
    wide = len(counts) and counts.max() > np.iinfo(np.uint32).max
    return CountBlock(barcode.astype(np.int64), gene.astype(np.int32), counts.astype(np.uint64 if wide else np.uint32))


def _not_counts(path: Path, what: str) -> IngestError:
    return IngestError(
        "ST134",
        f"counts must be whole numbers from 0: {what}",
        file=path,
        cure="give the raw counts, not normalised or log values",
    )
