"""Any slide picture as an `ImageHandle`: found by its first bytes, opened without decoding.

TIFF and its relatives are in `stzarr.ingest.tiff`. PNG and JPEG can only be decoded as a whole: `WholePicture` reads
their headers here and decodes once, into a scratch file on disk, so that memory does not grow with the picture.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from stzarr.errors import IngestError, MissingInputError
from stzarr.ingest.raster import Picture, RawPicture, scratch_array
from stzarr.ingest.readers import MAX_DECODED_BYTES
from stzarr.ingest.tiff import open_tiff
from stzarr.store.source import ImageHandle

SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".jpg", ".jpeg", ".png")

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def is_image(path: Path) -> bool:
    """Whether a file starts like a picture that `open_image` reads."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(8)
    return start.startswith((*_TIFF, _PNG, _JPEG))


def open_image(path: Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> Picture:
    """Open a picture lazily: TIFF, BigTIFF, OME-TIFF, SVS, NDPI, PNG or JPEG, whatever its name says.

    Parameters
    ----------
    path : Path
    max_decoded_bytes : int
        Largest picture without random access that is accepted; it will be decoded into a scratch file of this size. A
        TIFF that is one compressed strip is also held in memory once while it is decoded, a progressive JPEG twice.

    Raises
    ------
    MissingInputError
        ST103: there is no such file.
    IngestError
        ST119: not a kind of picture that is read; ST127: damaged or truncated; ST128: too large to decode.
    """
    if not path.is_file():
        raise MissingInputError("ST103", "the picture does not exist", file=path, cure="check the path after --image")
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_PNG):
            picture: Picture = _open_png(path, file)
        elif start.startswith(_JPEG):
            picture = _open_jpeg(path, file)
        elif start.startswith(_TIFF):
            picture = open_tiff(path)
        else:
            raise IngestError(
                "ST119", "this is no TIFF, SVS, NDPI, PNG or JPEG", file=path, cure="convert it to a tiled TIFF"
            )
    if not picture.random_access and picture.decoded_bytes > max_decoded_bytes:
        picture.close()
        raise IngestError(
            "ST128",
            f"the picture must be decoded as a whole, {picture.decoded_bytes / 2**30:.2f} GB, "
            f"and the limit is {max_decoded_bytes / 2**30:.2f} GB",
            file=path,
            cure=f"--max-decoded-gb {-(-picture.decoded_bytes // 2**30)}, or convert it to a tiled TIFF",
        )
    return picture


class WholePicture(Picture):
    """A PNG or JPEG: a read of any box decodes all of it; `decoded` does so once, straight into a file on disk."""

    random_access = False

    def __init__(self, path: Path, size: tuple[int, int], samples: int, bits: int, decode: Callable[..., Any]) -> None:
        num = 3 if samples > 2 else 1
        dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
        notes = ("the alpha channel was dropped",) if samples > num else ()
        names = ("r", "g", "b") if num == 3 else ("grey",)
        codec = "png" if decode is imagecodecs.png_decode else "jpeg"
        super().__init__(path, (num, *size), dtype, names, codec, notes=notes)
        self._decode = decode
        self._stored_shape = (*size, samples) if samples > 1 else size

    def decoded(self, folder: Path) -> ImageHandle:
        """Decode into a scratch file in `folder` and return it as a handle with random access."""
        scratch = scratch_array(folder, self._stored_shape, self.dtype)
        self._decode_into(scratch)
        scratch.flush()
        return RawPicture(self, _channels_first(scratch))

    def _pixels(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        whole = np.empty(self._stored_shape, self.dtype)
        self._decode_into(whole)
        return np.ascontiguousarray(_channels_first(whole)[: self.shape[0], y0:y1, x0:x1])

    def _decode_into(self, out: NDArray[Any]) -> None:
        try:
            self._decode(np.memmap(self.path, np.uint8, "r"), out=out)
        except (RuntimeError, ValueError) as error:
            raise _damaged(self.path, str(error)) from error


def _channels_first(pixels: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(pixels, 2, 0) if pixels.ndim == 3 else pixels[None]


def _open_png(path: Path, file: BinaryIO) -> WholePicture:
    """Read the header of a PNG (its specification, sections 11.2.1 and 11.3.1)."""
    file.seek(8)
    try:
        length, kind = struct.unpack(">I4s", file.read(8))
        width, height, bits, colour = struct.unpack(">IIBB", file.read(10))
        samples = _PNG_SAMPLES[colour]
        while kind != b"IDAT":
            samples += kind == b"tRNS"
            file.seek(length - 10 + 4 if kind == b"IHDR" else length + 4, 1)
            length, kind = struct.unpack(">I4s", file.read(8))
    except (struct.error, KeyError) as error:
        raise _damaged(path, "its header is incomplete") from error
    return WholePicture(path, (height, width), samples, bits, imagecodecs.png_decode)


def _open_jpeg(path: Path, file: BinaryIO) -> WholePicture:
    """Read the frame header of a JPEG (ITU-T T.81, B.2.2) and see that its end is there.

    The decoder fills a truncated picture with grey and says nothing, so the end-of-image marker is looked for; it
    cannot occur inside the compressed data.
    """
    size, samples, bits, marker = (0, 0), 0, 8, 0
    file.seek(2)
    try:
        while marker != 0xDA:
            first, marker = file.read(2)
            while marker == 0xFF:
                marker = file.read(1)[0]
            if first != 0xFF:
                raise ValueError(first)
            length = struct.unpack(">H", file.read(2))[0]
            if marker in _JPEG_FRAMES:
                bits, height, width, samples = struct.unpack(">BHHB", file.read(6))
                size = (height, width)
                length -= 6
            file.seek(length - 2, 1)
    except (struct.error, ValueError, IndexError) as error:
        raise _damaged(path, "its header is incomplete") from error
    if samples not in (1, 3) or bits != 8:
        raise IngestError(
            "ST119", f"the JPEG has {samples} channels of {bits} bit", file=path, cure="convert it to 8 bit RGB"
        )
    if not _has_end(path, file.tell()):
        raise _damaged(path, "its end is missing")
    return WholePicture(path, size, samples, bits, imagecodecs.jpeg8_decode)


def _has_end(path: Path, start: int, block: int = 1 << 20) -> bool:
    """Whether the marker FF D9 follows `start`; looks from the end of the file backwards."""
    with path.open("rb") as file:
        stop = file.seek(0, 2)
        while stop > start:
            begin = max(start, stop - block)
            file.seek(begin)
            if b"\xff\xd9" in file.read(stop - begin + 1):
                return True
            stop = begin
    return False


def _damaged(path: Path, what: str) -> IngestError:
    return IngestError(
        "ST127", f"the picture is damaged or truncated: {what}", file=path, cure="copy or download the file again"
    )
