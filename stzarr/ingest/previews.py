"""The pictures of a run, full-resolution image and previews, checked against each other and the positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stzarr.errors import IngestError
from stzarr.ingest.image import open_image
from stzarr.ingest.outs import PictureName, SpatialFolder
from stzarr.ingest.raster import Picture
from stzarr.space import Bounds, Frame, Homography
from stzarr.store.source import ImageSource

Pictures = dict[PictureName, Picture]


def open_pictures(spatial: SpatialFolder, full: Path | None, max_decoded_bytes: int) -> Pictures:
    """Open the full-resolution image, if given, and the previews that exist; all are closed again if one fails."""
    paths: dict[PictureName, Path | None] = {"full": full, **spatial.previews}
    pictures: Pictures = {}
    try:
        for name, path in paths.items():
            if path is not None:
                pictures[name] = open_image(path, max_decoded_bytes)
    except IngestError:
        for picture in pictures.values():
            picture.close()
        raise
    return pictures


def check_pictures(pictures: Pictures, spatial: SpatialFolder, in_tissue_px: Bounds | None) -> None:
    """See that the pictures belong to the run.

    A preview of n pixels at scale s comes from a picture of n / s pixels, give or take one preview pixel.

    Raises
    ------
    IngestError
        ST108: a preview without its scale factor; ST124: the full-resolution image has another size than the previews
        say; ST125: spots or bins in tissue lie outside the picture; ST126: the previews contradict each other.
    """
    scales = {name: _scale(name, spatial) for name in pictures}
    previews = [name for name in pictures if name != "full"]
    if len(previews) == 2:
        _compare(pictures, scales, "hires", "lowres", "ST126")
    if "full" in pictures and previews:
        _compare(pictures, scales, "full", previews[0], "ST124")
    for name in list(pictures)[:1]:
        _check_inside(pictures[name], scales[name], in_tissue_px, spatial.positions)


def image_sources(pictures: Pictures, spatial: SpatialFolder, frame: Frame) -> tuple[ImageSource, ...]:
    """Return the pictures with their maps; pixel areas scale, so (h + 0.5) = (v + 0.5) scale for their centres."""
    sources = []
    for name, picture in pictures.items():
        scale = _scale(name, spatial)
        move = (scale - 1) / 2
        to_px = Homography.scale_then_move(scale, scale, move, move) @ frame.um_to_px
        sources.append(ImageSource(name, picture, to_px if scale != 1 else frame.um_to_px, scale))
    return tuple(sources)


def picture_details(pictures: Pictures) -> dict[str, dict[str, Any]]:
    """Return what the files say about themselves, for provenance."""
    return {
        name: {
            "file": picture.path.name,
            "compression": picture.compression,
            "mpp_from_file": picture.mpp,
            "notes": list(picture.notes),
        }
        for name, picture in pictures.items()
    }


def _scale(name: PictureName, spatial: SpatialFolder) -> float:
    return 1.0 if name == "full" else spatial.factor(f"tissue_{name}_scalef")


def _compare(
    pictures: Pictures, scales: dict[PictureName, float], one: PictureName, other: PictureName, code: str
) -> None:
    """Raise `code` unless two pictures are of one size in full-resolution pixels, to a preview pixel of each."""
    allowed = sum(1 / scales[name] for name in (one, other) if name != "full")
    sizes = [[n / scales[name] for n in pictures[name].shape[1:]] for name in (one, other)]
    if all(abs(a - b) <= allowed for a, b in zip(*sizes, strict=True)):
        return
    (height, width), (high, wide) = sizes
    raise IngestError(
        code,
        f"the picture stands for {width:.0f} x {height:.0f} full-resolution pixels, {pictures[other].path.name} with "
        f"its scale factor for {wide:.0f} x {high:.0f}",
        file=pictures[one].path,
        cure="give the image that Space Ranger was run with: positions are in its pixels"
        if one == "full"
        else "use previews and scale factors of one run",
    )


def _check_inside(picture: Picture, scale: float, in_tissue_px: Bounds | None, positions: Path) -> None:
    if in_tissue_px is None:
        return
    _, height, width = picture.shape
    slack = 0.0 if scale == 1 else 1 / scale
    x0, y0, x1, y1 = in_tissue_px
    low, right, bottom = -0.5 - slack, width / scale - 0.5 + slack, height / scale - 0.5 + slack
    if x0 < low or y0 < low or x1 > right or y1 > bottom:
        raise IngestError(
            "ST125",
            f"positions in tissue span x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} px, the picture only "
            f"{width / scale:.0f} x {height / scale:.0f} full-resolution pixels",
            file=picture.path,
            cure=f"give the image that Space Ranger was run with: {positions.name} is in its pixels",
        )
