"""Reading windows of pixels and cells, against the dense truth of hand-written stores."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import GeneError, SlideError, StoreError
from stzarr.store.counts_reader import CountsBox, CountsTable
from stzarr.store.reader import StoreReader
from tests.store.handmade import GENE_IDS, SYMBOLS, Made, bins_store, spots_store


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return bins_store(tmp_path_factory.mktemp("bins") / "hd.zarr")


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return spots_store(tmp_path_factory.mktemp("spots") / "v1.zarr")


# ------------------------------------------------------------------------------------------------------ opening


def test_opening_needs_the_root_metadata_only(bins: Made, tmp_path: Path) -> None:
    shutil.copy(bins.path / "zarr.json", tmp_path)
    reader = StoreReader(tmp_path)
    assert (reader.id, reader.assay) == ("hd1", "Visium HD")
    assert reader.area_um == (0.0, 0.0, 200.0, 152.0)
    assert reader.frame.mirrored
    assert reader.default_image() is reader.images["hd1_image_um"]
    assert reader.default_image().levels[2].mpp == 2.0
    assert reader.tables["square_002um"].dtype == np.uint16  # an array, opened without its own file


def test_arrays_are_opened_once(bins: Made) -> None:
    reader = StoreReader(bins.path)
    assert reader.array("stzarr/tissue") is reader.array("stzarr/tissue")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="ST201"):
        StoreReader(tmp_path / "nothing")
    with pytest.raises(StoreError, match="ST202"):
        StoreReader(tmp_path)
    zarr.open_group(tmp_path / "other", mode="w")
    with pytest.raises(StoreError, match=r"ST201.*not a store of stzarr"):
        StoreReader(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"layout_version": 99}, "ST203"),
        ({"layout_version": "x"}, "ST203"),
        ({"frame": None}, "ST204"),
    ],
)
def test_refused_metadata(bins: Made, tmp_path: Path, change: dict[str, object], code: str) -> None:
    metadata = json.loads((bins.path / "zarr.json").read_text())
    attrs = metadata["attributes"]["stzarr"]
    for key, value in change.items():
        attrs[key] = value
        if value is None:
            del attrs[key]
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=code):
        StoreReader(tmp_path)


def test_damaged_json_and_missing_array(bins: Made, tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="ST204"):
        StoreReader(tmp_path)
    with pytest.raises(StoreError, match=r"ST204.*no array 'tables/none'"):
        StoreReader(bins.path).array("tables/none")


@pytest.mark.parametrize(
    "change",
    [
        {"frame": {}},
        {"area_um": [0, 1]},
        {"area_um": None},
        {"images": []},
        {"images": {"hd1_image_um": {"frame": "um"}}},
        {"tables": {"square_002um": None}},
        {"tables": {"square_002um": {"lattice": {"kind": "hexagons"}}}},
        {"tissue": {"grid": {"mpp": 16.0}}},
    ],
)
def test_metadata_of_another_shape(bins: Made, tmp_path: Path, change: dict[str, object]) -> None:
    metadata = json.loads((bins.path / "zarr.json").read_text())
    metadata["attributes"]["stzarr"] |= change
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError) as error:
        StoreReader(tmp_path)
    assert error.value.code == "ST204"
    assert error.value.file == str(tmp_path / "zarr.json")


@pytest.mark.parametrize("text", ["[1]", "null", "3", '{"zarr_format": 3, "node_type": "group", "attributes": [1]}'])
def test_root_metadata_that_is_no_group(tmp_path: Path, text: str) -> None:
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=r"ST20[14]"):
        StoreReader(tmp_path)


def test_everything_survives_pickling(bins: Made) -> None:
    reader = StoreReader(bins.path)
    image, table = pickle.loads(pickle.dumps((reader.default_image(), reader.tables["square_008um"])))
    np.testing.assert_array_equal(image.read(0, 0, 5, 0, 5), bins.image[0][:, :5, :5])
    assert table.n_obs == reader.tables["square_008um"].n_obs
    assert pickle.loads(pickle.dumps(reader)).id == reader.id


# ------------------------------------------------------------------------------------------------------- images


@settings(max_examples=40, deadline=None)
@given(
    level=st.integers(0, 2),
    factor=st.sampled_from([1, 2, 3, 5]),
    y=st.tuples(st.integers(-20, 140), st.integers(0, 60)),
    x=st.tuples(st.integers(-20, 140), st.integers(0, 60)),
)
def test_windows_and_means(bins: Made, level: int, factor: int, y: tuple[int, int], x: tuple[int, int]) -> None:
    image = StoreReader(bins.path).default_image()
    (y0, height), (x0, width) = y, x
    found = image.read(level, y0, y0 + height, x0, x0 + width, factor)
    assert found.dtype == np.uint8
    assert found.shape == (3, height, width)
    truth = bins.image[level]
    expected = np.zeros_like(found)
    for i in range(height):
        for j in range(width):
            top, left = (y0 + i) * factor, (x0 + j) * factor
            block = truth[:, max(top, 0) : max(top + factor, 0), max(left, 0) : max(left + factor, 0)]
            num = block.shape[1] * block.shape[2]
            if num:
                expected[:, i, j] = (2 * block.sum((1, 2), dtype=np.int64) + num) // (2 * num)
    np.testing.assert_array_equal(found, expected)


def test_level_for(bins: Made) -> None:
    image = StoreReader(bins.path).default_image()
    assert image.level_for(0.5) == (0, 1)
    assert image.level_for(1.5) == (0, 3)
    assert image.level_for(2.0) == (2, 1)
    assert image.level_for(10.0) == (2, 5)
    for mpp in (0.3, 0.25, 0.75, 0.0, -1.0):
        with pytest.raises(SlideError, match=r"ST303(.|\n)*0.5, 1, 2"):
            image.level_for(mpp)


def test_native_image_has_its_own_pixels(bins: Made) -> None:
    native = StoreReader(bins.path).images["hd1_hires_image"]
    assert not native.registered
    np.testing.assert_array_equal(native.read(0, 0, 30, 0, 40), bins.native)
    np.testing.assert_allclose(native.um_to_px((5.0, 5.0)), (20.0, 30.0))
    with pytest.raises(SlideError, match="ST303"):
        native.level_for(1.0)


# ------------------------------------------------------------------------------------------------------- counts


def _box(table: CountsTable, draw: st.DataObject) -> tuple[int, int, int, int]:
    rows, cols = table.lattice.grid_shape
    r0, r1 = sorted(draw.draw(st.tuples(st.integers(-5, rows + 5), st.integers(-5, rows + 5))))
    c0, c1 = sorted(draw.draw(st.tuples(st.integers(-5, cols + 5), st.integers(-5, cols + 5))))
    return r0, r1, c0, c1


@settings(max_examples=60, deadline=None)
@given(data=st.data(), which=st.sampled_from(["square_002um", "square_008um", "table"]))
def test_read_box_equals_the_dense_truth(bins: Made, spots: Made, data: st.DataObject, which: str) -> None:
    made = spots if which == "table" else bins
    table = StoreReader(made.path).tables[which]
    r0, r1, c0, c1 = _box(table, data)
    box = table.read_box(r0, r1, c0, c1)
    present, counts = made.present[which], made.counts[which]
    row, col = np.nonzero(present)
    expected = {(a, b) for a, b in zip(row, col, strict=True) if r0 <= a < r1 and c0 <= b < c1}
    assert set(zip(box.grid_row.tolist(), box.grid_col.tolist(), strict=True)) == expected
    assert len(box.rows) == len(expected)
    assert (np.diff(box.rows) > 0).all()
    np.testing.assert_array_equal(box.in_tissue, (box.rows + 1) % 5 > 0)
    assert box.indptr[0] == 0
    assert box.indptr[-1] == len(box.data) == len(box.indices)
    for i in range(len(box.rows)):
        entries = slice(box.indptr[i], box.indptr[i + 1])
        vector = np.zeros(len(GENE_IDS), np.int64)
        vector[box.indices[entries]] = box.data[entries]
        np.testing.assert_array_equal(vector, counts[:, box.grid_row[i], box.grid_col[i]])


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    which=st.sampled_from(["square_002um", "square_008um", "table"]),
    factor=st.sampled_from([1, 2, 4, 5]),
    genes=st.none() | st.lists(st.integers(0, len(GENE_IDS) - 1), max_size=6),
)
def test_dense_sums(
    bins: Made, spots: Made, data: st.DataObject, which: str, factor: int, genes: list[int] | None
) -> None:
    made = spots if which == "table" else bins
    table = StoreReader(made.path).tables[which]
    r0, r1, c0, c1 = _box(table, data)
    r1, c1 = r0 + (r1 - r0) // factor * factor, c0 + (c1 - c0) // factor * factor
    wanted = None if genes is None else np.array(genes, np.int64)
    counts, tissue = table.dense((r0, r1, c0, c1), wanted, factor)
    assert counts.dtype == np.uint32
    assert tissue.dtype == np.bool_
    truth = np.pad(made.counts[which], ((0, 0), (9, 9), (9, 9)))[:, r0 + 9 : r1 + 9, c0 + 9 : c1 + 9]
    height, width = (r1 - r0) // factor, (c1 - c0) // factor
    sums = truth.reshape(len(truth), height, factor, width, factor).sum((2, 4))
    np.testing.assert_array_equal(counts, sums if genes is None else sums[genes])
    box = table.read_box(r0, r1, c0, c1)
    expected = np.zeros((height, width), bool)
    for row, col, inside in zip(box.grid_row, box.grid_col, box.in_tissue, strict=True):
        expected[(row - r0) // factor, (col - c0) // factor] |= inside
    np.testing.assert_array_equal(tissue, expected)


def test_part_of_a_box_that_was_read_once(bins: Made) -> None:
    table = StoreReader(bins.path).tables["square_002um"]
    block = table.read_box(0, 64, 0, 64)
    for r, c in ((0, 0), (10, 30), (40, 44)):
        part, expected = block.dense((r, r + 20, c, c + 20), factor=5), table.dense((r, r + 20, c, c + 20), factor=5)
        np.testing.assert_array_equal(part[0], expected[0])
        np.testing.assert_array_equal(part[1], expected[1])


def test_sums_beyond_32_bit_are_refused_and_large_ones_exact() -> None:
    one = np.zeros(2, np.int32)
    box = CountsBox(
        np.arange(2), one, np.int32([0, 1]), one == 0, np.arange(3), one, np.uint32([2**32 - 1, 2**31]), n_vars=1
    )
    assert box.dense((0, 1, 0, 2))[0].tolist() == [[[2**32 - 1, 2**31]]]
    assert box.dense((0, 1, 0, 2))[0].dtype == np.uint32
    with pytest.raises(SlideError, match="ST309"):
        box.dense((0, 2, 0, 2), factor=2)


def test_uneven_box_is_refused(bins: Made) -> None:
    table = StoreReader(bins.path).tables["square_002um"]
    for box, factor in (((0, 7, 0, 8), 4), ((0, 8, 0, 7), 4), ((0, 8, 0, 8), 0), ((8, 0, 0, 8), 4)):
        with pytest.raises(SlideError, match="ST307"):
            table.dense(box, factor=factor)


def test_only_touched_tiles_are_read_in_few_runs(bins: Made) -> None:
    table = StoreReader(bins.path).tables["square_002um"]  # 3 x 4 tiles
    assert table.row_runs(0, 76, 0, 100) == [(0, table.n_obs)]
    assert len(table.row_runs(0, 32, 0, 100)) == 1
    assert len(table.row_runs(0, 64, 0, 32)) == 2
    assert table.row_runs(33, 34, 33, 40) == []  # the tile without rows
    assert table.row_runs(80, 90, 0, 10) == []
    (start, stop) = table.row_runs(0, 1, 0, 1)[0]
    assert stop - start == bins.present["square_002um"][:32, :32].sum()


def test_read_rows(bins: Made) -> None:
    table = StoreReader(bins.path).tables["square_002um"]
    rows = np.array([0, 3, 4, 700, table.n_obs - 1])
    np.testing.assert_array_equal(table.read_rows("obs/location_id", rows), rows + 1)
    assert table.read_rows("obsm/spatial", rows[:0]).shape == (0, 2)


def test_table_for(bins: Made, spots: Made, tmp_path: Path) -> None:
    reader = StoreReader(bins.path)
    found = {size: reader.table_for(size) for size in (None, 2.0, 8.0, 10.0, 24.0)}
    assert {size: (table.name, factor) for size, (table, factor) in found.items()} == {
        None: ("square_002um", 1),
        2.0: ("square_002um", 1),
        8.0: ("square_008um", 1),
        10.0: ("square_002um", 5),
        24.0: ("square_008um", 3),
    }
    for size in (3.0, 1.0, 0.0, -8.0):
        with pytest.raises(SlideError, match=r"ST304(.|\n)*2, 8(.|\n)*multiples of them"):
            reader.table_for(size)
    assert StoreReader(spots.path).table_for(400)[1] == 4
    metadata = json.loads((bins.path / "zarr.json").read_text())
    metadata["attributes"]["stzarr"] |= {"tables": {}, "tissue": None}
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    plain = StoreReader(tmp_path)
    assert plain.tissue is None
    with pytest.raises(SlideError, match="ST305"):
        plain.table_for(8.0)


def test_genes_by_id_or_symbol(bins: Made) -> None:
    table = StoreReader(bins.path).tables["square_002um"]
    assert table.genes.ids == tuple(GENE_IDS)
    assert table.genes.symbols == tuple(SYMBOLS)
    names = ["VIM", "ENSG003", "EPCAM", "Krtap13", "Krtap13-1", "Aldoa-1"]
    np.testing.assert_array_equal(table.gene_positions(names), [7, 3, 0, 4, 5, 3])
    with pytest.raises(GeneError, match=r"ST311(.|\n)*ENSG002, ENSG003"):
        table.gene_positions(["Aldoa"])
    with pytest.raises(GeneError, match=r"ST310(.|\n)*did you mean EPCAM"):
        table.gene_positions(["EPCAN"])
    with pytest.raises(GeneError, match=r"did you mean VIM"):
        table.gene_positions(["vim"])
    with pytest.raises(KeyError):
        table.gene_positions(["nothing like it"])


# ------------------------------------------------------------------------------------------------------- tissue


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-60, 260, allow_nan=False).map(lambda value: round(value, 2))] * 4),
        min_size=1,
        max_size=4,
    )
)
def test_tissue_share_is_the_exact_mean(bins: Made, boxes: list[tuple[float, float, float, float]]) -> None:
    tissue = StoreReader(bins.path).tissue
    found = tissue.share_of(np.array(boxes))
    edges_x, edges_y = np.arange(14) * 16.0, np.arange(11) * 16.0
    for (x0, y0, x1, y1), share in zip(boxes, found, strict=True):
        wide = np.clip(np.minimum(x1, edges_x[1:]) - np.maximum(x0, edges_x[:-1]), 0, None)
        high = np.clip(np.minimum(y1, edges_y[1:]) - np.maximum(y0, edges_y[:-1]), 0, None)
        area = max(x1 - x0, 0) * max(y1 - y0, 0)
        expected = high @ bins.tissue.astype(np.float64) @ wide / area if area else 0.0
        assert share == pytest.approx(expected, abs=1e-6 if area < 1 else 1e-9)


def test_nothing_warns(bins: Made) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = StoreReader(bins.path)
        assert reader.tables["square_002um"].read_box(0, 5, 0, 5).n_vars == 9
        assert reader.tissue.share.shape == (10, 13)
