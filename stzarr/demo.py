"""The main job without the trainer, on a run of one's own or a simulated one: ingest, validate, slice, stream."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stzarr.errors import StoreError
from stzarr.ingest import ReadOptions, ingest
from stzarr.ingest.readers import slide_id
from stzarr.slide import Slide
from stzarr.slide import open as open_slide
from stzarr.store.validate import validate
from stzarr.store.writer import Progress

SIMULATED_SIZE_UM = (2400.0, 2400.0)
SIMULATED_GENES = 200


@dataclass(frozen=True)
class DemoReport:
    """What the demo did, step by step, with seconds."""

    store: str
    steps: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name:10}{what}" for name, what in {"store": self.store, **self.steps}.items())


def demo(
    folder: Path, *, outs: Path | None = None, image: Path | None = None, progress: Progress | None = None
) -> DemoReport:
    """Turn a run into ``folder/slide.zarr``, check it, slice it and stream a few batches from it.

    Parameters
    ----------
    folder : Path
        Where the store goes, and the simulated run where none is given. A store that an earlier call made from the
        same input is kept.
    outs, image : Path, optional
        A Space Ranger run and its full-resolution picture.

    Raises
    ------
    StoreError
        ST240: the store does not pass its own validation. ST241: a store of other input is in `folder`.
    """
    steps: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    if outs is None:
        outs = folder / "simulated_outs"
        image = _simulated(outs, steps, progress)
    written = _ingested(outs, image, folder / "slide.zarr", steps, progress)
    findings = validate(written, deep=True, progress=progress)
    if findings:
        what = f"the store has {len(findings)} findings: {findings[0]}"
        raise StoreError("ST240", what, file=written, cure="delete it and run the demo again")
    steps["validate"] = "no findings (--deep)"
    slide = open_slide(written)
    steps["slice"] = _slice(slide)
    steps["stream"] = _stream(written, slide)
    return DemoReport(str(written), steps)


def _simulated(outs: Path, steps: dict[str, str], progress: Progress | None) -> Path:
    """Simulate a run, or take the one that an earlier demo left here."""
    from stzarr.simulate import SIMULATED, simulate

    if (outs / SIMULATED).exists():
        steps["simulate"] = f"{outs} is there already"
        return next(outs.glob("tissue_image.*"))
    start = time.perf_counter()
    image = simulate(outs, size_um=SIMULATED_SIZE_UM, num_genes=SIMULATED_GENES, progress=progress)
    steps["simulate"] = f"{outs} in {time.perf_counter() - start:.1f} s"
    return image


def _ingested(outs: Path, image: Path | None, store: Path, steps: dict[str, str], progress: Progress | None) -> Path:
    """Write the store, or take the one that an earlier demo made here from the same input, as ``demo.json`` says."""
    name = slide_id(outs)
    given = {"id": name, "outs": str(outs.resolve()), "image": None if image is None else str(image.resolve())}
    note, text = store.with_name("demo.json"), json.dumps(given, indent=2)
    if (store / "zarr.json").exists():
        same = note.exists() and note.read_text() == text and open_slide(store).id == name
        if not same:
            what = f"the store there was not made from {outs}" + ("" if image is None else f" and {image}")
            raise StoreError("ST241", what, file=store, cure="name another folder: stzarr demo FOLDER")
        steps["ingest"] = f"{store} is there already"
        return store
    note.write_text(text)
    start = time.perf_counter()
    ingest(outs, store, read=ReadOptions(id=name, image=image), progress=progress)
    steps["ingest"] = f"{outs} in {time.perf_counter() - start:.1f} s"
    return store


def _slice(slide: Slide) -> str:
    """Cut 256 µm from the middle of the slide."""
    x0, y0, x1, y1 = slide.bounds_um
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    start = time.perf_counter()
    box = slide.sel(x=slice(x - 128, x + 128), y=slice(y - 128, y + 128))
    pixels = box.image().compute()
    counts = box.counts(genes=slide.genes()["gene_ids"].iloc[:1].tolist()).compute()
    return f"256 µm: image {pixels.shape}, counts {counts.shape} in {time.perf_counter() - start:.2f} s"


def _stream(store: Path, slide: Slide) -> str:
    """Stream for three seconds, where torch is installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return "skipped: torch is not installed (pip install 'stzarr[torch]')"
    from stzarr.bench import bench

    return str(bench(store, seconds=3.0, num_genes=50, batch_size=16))
