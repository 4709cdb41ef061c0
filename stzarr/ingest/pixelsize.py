"""µm per pixel and channel names from a TIFF's own metadata, where it can be believed."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

PLAUSIBLE_UM = (0.05, 20.0)
"""Pixel sizes of slide scanners and microscopes; 72 to 600 dpi, which software writes unasked, lie far outside."""

_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0}
_UM_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}
_APERIO_MPP = re.compile(r"\bMPP\s*=\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)")


def plausible(mpp: float) -> bool:
    """Whether a value can be the pixel size of a slide."""
    return math.isfinite(mpp) and PLAUSIBLE_UM[0] <= mpp <= PLAUSIBLE_UM[1]


def ome_pixels(xml: str | None, height: int, width: int) -> dict[str, Any]:
    """Return ``{"mpp": float or None, "channels": tuple of str}`` of the OME image with this size.

    Pixels that are not square by more than 1 % have no mpp. Text that is not OME-XML gives nothing.
    """
    nothing: dict[str, Any] = {"mpp": None, "channels": ()}
    if not xml:
        return nothing
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return nothing
    for pixels in root.iter():
        if pixels.tag.rpartition("}")[2] != "Pixels":
            continue
        if (pixels.get("SizeY"), pixels.get("SizeX")) == (str(height), str(width)):
            sizes = [_ome_size(pixels, axis) for axis in "XY"]
            names = [child.get("Name") for child in pixels if child.tag.rpartition("}")[2] == "Channel"]
            return {"mpp": _square(sizes), "channels": tuple(name for name in names if name)}
    return nothing


def _ome_size(pixels: ElementTree.Element, axis: str) -> float | None:
    factor = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return None if factor is None else float(pixels.get(f"PhysicalSize{axis}", "")) * factor
    except ValueError:
        return None


def aperio_mpp(description: str) -> float | None:
    """Return the ``MPP = 0.499`` of an Aperio description."""
    found = _APERIO_MPP.search(description)
    return _square([float(found[1])] * 2) if found else None


def resolution_mpp(x: tuple[int, int], y: tuple[int, int], unit: int) -> float | None:
    """Return the pixel size from TIFF's resolution tags (rationals, pixels per inch or cm; NDPI uses these too)."""
    if unit not in _UM_PER_TIFF_UNIT:
        return None
    return _square([_UM_PER_TIFF_UNIT[unit] * below / above if above else None for above, below in (x, y)])


def _square(sizes: list[float | None]) -> float | None:
    """Return x of (x, y) if both are plausible and equal within 1 %."""
    x, y = sizes
    if x is None or y is None or not plausible(x) or not plausible(y) or abs(x - y) > 0.01 * x:
        return None
    return x
