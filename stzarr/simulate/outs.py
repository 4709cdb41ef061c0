"""A whole simulated Visium HD run: a folder like Space Ranger's ``outs/`` that says that it is simulated."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from stzarr import __version__
from stzarr.errors import IngestError, listing
from stzarr.simulate.binned import BinnedWriter
from stzarr.simulate.counts import CountsModel
from stzarr.simulate.genes import make_programs
from stzarr.simulate.geometry import choose_landmarks, lay_out
from stzarr.simulate.image import ImageFormat, Previews, Renderer, write_image
from stzarr.simulate.parallel import ordered_map
from stzarr.simulate.tissue import Tissue
from stzarr.store.layout import table_name
from stzarr.store.source import SIMULATED
from stzarr.store.units import Progress

_FIDUCIAL_UM = 330.0
_POSITION_BYTES = 28
_NOT_RECORDED = ("out", "threads", "progress")
"""Arguments that results do not depend on."""
_SUFFIX = {"btf": ".btf", "deflate": ".tif", "jpeg": ".tif"}


def simulate(
    out: str | Path,
    *,
    size_um: tuple[float, float],
    seed: int = 0,
    num_genes: int = 500,
    bins_um: tuple[float, ...] = (2.0, 8.0, 16.0),
    umi_per_um2: float = 4.0,
    mpp: float = 0.2738,
    image_format: ImageFormat = "btf",
    rotation_deg: float = 2.0,
    turn: Literal[0, 90] = 0,
    mirror: bool = True,
    landmarks: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
) -> Path:
    """Write a simulated Visium HD run, band by band and tile by tile: full size takes some hundred MB of memory.

    Equal arguments give equal counts, positions and pixels, whatever `threads` is.

    Parameters
    ----------
    out : path
        The ``outs/`` folder: missing or empty. It appears complete or not at all.
    size_um : (width, height)
        The capture area along array columns and rows [µm], whole numbers of the finest bins; 6700 x 6700 is full size.
    seed : int
        0 or more.
    num_genes : int
        About 18,000 in a real run.
    bins_um : tuple of float
        Bin sizes, whole multiples of the smallest [µm].
    umi_per_um2 : float
        Mean UMI per µm² of tissue, about; 4 gives some 15 non-zeros per 2 µm bin among 18 thousand genes.
    mpp : float
        µm per pixel in the middle of the area.
    image_format : "btf", "deflate" or "jpeg"
        Raw tiles in BigTIFF; deflated strips; JPEG tiles (the only lossy one).
    rotation_deg : float
        How far the array is turned in the picture.
    turn : 0 or 90
        Turn the picture by a right angle, anticlockwise.
    mirror : bool
        Whether x runs against ``array_col``, as usual on Visium HD.
    landmarks : bool
        Paint marks on 25 known bins, corners included, to test registration.
    threads : int
        Threads that render and draw.
    progress : callable, optional
        Called as ``progress(stage, done, total)``; stages "counts" (of positions) and "image" [bytes].

    Returns
    -------
    Path
        The full-resolution picture, in `out`.

    Raises
    ------
    IngestError
        ST150: an impossible size. ST151: bin sizes that do not divide. ST152: another impossible value.
        ST153: `out` is in the way.
    """
    parameters = {name: value for name, value in locals().items() if name not in _NOT_RECORDED}
    out = Path(out)
    _check(seed, num_genes, umi_per_um2, mpp, image_format, turn, threads)
    area = lay_out(size_um, bins_um, mpp=mpp, rotation_deg=rotation_deg, turn=turn, mirror=mirror)
    renderer = Renderer(area, Tissue(seed, size_um), choose_landmarks(area) if landmarks else ())
    programs = make_programs(seed, num_genes)
    model = CountsModel(seed, area, renderer.tissue, programs, tuple(sorted(bins_um)), umi_per_um2)
    report = progress or _silent
    image = f"tissue_image{_SUFFIX[image_format]}"
    with _appearing(out) as partial:
        totals = _write_binned(partial, model, threads, report)
        previews = write_image(
            partial / image, renderer, image_format, threads=threads, progress=functools.partial(report, "image")
        )
        _write_spatial(partial, model, previews)
        _write_json(partial / SIMULATED, _description(parameters, renderer, totals, image))
    return out / image


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `out` at the end, or disappears on any error."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise IngestError("ST153", "the output is in the way", file=out, cure="name a folder that is missing or empty")
    partial = out.resolve().parent / f".{out.resolve().name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _check(
    seed: int, num_genes: int, umi_per_um2: float, mpp: float, image_format: str, turn: int, threads: int
) -> None:
    """Refuse values that no run can have."""
    formats = get_args(ImageFormat)
    wrong = {
        f"seed {seed} is negative": seed < 0,
        f"{num_genes} genes are too few": num_genes < 1,
        f"{umi_per_um2:g} UMI per µm² are not a density": not 0 < umi_per_um2 <= 1000,
        f"{mpp:g} µm per pixel are not between 0.05 and 10": not 0.05 <= mpp <= 10,
        f"image format {image_format!r} is unknown ({listing(formats)})": image_format not in formats,
        f"a turn by {turn} degrees is not 0 or 90": turn not in (0, 90),
        f"{threads} threads are too few": threads < 1,
    }
    for what, holds in wrong.items():
        if holds:
            raise IngestError("ST152", what, cure="stzarr simulate --help")


def _write_binned(out: Path, model: CountsModel, threads: int, report: Progress) -> dict[str, dict[str, int]]:
    """Write matrices and positions of all bin sizes and return their totals."""
    with ExitStack() as stack:
        writers = {
            table_name(size): stack.enter_context(
                BinnedWriter(
                    out / "binned_outputs" / table_name(size), model.area, size, model.programs, f"stzarr {__version__}"
                )
            )
            for size in model.bins_um
        }
        bands = ordered_map(model.band, range(model.num_bands), threads)
        for done, band in enumerate(bands, start=1):
            for writer, counts in zip(writers.values(), band, strict=True):
                writer.append(counts)
            band_bytes = _POSITION_BYTES * model.area.num_rows * model.area.num_cols // model.num_bands
            report("counts", done * band_bytes, model.num_bands * band_bytes)
    return {
        name: {
            "bins": writer.num_bins,
            "in_tissue": writer.num_in_tissue,
            "umi": writer.num_umi,
            "nonzero": writer.num_nonzero,
        }
        for name, writer in writers.items()
    }


def _write_spatial(out: Path, model: CountsModel, previews: Previews) -> None:
    """Write scale factors and previews beside the positions of every bin size."""
    hires, lowres = 1 / previews.factors["hires"], 1 / previews.factors["lowres"]
    folders = [out / "binned_outputs" / table_name(size) / "spatial" for size in model.bins_um]
    previews.save(folders)
    for size, folder in zip(model.bins_um, folders, strict=True):
        factors = {
            "spot_diameter_fullres": size / model.area.mpp,
            "bin_size_um": size,
            "microns_per_pixel": model.area.mpp,
            "regist_target_img_scalef": hires,
            "tissue_lowres_scalef": lowres,
            "fiducial_diameter_fullres": _FIDUCIAL_UM / model.area.mpp,
            "tissue_hires_scalef": hires,
        }
        _write_json(folder / "scalefactors_json.json", factors)


def _description(
    parameters: dict[str, Any], renderer: Renderer, totals: dict[str, dict[str, int]], image: str
) -> dict[str, Any]:
    area = renderer.area
    return {
        "simulated": True,
        "note": "Made up by a program; no tissue was measured. Nothing biological follows from it.",
        "software": f"stzarr {__version__}",
        "parameters": parameters,
        "array": {"bin_um": area.bin_um, "num_rows": area.num_rows, "num_cols": area.num_cols},
        "array_to_px": {
            "note": "(array_col, array_row) of the finest bins to full-resolution pixel centres (x, y) from 0",
            "matrix": area.array_to_px.tolist(),
        },
        "image": {"file": image, "width": area.width, "height": area.height, "mpp": area.mpp},
        "totals": totals,
        "landmark_sigma_um": renderer.landmark_sigma_um if renderer.landmarks else None,
        "landmarks": [dict(vars(mark)) for mark in renderer.landmarks],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
