"""Pixel sizes: believed where they can be those of a slide, ignored where software wrote them unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from stzarr.ingest.image import open_image
from stzarr.ingest.pixelsize import aperio_mpp, ome_pixels, resolution_mpp

OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeX="10" SizeY="5" '
    'PhysicalSizeX="9"/></Image><Image><Pixels SizeX="{x}" SizeY="{y}" {sizes}><Channel Name="DAPI"/></Pixels>'
    "</Image></OME>"
)


@given(mpp=st.floats(0.06, 19), unit=st.sampled_from([("nm", 1e3), ("µm", 1.0), ("mm", 1e-3), ("cm", 1e-4)]))
def test_ome_units(mpp: float, unit: tuple[str, float]) -> None:
    name, factor = unit
    sizes = " ".join(f'PhysicalSize{a}="{mpp * factor!r}" PhysicalSize{a}Unit="{name}"' for a in "XY")
    found = ome_pixels(OME.format(x=400, y=300, sizes=sizes), 300, 400)
    assert found["mpp"] == pytest.approx(mpp)
    assert found["channels"] == ("DAPI",)


@pytest.mark.parametrize(
    "sizes",
    [
        "",
        'PhysicalSizeX="0.5" PhysicalSizeY="0.6"',
        'PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"',
        'PhysicalSizeX="352" PhysicalSizeY="352"',
        'PhysicalSizeX="half" PhysicalSizeY="half"',
    ],
)
def test_ome_sizes_that_are_not_believed(sizes: str) -> None:
    assert ome_pixels(OME.format(x=400, y=300, sizes=sizes), 300, 400)["mpp"] is None


def test_text_that_is_not_ome() -> None:
    for text in (None, "", "<OME", "ImageJ=1.53"):
        assert ome_pixels(text, 1, 1) == {"mpp": None, "channels": ()}


def test_aperio() -> None:
    assert aperio_mpp("Aperio|AppMag = 20|MPP = 0.4990|Left = 25") == 0.499
    assert aperio_mpp("Aperio|AppMag = 20") is None
    assert aperio_mpp("COMMPP = 0.5") is None


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600])
def test_dpi_that_software_writes_unasked_is_absent(dpi: int) -> None:
    assert resolution_mpp((dpi, 1), (dpi, 1), 2) is None


def test_resolution_tags() -> None:
    assert resolution_mpp((40_000, 1), (40_000, 1), 3) == 0.25
    assert resolution_mpp((50_800, 1), (50_800, 1), 2) == 0.5
    assert resolution_mpp((40_000, 1), (40_000, 1), 1) is None
    assert resolution_mpp((40_000, 1), (20_000, 1), 3) is None
    assert resolution_mpp((0, 1), (0, 1), 3) is None


def test_tags_and_description_of_a_file(tmp_path: Path) -> None:
    path, pixels = tmp_path / "x.tif", np.zeros((16, 16, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    assert open_image(path).mpp == 0.5
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(72, 72), resolutionunit="INCH")
    assert open_image(path).mpp is None
    tifffile.imwrite(
        path, pixels, photometric="rgb", description="Aperio Image Library\r\n|MPP = 0.2520", metadata=None
    )
    assert open_image(path).mpp == 0.252
