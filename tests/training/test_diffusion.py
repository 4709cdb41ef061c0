from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.config import DiffusionConfig
from training.diffusion import Diffusion, Draw, keyed, keyed_normal


def test_a_samples_numbers_do_not_depend_on_its_batch() -> None:
    together = keyed_normal(3, Draw.NOISE, 5, [7, 8, 9], (2, 4, 4))
    alone = keyed_normal(3, Draw.NOISE, 5, [8], (2, 4, 4))
    assert torch.equal(together[1], alone[0])
    diffusion = Diffusion(DiffusionConfig())
    assert diffusion.timesteps(3, 5, [7, 8, 9])[1] == diffusion.timesteps(3, 5, [8])[0]


def test_every_part_of_the_key_counts() -> None:
    keys = [(0, Draw.NOISE, 0, 0), (1, Draw.NOISE, 0, 0), (0, Draw.SAMPLE, 0, 0), (0, Draw.NOISE, 1, 0),
            (0, Draw.NOISE, 0, 1), (0, Draw.NOISE, 0, -1)]  # fmt: skip
    drawn = {tuple(keyed(*key).standard_normal(3)) for key in keys}
    assert len(drawn) == len(keys)


def test_the_linear_schedule_is_the_published_one() -> None:
    diffusion = Diffusion(DiffusionConfig(schedule="linear"))
    left = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    clean, noise = torch.full((3, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1), -1.0)
    steps = torch.tensor([0, 400, 999])
    found = diffusion.add_noise(clean, noise, steps).flatten().double().numpy()
    assert found == pytest.approx(2 * np.sqrt(left[steps]) - np.sqrt(1 - left[steps]), abs=1e-5)


@pytest.mark.parametrize("prediction", ["sample", "v", "epsilon"])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_perfect_network_gives_the_truth(prediction: str, sampler: str) -> None:
    config = DiffusionConfig(prediction=prediction, sampler=sampler, sample_steps=10, schedule="linear")  # type: ignore[arg-type]
    diffusion = Diffusion(config)
    truth = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4).expand(2, 1, 4, 4)
    zero, one = torch.zeros_like(truth), torch.ones_like(truth)

    def denoise(x: Tensor, steps: Tensor) -> Tensor:
        signal, spread = diffusion.add_noise(one, zero, steps), diffusion.add_noise(zero, one, steps)
        return diffusion.target(truth, (x - signal * truth) / spread, steps)

    found = diffusion.sample(denoise, (1, 4, 4), seed=0, member=0, samples=[4, 5], device=torch.device("cpu"))
    assert torch.allclose(found, truth, atol=2e-3)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_samples_of_a_gaussian_have_its_mean_and_spread(sampler: str) -> None:
    """The best prediction of x_0 ~ N(m, s^2) is known; samples made with it must be N(m, s^2) again."""
    mean, spread = 0.5, 0.7
    config = DiffusionConfig(prediction="sample", sampler=sampler, sample_steps=100)  # type: ignore[arg-type]
    diffusion = Diffusion(config)

    def denoise(x: Tensor, steps: Tensor) -> Tensor:
        signal = diffusion.add_noise(torch.ones_like(x), torch.zeros_like(x), steps)
        noise = diffusion.add_noise(torch.zeros_like(x), torch.ones_like(x), steps)
        gain = signal * spread**2 / (signal**2 * spread**2 + noise**2)
        return mean + gain * (x - signal * mean)

    found = diffusion.sample(denoise, (1, 64, 64), seed=1, member=0, samples=[0, 1], device=torch.device("cpu"))
    assert found.mean().item() == pytest.approx(mean, abs=0.03)
    assert found.std().item() == pytest.approx(spread, rel=0.04)


def test_members_differ_and_repeat() -> None:
    diffusion = Diffusion(DiffusionConfig(sample_steps=2))

    def draw(member: int, samples: list[int]) -> Tensor:
        return diffusion.sample(
            lambda x, _: x, (1, 2, 2), seed=0, member=member, samples=samples, device=torch.device("cpu")
        )

    assert torch.equal(draw(0, [1, 2])[1], draw(0, [2])[0])
    assert not torch.equal(draw(0, [2]), draw(1, [2]))
