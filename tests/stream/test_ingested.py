"""The stream on stores that ingest has really written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stzarr.ingest import ReadOptions, ingest
from stzarr.simulate import simulate
from stzarr.store.reader import StoreReader
from stzarr.store.writer import WriteOptions
from stzarr.stream.dataset import PatchStream
from stzarr.stream.panel import panel_by_counts


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingested")
    image = simulate(folder / "outs", size_um=(256.0, 320.0), num_genes=12, mpp=0.5)
    return ingest(folder / "outs", folder / "s.zarr", read=ReadOptions(id="sim", image=image))


def test_patches_side_by_side_add_up_to_the_slide(store: Path) -> None:
    """64 µm divides the area: every count of the slide is in exactly one patch."""
    stream = PatchStream(store, patch_um=64, bin_um=8, image_mpp=1.0, batch_size=7, min_tissue=0.0, train=False)
    reader = StoreReader(store)
    assert stream.plan.num_patches == 20
    counts = np.zeros((12, 40, 32), np.int64)
    pixels = np.zeros((3, 320, 256), np.uint8)
    for batch in stream:
        for index in np.flatnonzero(batch["valid"]):
            x, y = batch["origin_um"][index].int().tolist()
            counts[:, y // 8 : y // 8 + 8, x // 8 : x // 8 + 8] = batch["hr_counts"][index]
            pixels[:, y : y + 64, x : x + 64] = batch["image"][index]
    table = reader.tables["square_008um"]
    assert counts.sum() == table.total
    assert np.array_equal(counts, table.dense((0, 40, 0, 32))[0])
    image = reader.default_image()
    assert image is not None
    level, factor = image.level_for(1.0)
    top, left = round(-image.levels[level].y0_um), round(-image.levels[level].x0_um)
    assert np.array_equal(pixels, image.read(level, top, top + 320, left, left + 256, factor))


def test_a_panel_of_a_whole_slide_is_its_totals(store: Path) -> None:
    stream = PatchStream(store, patch_um=32, bin_um=8, genes=(), batch_size=1, min_tissue=0.0)
    table = StoreReader(store).tables["square_008um"]
    totals = table.dense((0, 40, 0, 32))[0].sum(axis=(1, 2), dtype=np.int64)
    wanted = sorted(zip(-totals, table.genes.ids, strict=True))[:5]
    assert panel_by_counts(stream, 5).ids == tuple(gene for _, gene in wanted)


@pytest.mark.real
def test_the_lattice_of_a_real_run_is_streamed_whole(real_data: Path, tmp_path: Path) -> None:
    """64 columns and the first 72 of 78 rows, in patches of 8 x 8 spots."""
    outs = real_data / "visium_v2_mouse" / "outs"
    options = ReadOptions(id="v", image=outs / "spatial" / "aligned_fiducials.jpg")
    path = ingest(outs, tmp_path / "v.zarr", read=options, write=WriteOptions())
    table = StoreReader(path).tables["table"]
    request = {"patch_um": 800, "image_mpp": 50.0, "lr_bin_um": 400, "min_tissue": 0.0, "train": False}
    panel = panel_by_counts(PatchStream(path, batch_size=1, genes=(), **request | {"lr_bin_um": None}), 50)
    stream = PatchStream(path, batch_size=8, genes=panel.ids, **request)
    assert table.lattice.grid_shape == (78, 64)
    assert stream.plan.num_patches == 72
    box = table.read_box(0, 72, 0, 64)
    wanted = box.dense((0, 72, 0, 64), panel.positions(table.genes))[0].sum(axis=(1, 2))
    batches = list(stream)
    for name in ("hr_counts", "lr_counts"):
        found = sum(batch[name].sum(dim=(0, 2, 3)) for batch in batches)
        assert np.array_equal(found.numpy(), wanted)
    assert (np.diff(wanted.astype(np.int64)) <= 0).all()
    assert sum(int(batch["tissue"].sum()) for batch in batches) == int(box.in_tissue.sum())
