"""Slides sliced in micrometres, against the dense truth of hand-written stores."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import stzarr
from stzarr.errors import BoundsError, GeneError, SlideError
from stzarr.lazy import LazyImage, aligned_chunks
from stzarr.slide import Slide
from stzarr.store.counts_reader import CountsTable
from tests.store.handmade import GENE_IDS, SYMBOLS, Made, bins_store, spots_store


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return bins_store(tmp_path_factory.mktemp("bins") / "hd.zarr")


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return spots_store(tmp_path_factory.mktemp("spots") / "v1.zarr")


@pytest.fixture(scope="module")
def slide(bins: Made) -> Slide:
    return stzarr.open(bins.path)


# ------------------------------------------------------------------------------------------------------- images


def test_image_is_lazy_with_pixel_centres(slide: Slide, bins: Made) -> None:
    image = slide.image()
    assert dask.is_dask_collection(image.data)
    assert image.dims == ("c", "y", "x")
    assert image.dtype == np.uint8
    assert list(image.c.values) == ["r", "g", "b"]
    grid = slide.reader.default_image().levels[0]
    assert float(image.x[0]) == grid.x0_um + 0.25
    assert float(image.y[-1]) == grid.bounds_um[3] - 0.25
    assert image.x.attrs == {"units": "um"}
    assert image.attrs == {"frame": "um", "mpp": 0.5}
    np.testing.assert_array_equal(image.values, bins.image[0])


def test_image_takes_the_right_level(slide: Slide, bins: Made) -> None:
    np.testing.assert_array_equal(slide.image(mpp=1).values, bins.image[1])
    thirds = slide.image(mpp=1.5)
    assert float(thirds.x[1] - thirds.x[0]) == 1.5
    truth = bins.image[0][:, :366, :462].reshape(3, 122, 3, 154, 3).sum((2, 4), dtype=np.int64)
    np.testing.assert_array_equal(thirds.values[:, :122, :154], (truth + 4) // 9)
    with pytest.raises(SlideError, match="ST303"):
        slide.image(mpp=0.7)


def test_native_image_has_its_own_coordinates(slide: Slide, bins: Made) -> None:
    for name in ("hd1_hires_image", "hires_image"):
        image = slide.sel(x=slice(0, 10)).image(name=name)
        assert image.attrs["frame"] == "native"
        assert image.x.attrs == {"units": "px"}
        np.testing.assert_array_equal(image.x, np.arange(40))
        np.testing.assert_array_equal(image.values, bins.native)
    with pytest.raises(SlideError, match=r"ST305(.|\n)*hd1_hires_image"):
        slide.image(name="full_image")


# ------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(("bin_um", "factor"), [(2, 1), (4, 2), (10, 5), (14, 7), (62, 31), (None, 1)])
def test_counts_are_exact_sums_over_whole_bins(slide: Slide, bins: Made, bin_um: float | None, factor: int) -> None:
    counts = slide.counts(bin_um)
    truth = bins.counts["square_002um"]
    _, rows, cols = truth.shape
    height, width = -(-rows // factor), -(-cols // factor)
    padded = np.pad(truth, ((0, 0), (0, height * factor - rows), (0, width * factor - cols)))
    sums = padded.reshape(-1, height, factor, width, factor).sum((2, 4))
    assert counts.dtype == np.uint32
    np.testing.assert_array_equal(counts.values, sums)
    np.testing.assert_allclose(counts.x, (np.arange(width) + 0.5) * 2 * factor)
    np.testing.assert_allclose(counts.y, (np.arange(height) + 0.5) * 2 * factor)
    assert counts.attrs == {"units": "count", "bin_um": 2.0 * factor, "table": "square_002um"}
    assert int(counts.sum()) == truth.sum()


def test_counts_use_the_coarsest_table(slide: Slide, bins: Made) -> None:
    counts = slide.counts(8)
    assert counts.attrs["table"] == "square_008um"
    np.testing.assert_array_equal(counts.values, bins.counts["square_008um"])


def test_genes_in_the_order_asked(slide: Slide, bins: Made) -> None:
    counts = slide.counts(8, ["VIM", "ENSG003", "EPCAM"])
    assert list(counts.gene.values) == ["VIM", "Aldoa-1", "EPCAM"]
    assert list(counts.gene_id.values) == ["ENSG007", "ENSG003", "ENSG000"]
    np.testing.assert_array_equal(counts.values, bins.counts["square_008um"][[7, 3, 0]])
    np.testing.assert_array_equal(slide.counts(8, "VIM").sel(gene="VIM").values, bins.counts["square_008um"][7])
    assert slide.counts(8, []).shape == (0, 19, 25)
    with pytest.raises(GeneError, match="ST311"):
        slide.counts(8, ["Aldoa"])
    assert list(slide.genes().index) == SYMBOLS
    assert list(slide.genes("square_008um")["gene_ids"]) == GENE_IDS


def test_dense_limit(slide: Slide) -> None:
    with pytest.raises(SlideError, match=r"ST306.*9 x 76 x 100(.|\n)*genes="):
        slide.counts(max_bytes=1000)
    assert slide.counts(genes=["VIM"], max_bytes=76 * 100 * 4).shape == (1, 76, 100)
    with pytest.raises(SlideError, match="ST304"):
        slide.counts(5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_spot_grid_is_the_lattice(tmp_path: Path, mirrored: bool) -> None:
    made = spots_store(tmp_path / "v1.zarr", mirrored=mirrored)
    slide = stzarr.open(made.path)
    counts = slide.counts()
    np.testing.assert_array_equal(counts.values, made.counts["table"])
    np.testing.assert_allclose(counts.x, 50 + 100 * np.arange(6))
    np.testing.assert_allclose(counts.y, 87 * np.arange(1, 11))
    shifted = np.arange(10) % 2 == (0 if mirrored else 1)
    np.testing.assert_allclose(counts.x_spot, counts.x.values + 50 * shifted[:, None])
    table = slide.table(bounds_um=slide.bounds_um)
    cells = (table.obs["grid_row"], table.obs["grid_col"])
    np.testing.assert_array_equal(counts.in_tissue.values[cells], table.obs["in_tissue"])
    assert int(counts.in_tissue.sum()) == int(table.obs["in_tissue"].sum())
    np.testing.assert_allclose(counts.x_spot.values[cells], table.obsm["spatial_um"][:, 0])
    coarse = slide.counts(400)
    assert "x_spot" not in coarse.coords
    assert coarse.shape == (9, 3, 2)
    np.testing.assert_allclose(coarse.y, 43.5 + 348 * (np.arange(3) + 0.5))
    assert int(coarse.sum()) == made.counts["table"].sum()
    with pytest.raises(SlideError, match="ST304"):
        slide.counts(50)


# ---------------------------------------------------------------------------------------------------------- sel


edges = st.none() | st.integers(-10, 165).map(float) | st.floats(-10, 165)


@settings(max_examples=25, deadline=None)
@given(x=st.tuples(edges, edges), y=st.tuples(edges, edges))
def test_sel_equals_label_slicing(
    slide: Slide, x: tuple[float | None, float | None], y: tuple[float | None, float | None]
) -> None:
    x, y = ((a, b) if a is None or b is None else (min(a, b), max(a, b)) for a, b in (x, y))
    box = {"x": slice(*x), "y": slice(*y)}
    part = slide.sel(**box)
    for full, cut in (
        (slide.image(), part.image()),
        (slide.image(mpp=6), part.image(mpp=6)),
        (slide.counts(8), part.counts(8)),
        (slide.counts(10, ["VIM"]), part.counts(10, ["VIM"])),
    ):
        xr.testing.assert_identical(cut.compute(), full.sel(box).compute())


def test_sel_narrows_and_never_widens(slide: Slide) -> None:
    part = slide.sel(x=slice(20, 100)).sel(x=slice(50, 300), y=slice(None, 40))
    assert part.bounds_um[::2] == (50, 100)
    assert part.bounds_um[3] == 40
    assert part.counts(8).shape == (9, 5, 7)
    assert slide.sel().bounds_um == slide.bounds_um == (0, 0, 200, 152)
    assert slide.sel(x=slice(None)) == slide


@pytest.mark.parametrize("box", [{"x": slice(300, 400)}, {"y": slice(-500, -400)}, {"x": slice(30, 20)}])
def test_outside_the_slide(slide: Slide, box: dict[str, slice]) -> None:
    with pytest.raises(BoundsError, match=r"ST301(.|\n)*the slide has [xy] -16 to"):
        slide.sel(**box)


@pytest.mark.parametrize("wrong", [slice(0, 10, 2), 5.0, (0, 10)])
def test_only_plain_slices(slide: Slide, wrong: object) -> None:
    with pytest.raises(SlideError, match="ST302"):
        slide.sel(x=wrong)


def test_margin_can_be_seen(slide: Slide) -> None:
    margin = slide.sel(x=slice(-16, -1))
    assert margin.image().shape == (3, 368, 30)
    assert margin.counts(8).shape == (9, 19, 0)
    assert margin.table().shape == (0, 9)


# ------------------------------------------------------------------------------------------------------- tables


def _dense(table: object, shape: tuple[int, int]) -> np.ndarray:
    dense = np.zeros((table.n_vars, *shape), np.int64)
    dense[:, table.obs["grid_row"], table.obs["grid_col"]] = table.X.toarray().T
    return dense


def test_table_of_a_box_is_half_open(slide: Slide, bins: Made) -> None:
    table = slide.table("square_002um", bounds_um=(3, 5, 45, 61))  # centres 3, 5 ... 43 and 5, 7 ... 59
    expected = np.zeros_like(bins.counts["square_002um"])
    expected[:, 2:30, 1:22] = bins.counts["square_002um"][:, 2:30, 1:22]
    np.testing.assert_array_equal(_dense(table, (76, 100)), expected)
    assert table.n_obs == bins.present["square_002um"][2:30, 1:22].sum()
    closed = slide.sel(x=slice(3, 45), y=slice(5, 61)).table("square_002um")
    assert closed.n_obs == bins.present["square_002um"][2:31, 1:23].sum()
    both = slide.sel(x=slice(None, 20)).table(bounds_um=(3, 5, 45, 61))
    assert both.obs["grid_col"].max() == 9


def test_table_annotation(slide: Slide) -> None:
    table = slide.table("square_008um", bounds_um=(40, 40, 80, 80))
    first = table.obs.iloc[0]
    assert first.name == f"s_008um_{first['array_row']:05d}_{first['array_col']:05d}-1"
    assert first["array_col"] == 24 - first["grid_col"]  # the array is mirrored
    assert table.obs["region"].unique().tolist() == ["hd1_square_008um_labels"]
    assert table.uns["spatialdata_attrs"] == {
        "region": "hd1_square_008um_labels",
        "region_key": "region",
        "instance_key": "location_id",
    }
    assert list(table.var_names) == SYMBOLS
    np.testing.assert_allclose(table.obsm["spatial"], table.obsm["spatial_um"] * 2 + (10, 20))
    labels = xr.open_dataset(slide.reader.path, engine="stzarr", group="labels/hd1_square_008um_labels").labels
    at = labels.sel(
        x=xr.DataArray(table.obsm["spatial_um"][:, 0], dims="obs"),
        y=xr.DataArray(table.obsm["spatial_um"][:, 1], dims="obs"),
    )
    np.testing.assert_array_equal(at.values, table.obs["location_id"])


def test_spots_lie_inside_by_their_true_centres(spots: Made) -> None:
    slide = stzarr.open(spots.path)
    table = slide.table(bounds_um=(100, 0, 200, 914))
    assert table.n_obs
    x = table.obsm["spatial_um"][:, 0]
    assert set(x) == {100.0, 150.0}  # shifted spots on the edge are in, those on the far edge are not
    assert [name[:2] for name in table.obs_names] == ["AC"] * table.n_obs
    np.testing.assert_array_equal(table.obs["spot_id"], [int(name[2:6]) for name in table.obs_names])


@pytest.mark.parametrize("x1", [240.0, 250.0, 300.0])
def test_counts_and_table_of_a_view_of_spots_agree(spots: Made, x1: float) -> None:
    """In every other row the spots lie 50 µm right of their cells: a view takes whole cells, for both."""
    view = stzarr.open(spots.path).sel(x=slice(0, x1), y=slice(100, 400))
    counts = view.counts()
    assert int(counts.sum()) == int(view.table().X.sum()) > 0
    assert int(counts["in_tissue"].sum()) == int(view.table().obs["in_tissue"].sum())


def test_the_mask_of_spots_is_had_without_reading_counts(spots: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = stzarr.open(spots.path)
    monkeypatch.setattr(CountsTable, "read_box", lambda *_: pytest.fail("counts were read"))
    mask = slide.counts(genes=slide.genes()["gene_ids"].iloc[:1].tolist())["in_tissue"]
    monkeypatch.undo()
    table = slide.reader.tables["table"]
    rows, cols = table.lattice.grid_shape
    np.testing.assert_array_equal(mask, table.dense((0, rows, 0, cols))[1])


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 0.0, -8.0])
def test_sizes_that_are_no_lengths_are_refused(slide: Slide, size: float) -> None:
    with pytest.raises(SlideError, match="ST304"):
        slide.counts(bin_um=size)
    with pytest.raises(SlideError, match="ST303"):
        slide.image(mpp=size)


def test_whole_table_is_lazy(slide: Slide, bins: Made) -> None:
    table = slide.table("square_002um")
    assert table.shape == (int(bins.present["square_002um"].sum()), 9)
    assert dask.is_dask_collection(table.X)
    assert int(table.X.compute().sum()) == bins.counts["square_002um"].sum()


def test_table_errors(slide: Slide) -> None:
    with pytest.raises(SlideError, match=r"ST305(.|\n)*square_008um"):
        slide.table("square_016um")
    with pytest.raises(BoundsError, match="ST301"):
        slide.table(bounds_um=(500, 500, 600, 600))


# ------------------------------------------------------------------------------------------------- laziness, repr


def test_chunks_follow_the_tiles() -> None:
    assert aligned_chunks((10, 100), 32) == (22, 32, 32, 4)
    assert aligned_chunks((32, 64), 32) == (32,)
    assert aligned_chunks((5, 5), 32) == (0,)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lazy_indexing_is_that_of_numpy(bins: Made, data: st.DataObject) -> None:
    image = stzarr.open(bins.path).reader.default_image()
    lazy = LazyImage(image, 2, 1, (10, 50), (20, 60))
    truth = bins.image[2][:, 10:50, 20:60]
    assert lazy.shape == truth.shape
    size_slices = [st.slices(size) for size in lazy.shape]
    plain = [
        st.one_of(st.integers(-size, size - 1), slices) for size, slices in zip(lazy.shape, size_slices, strict=True)
    ]
    key = data.draw(st.tuples(*plain) | st.tuples(*plain[:2]) | st.tuples(st.just(...), plain[2]) | plain[0])
    np.testing.assert_array_equal(lazy[key], truth[key])
    np.testing.assert_array_equal(lazy[:, [5, 1, 1], ::-1], truth[:, [5, 1, 1], ::-1])
    np.testing.assert_array_equal(lazy[None, 1], truth[None, 1])
    with pytest.raises(IndexError):
        lazy[0, 99]


def test_dask_reads_only_what_is_sliced(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    image = slide.reader.default_image()
    plain = image.read
    monkeypatch.setattr(image, "read", lambda *window: read.append(window) or plain(*window))
    slide.sel(x=slice(0, 9.9), y=slice(0, 4.9)).image().compute()
    assert read == [(0, 32, 42, 32, 52, 1)]


def test_equal_requests_share_keys_and_pickle(slide: Slide, bins: Made) -> None:
    again = stzarr.open(bins.path)
    assert slide.image(mpp=2).data.name == again.image(mpp=2).data.name
    assert slide.image(mpp=2).data.name != slide.image(mpp=1).data.name
    part = slide.sel(x=slice(0, 20)).counts(8)
    assert part.data.name == again.sel(x=slice(0, 20)).counts(8).data.name
    assert part.data.name != again.sel(x=slice(0, 30)).counts(8).data.name
    xr.testing.assert_identical(pickle.loads(pickle.dumps(part)).compute(), part.compute())
    assert pickle.loads(pickle.dumps(slide)).id == "hd1"


def test_repr_says_what_there_is(slide: Slide) -> None:
    text = repr(slide)
    for part in ("'hd1'", "Visium HD, simulated", "200 x 152", "0.5, 1, 2 µm", "square_008um", "an <odd> warning"):
        assert part in text
    width = {line.index(line.split()[1]) for line in text.splitlines()[1:]}
    assert len(width) == 1
    assert "x 0 to 20," in repr(slide.sel(x=slice(0, 20)))


def test_html_is_escaped(bins: Made, tmp_path: Path) -> None:
    metadata = json.loads((bins.path / "zarr.json").read_text())
    metadata["attributes"]["stzarr"] |= {"id": "<b>", "tissue": None, "images": {}, "tables": {}}
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    empty = stzarr.open(tmp_path)
    text = empty._repr_html_()
    assert "an &lt;odd&gt; warning" in text
    assert "<odd>" not in text
    assert "stzarr.Slide <b>&lt;b&gt;</b>" in text
    with pytest.raises(SlideError, match=r"ST305(.|\n)*--image"):
        empty.image()
    with pytest.raises(SlideError, match="ST305"):
        empty.counts()
    with pytest.raises(SlideError, match="ST305"):
        empty.table()


def test_slides_are_immutable(slide: Slide) -> None:
    with pytest.raises(AttributeError):
        slide.x = (0.0, 1.0)
    assert replace(slide, x=(-math.inf, math.inf)) == slide
