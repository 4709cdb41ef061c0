"""A U-Net that denoises maps under a condition of maps and a finer image.

Shapes: b batch, c target maps, m condition maps, h w their grid, k image pixels a cell, f image features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

GROUPS = 8


class ConditionalUNet(nn.Module):
    """diffusers' U-Net on [noisy maps, condition maps, image features], all on the grid of the maps.

    Parameters
    ----------
    num_maps : int
        Maps to denoise, c.
    num_conditions : int
        Condition maps, m.
    image_factor : int
        Image pixels a cell along a side, k.
    channels : tuple of int
        Channels of each resolution; each after the first halves the grid.
    layers : int
        Residual blocks of each resolution.
    image_channels : int
        Image features, f.
    """

    def __init__(
        self,
        num_maps: int,
        num_conditions: int,
        image_factor: int,
        *,
        channels: tuple[int, ...],
        layers: int,
        image_channels: int,
    ) -> None:
        super().__init__()
        self.image_stem = image_stem(image_factor, image_channels)
        self.multiple = 2 ** (len(channels) - 1)
        self.unet = UNet2DModel(
            in_channels=num_maps + num_conditions + image_channels,
            out_channels=num_maps,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=GROUPS,
            resnet_time_scale_shift="scale_shift",
            dropout=0.0,
        )
        # Zero at the start: the first prediction is the mean of the standardised target.
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def encode(self, maps: Tensor, image: Tensor) -> Tensor:
        """Bring the condition to the grid of the maps: [b, m, h, w] and [b, 3, kh, kw] -> [b, m + f, h, w].

        It does not depend on the timestep: a sampler calls it once.
        """
        return torch.cat([maps, self.image_stem(image)], dim=1)

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Predict from x_t [b, c, h, w], timesteps [b] and an encoded condition [b, m + f, h, w]; any h and w."""
        h, w = noisy.shape[-2:]
        x = torch.cat([noisy, condition], dim=1)
        pad = (0, -w % self.multiple, 0, -h % self.multiple)
        if any(pad):
            x = F.pad(x, pad, mode="replicate")
        return self.unet(x, timesteps, return_dict=False)[0][..., :h, :w]

    def forward(self, noisy: Tensor, timesteps: Tensor, maps: Tensor, image: Tensor) -> Tensor:
        """Encode and denoise."""
        return self.denoise(noisy, timesteps, self.encode(maps, image))


def image_stem(factor: int, channels: int) -> nn.Sequential:
    """Build the strided convolutions that bring an RGB image down by a whole factor, prime by prime, largest last."""
    layers: list[nn.Module] = []
    width, steps = 3, list(prime_factors(factor))
    for index, prime in enumerate(steps):
        out = max(GROUPS, channels // 2 ** (len(steps) - 1 - index) // GROUPS * GROUPS)
        # Kernels overlap by half a stride so that features do not depend on the phase of the grid.
        layers += [nn.Conv2d(width, out, kernel_size=prime + 2, stride=prime, padding=1), nn.SiLU()]
        width = out
    layers += [nn.Conv2d(width, channels, 3, padding=1), nn.GroupNorm(GROUPS, channels), nn.SiLU()]
    layers += [nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*layers)


def prime_factors(number: int) -> Iterator[int]:
    """Yield the prime factors of a positive number, ascending, with repetition."""
    factor = 2
    while number > 1:
        while number % factor == 0:
            yield factor
            number //= factor
        factor += 1
