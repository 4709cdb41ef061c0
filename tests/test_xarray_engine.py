"""The engine ``stzarr`` of xarray."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

from stzarr.errors import SlideError, StoreError
from stzarr.xarray_engine import StzarrBackend
from tests.store.handmade import Made, bins_store


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return bins_store(tmp_path_factory.mktemp("bins") / "hd.zarr")


def test_tree_of_everything(bins: Made) -> None:
    tree = xr.open_datatree(bins.path, engine="stzarr")
    assert tree.attrs["id"] == "hd1"
    assert tree.attrs["donor"] == "D1"
    for level, truth in enumerate(bins.image):
        image = tree[f"images/hd1_image_um/s{level}"]["image"]
        assert image.dims == ("c", "y", "x")
        assert image.attrs["mpp"] == 0.5 * 2**level
        np.testing.assert_array_equal(image.values, truth)
    np.testing.assert_array_equal(tree["tissue"]["tissue"].values, bins.tissue)
    labels = tree["labels/hd1_square_002um_labels"]["labels"]
    np.testing.assert_array_equal(labels.values > 0, bins.present["square_002um"])
    np.testing.assert_allclose(labels.x[:2], [1.0, 3.0])
    native = tree["images/hd1_hires_image/s0"]["image"]
    assert native.attrs["frame"] == "native"
    np.testing.assert_array_equal(native.x, np.arange(40))


def test_lazy_without_and_with_dask(bins: Made) -> None:
    group = "images/hd1_image_um/s0"
    plain = xr.open_dataset(bins.path, engine="stzarr", group=group, cache=False)
    assert not plain["image"].variable._in_memory
    part = plain["image"].isel(y=slice(5, 20, 3), x=[7, 3]).sel(c="g")
    np.testing.assert_array_equal(part.values, bins.image[0][1, 5:20:3][:, [7, 3]])
    np.testing.assert_array_equal(plain["image"][:, ::-5, -1].values, bins.image[0][:, ::-5, -1])
    chunked = xr.open_dataset(bins.path, engine="stzarr", group="/" + group, chunks={})
    assert dask.is_dask_collection(chunked["image"].data)
    np.testing.assert_array_equal(chunked["image"].sel(x=slice(0, 10)).values, bins.image[0][..., 32:52])
    tree = xr.open_datatree(bins.path, engine="stzarr", chunks={})
    assert all(dask.is_dask_collection(node[name].data) for node in tree.subtree for name in node.data_vars)


def test_root_group_and_groups(bins: Made) -> None:
    root = xr.open_dataset(bins.path, engine="stzarr")
    assert not root.data_vars
    assert root.attrs["assay"] == "Visium HD"
    groups = xr.open_groups(bins.path, engine="stzarr")
    assert "/images/hd1_image_um/s2" in groups
    dropped = xr.open_dataset(bins.path, engine="stzarr", group="tissue", drop_variables="tissue")
    assert list(dropped.variables) == ["y", "x"]
    with pytest.raises(SlideError, match=r"ST308(.|\n)*images/hd1_image_um/s0"):
        xr.open_dataset(bins.path, engine="stzarr", group="images")


def test_recognises_its_own_stores(bins: Made, tmp_path: Path) -> None:
    backend = StzarrBackend()
    assert backend.guess_can_open(bins.path)
    assert backend.guess_can_open(str(bins.path))
    assert not backend.guess_can_open(tmp_path)
    assert not backend.guess_can_open(b"bytes")
    (tmp_path / "zarr.json").write_text("[]")
    assert not backend.guess_can_open(tmp_path)
    (tmp_path / "zarr.json").write_text("no json")
    assert not backend.guess_can_open(tmp_path)


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="ST201"):
        xr.open_datatree(tmp_path / "nothing", engine="stzarr")
    with pytest.raises(StoreError, match="ST202"):
        xr.open_dataset(tmp_path, engine="stzarr")
