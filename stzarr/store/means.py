"""The one definition of a mean of pixels: exact, and rounded half up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def block_means(pixels: NDArray[Any], factor: int, num: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """Return means over blocks of factor x factor pixels.

    Parameters
    ----------
    pixels : uint8 or uint16, shape (..., y, x)
        Both sides are whole multiples of `factor`.
    factor : int
    num : int64, shape (y / factor, x / factor), optional
        How many pixels of each block exist, where a block leaves the picture; the others are 0.

    Returns
    -------
    ndarray, shape (..., y / factor, x / factor), dtype of `pixels`
        Rounded half up; 0 where no pixel exists.
    """
    if factor == 1:
        return pixels
    *lead, height, width = pixels.shape
    wide = np.uint32 if pixels.itemsize == 1 else np.uint64
    rows = pixels.reshape(*lead, height // factor, factor, width).sum(axis=-2, dtype=wide)
    sums = rows.reshape(*lead, height // factor, width // factor, factor).sum(axis=-1, dtype=wide)
    weight: Any = factor**2 if num is None else np.maximum(num, 1).astype(wide)
    return ((sums + weight // 2) // weight).astype(pixels.dtype)
