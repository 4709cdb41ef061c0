"""The stream as a trainer sees it: equal batches in any world, exact resume, evaluation, errors, clean ends."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stzarr.errors import GeneError, StoreError, StreamError
from stzarr.store.reader import StoreReader
from stzarr.stream import batches as batches_module
from stzarr.stream.dataset import PatchStream, _merge
from stzarr.stream.panel import panel_by_counts
from tests.store.handmade import GENE_IDS, Made

Batch = dict[str, Any]
BATCH = 12
WORLDS = [(1, 3), (2, 1), (3, 2), (1, 12)]


def stream_of(source: Any, **changes: Any) -> PatchStream:
    request: dict[str, Any] = {
        "patch_um": 32,
        "image_mpp": 2.0,
        "bin_um": 8.0,
        "lr_bin_um": 16.0,
        "genes": ["VIM", "ENSG000", "ACTB"],
        "batch_size": BATCH,
        "stride_um": 16.0,
        "min_tissue": 0.3,
        "block_patches": 2,
        "lanes_per_slot": 2,
        "seed": 7,
    }
    return PatchStream(source, **(request | changes))


def assert_same(first: Batch, second: Batch) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[key].dtype
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


def global_batches(source: Any, ranks: int, workers: int, state: dict | None = None, **changes: Any) -> list[Batch]:
    """Return the global batches that ranks x workers give together, as they would in processes of their own."""
    shares = []
    for rank in range(ranks):
        stream = stream_of(source, rank=rank, world_size=ranks, **changes)
        if state is not None:
            stream.load_state_dict(json.loads(json.dumps(state)))
        shares += [list(stream._share(worker, workers, stream.epoch, stream.step)) for worker in range(workers)]
    assert len({len(share) for share in shares}) == 1
    merged = [_merge(list(parts)) for parts in zip(*shares, strict=True)]
    for batch in merged:
        del batch["read_bytes"]
    return merged


@pytest.fixture(scope="module")
def reference(bins: Made) -> list[Batch]:
    return list(stream_of(bins.path))


def test_a_batch_holds_what_it_says(bins: Made, reference: list[Batch]) -> None:
    batch = reference[0]
    shapes = {key: (tuple(v.shape), v.dtype) for key, v in batch.items() if isinstance(v, torch.Tensor)}
    assert shapes == {
        "hr_counts": ((12, 3, 4, 4), torch.int32),
        "lr_counts": ((12, 3, 2, 2), torch.int32),
        "lr_area": ((2, 2), torch.float32),
        "image": ((12, 3, 16, 16), torch.uint8),
        "tissue": ((12, 4, 4), torch.bool),
        "gene_mask": ((12, 3), torch.bool),
        "slide": ((12,), torch.int64),
        "origin_um": ((12, 2), torch.float64),
        "sample": ((12,), torch.int64),
        "valid": ((12,), torch.bool),
    }
    assert (batch["epoch"], batch["step"]) == (0, 1)
    assert [b["step"] for b in reference] == list(range(1, len(reference) + 1))


def truth(made: Made, origin_um: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and pixels of the patch at an origin, from the arrays that the store was written from."""
    x, y = origin_um.tolist()
    rows, cols = slice(int(y / 8), int(y / 8) + 4), slice(int(x / 8), int(x / 8) + 4)
    top, left = int((y + 16) / 2), int((x + 16) / 2)
    return made.counts["square_008um"][[7, 0, 8], rows, cols], made.image[2][:, top : top + 16, left : left + 16]


@pytest.mark.parametrize("jitter", [False, True])
def test_every_sample_is_the_tissue_at_its_origin(bins: Made, jitter: bool) -> None:
    moved = 0
    for batch in stream_of(bins.path, jitter=jitter):
        for index in range(BATCH):
            counts, pixels = truth(bins, batch["origin_um"][index])
            assert np.array_equal(batch["hr_counts"][index].numpy(), counts)
            assert np.array_equal(batch["image"][index].numpy(), pixels)
            assert batch["lr_counts"][index].sum() == counts.sum()
        moved += int((batch["origin_um"] % 16 != 0).any(dim=1).sum())
    assert (moved > 0) == jitter


@pytest.mark.parametrize(("ranks", "workers"), WORLDS)
def test_global_batches_are_the_same_in_every_world(
    bins: Made, reference: list[Batch], ranks: int, workers: int
) -> None:
    found = global_batches(bins.path, ranks, workers)
    assert len(found) == len(reference) > 4
    for ours, wanted in zip(found, reference, strict=True):
        assert_same(ours, wanted)


@pytest.mark.parametrize(("ranks", "workers"), WORLDS)
def test_evaluation_gives_every_patch_once_in_equal_steps(bins: Made, ranks: int, workers: int) -> None:
    found = global_batches(bins.path, ranks, workers, train=False)
    num = stream_of(bins.path, train=False).plan.num_patches
    assert num % BATCH, "this test wants padding"
    samples = torch.cat([batch["sample"] for batch in found])
    valid = torch.cat([batch["valid"] for batch in found])
    assert sorted(samples[valid].tolist()) == list(range(num))
    assert set(samples[~valid].tolist()) == {-1}
    padding = {key: value[~found[-1]["valid"]] for key, value in found[-1].items() if key in ("hr_counts", "image")}
    assert all(len(value) and not value.any() for value in padding.values())
    for wanted, batch in zip(global_batches(bins.path, 1, 1, train=False), found, strict=True):
        assert_same(batch, wanted)


@pytest.mark.parametrize(("handed_out", "train"), [(0, True), (1, True), (4, True), (3, False)])
def test_a_state_continues_exactly_in_another_world(bins: Made, handed_out: int, train: bool) -> None:
    whole = list(stream_of(bins.path, train=train))
    stream = stream_of(bins.path, rank=1, world_size=2, train=train)
    iterator = iter(stream)
    for _ in range(handed_out):
        next(iterator)
    state = stream.state_dict()
    assert (state["epoch"], state["step"], state["seed"]) == (0, handed_out, 7)
    for ranks, workers in [(1, 1), (3, 2)]:
        rest = global_batches(bins.path, ranks, workers, state, train=train)
        assert len(rest) == len(whole) - handed_out
        for ours, wanted in zip(rest, whole[handed_out:], strict=True):
            assert_same(ours, wanted)


def test_epochs_follow_one_another_and_differ(bins: Made) -> None:
    stream = stream_of(bins.path)
    first = [batch["sample"].tolist() for batch in stream]
    assert (stream.epoch, stream.step) == (1, 0)
    second = list(stream)
    assert {batch["epoch"] for batch in second} == {1}
    assert [batch["sample"].tolist() for batch in second] != first
    stream.set_epoch(0)
    assert [batch["sample"].tolist() for batch in stream] == first
    next(iter(stream))
    stream.set_epoch(1)
    assert (stream.epoch, stream.step) == (1, 1), "the current epoch goes on"
    stream.set_epoch(1, step=0)
    assert_same(next(iter(stream)), second[0])


def test_a_state_of_another_plan_is_refused_with_what_differs(bins: Made) -> None:
    state = stream_of(bins.path, batch_size=6, seed=1).state_dict()
    with pytest.raises(StreamError, match="ST406") as caught:
        stream_of(bins.path).load_state_dict(state)
    assert "batch_size: 6 then, 12 now" in caught.value.what
    assert "seed: 1 then, 7 now" in caught.value.what
    assert "min_tissue" not in caught.value.what


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stzarr-")]


def test_breaking_off_leaves_no_thread_and_goes_on_where_it_was(bins: Made, reference: list[Batch]) -> None:
    stream = stream_of(bins.path)
    for batch in stream:
        assert our_threads()
        if batch["step"] == 3:
            break
    del batch
    assert our_threads() == []
    assert_same(next(iter(stream)), reference[3])
    assert our_threads() == []


def test_an_error_of_a_read_reaches_the_consumer_as_it_is(bins: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 5:
            raise StoreError("ST204", "a shard is gone")
        return read(*args)

    read = batches_module.read_patches
    monkeypatch.setattr(batches_module, "read_patches", fail)
    with pytest.raises(StoreError, match="a shard is gone"):
        list(stream_of(bins.path))
    assert our_threads() == []


def test_the_buffer_bounds_what_is_read_ahead_and_is_empty_at_the_end(
    bins: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Watched(batches_module.ReadAhead):
        def advance(self, step: int) -> None:
            super().advance(step)
            held.append(self._held)

        def release(self, read: Any) -> None:
            super().release(read)
            held.append(self._held)

    monkeypatch.setattr(batches_module, "ReadAhead", Watched)
    stream = stream_of(bins.path, lanes_per_slot=1)
    patch = stream.plan.spec.patch_bytes
    list(stream)
    assert max(held) > 2 * BATCH * patch, "nothing is read ahead"
    assert held[-1] == 0
    held.clear()
    list(stream_of(bins.path, lanes_per_slot=1, buffer_mb=1e-6))
    assert max(held) <= BATCH * 4 * patch, "more than what one step needs, runs of at most 4 patches"


def test_stats_count_what_was_handed_out(bins: Made) -> None:
    stream = stream_of(bins.path, train=False)
    got = list(stream)
    stats = stream.stats
    assert (stats.batches, stats.patches) == (len(got), stream.plan.num_patches)
    assert stats.batch_bytes == sum(v.nbytes for batch in got for v in batch.values() if isinstance(v, torch.Tensor))
    assert 0 < stats.wait_s <= stats.seconds
    assert stats.patches_per_s == stats.patches / stats.seconds
    assert stats.read_bytes > 0
    assert f"{stats.patches} patches in {len(got)} batches" in str(stats)


# ------------------------------------------------------------------------------------------- slides and panels


def test_slides_are_joined_by_gene_id(bins: Made, other: Made) -> None:
    stream = stream_of([bins.path, other.path], genes=["NEW", "VIM", "ENSG000"], train=False)
    assert stream.genes.ids == ("ENSG100", "ENSG007", "ENSG000")
    slides = Counter()
    for batch in stream:
        for index in torch.nonzero(batch["valid"]).flatten().tolist():
            slide = int(batch["slide"][index])
            slides[slide] += 1
            assert batch["gene_mask"][index].tolist() == [slide == 1, True, slide == 0]
            counts, _ = truth(bins, batch["origin_um"][index])
            hr = batch["hr_counts"][index].numpy()
            assert np.array_equal(hr[1], counts[0])
            assert np.array_equal(hr[2], counts[1] * (slide == 0))
            assert np.array_equal(hr[0], counts[1] * (slide == 1))
    assert slides[0] == slides[1] > 0
    mixed = next(iter(stream_of([bins.path, other.path])))
    assert len(set(mixed["slide"].tolist())) == 2


def test_the_panel_is_chosen_by_the_counts_of_training_patches(bins: Made, other: Made) -> None:
    source = [bins.path, other.path]
    small = {"patch_um": 16, "stride_um": 8.0, "split": "train", "lr_bin_um": None, "image_mpp": None}
    everything = stream_of(source, genes=None, train=False, **small)
    totals = sum(batch["hr_counts"].sum(dim=(0, 2, 3)) for batch in everything)
    by_id = dict(zip(everything.genes.ids, totals.tolist(), strict=True))
    wanted = sorted(by_id, key=lambda gene: (-by_id[gene], gene))[:4]
    panel = panel_by_counts(stream_of(source, genes=(), **small), 4)
    assert panel.ids == tuple(wanted)
    assert panel.symbols[0] in everything.genes.symbols
    assert stream_of(source, genes=panel.ids, **small).genes == panel


def test_a_val_stream_and_its_training_stream_share_no_cell(bins: Made) -> None:
    request = {"patch_um": 16, "lr_bin_um": None, "image_mpp": None, "batch_size": 1, "min_tissue": 0.2}
    covered = {}
    for split in ("train", "val", "test"):
        stream = stream_of(bins.path, split=split, train=split == "train", jitter=split == "train", **request)
        cells = np.zeros((19, 25), bool)
        for batch in stream:
            for x, y in (batch["origin_um"] / 8).int().tolist():
                cells[y : y + 2, x : x + 2] = True
        covered[split] = cells
    assert all(cells.any() for cells in covered.values())
    assert not (covered["train"] & (covered["val"] | covered["test"])).any()
    assert not (covered["val"] & covered["test"]).any()


def test_no_counts_no_image_and_plain_slides(bins: Made, plain: Path) -> None:
    counts_only = next(iter(stream_of(bins.path, image_mpp=None)))
    assert "image" not in counts_only
    assert "hr_counts" in counts_only
    image_only = next(iter(stream_of(bins.path, genes=(), lr_bin_um=None)))
    assert set(image_only) == {"image", "slide", "origin_um", "sample", "valid", "epoch", "step"}
    nothing = {"genes": None, "bin_um": None, "lr_bin_um": None, "image_mpp": 1.0}
    stream = stream_of(plain, train=False, **nothing)
    for batch in stream:
        for index in torch.nonzero(batch["valid"]).flatten().tolist():
            x, y = (batch["origin_um"][index] + 16).int().tolist()
            assert np.array_equal(batch["image"][index].numpy(), bins.image[1][:, y : y + 32, x : x + 32])


def test_spots_stream_by_the_lattice(spots: Made) -> None:
    request = {"patch_um": 300, "image_mpp": 25.0, "bin_um": None, "lr_bin_um": 200.0, "stride_um": 100.0}
    batch = next(iter(stream_of(spots.path, batch_size=2, **request)))
    assert batch["hr_counts"].shape == (2, 3, 3, 3)
    assert batch["lr_area"].tolist() == [[1.0, 0.5], [0.5, 0.25]]
    assert batch["image"].shape == (2, 3, 12, 12)
    assert ((batch["origin_um"] - torch.tensor([0.0, 43.5])) % torch.tensor([100.0, 87.0]) == 0).all()


def overlaps(edges: np.ndarray, num: int) -> np.ndarray:
    """Return how much of each of `num` unit pixels lies between consecutive edges, shape (len(edges) - 1, num)."""
    pixel = np.arange(num)
    return np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)


def test_the_image_of_spots_is_the_area_mean_of_the_finest_level(spots: Made) -> None:
    """A level of 8 µm would smear pixels of 16 x 13.92 µm over their edges."""
    request = {"patch_um": 400, "image_mpp": 16.0, "bin_um": None, "lr_bin_um": None, "stride_um": 100.0}
    batch = next(iter(stream_of(spots.path, batch_size=2, **request)))
    pyramid = StoreReader(spots.path).default_image()
    assert pyramid is not None
    grid = pyramid.levels[0]
    pixels = pyramid.read(0, 0, grid.height, 0, grid.width).astype(np.float64)
    steps = np.arange(26) * 16.0 / grid.mpp
    for (x, y), image in zip(batch["origin_um"].tolist(), batch["image"].numpy(), strict=True):
        across = overlaps((x - grid.x0_um) / grid.mpp + steps, grid.width)
        down = overlaps((y - grid.y0_um) / grid.mpp + 0.87 * steps, grid.height)
        means = down @ pixels @ across.T / (0.87 * steps[1] ** 2)
        assert np.abs(image - means).max() < 0.51


def test_an_image_finer_than_the_slide_is_refused(spots: Made) -> None:
    with pytest.raises(StreamError, match="ST408"):
        stream_of(spots.path, patch_um=400, image_mpp=1.0, bin_um=None, lr_bin_um=None, stride_um=100.0)


def test_a_store_with_a_missing_file_is_refused_before_it_gives_zeros(bins: Made, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    shutil.copytree(bins.path, path)
    meta = path / "stzarr" / "zarr.json"
    found = json.loads(meta.read_text())
    found["attributes"]["manifest"] = {"tables/square_002um/X/data/c/7": [10, "0" * 64]}
    meta.write_text(json.dumps(found))
    with pytest.raises(StreamError, match=r"ST411.*X/data/c/7"):
        stream_of(path)


def test_a_damaged_chunk_names_the_store(bins: Made, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    shutil.copytree(bins.path, path)
    for shard in path.glob("tables/*/X/indices/c/*"):
        shard.write_bytes(b"\x01" * shard.stat().st_size)
    with pytest.raises(StreamError, match="ST412") as caught:
        list(stream_of(path))
    assert str(path) in str(caught.value)


def test_a_position_that_is_set_after_iter_counts(bins: Made, reference: list[Batch]) -> None:
    stream = stream_of(bins.path)
    batches = iter(stream)
    stream.set_epoch(0, step=3)
    assert_same(next(batches), reference[3])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"patch_um": 30}, "ST400"),
        ({"stride_um": 12.0}, "ST400"),
        ({"lr_bin_um": 12.0}, "ST400"),
        ({"patch_um": -1}, "ST400"),
        ({"image_mpp": 0.3}, "ST400"),
        ({"image_mpp": 0.25}, "ST408"),
        ({"bin_um": 3.0}, "ST408"),
        ({"rank": 0, "world_size": 5}, "ST401"),
        ({"genes": ["VIM", "ENSG007"]}, "ST407"),
        ({"min_tissue": 1.0}, "ST404"),
    ],
)
def test_requests_that_a_slide_cannot_meet_say_so(bins: Made, changes: dict, code: str) -> None:
    with pytest.raises(StreamError, match=code) as caught:
        stream_of(bins.path, **changes)
    assert caught.value.cure
    if code == "ST408":
        assert "'hd1'" in caught.value.what


def test_genes_and_slides_that_do_not_fit(
    bins: Made, spots: Made, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GeneError, match="ST310"):
        stream_of(bins.path, genes=["NOPE"])
    with pytest.raises(StreamError, match="ST403"):
        stream_of([bins.path, spots.path], bin_um=None, patch_um=400, stride_um=None, lr_bin_um=None, image_mpp=None)
    with pytest.raises(StreamError, match="ST403"):
        stream_of([bins.path, bins.path])
    with pytest.raises(StreamError, match="ST408"):
        stream_of(plain)
    with pytest.raises(StreamError, match="ST408"):
        stream_of(plain, bin_um=None, lr_bin_um=None, genes=None, image_mpp=None)
    monkeypatch.setattr("stzarr.stream.panel.MAX_ALL_GENES", len(GENE_IDS) - 1)
    with pytest.raises(StreamError, match="ST407"):
        stream_of(bins.path, genes=None)


# ------------------------------------------------------------------------------------------- processes, cluster


def test_workers_give_the_same_batches_and_a_state_ignores_what_they_prefetched(
    bins: Made, reference: list[Batch]
) -> None:
    """Two spawned workers; broken off in mid-epoch, gone on with here, and resumed by three ranks without workers."""
    loader = stream_of(bins.path).loader(num_workers=2)
    assert len(loader) == len(reference)
    got = []
    for batch in loader:
        got.append(batch)
        if len(got) == 4:
            break
    state = loader.state_dict()
    assert state["step"] == 4
    for batch in loader:
        got.append(batch)
    assert (loader.stream.epoch, loader.stream.step) == (1, 0)
    following = next(iter(loader))
    loader.stream.set_epoch(0, step=0)
    first, second = iter(loader), iter(loader)
    assert_same(next(first), reference[0])
    assert_same(next(second), reference[1])
    assert_same(next(first), reference[1])
    loader.close()
    for ours, wanted in zip(got, reference, strict=True):
        assert_same(ours, wanted)
    again = stream_of(bins.path)
    again.set_epoch(1)
    assert_same(following, next(iter(again)))
    for ours, wanted in zip(global_batches(bins.path, 3, 1, state), reference[4:], strict=True):
        assert_same(ours, wanted)


def test_a_loader_refuses_workers_that_do_not_divide_and_clients(bins: Made) -> None:
    with pytest.raises(StreamError, match="ST401"):
        stream_of(bins.path).loader(num_workers=5)
    with pytest.raises(StreamError, match="ST410"):
        stream_of(bins.path, client=object()).loader(num_workers=2)
    assert_same(next(iter(stream_of(bins.path).loader())), next(iter(stream_of(bins.path))))


def test_reading_on_a_dask_cluster_gives_the_same_batches(
    bins: Made, reference: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = list(stream_of(bins.path, client=client))
        for ours, wanted in zip(found, reference, strict=True):
            assert_same(ours, wanted)
        for _ in stream_of(bins.path, client=client):
            break
        monkeypatch.setattr(batches_module, "read_patches", _fail)
        with pytest.raises(StoreError, match="a shard is gone"):
            list(stream_of(bins.path, client=client))


def _fail(*args: Any) -> Any:
    raise StoreError("ST204", "a shard is gone")
