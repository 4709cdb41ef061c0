"""Stores for the stream: small ones written by hand, with the dense truth beside them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.store.handmade import Made, bins_store, spots_store


@pytest.fixture(scope="session")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Bins of 2 and 8 µm over 200 x 152 µm, pixels of 0.5 µm."""
    return bins_store(tmp_path_factory.mktemp("stream") / "bins.zarr")


@pytest.fixture(scope="session")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Ten rows of six spots, pixels of 4 µm."""
    return spots_store(tmp_path_factory.mktemp("stream") / "spots.zarr")


@pytest.fixture(scope="session")
def other(bins: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same bins as slide ``hd2``, with gene 0 gone and ``ENSG100`` (symbol NEW) in its place."""
    path = tmp_path_factory.mktemp("stream") / "other.zarr"
    shutil.copytree(bins.path, path)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    for table in bins.counts:
        for column, name in (("gene_ids", "ENSG100"), ("_index", "NEW")):
            array = root[f"tables/{table}/var/{column}"]
            assert isinstance(array, zarr.Array)
            names = np.asarray(array[:])
            names[0] = name
            array[:] = names
    root.attrs["stzarr"] = dict(root.attrs["stzarr"]) | {"id": "hd2"}  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: not yet in the specification
        zarr.consolidate_metadata(path)
    return Made(path, bins.counts, bins.present, bins.image, bins.native, bins.tissue)


@pytest.fixture(scope="session")
def plain(bins: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture alone, as a slide without counts or tissue map."""
    path = tmp_path_factory.mktemp("stream") / "plain.zarr"
    shutil.copytree(bins.path, path)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    gone = {"id": "plain", "tables": {}, "tissue": None, "area_um": [-16.0, -16.0, 184.0, 136.0]}
    root.attrs["stzarr"] = dict(root.attrs["stzarr"]) | gone  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    return path
