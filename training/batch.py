"""What the stream yields, and the two things everybody does with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stzarr.stream.batches import SHARED

Batch = dict[str, Any]
"""Tensors and provenance by name; tensors have the batch axis first, but for those in SHARED."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def select(batch: Batch, keep: Tensor) -> Batch:
    """Return the patches of a batch where `keep`, bool [b], is true."""
    return {
        name: value[keep] if isinstance(value, Tensor) and name not in SHARED else value
        for name, value in batch.items()
    }
