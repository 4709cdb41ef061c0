"""How fast a store streams: patches and megabytes a second, and how long the consumer waits."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stzarr.environment import environment
from stzarr.slide import Slide
from stzarr.slide import open as open_slide
from stzarr.space import SPOT_PITCH_UM

PATCH_PX = 256
PATCH_SPOTS = 16
DEFAULT_BIN_UM = 8.0


@dataclass(frozen=True)
class BenchResult:
    """One measurement; rates count what was handed to the consumer, after the first batch.

    `mb_per_s` are decoded megabytes (1e6 bytes) of the batches' tensors. `wait_share` is the share of the measured time
    that the consumer, who does nothing else, spent waiting: near 1 by design, and below 1 by Python's own work.
    """

    slide: str
    patch_um: float
    image_mpp: float | None
    bin_um: float | None
    num_genes: int
    batch_size: int
    first_batch_s: float
    patches: int
    seconds: float
    patches_per_s: float
    mb_per_s: float
    wait_share: float
    when: str
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def append_to(self, path: Path) -> None:
        """Add this result to a file of JSON lines."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lines:
            lines.write(json.dumps(self.to_json()) + "\n")

    def __str__(self) -> str:
        image = "no image" if self.image_mpp is None else f"image at {self.image_mpp:g} µm"
        return (
            f"{self.patches_per_s:.0f} patches/s, {self.mb_per_s:.0f} MB/s "
            f"({self.patch_um:g} µm, {image}, {self.num_genes} genes, batch {self.batch_size}; "
            f"first batch after {self.first_batch_s:.2f} s)"
        )


def bench(
    store: str | Path,
    *,
    patch_um: float | None = None,
    image_mpp: float | None = None,
    stride_um: float | None = None,
    bin_um: float | None = None,
    num_genes: int = 200,
    batch_size: int = 32,
    seconds: float = 10.0,
) -> BenchResult:
    """Stream from a store for some seconds, epoch after epoch, and measure.

    Parameters
    ----------
    store : path
    patch_um : float, optional
        Side of a patch [µm]; by default 256 pixels, or 16 spots where the store holds spots.
    image_mpp : float, optional
        Pixel size [µm]; by default the finest level (for spots: a quarter of the spots' distance).
    stride_um : float, optional
        Distance of patches [µm]; by default the patch, or a quarter of it where the store holds spots, which are few.
    bin_um : float, optional
        Bin of the gene grid [µm]; by default 8 µm, else the finest.
    num_genes : int
        Genes in the grid, those with the most counts; 0 streams the image alone.
    batch_size : int
    seconds : float
        How long to measure, after the first batch.

    Raises
    ------
    StreamError
        As `stzarr.PatchStream`: ST405 where the slide has too few patches for a batch.
    """
    from stzarr.stream.dataset import PatchStream

    slide = open_slide(store)
    request = _request(slide, patch_um, image_mpp, stride_um, bin_um, num_genes)
    stream = PatchStream(store, batch_size=batch_size, **request)
    started = time.perf_counter()
    first_batch_s, waited, patches, num_bytes, epoch = 0.0, 0.0, 0, 0, 0
    begun = started
    while not patches or time.perf_counter() - begun < seconds:
        stream.set_epoch(epoch)
        epoch += 1
        asked = time.perf_counter()
        for batch in stream:
            now = time.perf_counter()
            if not first_batch_s:
                first_batch_s, begun = now - started, now
            else:
                waited += now - asked
                patches += len(batch["valid"])
                num_bytes += sum(v.nbytes for v in batch.values() if hasattr(v, "nbytes"))
            if patches and now - begun >= seconds:
                break
            asked = time.perf_counter()
    elapsed = time.perf_counter() - begun
    return BenchResult(
        slide=slide.id,
        patch_um=request["patch_um"],
        image_mpp=request["image_mpp"],
        bin_um=request["bin_um"],
        num_genes=len(request["genes"]),
        batch_size=batch_size,
        first_batch_s=round(first_batch_s, 3),
        patches=patches,
        seconds=round(elapsed, 3),
        patches_per_s=round(patches / elapsed, 1),
        mb_per_s=round(num_bytes / elapsed / 1e6, 1),
        wait_share=round(waited / elapsed, 3),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment().to_json(),
    )


def _request(
    slide: Slide,
    patch_um: float | None,
    image_mpp: float | None,
    stride_um: float | None,
    bin_um: float | None,
    num_genes: int,
) -> dict[str, Any]:
    """Fill in what was not asked for, from what the slide holds."""
    image = slide.reader.default_image()
    tables = slide.reader.tables.values()
    spots = any(table.lattice.kind == "spots" for table in tables)
    if image is not None and image_mpp is None:
        image_mpp = SPOT_PITCH_UM / 4 if spots else image.levels[0].mpp
    if not tables:
        num_genes = 0
    elif bin_um is None:
        sizes = [table.cell_size_um for table in tables]
        bin_um = DEFAULT_BIN_UM if DEFAULT_BIN_UM in sizes else min(sizes)
    if patch_um is None:
        patch_um = PATCH_SPOTS * SPOT_PITCH_UM if spots or image_mpp is None else PATCH_PX * image_mpp
    genes: list[str] = []
    if num_genes:
        found = slide.genes()
        totals = found["total_counts"].to_numpy()
        genes = found["gene_ids"].iloc[(-totals).argsort(kind="stable")[:num_genes]].tolist()
    return {
        "patch_um": patch_um,
        "image_mpp": image_mpp,
        "stride_um": patch_um / 4 if spots and stride_um is None else stride_um,
        "bin_um": bin_um if num_genes else None,
        "genes": genes,
    }
