"""Counts to what the network sees, and back: a fixed scale a gene, a transform, and a residual over the LR map."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from stzarr.errors import TrainingError
from training.baselines import bicubic

MIN_SCALE = 1e-3
MIN_STD = 1e-3


@dataclass(frozen=True)
class Normaliser:
    """The map y = T(counts / scale), and r = (y_hr - y_base - mean) / std; all from training data, fixed for a run.

    Parameters
    ----------
    transform : {"sqrt", "log1p"}
        T.
    scale : Tensor, float64 [g]
        Mean count an HR pixel in training patches.
    mean, std : Tensor, float64 [g]
        Of y_hr - y_base in training patches.
    """

    transform: Literal["sqrt", "log1p"]
    scale: Tensor
    mean: Tensor
    std: Tensor

    def forward(self, counts: Tensor) -> Tensor:
        """Return y, float64 [b, g, h, w], of counts >= 0."""
        scaled = counts.double() / _maps(self.scale, counts)
        return scaled.sqrt() if self.transform == "sqrt" else scaled.log1p()

    def inverse(self, y: Tensor) -> Tensor:
        """Return counts, float64 [b, g, h, w]; y below 0 means 0."""
        y = y.double().clamp_min(0)
        return _maps(self.scale, y) * (y.square() if self.transform == "sqrt" else y.expm1())

    def residual(self, counts: Tensor, base: Tensor) -> Tensor:
        """Return r, float32 [b, g, h, w], of HR counts over a base y."""
        return ((self.forward(counts) - base - _maps(self.mean, base)) / _maps(self.std, base)).float()

    def restore(self, residual: Tensor, base: Tensor) -> Tensor:
        """Return counts, float64 [b, g, h, w], from r and the base y; the inverse of `residual`."""
        return self.inverse(residual.double() * _maps(self.std, base) + _maps(self.mean, base) + base)

    def base(self, batch: dict[str, Any]) -> Tensor:
        """Return y of the bicubic LR map, float64 [b, g, h, w]: what the target is a residual of."""
        shape = tuple(batch["hr_counts"].shape[-2:])
        return self.forward(bicubic(batch["lr_counts"], batch["lr_area"], shape))

    def to(self, device: torch.device) -> Normaliser:
        """Return a copy on a device."""
        return Normaliser(self.transform, self.scale.to(device), self.mean.to(device), self.std.to(device))

    @classmethod
    def fit(cls, batches: Callable[[], Iterable[dict[str, Any]]], transform: Literal["sqrt", "log1p"]) -> Self:
        """Measure scale, mean and std on training batches, read twice (the residual needs the scale) and never kept.

        Raises
        ------
        TrainingError
            ST531: there are no batches, or no counts in them.
        """
        scale, _ = _moments((batch["hr_counts"], batch["gene_mask"]) for batch in batches())
        if not scale.any():
            raise TrainingError("ST531", "the training patches hold no counts.", cure="other --genes or --store")
        scale = scale.clamp_min(MIN_SCALE)
        plain = cls(transform, scale, torch.zeros_like(scale), torch.ones_like(scale))
        mean, std = _moments(
            (plain.residual(batch["hr_counts"], plain.base(batch)), batch["gene_mask"]) for batch in batches()
        )
        return cls(transform, scale, mean, std.clamp_min(MIN_STD))

    def save(self, path: Path) -> None:
        """Write an .npz."""
        np.savez(path, transform=self.transform, scale=self.scale, mean=self.mean, std=self.std)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; nothing is unpickled."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in ("scale", "mean", "std")}
            return cls(str(stored["transform"]), **arrays)  # type: ignore[arg-type]


def _maps(values: Tensor, like: Tensor) -> Tensor:
    """Shape values [g] to multiply maps [b, g, h, w]."""
    return values.to(like.device).reshape(-1, 1, 1)


def _moments(maps: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each gene, [g], over maps [b, g, h, w] where the mask [b, g] is true."""
    number: Tensor = torch.zeros(())
    total: Tensor = torch.zeros(())
    square: Tensor = torch.zeros(())
    for values, mask in maps:
        chosen = values.double() * mask[..., None, None]
        number = number + mask.double().sum(0) * values.shape[-2] * values.shape[-1]
        total = total + chosen.sum((0, 2, 3))
        square = square + chosen.square().sum((0, 2, 3))
    mean = total / number.clamp_min(1)
    return mean, (square / number.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
