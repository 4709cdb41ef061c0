"""Whether the bins that a source sums itself agree with our sums of its finest bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr


def compare_totals(root: zarr.Group, tables: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compare every coarser table's total counts of each gene with those of the finest, which is read first.

    Parameters
    ----------
    root : zarr.Group
        Root of a store whose tables are written.
    tables : sequence of str
        Names, finest first.

    Returns
    -------
    dict
        For every coarser table: ``finest`` (name), ``genes_that_differ`` (also those that one of the two lacks) and
        ``counts_more`` (its total less the finest's). Equal tables give zeros.
    """
    if len(tables) < 2:
        return {}
    expected = _totals(root, tables[0])
    found: dict[str, dict[str, Any]] = {}
    for name in tables[1:]:
        totals = _totals(root, name)
        differ = sum(totals.get(gene) != expected.get(gene) for gene in totals.keys() | expected.keys())
        more = sum(totals.values()) - sum(expected.values())
        found[name] = {"finest": tables[0], "genes_that_differ": differ, "counts_more": more}
    return found


def warnings_of(compared: dict[str, dict[str, Any]]) -> list[str]:
    """Say in words which tables differ from the sums of the finest."""
    return [
        f"{name} is not the sum of {check['finest']}: {check['genes_that_differ']} genes differ, "
        f"{check['counts_more']:+d} counts in all; both are stored as the source gives them"
        for name, check in compared.items()
        if check["genes_that_differ"]
    ]


def _totals(root: zarr.Group, table: str) -> dict[str, int]:
    ids, totals = (np.asarray(root[f"tables/{table}/var/{column}"]) for column in ("gene_ids", "total_counts"))
    return dict(zip(ids.tolist(), totals.tolist(), strict=True))
