"""Plain slides: a picture, a pixel size, nothing else."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import small_runs as small

from stzarr.errors import IngestError
from stzarr.ingest.readers import ReadOptions
from stzarr.ingest.slides import SlideReader


def test_the_frame_starts_at_the_top_left_corner(tmp_path: Path) -> None:
    path = tmp_path / "A 1.ome.tif"
    pixels = small.write_image(path, 40, 60, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    assert SlideReader().recognises(path)
    source = SlideReader().open(path, ReadOptions())
    assert (source.id, source.assay, source.counts, source.files) == ("A_1", "slide", (), (path,))
    assert (source.frame.mpp, source.frame.lattice) == (0.5, None)
    (image,) = source.images
    assert (image.name, image.scale) == ("full", 1.0)
    np.testing.assert_allclose(image.um_to_px([(0.0, 0.0), (30.0, 20.0)]), [(-0.5, -0.5), (59.5, 39.5)])
    np.testing.assert_array_equal(image.handle.read(0, 40, 0, 60), pixels)
    assert source.details["mpp_from"] == "file"
    source.close()


def test_pixel_size_by_the_user(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(imagecodecs.png_encode(np.zeros((9, 9), np.uint8)))
    with pytest.raises(IngestError) as error:
        SlideReader().open(path, ReadOptions())
    assert (error.value.code, error.value.cure) == ("ST129", "--mpp-source 0.5")
    with pytest.raises(IngestError, match="250 µm") as error:
        SlideReader().open(path, ReadOptions(mpp_source=250.0))
    assert error.value.code == "ST129"
    source = SlideReader().open(path, ReadOptions(mpp_source=0.25))
    assert (source.frame.mpp, source.details["mpp_from"]) == (0.25, "user")
    assert not source.images[0].handle.random_access


@pytest.mark.parametrize("options", [{"bins_um": (8.0,)}, {"image": Path("x.tif")}, {"counts": "raw"}])
def test_options_that_do_not_apply(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "x.tif"
    small.write_image(path, 16, 16)
    with pytest.raises(IngestError) as error:
        SlideReader().open(path, ReadOptions(mpp_source=0.5, **options))
    assert error.value.code == "ST109"


def test_other_files_are_not_slides(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_text("no")
    assert not SlideReader().recognises(path)
    assert not SlideReader().recognises(tmp_path)


@pytest.mark.real
def test_real_slides(real_data: Path) -> None:
    source = SlideReader().open(real_data / "slides_he" / "cmu_small_region.svs", ReadOptions())
    assert (source.id, source.frame.mpp) == ("cmu_small_region", 0.499)
    source.close()
    with pytest.raises(IngestError) as error:
        SlideReader().open(real_data / "slides_he" / "tiff-images" / "kidney-48-5.tif", ReadOptions())
    assert error.value.code == "ST129"
