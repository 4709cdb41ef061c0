"""TIFF and what is built on it (BigTIFF, OME-TIFF, SVS, NDPI): only the tiles or strips that a box touches are decoded.

Layout and codecs are tifffile's; the file is read here, because a segment cache that is bounded in bytes and shared by
threads is what a warp needs, and tifffile keeps none.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from stzarr.errors import IngestError, is_of_machine
from stzarr.ingest.pixelsize import aperio_mpp, ome_pixels, resolution_mpp
from stzarr.ingest.raster import Picture, RawPicture, scratch_array
from stzarr.store.source import ImageHandle

SEGMENT_CACHE_BYTES = 64 << 20
"""Bound of the decoded tiles and strips that one open picture keeps; a segment larger than it is never kept."""

DAMAGE = (
    tifffile.TiffFileError,
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What tifffile and the codecs raise on damaged files (codec errors are RuntimeErrors)."""

_BAND_PX = 2048
_NOT_SLIDES = ("label", "macro", "thumbnail", "map")
_GREY, _RGB, _YCBCR = 1, 2, 6
_ALPHA = (1, 2)
_CONVERTS_YCBCR = (6, 7, 33007, 34892)
_APERIO_YCBCR = 33003


def open_tiff(path: Path) -> Picture:
    """Open the largest picture of a TIFF at full resolution; thumbnails, labels and overviews are passed over.

    Returns
    -------
    RawPicture or TiffPicture
        A memory map where the pixels lie uncompressed and contiguous, else a decoder of segments.

    Raises
    ------
    IngestError
        ST127: damaged or truncated; ST119: a kind of TIFF that is not read (see the message).
    """
    with ExitStack() as opened:
        try:
            tif = opened.enter_context(tifffile.TiffFile(path))
            picture = TiffPicture(path, tif)
            opened.callback(picture.close)
            raw = _raw_view(picture)
        except IngestError:
            raise
        except DAMAGE as error:
            if is_of_machine(error):
                raise
            raise _damaged(path, error) from error
        if raw is None:
            opened.pop_all()
    return picture if raw is None else RawPicture(picture, raw)


@dataclass(frozen=True)
class _Page:
    """One image file directory: where its segments lie."""

    offsets: tuple[int, ...]
    bytecounts: tuple[int, ...]
    jpeg: dict[str, Any]


class TiffPicture(Picture):
    """A tiled or striped picture; safe to read from several threads.

    A read keeps up to SEGMENT_CACHE_BYTES of decoded segments beyond the box itself. ``random_access`` is False for
    compressed strips where every box would decode a large part of the file: single strips, and strips so wide that a
    band of 2048 rows does not fit the cache.
    """

    def __init__(self, path: Path, tif: tifffile.TiffFile) -> None:
        series = _choose(path, tif)
        pages = _pages(path, tif, series)
        key = pages[0].keyframe
        samples, planes, notes = _check(path, key, len(pages))
        _, _, height, width, _ = key.shaped
        ome = ome_pixels(tif.ome_metadata if tif.is_ome else None, height, width)
        super().__init__(
            path,
            (samples * planes, height, width),
            key.dtype,
            _names(key.photometric, samples * planes, ome["channels"]),
            "none" if key.compression == 1 else _name(key.compression),
            mpp=ome["mpp"] or aperio_mpp(key.description) or _tag_mpp(key),
            notes=notes,
        )
        self._tif, self._key = tif, key
        self._pages = tuple(_page(page) for page in pages)
        self._segment_shape = _segment_shape(key)
        self._grid = (-(-height // self._segment_shape[0]), -(-width // self._segment_shape[1]))
        self.random_access = self._is_cheap()
        self._file = path.open("rb")
        self._file_bytes = os.fstat(self._file.fileno()).st_size
        self._file_lock, self._cache_lock = threading.Lock(), threading.Lock()
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached_bytes = 0

    def decoded(self, folder: Path) -> ImageHandle:
        """Return itself, or a scratch copy where ``random_access`` is False; decodes one segment at a time."""
        if self.random_access:
            return self
        scratch = scratch_array(folder, self.shape, self.dtype)
        _, height, width = self.shape
        for channel, source, y, x, segment in self._touched(0, height, 0, width, keep=False):
            part = segment[: height - y, : width - x, source]
            scratch[channel, y : y + part.shape[0], x : x + part.shape[1]] = part
        scratch.flush()
        return RawPicture(self, scratch)

    def close(self) -> None:
        """Release the file and the cache."""
        self._tif.close()
        self._file.close()
        self._cache.clear()

    def _pixels(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        box = np.empty((self.shape[0], y1 - y0, x1 - x0), self.dtype)
        for channel, source, y, x, segment in self._touched(y0, y1, x0, x1):
            top, left = max(y, y0), max(x, x0)
            bottom, right = min(y + segment.shape[0], y1), min(x + segment.shape[1], x1)
            box[channel, top - y0 : bottom - y0, left - x0 : right - x0] = segment[
                top - y : bottom - y, left - x : right - x, source
            ]
        return box

    def _touched(
        self, y0: int, y1: int, x0: int, x1: int, *, keep: bool = True
    ) -> Iterator[tuple[int, int, int, int, NDArray[Any]]]:
        """Yield (channel, sample of the segment, top, left, segment) for all that the box touches."""
        if y0 == y1 or x0 == x1:
            return
        high, wide = self._segment_shape
        rows, cols = self._grid
        contiguous = self._key.planarconfig == 1
        planes = 1 if contiguous else self._key.shaped[0]
        channels = self.shape[0] // len(self._pages)
        for page in range(len(self._pages)):
            for plane in range(min(planes, channels)):
                for row in range(y0 // high, -(-y1 // high)):
                    for col in range(x0 // wide, -(-x1 // wide)):
                        segment = self._segment(page, (plane * rows + row) * cols + col, keep)
                        for sample in range(channels) if contiguous else (0,):
                            yield page * channels + plane + sample, sample, row * high, col * wide, segment

    def _segment(self, page: int, index: int, keep: bool) -> NDArray[Any]:
        with self._cache_lock:
            found = self._cache.get((page, index))
            if found is not None:
                self._cache.move_to_end((page, index))
                return found
        segment = self._decode(page, index)
        if keep and segment.nbytes <= SEGMENT_CACHE_BYTES:
            with self._cache_lock:
                if (page, index) not in self._cache:
                    self._cache[page, index] = segment
                    self._cached_bytes += segment.nbytes
                while self._cached_bytes > SEGMENT_CACHE_BYTES:
                    self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment

    def _decode(self, page: int, index: int) -> NDArray[Any]:
        """Read and decode one segment, shape (rows, columns, samples)."""
        place = self._pages[page]
        try:
            offset, size = place.offsets[index], place.bytecounts[index]
            with self._file_lock:
                self._file.seek(offset)
                data = self._file.read(size)
            if len(data) < size:
                raise ValueError(f"the file ends at byte {self._file_bytes}, segment {index} at {offset + size}")
            decoded, _, shape = self._key.decode(data or None, index, **place.jpeg)
        except DAMAGE as error:
            if is_of_machine(error):
                raise
            raise _damaged(self.path, error) from error
        if decoded is None:
            return np.full(shape[1:], self._key.nodata, self.dtype)
        if decoded.shape[-1] < shape[-1]:
            raise _damaged(self.path, ValueError(f"segment {index} has {decoded.shape[-1]} channels, not {shape[-1]}"))
        return np.asarray(decoded[0], self.dtype)

    def _is_cheap(self) -> bool:
        if self._key.is_tiled or self.compression == "none":
            return True
        band = self.shape[0] * min(_BAND_PX, self.shape[1]) * self.shape[2] * self.dtype.itemsize
        return self._grid[0] > 1 and band <= SEGMENT_CACHE_BYTES


def _choose(path: Path, tif: tifffile.TiffFile) -> Any:
    """Return level 0 of the largest series that is not a label, an overview or a thumbnail."""
    if not len(tif.pages):
        raise tifffile.TiffFileError("it has no image file directory")
    found = [s for s in tif.series if s.name.lower() not in _NOT_SLIDES and {"Y", "X"} <= set(s.axes)]
    if not found:
        raise _unsupported(path, "the TIFF holds no picture with rows and columns")
    series = max(found, key=lambda s: s.shape[s.axes.index("Y")] * s.shape[s.axes.index("X")])
    stacked = {a: n for a, n in zip(series.axes, series.shape, strict=True) if a not in "YXSC" and n > 1}
    if stacked:
        raise _unsupported(path, f"the TIFF is a stack ({series.axes} {series.shape}), not one picture")
    return series.levels[0]


def _pages(path: Path, tif: tifffile.TiffFile, series: Any) -> list[Any]:
    """Return the pages of a series; several are channels."""
    pages = list(series.pages)
    if any(page is None or page.parent is not tif for page in pages):
        raise _unsupported(path, "the picture is spread over several files")
    num = int(np.prod(series.shape, dtype=np.int64)) // int(np.prod(pages[0].keyframe.shaped, dtype=np.int64))
    if num != len(pages):
        raise _unsupported(path, f"{num} channels in {len(pages)} directories (an ImageJ stack)")
    return pages


def _page(page: Any) -> _Page:
    key = page.keyframe
    jpeg = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in _CONVERTS_YCBCR else {}
    return _Page(tuple(page.dataoffsets), tuple(page.databytecounts), jpeg)


def _check(path: Path, key: Any, num_pages: int) -> tuple[int, int, tuple[str, ...]]:
    """Return (colour samples a page, pages, notes), or refuse what cannot be read faithfully."""
    colour = int(key.photometric)
    if key.dtype not in (np.uint8, np.uint16) or key.bitspersample not in (8, 16):
        raise _unsupported(path, f"pixels are {key.bitspersample} bit {key.dtype}, not 8 or 16 bit unsigned")
    if colour not in (_GREY, _RGB, _YCBCR) or (colour == _YCBCR and key.compression not in _CONVERTS_YCBCR):
        raise _unsupported(path, f"the colours are {_name(key.photometric)} in {_name(key.compression)}")
    if int(key.compression) == _APERIO_YCBCR:
        raise _unsupported(path, "the tiles are JPEG 2000 in YCbCr (Aperio 33003)")
    if key.shaped[1] != 1:
        raise _unsupported(path, "the TIFF is a volume")
    if colour == _GREY:
        samples = key.samplesperpixel - sum(int(extra) in _ALPHA for extra in key.extrasamples)
    else:
        samples = 3
    dropped = key.samplesperpixel - samples
    if samples < 1 or dropped < 0:
        raise _unsupported(path, f"{_name(key.photometric)} pixels have {key.samplesperpixel} samples")
    return samples, num_pages, ("the alpha channel was dropped",) if dropped else ()


def _segment_shape(key: Any) -> tuple[int, int]:
    if key.is_tiled:
        return key.tilelength, key.tilewidth
    return min(key.rowsperstrip, key.imagelength), key.imagewidth


def _names(photometric: int, num: int, ome: tuple[str, ...]) -> tuple[str, ...]:
    if photometric != _GREY and num == 3:
        return ("r", "g", "b")
    if len(ome) == num and len(set(ome)) == num:
        return ome
    return ("grey",) if num == 1 else tuple(f"c{index}" for index in range(num))


def _name(value: Any) -> str:
    """Return the name of a tag's value, of unknown ones the number."""
    return str(getattr(value, "name", value)).lower()


def _tag_mpp(key: Any) -> float | None:
    x, y, unit = (key.tags.valueof(code) for code in (282, 283, 296))
    return resolution_mpp(x, y, int(unit)) if x and y and unit else None


def _raw_view(picture: TiffPicture) -> NDArray[Any] | None:
    """Return all pixels as a memory map of shape (samples, height, width), where the file allows it."""
    key = picture._key
    if len(picture._pages) != 1 or not key.is_final:
        return None
    dtype = np.dtype(key.parent.byteorder + key.dtype.char)
    separate, _, height, width, contiguous = key.shaped
    shape = (separate, height, width, contiguous)
    pixels = np.memmap(picture.path, dtype, "r", offset=picture._pages[0].offsets[0], shape=shape)
    return np.moveaxis(pixels[0], 2, 0) if separate == 1 else pixels[..., 0]


def _damaged(path: Path, error: Exception) -> IngestError:
    return IngestError(
        "ST127", f"the picture is damaged or truncated: {error}", file=path, cure="copy or download the file again"
    )


def _unsupported(path: Path, what: str) -> IngestError:
    cure = "convert it to a tiled 8 or 16 bit grey or RGB TIFF, for example with `vips tiffsave IN OUT.tif --tile`"
    return IngestError("ST119", what, file=path, cure=cure)
