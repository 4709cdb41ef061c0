"""PNG and JPEG: sizes from the header, decoded whole, once, into scratch; limits that name their cure."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from stzarr.errors import IngestError, MissingInputError, StoreError
from stzarr.ingest import raster
from stzarr.ingest.image import is_image, open_image

RGB = np.random.default_rng(0).integers(0, 255, (61, 83, 3), dtype=np.uint8)


def png(mode: str) -> tuple[bytes, np.ndarray]:
    """A PNG in a mode and the pixels that must come out, (c, y, x)."""
    if mode == "16-bit RGB":
        wide = RGB.astype(np.uint16) * 201
        return imagecodecs.png_encode(wide), np.moveaxis(wide, 2, 0)
    if mode == "16-bit grey":
        wide = RGB[..., 0].astype(np.uint16) * 201
        return imagecodecs.png_encode(wide), wide[None]
    image = Image.fromarray(RGB).quantize(16) if mode == "P" else Image.fromarray(RGB).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "png", **({"transparency": 3} if mode == "P" else {}))
    grey = mode in ("L", "LA", "1")
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return buffer.getvalue(), pixels[None] if grey else np.moveaxis(pixels, 2, 0)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGB", "RGBA", "P", "16-bit RGB", "16-bit grey"])
def test_png_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.png"
    data, pixels = png(mode)
    path.write_bytes(data)
    picture = open_image(path)
    assert (picture.shape, picture.dtype, picture.random_access) == (pixels.shape, pixels.dtype, False)
    assert picture.notes == (("the alpha channel was dropped",) if mode in ("LA", "RGBA", "P") else ())
    np.testing.assert_array_equal(picture.read(3, 40, 5, 80), pixels[:, 3:40, 5:80])
    copy = picture.decoded(tmp_path)
    assert copy.random_access
    np.testing.assert_array_equal(copy.read(0, 61, 0, 83), pixels)
    copy.close()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg(tmp_path: Path, mode: str, progressive: bool) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(RGB).convert(mode).save(path, "jpeg", progressive=progressive, exif=b"Exif\0\0" + b"\0" * 40)
    pixels = np.asarray(Image.open(path))
    pixels = pixels[None] if mode == "L" else np.moveaxis(pixels, 2, 0)
    picture = open_image(path)
    assert (picture.shape, picture.compression, picture.mpp) == (pixels.shape, "jpeg", None)
    copy = picture.decoded(tmp_path)
    for handle in (picture, copy):
        np.testing.assert_array_equal(handle.read(10, 61, 0, 70), pixels[:, 10:61, :70])
    copy.close()


def test_a_truncated_jpeg_is_not_filled_with_grey(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(RGB).save(path, "jpeg")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(IngestError, match="its end is missing") as error:
        open_image(path)
    assert error.value.code == "ST127"
    path.write_bytes(whole[:30])
    with pytest.raises(IngestError, match="header") as error:
        open_image(path)
    assert error.value.code == "ST127"


def test_a_truncated_png_is_found_when_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(imagecodecs.png_encode(RGB)[:-2000])
    picture = open_image(path)
    with pytest.raises(IngestError) as error:
        picture.read(0, 61, 0, 83)
    assert error.value.code == "ST127"


def _huge_png(path: Path, width: int, height: int) -> None:
    """Write a valid header of a huge picture and no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    data = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_size_comes_from_the_header_and_the_limit_names_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    _huge_png(path, 60_000, 50_000)
    assert open_image(path).shape == (3, 50_000, 60_000)
    _huge_png(path, 120_000, 100_000)
    with pytest.raises(IngestError, match=r"33\.53 GB, and the limit is 16\.00 GB") as error:
        open_image(path)
    assert error.value.code == "ST128"
    assert error.value.cure is not None
    assert error.value.cure.startswith("--max-decoded-gb 34")


def test_a_full_disk_is_an_error_with_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(raster.os, "posix_fallocate", full)
    path = tmp_path / "x.png"
    path.write_bytes(imagecodecs.png_encode(RGB))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(StoreError, match="No space left") as error:
        open_image(path).decoded(scratch)
    assert error.value.code == "ST230"
    assert list(scratch.iterdir()) == []


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_text("no picture")
    assert not is_image(path)
    with pytest.raises(IngestError) as error:
        open_image(path)
    assert error.value.code == "ST119"
    Image.fromarray(RGB).convert("CMYK").save(path, "jpeg")
    assert is_image(path)
    with pytest.raises(IngestError, match="4 channels") as error:
        open_image(path)
    assert error.value.code == "ST119"
    with pytest.raises(MissingInputError) as missing:
        open_image(tmp_path / "none.jpg")
    assert missing.value.code == "ST103"
