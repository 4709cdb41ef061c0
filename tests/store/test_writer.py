from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from counts_samples import MemoryMatrix, bins, genes_of
from pictures import MemoryPicture, bin_slide, noise, plain_slide, turned

from stzarr.errors import IngestError, StoreError
from stzarr.store import journal as journals
from stzarr.store import layout
from stzarr.store.journal import WORK_FOLDER, Journal
from stzarr.store.source import Source
from stzarr.store.units import Unit
from stzarr.store.writer import WriteOptions, plan_store, write_store


class Cut(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(layout, "IMAGE_CHUNK_PX", 128)
    monkeypatch.setattr(layout, "SHARD_PX", 256)
    monkeypatch.setattr(layout, "ENTRIES_PER_CHUNK", 1 << 10)
    monkeypatch.setattr(layout, "ENTRIES_PER_SHARD", 1 << 12)


def slide(folder: Path) -> Source:
    """Return a small slide with counts in two tables' worth of files, and a picture of several nodes."""
    counts = bins()
    matrix = folder / "matrix.h5"
    picture = MemoryPicture(folder / "a.tif", noise((3, 1500, 1200)))
    if not matrix.exists():
        matrix.write_bytes(b"counts are in memory")
    counts.matrix.path = matrix
    made = bin_slide(picture, turned(5.0, 0.27, (600.0, 750.0), True, 1e-6), 180.0, 0.27, counts=(counts,))
    return Source("b1", made.assay, made.frame, made.images, made.counts, (matrix, picture.path))


def files_of(store: Path) -> dict[str, str]:
    """Digest every file, without the time of writing."""
    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path == store / "zarr.json":
                root = json.loads(data)
                assert root["attributes"]["stzarr"].pop("created")
                data = json.dumps(root).encode()
            found[str(path.relative_to(store))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    """Files of a store written without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"IMAGE_CHUNK_PX": 128, "SHARD_PX": 256}.items():
            patch.setattr(layout, name, value)
        patch.setattr(layout, "ENTRIES_PER_CHUNK", 1 << 10)
        patch.setattr(layout, "ENTRIES_PER_SHARD", 1 << 12)
        folder = tmp_path_factory.mktemp("whole")
        return files_of(write_store(slide(folder), folder / "s.zarr", WriteOptions(image_frame="both", threads=1)))


def test_bytes_do_not_depend_on_the_number_of_threads(tmp_path, whole):
    store = write_store(slide(tmp_path), tmp_path / "s.zarr", WriteOptions(image_frame="both", threads=2))
    assert files_of(store) == whole


@pytest.mark.parametrize("threads", [1, 2])
def test_cut_off_again_and_again_it_ends_with_the_same_bytes(tmp_path, whole, threads):
    source, store, calls = slide(tmp_path), tmp_path / "s.zarr", 0
    left = 0

    def cut(stage: str, done: int, total: int) -> None:
        nonlocal left
        left -= not stage.startswith(("sorting", "digests"))  # not units: they begin again in every call
        if left <= 0:
            raise Cut

    while not (store / "zarr.json").exists():
        calls, left = calls + 1, 3
        try:
            write_store(source, store, WriteOptions(image_frame="both", threads=threads), progress=cut)
        except Cut:
            assert not (store / "zarr.json").exists()
            assert (store / WORK_FOLDER).is_dir()
        assert calls < 60
    assert calls > 3
    assert files_of(store) == whole


def test_finished_units_are_not_done_again(tmp_path):
    done: list[str] = []
    units = [Unit(name, lambda name=name: done.append(name), 10) for name in ("a", "b", "c")]
    journal = Journal.open(tmp_path / "s", {"input": 1})
    journal.run(units[:2], stage="x")
    assert journal.once("number", lambda: 3) == 3
    journal.close()
    with (tmp_path / "s" / WORK_FOLDER / "journal").open("a") as file:
        file.write('{"unit": "c", "fi')  # torn by a kill
    journal = Journal.open(tmp_path / "s", {"input": 1})
    seen: list[tuple[str, int, int]] = []
    journal.run(units, stage="x", progress=lambda *at: seen.append(at))
    assert journal.once("number", lambda: 4) == 3
    journal.close()
    assert done == ["a", "b", "c"]
    assert seen == [("x", 30, 30)]


def test_a_store_that_lost_a_file_starts_again(tmp_path):
    source, store = slide(tmp_path), tmp_path / "s.zarr"

    def cut(stage: str, done: int, total: int) -> None:
        if stage == "b1_image_um" and done:
            raise Cut

    with pytest.raises(Cut):
        write_store(source, store, progress=cut)
    shard = next(path for path in store.rglob("c/0") if path.is_file())
    shard.write_bytes(b"")
    write_store(source, store)
    zarr.open_group(store, mode="r")


def test_the_manifest_names_every_file_with_its_digest(tmp_path):
    store = write_store(slide(tmp_path), tmp_path / "s.zarr")
    manifest = zarr.open_group(store, mode="r")["stzarr"].attrs["manifest"]
    files = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    assert files - set(manifest) == {"zarr.json", "stzarr/zarr.json"}
    for name, (size, digest) in manifest.items():
        data = (store / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    assert len(files) < 300


def test_consolidated_metadata_is_what_zarr_would_write(tmp_path):
    store = write_store(slide(tmp_path), tmp_path / "s.zarr")
    ours = (store / "zarr.json").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(store)
    assert json.loads((store / "zarr.json").read_bytes()) == json.loads(ours)


def test_root_attributes_say_what_is_there(tmp_path):
    source = slide(tmp_path)
    store = write_store(source, tmp_path / "s.zarr", WriteOptions(image_frame="both", meta={"donor": "D1"}))
    attrs = zarr.open_group(store, mode="r").attrs.asdict()
    assert attrs["spatialdata_attrs"]["version"] == "0.2"
    ours = attrs["stzarr"]
    assert ours["layout_version"] == 1
    assert ours["meta"] == {"donor": "D1"}
    assert set(ours["tables"]) == {"square_002um"}
    registered, native = ours["images"]["b1_image_um"], ours["images"]["b1_full_image"]
    assert registered["grid"]["mpp"] == 0.25
    assert registered["um_to_px"] is None
    assert native["grid"] is None
    assert np.allclose(native["um_to_px"], source.images[0].um_to_px.matrix)
    assert ours["sources"][0] == {
        "path": "matrix.h5",
        "bytes": 20,
        "sha256": hashlib.sha256(b"counts are in memory").hexdigest(),
    }
    assert ours["tissue"]["origin"] == "in_tissue"


# ----------------------------------------------------------------------------------------------- what is in the way


def small(folder: Path) -> Source:
    return plain_slide(MemoryPicture(folder / "a.tif", noise((3, 60, 70))), 0.5)


def test_an_existing_store_is_refused_unless_overwritten(tmp_path):
    store = write_store(small(tmp_path), tmp_path / "s.zarr")
    before = files_of(store)
    with pytest.raises(StoreError, match="already") as caught:
        write_store(small(tmp_path), store)
    assert caught.value.code == "ST210"
    assert "--overwrite" in str(caught.value)
    assert files_of(store) == before
    write_store(small(tmp_path), store, WriteOptions(overwrite=True, image_frame="both"))
    assert (store / "images/p1_full_image").is_dir()


def test_a_store_that_another_process_finishes_meanwhile_is_left_alone(tmp_path, monkeypatch):
    path, lock = tmp_path / "s.zarr", journals._locked

    def late(work: Path) -> int:
        monkeypatch.setattr(journals, "_locked", lock)
        write_store(small(tmp_path), path)
        return lock(work)

    monkeypatch.setattr(journals, "_locked", late)
    with pytest.raises(StoreError) as caught:
        write_store(small(tmp_path), path, WriteOptions(image_mpp=1.0))
    assert caught.value.code == "ST210"
    assert zarr.open_array(path / "images/p1_image_um/s0/image", mode="r").shape == (3, 60, 70)
    assert not (path / WORK_FOLDER).exists()


def broken(source: Source, error: Exception) -> Source:
    """Let the pixels of a source raise."""

    def read(*box: int) -> np.ndarray:
        raise error

    source.images[0].handle.read = read
    return source


def test_the_old_store_outlives_an_overwrite_that_fails(tmp_path):
    store = write_store(small(tmp_path), tmp_path / "s.zarr")
    before = files_of(store)
    with pytest.raises(IngestError):
        write_store(broken(small(tmp_path), IngestError("ST127", "damaged")), store, WriteOptions(overwrite=True))
    assert files_of(store) == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "s.zarr"}


def test_an_overwrite_that_was_cut_off_continues(tmp_path, monkeypatch):
    options = WriteOptions(image_mpp=1.0, overwrite=True)
    source, store = small(tmp_path), write_store(small(tmp_path), tmp_path / "s.zarr")
    before = files_of(store)
    unfinished(source, store, options)
    assert files_of(store) == before
    partial = (tmp_path / ".s.zarr.replacing" / WORK_FOLDER / "journal").read_text()
    run: list[str] = []
    commit = Journal._commit
    monkeypatch.setattr(Journal, "_commit", lambda self, unit: (run.append(unit), commit(self, unit)))
    write_store(source, store, options)
    done = {line["unit"] for line in map(json.loads, partial.splitlines()) if "unit" in line}
    assert done
    assert run
    assert done.isdisjoint(run)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "s.zarr"}
    assert not (store / WORK_FOLDER).exists()
    assert zarr.open_array(store / "images/p1_image_um/s0/image", mode="r").shape == (3, 30, 35)


def test_the_old_store_may_go_while_it_is_replaced(tmp_path):
    store = write_store(small(tmp_path), tmp_path / "s.zarr")

    def remove(stage: str, done: int, total: int) -> None:
        shutil.rmtree(store, ignore_errors=True)

    write_store(small(tmp_path), store, WriteOptions(overwrite=True), progress=remove)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "s.zarr"}
    assert zarr.open_array(store / "images/p1_image_um/s0/image", mode="r").shape == (3, 60, 70)


def test_an_overwrite_through_a_link_replaces_what_it_points_to(tmp_path):
    store = write_store(small(tmp_path), tmp_path / "s.zarr")
    (tmp_path / "link").symlink_to(store)
    write_store(small(tmp_path), tmp_path / "link", WriteOptions(image_mpp=1.0, overwrite=True))
    assert (tmp_path / "link").is_symlink()
    assert zarr.open_array(store / "images/p1_image_um/s0/image", mode="r").shape == (3, 30, 35)


def test_a_matrix_without_entries_is_refused_before_anything_is_touched(tmp_path):
    source = slide(tmp_path)
    nothing = MemoryMatrix([], [], np.zeros(0, np.uint32), source.counts[0].matrix.num_barcodes, genes_of(3))
    with pytest.raises(IngestError) as caught:
        write_store(replace(source, counts=(replace(source.counts[0], matrix=nothing),)), tmp_path / "s.zarr")
    assert caught.value.code == "ST136"
    assert not (tmp_path / "s.zarr").exists()


def test_an_error_of_the_disk_keeps_what_was_written(tmp_path):
    source = broken(small(tmp_path), OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        write_store(source, tmp_path / "s.zarr")
    assert (tmp_path / "s.zarr" / WORK_FOLDER / "journal").is_file()


def test_a_folder_that_is_no_store_is_never_overwritten(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    with pytest.raises(StoreError, match="no store") as caught:
        write_store(small(tmp_path), folder, WriteOptions(overwrite=True))
    assert caught.value.code == "ST211"
    assert (folder / "chapter1.tex").read_text() == "years of work"


def unfinished(source: Source, store: Path, options: WriteOptions | None = None) -> None:
    def cut(stage: str, done: int, total: int) -> None:
        if done:
            raise Cut

    with pytest.raises(Cut):
        write_store(source, store, options, progress=cut)


def test_other_options_do_not_continue_a_partial_store(tmp_path):
    source, store = small(tmp_path), tmp_path / "s.zarr"
    unfinished(source, store)
    with pytest.raises(StoreError) as caught:
        write_store(source, store, WriteOptions(image_mpp=1.0))
    assert caught.value.code == "ST213"
    write_store(source, store, WriteOptions(image_mpp=1.0, overwrite=True))
    assert zarr.open_array(store / "images/p1_image_um/s0/image", mode="r").shape == (3, 30, 35)


def test_changed_sources_do_not_continue_a_partial_store(tmp_path):
    source, store = small(tmp_path), tmp_path / "s.zarr"
    unfinished(source, store)
    os.utime(source.files[0], (1, 1))
    with pytest.raises(StoreError) as caught:
        write_store(source, store)
    assert caught.value.code == "ST213"


def _hold(path: Path, held, release) -> None:
    journal = Journal.open(path, {})
    held.set()
    release.wait(30)
    journal.close()


def test_two_processes_do_not_write_one_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "s.zarr", held, release))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(StoreError) as caught:
            write_store(small(tmp_path), tmp_path / "s.zarr")
        assert caught.value.code == "ST212"
    finally:
        release.set()
        other.join()
    Journal.open(tmp_path / "s.zarr", {}).close()


def test_bad_input_leaves_nothing(tmp_path):
    source = broken(small(tmp_path), IngestError("ST127", "a tile is damaged"))
    with pytest.raises(IngestError, match="damaged"):
        write_store(source, tmp_path / "s.zarr", WriteOptions(threads=2))
    assert not (tmp_path / "s.zarr").exists()


# --------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_reads_nothing_and_says_what_will_be(tmp_path):
    source = slide(tmp_path)
    source.images[0].handle.read = None
    plan = plan_store(source, WriteOptions(image_frame="both"))
    fields = json.loads(json.dumps(plan.to_json()))
    assert fields["images"]["b1_image_um"]["shape"] == [3, 1520, 1520]
    assert fields["images"]["b1_image_um"]["shapes"][-1] == [3, 760, 760]
    assert fields["tables"]["square_002um"]["region"] == "b1_square_002um_labels"
    assert "mirrored homography" in str(plan)
    assert source.counts[0].matrix.passes == 0


@pytest.mark.parametrize("mpp", [0.125, 0.5, 2.0, 6.0])
def test_pixel_sizes_that_fit_the_bins(tmp_path, mpp):
    assert plan_store(slide(tmp_path), WriteOptions(image_mpp=mpp)).pictures[0].grid.mpp == mpp


@pytest.mark.parametrize(
    ("mpp", "cure"), [(0.4, "--mpp 0.25 or --mpp 0.5"), (5.0, "--mpp 4 or --mpp 6"), (0.0, "--mpp")]
)
def test_pixel_sizes_that_do_not_fit_the_bins_name_those_that_do(tmp_path, mpp, cure):
    with pytest.raises(StoreError) as caught:
        plan_store(slide(tmp_path), WriteOptions(image_mpp=mpp))
    assert caught.value.code == "ST220"
    assert cure in str(caught.value)


def test_a_plain_slide_is_covered_without_a_margin(tmp_path):
    plan = plan_store(small(tmp_path), WriteOptions(image_mpp=0.3))
    assert plan.pictures[0].grid.bounds_um == pytest.approx((0.0, 0.0, 35.1, 30.0))
    assert plan.area_um == (0.0, 0.0, 35.0, 30.0)
