"""One small ingested store for the trainer's tests, and the settings of a run that takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from stzarr.ingest import ReadOptions, ingest
from stzarr.simulate import simulate

TINY = [
    "--patch-um", "64", "--bin-um", "8", "--lr-bin-um", "24", "--image-mpp", "4", "--stride-um", "32", "--jitter",
    "--num-genes", "6", "--channels", "8", "16", "--layers", "1", "--image-channels", "8", "--batch-size", "4",
    "--fit-batches", "2", "--lr", "0.002", "--warmup-steps", "5", "--ema-decay", "0.9", "--sample-steps", "5",
    "--members", "2", "--log-every", "1", "--preview-every", "0", "--threads", "1", "--device", "cpu",
]  # fmt: skip
"""LR pixels of 3 x 3 do not divide the 8 x 8 patch: the last ones are partial."""


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    image = simulate(folder / "outs", size_um=(512.0, 512.0), num_genes=10, mpp=1.0)
    return ingest(folder / "outs", folder / "slide.zarr", read=ReadOptions(id="sim", image=image))
