"""TIFF in all its layouts: any box equals the same box of the whole picture, decoded from the touched segments only."""

from __future__ import annotations

import errno
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import IngestError
from stzarr.ingest import tiff
from stzarr.ingest.image import open_image
from stzarr.ingest.raster import RawPicture
from stzarr.ingest.tiff import TiffPicture

HEIGHT, WIDTH = 150, 201
SAMPLES = {"grey": 1, "rgb": 3, "rgba": 4}

LAYOUTS = [
    (dtype, colour, planar, tile, codec, order)
    for dtype, colour, planar, tile, codec, order in itertools.product(
        ["uint8", "uint16"],
        SAMPLES,
        ["contig", "separate"],
        [None, (32, 48)],
        [None, "jpeg", "zlib", "lzw", "jpeg2000"],
        ["<", ">"],
    )
    if not (colour == "grey" and planar == "separate")
    and not (codec == "jpeg" and (dtype == "uint16" or (colour, planar) == ("rgba", "contig")))
    and not (order == ">" and codec in ("jpeg", "jpeg2000"))
]


def write(path: Path, layout: tuple, **more) -> np.ndarray:
    """Write a random TIFF and return what tifffile reads of it, (c, y, x) without alpha."""
    dtype, colour, planar, tile, codec, order = layout
    samples = SAMPLES[colour]
    shape = (samples, HEIGHT, WIDTH) if planar == "separate" else (HEIGHT, WIDTH, samples)
    pixels = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    options = {"photometric": "minisblack" if samples == 1 else "rgb", "compression": codec, "byteorder": order} | more
    options |= {"tile": tile} if tile else {"rowsperstrip": 16}
    if samples > 1:
        options["planarconfig"] = planar
    if samples == 4:
        options["extrasamples"] = ["unassalpha"]
    if codec in ("zlib", "lzw"):
        options["predictor"] = True
    tifffile.imwrite(path, pixels[..., 0] if samples == 1 else pixels, **options)
    whole = tifffile.imread(path)
    if samples == 1:
        return whole[None]
    return (whole if planar == "separate" else np.moveaxis(whole, 2, 0))[:3]


@given(layout=st.sampled_from(LAYOUTS), big=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_box_of_any_layout(tmp_path_factory: pytest.TempPathFactory, layout: tuple, big: bool, data) -> None:
    path = tmp_path_factory.mktemp("tiff") / "x.tif"
    whole = write(path, layout, bigtiff=big)
    picture = open_image(path)
    assert picture.shape == whole.shape
    assert picture.dtype == np.dtype(layout[0])
    assert picture.random_access
    for _ in range(3):
        y0, y1 = sorted(data.draw(st.tuples(*[st.integers(0, HEIGHT)] * 2)))
        x0, x1 = sorted(data.draw(st.tuples(*[st.integers(0, WIDTH)] * 2)))
        box = picture.read(y0, y1, x0, x1)
        assert box.dtype == np.dtype(layout[0])
        np.testing.assert_array_equal(box, whole[:, y0:y1, x0:x1])
    picture.close()


def test_kinds_of_handles_and_channels(tmp_path: Path) -> None:
    path = tmp_path / "x.btf"
    write(path, ("uint8", "rgba", "contig", None, None, "<"))
    raw = open_image(path)
    assert isinstance(raw, RawPicture)
    assert (raw.compression, raw.channels, raw.notes) == ("none", ("r", "g", "b"), ("the alpha channel was dropped",))
    assert raw.decoded(tmp_path) is raw
    write(path, ("uint16", "grey", "contig", (32, 48), "zlib", "<"))
    tiled = open_image(path)
    assert isinstance(tiled, TiffPicture)
    assert (tiled.compression, tiled.channels, tiled.notes) == ("adobe_deflate", ("grey",), ())
    with pytest.raises(IndexError):
        tiled.read(0, HEIGHT + 1, 0, 1)
    for picture in (raw, tiled):
        picture.close()


def test_only_touched_tiles_are_decoded_and_the_cache_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tif"
    whole = write(path, ("uint8", "rgb", "contig", (32, 48), "zlib", "<"))
    decoded: list[int] = []
    original = TiffPicture._decode

    def counted(self: TiffPicture, page: int, index: int) -> np.ndarray:
        decoded.append(index)
        return original(self, page, index)

    monkeypatch.setattr(TiffPicture, "_decode", counted)
    picture = open_image(path)
    picture.read(40, 60, 50, 90)
    assert decoded == [6]
    picture.read(40, 70, 50, 100)
    assert sorted(decoded) == [6, 7, 11, 12]
    monkeypatch.setattr(tiff, "SEGMENT_CACHE_BYTES", 3 * 32 * 48 * 3)
    np.testing.assert_array_equal(picture.read(0, HEIGHT, 0, WIDTH), whole)
    assert picture._cached_bytes <= tiff.SEGMENT_CACHE_BYTES
    assert picture._cached_bytes == sum(segment.nbytes for segment in picture._cache.values())
    picture.close()


def test_errors_of_the_disk_are_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tif"
    write(path, ("uint8", "rgb", "contig", (32, 48), "zlib", "<"))

    class Failing:
        def seek(self, offset: int) -> None:
            raise OSError(number, "as the system says")

        def close(self) -> None:
            pass

    with closing(open_image(path)) as picture:
        picture._file.close()
        picture._file = Failing()
        number = errno.EIO
        with pytest.raises(OSError, match="as the system says") as error:
            picture.read(0, 10, 0, 10)
        assert type(error.value) is OSError
        number = errno.EINVAL  # an offset beyond what the system can seek to
        with pytest.raises(IngestError, match="damaged") as damaged:
            picture.read(0, 10, 0, 10)
        assert damaged.value.code == "ST127"

    def fail(*_: object) -> None:
        raise OSError(errno.ENETDOWN, "network is down")

    monkeypatch.setattr(tiff.tifffile, "TiffFile", fail)
    with pytest.raises(OSError, match="network is down") as error:
        tiff.open_tiff(path)
    assert error.value.errno == errno.ENETDOWN


def test_threads_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    whole = write(path, ("uint8", "rgb", "contig", (32, 48), "jpeg", "<"))
    picture = open_image(path)
    boxes = [(y, min(y + 70, HEIGHT), x, min(x + 90, WIDTH)) for y in range(0, 140, 10) for x in range(0, 190, 10)]
    with ThreadPoolExecutor(8) as pool:
        for box, found in zip(boxes, pool.map(lambda box: picture.read(*box), boxes), strict=True):
            np.testing.assert_array_equal(found, whole[:, box[0] : box[1], box[2] : box[3]])
    assert threading.active_count() < 20
    picture.close()


@pytest.mark.parametrize("codec", ["zlib", "jpeg"])
def test_a_single_compressed_strip_is_decoded_once_into_scratch(tmp_path: Path, codec: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression=codec, rowsperstrip=90)
    whole = np.moveaxis(tifffile.imread(path), 2, 0)
    picture = open_image(path)
    assert not picture.random_access
    np.testing.assert_array_equal(picture.read(10, 20, 30, 50), whole[:, 10:20, 30:50])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    copy = picture.decoded(scratch)
    assert copy.random_access
    assert (copy.shape, copy.channels, copy.compression) == (picture.shape, picture.channels, picture.compression)
    np.testing.assert_array_equal(copy.read(0, 90, 0, 120), whole)
    assert [file.stat().st_size for file in scratch.iterdir()] == [whole.nbytes]
    copy.close()
    picture.close()
    with pytest.raises(IngestError, match="--max-decoded-gb 1") as error:
        open_image(path, max_decoded_bytes=1000)
    assert error.value.code == "ST128"


def test_wide_compressed_strips_are_not_called_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tif"
    whole = write(path, ("uint8", "rgb", "separate", None, "lzw", "<"))
    monkeypatch.setattr(tiff, "SEGMENT_CACHE_BYTES", HEIGHT * WIDTH * 3 - 1)
    picture = open_image(path)
    assert not picture.random_access
    copy = picture.decoded(tmp_path)
    np.testing.assert_array_equal(copy.read(0, HEIGHT, 0, WIDTH), whole)
    picture.close()


def test_the_largest_picture_at_full_resolution_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    rng = np.random.default_rng(2)
    thumb, full, half = (rng.integers(0, 255, (n, n, 3), dtype=np.uint8) for n in (20, 96, 48))
    with tifffile.TiffWriter(path) as file:
        file.write(thumb, photometric="rgb")
        file.write(full, photometric="rgb", tile=(16, 16), subifds=1)
        file.write(half, photometric="rgb", tile=(16, 16), subfiletype=1)
    picture = open_image(path)
    np.testing.assert_array_equal(picture.read(0, 96, 0, 96), np.moveaxis(full, 2, 0))
    picture.close()


def test_ome_channels_in_pages(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 60_000, (2, 64, 80), dtype=np.uint16)
    path = tmp_path / "x.ome.tif"
    names = {"Channel": {"Name": ["DAPI", "PolyT"]}, "PhysicalSizeX": 0.2125, "PhysicalSizeY": 0.2125}
    tifffile.imwrite(path, pixels, tile=(16, 16), compression="zlib", metadata={"axes": "CYX"} | names)
    picture = open_image(path)
    assert (picture.channels, picture.mpp) == (("DAPI", "PolyT"), 0.2125)
    np.testing.assert_array_equal(picture.read(5, 64, 7, 33), pixels[:, 5:64, 7:33])
    picture.close()


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    cases = {
        "palette": {"data": np.zeros((8, 8), np.uint8), "photometric": "palette", "colormap": np.zeros((3, 256), "u2")},
        "float": {"data": np.zeros((8, 8), np.float32), "photometric": "minisblack"},
        "stack": {"data": np.zeros((5, 8, 8), np.uint8), "photometric": "minisblack", "metadata": {"axes": "ZYX"}},
        "white is zero": {"data": np.zeros((8, 8), np.uint8), "photometric": "miniswhite"},
    }
    for options in cases.values():
        tifffile.imwrite(path, **options)
        with pytest.raises(IngestError) as error:
            open_image(path)
        assert error.value.code == "ST119"
        assert error.value.file == str(path)


@pytest.mark.parametrize("codec", ["zlib", "jpeg", None])
@pytest.mark.parametrize("tile", [(32, 48), None])
def test_truncated_files(tmp_path: Path, codec: str | None, tile: tuple | None) -> None:
    path = tmp_path / "x.tif"
    write(path, ("uint8", "rgb", "contig", tile, codec, "<"))
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: last + 5])

    def use() -> None:
        with closing(open_image(path)) as picture:
            picture.read(0, HEIGHT, 0, WIDTH)

    with pytest.raises(IngestError) as error:
        use()
    assert error.value.code == "ST127"


def test_a_header_without_its_directory_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0\xff\xff\0\0")
    with pytest.raises(IngestError) as error:
        open_image(path)
    assert error.value.code == "ST127"


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "shape", "mpp"),
    [("cmu_small_region.svs", (3, 2967, 2220), 0.499), ("tiff-images/kidney-48-5.tif", (3, 901, 1493), None)],
)
def test_real_slides(real_data: Path, name: str, shape: tuple, mpp: float | None) -> None:
    path = real_data / "slides_he" / name
    picture = open_image(path)
    assert (picture.shape, picture.mpp, picture.channels) == (shape, mpp, ("r", "g", "b"))
    whole = np.moveaxis(tifffile.imread(path), 2, 0)
    for y, x in itertools.product((0, 333, 700), (0, 512, 1300)):
        box = picture.read(y, y + 201, x, x + 193)
        np.testing.assert_array_equal(box, whole[:, y : y + 201, x : x + 193])
    picture.close()
