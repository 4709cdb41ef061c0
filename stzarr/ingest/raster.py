"""What all pictures share, and the one kind that lies on disk as a plain array: raw TIFF pixels and decoded scratch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import StoreError
from stzarr.store.source import ImageHandle


class Picture:
    """Facts of a picture, and the check of a box; the kinds of files add `_pixels`.

    Parameters
    ----------
    path : Path
    shape : (channels, height, width)
        After dropping alpha.
    dtype : numpy.dtype
        uint8 or uint16.
    channels : tuple of str
    compression : str
        Name of the codec in lower case; "none" for raw pixels.
    mpp : float, optional
        µm per pixel by the file's own metadata.
    notes : tuple of str
        What was left out or assumed, for provenance.
    """

    random_access = True

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        channels: tuple[str, ...],
        compression: str,
        *,
        mpp: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.channels = channels
        self.compression = compression
        self.mpp = mpp
        self.notes = notes

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all pixels when decoded, without alpha."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        """Return pixels of a half-open box inside the picture, shape (c, y1 - y0, x1 - x0), native byte order."""
        _, height, width = self.shape
        if not (0 <= y0 <= y1 <= height and 0 <= x0 <= x1 <= width):
            raise IndexError(f"rows {y0}:{y1}, columns {x0}:{x1} are not inside {height} x {width} pixels")
        return self._pixels(y0, y1, x0, x1)

    def decoded(self, folder: Path) -> ImageHandle:
        """Return an equal handle with random access: itself, for all kinds that have it."""
        return self

    def close(self) -> None:
        """Release the file."""

    def _pixels(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        raise TypeError(f"{type(self).__name__} does not say how to read pixels")


class RawPicture(Picture):
    """Pixels that lie on disk uncompressed and are read through a memory map, a box at a time.

    Parameters
    ----------
    like : Picture
        Whose facts to take over.
    pixels : array, shape (channels or more, height, width)
        A memory-mapped view; channels beyond ``like.shape`` (alpha) are never read.
    """

    def __init__(self, like: Picture, pixels: NDArray[Any]) -> None:
        super().__init__(
            like.path, like.shape, like.dtype, like.channels, like.compression, mpp=like.mpp, notes=like.notes
        )
        self._view = pixels[: like.shape[0]]

    def _pixels(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        return np.array(self._view[:, y0:y1, x0:x1], dtype=self.dtype, order="C", subok=False)

    def close(self) -> None:
        """Drop the memory map; reading afterwards is an error."""
        self._view = self._view[:0, :0, :0].copy()


def scratch_array(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, np.dtype[Any]]:
    """Return a new file-backed array in `folder`, its space reserved.

    The space is reserved first, because writing into a hole of a full disk would kill the process, not raise.

    Raises
    ------
    StoreError
        ST230: the disk has no room for it; what has been written of the store can be continued.
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    handle, name = tempfile.mkstemp(dir=folder, prefix="decoded-", suffix=".raw")
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, max(size, 1))
        else:
            os.truncate(handle, max(size, 1))
    except OSError as error:
        Path(name).unlink()
        raise StoreError(
            "ST230",
            f"no space for scratch: decoding needs {size / 2**30:.1f} GB: {error.strerror}",
            file=folder,
            cure="free space on that disk, or convert the picture to a tiled TIFF",
        ) from error
    finally:
        os.close(handle)
    return np.memmap(name, dtype=dtype, mode="r+", shape=shape)
