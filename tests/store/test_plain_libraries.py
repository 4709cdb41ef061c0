"""What other libraries make of a store: they are the reason for its layout."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from counts_samples import bins_source, expected, frame_of, spots_source

from stzarr.store.source import Source
from stzarr.store.writer import write_store

spatialdata = pytest.importorskip("spatialdata")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # inside ome-zarr
    pytest.mark.filterwarnings("ignore:Transforming to str index:anndata.ImplicitModificationWarning"),
]


@pytest.fixture(scope="module")
def bins(tmp_path_factory) -> tuple[Path, Source]:
    source = bins_source(image=True)
    return write_store(source, tmp_path_factory.mktemp("plain") / "bins.zarr"), source


@pytest.fixture(scope="module")
def spots(tmp_path_factory) -> tuple[Path, Source]:
    source = spots_source(image=True)
    return write_store(source, tmp_path_factory.mktemp("plain") / "spots.zarr"), source


def test_spatialdata_opens_every_element_of_bins(bins):
    path, _ = bins
    data = spatialdata.read_zarr(path)
    assert set(data.images) == {"s1_image_um", "s1_hires_image"}
    assert set(data.labels) == {"s1_square_002um_labels", "s1_square_008um_labels"}
    assert set(data.tables) == {"square_002um", "square_008um"}
    assert {"um", "s1"} <= set(data.coordinate_systems)


def test_spatialdata_opens_every_element_of_spots(spots):
    path, _ = spots
    data = spatialdata.read_zarr(path)
    assert set(data.shapes) == {"s1"}
    assert set(data.tables) == {"table"}
    assert {"um", "s1"} <= set(data.coordinate_systems)


@pytest.mark.parametrize("table", ["square_002um", "square_008um"])
def test_every_bin_joins_its_label_the_first_included(table, bins):
    path, source = bins
    data = spatialdata.read_zarr(path)
    name = f"s1_{table}_labels"
    elements, joined = spatialdata.join_spatialelement_table(
        sdata=data, spatial_element_names=name, table_name=table, how="left"
    )
    n_obs = len(source.counts[0 if table == "square_002um" else 1].array_row)
    assert joined.n_obs == n_obs
    assert joined.obs["location_id"].min() == 1
    ids = np.unique(np.asarray(elements[name]))
    np.testing.assert_array_equal(ids[ids > 0], np.sort(joined.obs["location_id"]))


def test_every_spot_joins_its_circle_the_first_included(spots):
    path, source = spots
    data = spatialdata.read_zarr(path)
    elements, joined = spatialdata.join_spatialelement_table(
        sdata=data, spatial_element_names="s1", table_name="table", how="inner"
    )
    assert joined.n_obs == len(elements["s1"]) == len(source.counts[0].array_row)
    assert joined.obs["spot_id"].min() == 1
    centres = np.stack([elements["s1"].geometry.x, elements["s1"].geometry.y], axis=1)
    np.testing.assert_allclose(centres, joined.obsm["spatial_um"], rtol=0, atol=1e-9)


def test_extents_in_um_and_in_px_agree_with_the_table(bins, spots):
    for (path, _), region, table in ((bins, "s1_square_002um_labels", "square_002um"), (spots, "s1", "table")):
        data = spatialdata.read_zarr(path)
        um = data.tables[table].obsm["spatial_um"]
        half = 1.0 if table != "table" else float(data.shapes["s1"].radius.iloc[0])
        extent = spatialdata.get_extent(data[region], coordinate_system="um")
        assert extent["x"] == pytest.approx((um[:, 0].min() - half, um[:, 0].max() + half))
        assert extent["y"] == pytest.approx((um[:, 1].min() - half, um[:, 1].max() + half))


def test_centroids_in_px_are_those_of_the_affine(bins):
    path, source = bins
    data = spatialdata.read_zarr(path)
    centroids = spatialdata.get_centroids(data["s1_square_008um_labels"], coordinate_system="s1").compute()
    table = data.tables["square_008um"]
    px = frame_of(source.counts[0].lattice).um_to_px_affine(table.obsm["spatial_um"])
    np.testing.assert_allclose(centroids.loc[table.obs["location_id"], ["x", "y"]], px, rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_anndata_reads_the_table_as_it_was(index, bins):
    path, source = bins
    counts = source.counts[index]
    table = anndata.io.read_zarr(path / "tables" / counts.name)
    truth, order = expected(counts)
    assert abs(table.X - truth).sum() == 0
    np.testing.assert_array_equal(table.obs["array_col"], counts.array_col[order])
    assert list(table.var["gene_ids"]) == list(counts.matrix.genes.ids)
    assert table.var_names.is_unique
    assert isinstance(table.obs["region"].dtype, pd.CategoricalDtype)
    assert table.uns["spatialdata_attrs"]["instance_key"] == "location_id"


def test_anndata_opens_the_table_of_spots_lazily(spots):
    path, source = spots
    counts = source.counts[0]
    lazy = anndata.experimental.read_lazy(path / "tables" / "table")
    truth, order = expected(counts)
    barcodes = np.concatenate(list(counts.matrix.barcodes()))[order].astype(str)
    assert list(lazy.obs_names) == list(barcodes)
    part = lazy[5:40].to_memory()
    assert abs(part.X - truth[5:40]).sum() == 0


def test_anndata_opens_the_table_of_bins_lazily(bins):
    path, source = bins
    truth, _ = expected(source.counts[0])
    lazy = anndata.experimental.read_lazy(path / "tables" / "square_002um")
    assert lazy.shape == truth.shape
    assert abs(lazy[100:140].to_memory().X - truth[100:140]).sum() == 0


def test_a_store_is_few_files(bins, spots):
    for path, _ in (bins, spots):
        assert len([file for file in path.rglob("*") if file.is_file()]) < 200
