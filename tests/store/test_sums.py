"""Bins that a source sums itself are held against our sums of its finest bins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from counts_samples import bins_source

from stzarr.store.reader import StoreReader
from stzarr.store.sums import compare_totals, warnings_of
from stzarr.store.writer import write_store


def root_with(**tables: dict[str, int]) -> zarr.Group:
    root = zarr.create_group(store=zarr.storage.MemoryStore())
    for name, totals in tables.items():
        root.create_array(f"tables/{name}/var/gene_ids", data=np.array(list(totals), dtype=np.dtypes.StringDType()))
        root.create_array(f"tables/{name}/var/total_counts", data=np.array(list(totals.values()), np.int64))
    return root


def test_equal_totals_differ_nowhere_whatever_the_order_of_genes() -> None:
    root = root_with(fine={"a": 3, "b": 5}, coarse={"b": 5, "a": 3})
    compared = compare_totals(root, ["fine", "coarse"])
    assert compared == {"coarse": {"finest": "fine", "genes_that_differ": 0, "counts_more": 0}}
    assert warnings_of(compared) == []


def test_other_totals_and_missing_genes_are_said() -> None:
    root = root_with(fine={"a": 3, "b": 5}, coarse={"a": 4, "c": 2})
    compared = compare_totals(root, ["fine", "coarse"])
    assert compared["coarse"] == {"finest": "fine", "genes_that_differ": 3, "counts_more": -2}
    (warning,) = warnings_of(compared)
    assert warning.startswith("coarse is not the sum of fine: 3 genes differ, -2 counts in all")


def test_ingest_records_it_and_keeps_both_tables(tmp_path: Path) -> None:
    source = bins_source()
    attrs = StoreReader(write_store(source, tmp_path / "s.zarr")).attrs
    fine, coarse = (counts.matrix for counts in source.counts)
    differ = np.bincount(fine.gene, fine.value, 12) != np.bincount(coarse.gene, coarse.value, 12)
    assert attrs["sums"]["square_008um"]["genes_that_differ"] == differ.sum() > 0
    assert attrs["sums"]["square_008um"]["counts_more"] == int(coarse.value.sum()) - int(fine.value.sum())
    assert any("square_008um is not the sum of square_002um" in warning for warning in attrs["warnings"])
