from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.baselines import bicubic, conserve, lr_factor, nearest


def lr_of(hr: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Sum HR maps over LR pixels and return their areas; written apart from the stream's code."""
    h, w = hr.shape[-2:]
    rows, cols = -(-h // factor), -(-w // factor)
    lr = torch.zeros(*hr.shape[:-2], rows, cols, dtype=hr.dtype)
    area = torch.zeros(rows, cols)
    for y in range(h):
        for x in range(w):
            lr[..., y // factor, x // factor] += hr[..., y, x]
            area[y // factor, x // factor] += 1 / factor**2
    return lr, area


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(6, 13), st.integers(6, 13), st.integers(0, 2**32))
def test_nearest_gives_every_lr_pixel_its_counts_back(factor: int, h: int, w: int, seed: int) -> None:
    hr = torch.randint(0, 50, (2, 3, h, w), generator=torch.Generator().manual_seed(seed))
    lr, area = lr_of(hr, factor)
    assert lr_factor(area, (h, w)) == factor
    fine = nearest(lr, area, (h, w))
    assert torch.allclose(lr_of(fine, factor)[0], lr.double(), rtol=1e-6, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(6, 13), st.integers(0, 2**32))
def test_conserved_maps_have_the_lr_sums_and_their_own_proportions(factor: int, size: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    lr, area = lr_of(torch.randint(0, 9, (2, 3, size, size), generator=draw), factor)
    maps = torch.rand(2, 3, size, size, generator=draw, dtype=torch.float64)
    maps[0, 0, :factor, :factor] = 0
    fixed = conserve(maps, lr, area)
    assert torch.allclose(lr_of(fixed, factor)[0], lr.double(), rtol=1e-6, atol=1e-9)
    assert fixed.min() >= 0
    assert torch.allclose(fixed[0, 0, :factor, :factor], nearest(lr, area, (size, size))[0, 0, :factor, :factor])
    rows = slice(0, factor)
    if lr[1, 1, 0, 0] > 0:
        ratio = fixed[1, 1, rows, rows] / maps[1, 1, rows, rows]
        assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))


def test_nearest_by_hand() -> None:
    lr = torch.tensor([[[[8, 2], [6, 3]]]])
    area = torch.tensor([[1.0, 0.5], [0.5, 0.25]])
    wanted = [[2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [3.0, 3.0, 3.0]]
    assert nearest(lr, area, (3, 3))[0, 0].tolist() == wanted


def test_bicubic_keeps_a_constant_density_and_is_never_negative() -> None:
    hr = torch.full((1, 1, 13, 13), 4)
    lr, area = lr_of(hr, 5)
    assert torch.allclose(bicubic(lr, area, (13, 13)), hr.double(), rtol=1e-5)
    spike = torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    spike[..., 8:12, 8:12] = 100
    fine = bicubic(*lr_of(spike, 4), (16, 16))
    assert fine.min() == 0
    assert fine.max() > 60


def test_bicubic_is_the_interpolation_of_another_library() -> None:
    cv2 = pytest.importorskip("cv2")
    lr = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100 + 50
    fine = bicubic(lr, torch.ones(8, 8), (32, 32))[0, 0]
    other = cv2.resize(lr[0, 0].numpy() / 16, (32, 32), interpolation=cv2.INTER_CUBIC)
    assert torch.allclose(fine, torch.from_numpy(other), rtol=1e-3)
