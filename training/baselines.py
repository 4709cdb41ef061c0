"""What the LR grid alone says about HR: predictions without learning, and the sums that every prediction must keep."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def lr_factor(lr_area: Tensor, shape: tuple[int, int]) -> int:
    """Return HR pixels a full LR pixel along a side, from the shares of full LR pixels, [lh, lw], and the HR shape."""
    return round(math.sqrt(shape[0] * shape[1] / float(lr_area.sum())))


def lr_density(lr_counts: Tensor, lr_area: Tensor, factor: int) -> Tensor:
    """Divide LR counts by the HR pixels that each LR pixel covers: counts an HR pixel, float64 [..., lh, lw]."""
    return lr_counts.double() / (lr_area.double() * factor**2)


def nearest(lr_counts: Tensor, lr_area: Tensor, shape: tuple[int, int]) -> Tensor:
    """Spread each LR pixel's counts evenly over its HR pixels, float64 [..., h, w]; sums are conserved.

    Parameters
    ----------
    lr_counts : Tensor, [..., lh, lw]
        Counts of LR pixels; pixel i covers HR pixels [i f, (i + 1) f), the last ones fewer.
    lr_area : Tensor, [lh, lw]
        Share of a full LR pixel that each covers.
    shape : (h, w)
        The HR grid.
    """
    factor = lr_factor(lr_area, shape)
    density = lr_density(lr_counts, lr_area, factor)
    fine = density.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return fine[..., : shape[0], : shape[1]]


def bicubic(lr_counts: Tensor, lr_area: Tensor, shape: tuple[int, int]) -> Tensor:
    """Interpolate the LR density bicubically, clipped at 0, float64 [b, c, h, w].

    Partial LR pixels at the lower and right edge count with their density, placed at the centre of a full pixel.
    Parameters as for `nearest`.
    """
    factor = lr_factor(lr_area, shape)
    density = lr_density(lr_counts, lr_area, factor)
    fine = F.interpolate(density, scale_factor=factor, mode="bicubic", align_corners=False)
    return fine[..., : shape[0], : shape[1]].clamp_min(0)


def conserve(maps: Tensor, lr_counts: Tensor, lr_area: Tensor) -> Tensor:
    """Rescale HR maps >= 0 so that their sums over LR pixels are the LR counts, which are known.

    Within an LR pixel the proportions stay; where a map is zero all over an LR pixel, its counts are spread evenly.

    Parameters
    ----------
    maps : Tensor, [b, c, h, w]
        Counts of HR pixels, or anything proportional to them within an LR pixel.
    lr_counts, lr_area : Tensor, [b, c, lh, lw] and [lh, lw]
        As for `nearest`.

    Returns
    -------
    Tensor, float64 [b, c, h, w]
    """
    h, w = maps.shape[-2:]
    factor = lr_factor(lr_area, (h, w))
    rows, cols = lr_counts.shape[-2:]
    whole = F.pad(maps.double(), (0, cols * factor - w, 0, rows * factor - h))
    sums = whole.reshape(*maps.shape[:-2], rows, factor, cols, factor).sum((-3, -1))
    empty = sums <= 0
    ratio = torch.where(empty, 0.0, lr_counts.double() / torch.where(empty, 1.0, sums))
    even = torch.where(empty, lr_density(lr_counts, lr_area, factor), 0.0)

    def on_hr(values: Tensor) -> Tensor:
        return values.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)[..., :h, :w]

    return maps.double() * on_hr(ratio) + on_hr(even)
