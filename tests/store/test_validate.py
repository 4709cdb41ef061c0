from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from counts_samples import bins_source, spots_source

from stzarr.errors import StoreError
from stzarr.store import layout
from stzarr.store.validate import Finding, validate
from stzarr.store.writer import write_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    """A good store of bins and one of spots, both with a picture; tests copy them before they do harm."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ENTRIES_PER_CHUNK": 1024, "ENTRIES_PER_SHARD": 8192, "SHARD_PX": 512}.items():
            patch.setattr(layout, name, value)
        folder = tmp_path_factory.mktemp("stores")
        return {
            "bins": write_store(bins_source(image=True), folder / "bins.zarr"),
            "spots": write_store(spots_source(image=True), folder / "spots.zarr"),
        }


@pytest.fixture
def copied(stores, tmp_path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(stores[name], tmp_path / f"{name}.zarr")


def found(store: Path, **options) -> list[tuple[str, str]]:
    return [(finding.code, finding.file) for finding in validate(store, **options)]


def rewrite(store: Path, path: str, change: Callable[[dict], None]) -> None:
    """Change a node's metadata, in its file and in the copy in the root."""
    root = json.loads((store / "zarr.json").read_text())
    node = json.loads((store / path / "zarr.json").read_text())
    change(node["attributes"])
    change(root["consolidated_metadata"]["metadata"][path]["attributes"])
    (store / path / "zarr.json").write_text(json.dumps(node))
    (store / "zarr.json").write_text(json.dumps(root))


def recorded(store: Path, change: Callable[[dict], None]) -> None:
    """Change what the root attributes of a store say."""
    root = json.loads((store / "zarr.json").read_text())
    change(root["attributes"]["stzarr"])
    (store / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize("name", ["bins", "spots"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_good_store_has_no_findings(name, deep, stores):
    assert validate(stores[name], deep=deep) == []


def test_progress_is_reported(stores):
    seen = []
    validate(stores["bins"], deep=True, progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert {"digests", "counts of tables/square_002um"} <= {stage for stage, _, _ in seen}
    assert all(0 <= done <= total for _, done, total in seen)


def test_one_flipped_byte_is_found_and_its_file_named(copied):
    store = copied("bins")
    shard = next(path for path in sorted(store.glob("**/c/**/*")) if path.is_file() and path.stat().st_size > 4096)
    data = bytearray(shard.read_bytes())
    data[1500] ^= 1
    shard.write_bytes(data)
    (finding,) = validate(store, deep=True)
    assert finding.code == "ST252"
    assert finding.file == str(shard.relative_to(store))
    assert shard.name in str(finding)


def test_a_missing_and_a_truncated_shard(copied):
    store = copied("bins")
    shard = store / "tables" / "square_002um" / "X" / "data" / "c" / "0"
    shard.write_bytes(shard.read_bytes()[:-100])
    (store / "tables" / "square_008um" / "X" / "indices" / "c" / "0").unlink()
    assert found(store) == [
        ("ST251", "tables/square_002um/X/data/c/0"),
        ("ST250", "tables/square_008um/X/indices/c/0"),
    ]


def test_a_missing_element_is_one_finding(copied):
    store = copied("spots")
    shutil.rmtree(store / "shapes" / "s1")
    assert found(store) == [("ST250", "shapes/s1")]


def test_metadata_that_is_no_json(copied):
    store = copied("spots")
    (store / "tables" / "table" / "X" / "zarr.json").write_text("{")
    assert found(store) == [("ST253", "tables/table/X/zarr.json")]


@pytest.mark.parametrize("text", ["[1]", "null", '"x"'])
def test_metadata_that_is_no_object(text, copied):
    store = copied("bins")
    (store / "labels" / "s1_square_002um_labels" / "zarr.json").write_text(text)
    assert found(store) == [("ST253", "labels/s1_square_002um_labels/zarr.json")]


@pytest.mark.parametrize("value", [None, {"kind": "inline", "must_understand": False, "metadata": {}}])
def test_a_root_without_copies_of_metadata(value, copied):
    store = copied("bins")
    root = json.loads((store / "zarr.json").read_text())
    root["consolidated_metadata"] = value
    (store / "zarr.json").write_text(json.dumps(root))
    assert found(store) == []


def test_attributes_of_another_shape(copied):
    store = copied("bins")
    rewrite(
        store, "labels/s1_square_002um_labels", lambda attrs: attrs.update(ome={"version": "0.5", "multiscales": 1})
    )
    assert ("ST253", "labels/s1_square_002um_labels") in found(store)


def test_a_name_that_two_elements_have(copied):
    store = copied("spots")
    shutil.copytree(store / "images" / "s1_image_um", store / "images" / "S1")
    assert ("ST260", "shapes/s1") in found(store, deep=True)
    assert found(store) == []


def test_a_stale_copy_of_metadata(copied):
    store = copied("bins")
    node = store / "labels" / "s1_square_002um_labels" / "zarr.json"
    fields = json.loads(node.read_text())
    fields["attributes"]["note"] = "added by hand"
    node.write_text(json.dumps(fields))
    assert found(store) == [("ST254", "labels/s1_square_002um_labels/zarr.json")]
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    with pytest.warns(Warning, match="Consolidated metadata"):
        zarr.consolidate_metadata(root.store)
    assert found(store) == []


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("images/s1_image_um", lambda attrs: attrs["ome"].update(version="0.5")),
        ("images/s1_image_um", lambda attrs: attrs["ome"]["omero"]["channels"].pop()),
        (
            "labels/s1_square_002um_labels",
            lambda attrs: attrs["ome"]["multiscales"][0].update(coordinateTransformations=[]),
        ),
        ("tables/square_002um", lambda attrs: attrs.update(region="elsewhere")),
        ("tables/square_002um", lambda attrs: attrs.pop("spatialdata-encoding-type")),
        ("tables/square_002um/X/tile_indptr", lambda attrs: attrs.update(tile_cells=16)),
    ],
)
def test_wrong_attributes(path, change, copied):
    store = copied("bins")
    rewrite(store, path, change)
    assert found(store) == [("ST255", path)]


def test_wrong_attributes_of_circles(copied):
    store = copied("spots")
    rewrite(store, "shapes/s1", lambda attrs: attrs.update(coordinateTransformations=[]))
    assert found(store) == [("ST255", "shapes/s1")]


def test_removed_attributes(copied):
    store = copied("bins")
    rewrite(store, "labels/s1_square_002um_labels", lambda attrs: attrs.pop("ome"))
    assert found(store) == [("ST253", "labels/s1_square_002um_labels")]


def test_shapes_that_disagree_with_the_record(copied):
    store = copied("bins")
    recorded(store, lambda attrs: attrs["tables"]["square_008um"].update(n_vars=13))
    codes = found(store)
    assert ("ST256", "tables/square_008um/X") in codes
    assert ("ST256", "tables/square_008um/var/gene_ids") in codes
    assert {code for code, _ in codes} == {"ST256"}


def test_sums_that_disagree_with_the_record(copied):
    store = copied("bins")
    recorded(store, lambda attrs: attrs["tables"]["square_008um"].update(total=1))
    assert found(store) == [("ST257", "tables/square_008um/X/data")]


def without_sizes(store: Path) -> None:
    """Drop file sizes from the manifest's checks by emptying it: only contents are left to look at."""
    manifest = store / "stzarr" / "zarr.json"
    fields = json.loads(manifest.read_text())
    fields["attributes"]["manifest"] = {}
    manifest.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ("X/data", {("ST257", "tables/square_002um/X/data"), ("ST257", "tables/square_002um/var/total_counts")}),
        ("var/total_counts", {("ST257", "tables/square_002um/var/total_counts")}),
        ("X/indptr", {("ST256", "tables/square_002um/X/indptr")}),
        ("X/tile_indptr", {("ST256", "tables/square_002um/X/tile_indptr")}),
        ("obs/grid_row", {("ST256", "tables/square_002um/X/tile_indptr")}),
    ],
)
def test_changed_values_of_a_table(array, expected, copied):
    store = copied("bins")
    without_sizes(store)
    values = zarr.open_array(store / "tables" / "square_002um" / array, mode="r+")
    values[2] = values[2] + 1 if array != "X/indptr" else 10**6
    assert expected <= set(found(store))


def test_labels_that_lack_a_row(copied):
    store = copied("bins")
    without_sizes(store)
    labels = zarr.open_array(store / "labels" / "s1_square_002um_labels" / "s0" / "image", mode="r+")
    pixels = labels[:]
    pixels[np.nonzero(pixels == 1)] = 2
    labels[:] = pixels
    assert found(store) == [("ST258", "labels/s1_square_002um_labels/s0/image")]


def test_elements_that_others_add_are_no_damage(copied):
    store = copied("bins")
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    root.create_group("tables/other", attributes={"encoding-type": "anndata"})
    root["labels"].attrs["ome"] = {"labels": ["other"]}
    (store / "notes.txt").write_text("mine")
    assert found(store) == []


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda store: shutil.rmtree(store), "ST201"),
        (lambda store: (store / "zarr.json").unlink(), "ST202"),
        (lambda store: (store / "zarr.json").write_text("{"), "ST204"),
        (lambda store: (store / "stzarr" / "zarr.json").unlink(), "ST204"),
        (lambda store: recorded(store, lambda attrs: attrs.update(layout_version=99)), "ST203"),
    ],
)
def test_what_is_no_finished_store_raises(harm, code, copied):
    store = copied("spots")
    harm(store)
    with pytest.raises(StoreError) as error:
        validate(store)
    assert error.value.code == code


def test_findings_say_what_to_do():
    finding = Finding("ST250", "tables/a/X/data/c/0", "the file is missing", "copy it")
    assert str(finding) == "ST250: the file is missing\n  file: tables/a/X/data/c/0\n  try:  copy it"


def test_deep_is_quiet_about_labels_without_a_picture(stores, caplog):
    assert validate(stores["bins"], deep=True) == []
    assert caplog.text == ""


def test_deep_says_what_it_could_not_open(stores, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    assert validate(stores["spots"], deep=True) == []
    assert "not opened with spatialdata" in caplog.text
