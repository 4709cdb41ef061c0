from __future__ import annotations

import pytest
import torch

from training.models.unet import ConditionalUNet, prime_factors


def unet(factor: int = 4) -> ConditionalUNet:
    torch.manual_seed(0)
    return ConditionalUNet(3, 4, factor, channels=(8, 16, 16), layers=1, image_channels=8)


@pytest.mark.parametrize(("h", "w", "factor"), [(8, 8, 4), (16, 16, 1), (13, 10, 2), (7, 9, 5), (4, 4, 6)])
def test_any_grid_and_any_whole_factor(h: int, w: int, factor: int) -> None:
    image = torch.zeros(2, 3, h * factor, w * factor)
    steps = torch.tensor([0, 999])
    found = unet(factor)(torch.zeros(2, 3, h, w), steps, torch.zeros(2, 4, h, w), image)
    assert found.shape == (2, 3, h, w)


def test_the_first_prediction_is_zero_and_then_depends_on_all_inputs() -> None:
    model = unet()
    inputs = [torch.randn(1, 3, 8, 8), torch.tensor([500]), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32, 32)]
    assert not model(*inputs).any()
    torch.nn.init.normal_(model.unet.conv_out.weight)
    before = model(*inputs)
    for index, value in enumerate(inputs):
        changed = [*inputs[:index], value + 1, *inputs[index + 1 :]]
        assert not torch.allclose(model(*changed), before, atol=1e-6), index


def test_prime_factors() -> None:
    assert [list(prime_factors(n)) for n in (1, 2, 12, 35)] == [[], [2], [2, 2, 3], [5, 7]]
