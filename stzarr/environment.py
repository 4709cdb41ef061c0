"""What this machine has, in one report: for bug reports, benchmark results and the environment of a run."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "stzarr", "zarr", "numcodecs", "dask", "distributed", "xarray", "numpy", "anndata", "spatialdata", "h5py",
    "tifffile", "imagecodecs", "opencv-python-headless", "pyarrow", "torch", "diffusers",
)  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """Versions and resources; packages that are not installed are None."""

    python: str
    system: str
    cores: int
    memory_gb: float
    packages: dict[str, str | None]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        rows = {"python": self.python, "system": self.system, "cores": self.cores, "memory": f"{self.memory_gb:.1f} GB"}
        rows |= {name: found or "not installed" for name, found in self.packages.items()}
        return "\n".join(f"{name:24}{value}" for name, value in rows.items())


def environment() -> Environment:
    """Look at this machine; imports none of the packages that it reports."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or 1,
        memory_gb=round(memory / 2**30, 1),
        packages={name: _version(name) for name in PACKAGES},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
