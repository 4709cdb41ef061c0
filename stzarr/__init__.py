"""Spatial omics slides as Zarr stores: converted once, sliced in micrometres, streamed to diffusion trainers.

>>> import stzarr
>>> slide = stzarr.open("slide.zarr")
>>> slide.counts(bin_um=8, genes=["EPCAM"])
>>> stzarr.PatchStream("slide.zarr", patch_um=256, bin_um=8, batch_size=16)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stzarr.slide import Slide, open
    from stzarr.store.validate import validate
    from stzarr.stream.dataset import PatchStream

__version__ = "0.1.0"
__all__ = ["PatchStream", "Slide", "__version__", "open", "validate"]

_HOMES = {
    "PatchStream": "stzarr.stream.dataset",
    "Slide": "stzarr.slide",
    "open": "stzarr.slide",
    "validate": "stzarr.store.validate",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use: `import stzarr` alone loads neither zarr nor torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stzarr' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
