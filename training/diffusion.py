"""The noise process: what training draws and how a sample is made, with randomness that belongs to the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy.random import Generator, Philox
from torch import Tensor

from training.config import DiffusionConfig

BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"sample": "sample", "v": "v_prediction", "epsilon": "epsilon"}

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy [b, c, h, w], timesteps int64 [b]) -> the network's prediction [b, c, h, w]."""


class Draw(IntEnum):
    """What a random number is for; a part of its key."""

    TIMESTEP = 0
    NOISE = 1
    SAMPLE = 2


def keyed(seed: int, draw: Draw, epoch: int, sample: int) -> Generator:
    """Return the random numbers of one sample: equal on every rank, worker and batch that it may land in.

    Philox is a counter-based generator (Salmon et al. 2011): the key is (seed, draw), the upper half of the counter is
    (epoch, sample), so that no two streams of numbers overlap.
    """
    key = np.array([seed, int(draw)], np.uint64)
    counter = np.array([0, 0, epoch, sample % 2**64], np.uint64)  # padding has the number -1
    return Generator(Philox(key=key, counter=counter))


def keyed_normal(seed: int, draw: Draw, epoch: int, samples: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Draw standard normals, float32 [b, *shape], one keyed generator for each sample."""
    drawn = [keyed(seed, draw, epoch, sample).standard_normal(shape, np.float32) for sample in samples]
    return torch.from_numpy(np.stack(drawn))


class Diffusion:
    """A variance-preserving process x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps over `train_timesteps` steps.

    Parameters
    ----------
    config : DiffusionConfig
        Schedule, prediction and sampler. The schedule's arithmetic is diffusers'.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self._scheduler = self._make_scheduler()

    def _make_scheduler(self) -> DDIMScheduler:
        # Trailing spacing starts from the last step, where almost nothing but noise is left: Lin et al. 2024, table 2.
        return DDIMScheduler(
            num_train_timesteps=self.config.train_timesteps,
            beta_schedule=BETAS[self.config.schedule],
            prediction_type=PREDICTIONS[self.config.prediction],
            timestep_spacing="trailing",
            clip_sample=False,
        )

    def timesteps(self, seed: int, epoch: int, samples: Iterable[int]) -> Tensor:
        """Draw the training timestep of each sample, uniform in [0, train_timesteps), int64 [b]."""
        last = self.config.train_timesteps
        drawn = [int(keyed(seed, Draw.TIMESTEP, epoch, sample).integers(last)) for sample in samples]
        return torch.tensor(drawn, dtype=torch.int64)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t for each sample's timestep."""
        return self._scheduler.add_noise(clean, noise, timesteps)

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network should predict: x_0, eps, or v = sqrt(a) eps - sqrt(1 - a) x_0."""
        if self.config.prediction == "sample":
            return clean
        if self.config.prediction == "epsilon":
            return noise
        return self._scheduler.get_velocity(clean, noise, timesteps)

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        shape: tuple[int, ...],
        *,
        seed: int,
        member: int,
        samples: Iterable[int],
        device: torch.device,
    ) -> Tensor:
        """Reverse the process from noise in `sample_steps` evenly spaced steps.

        ``ddim`` is deterministic after the first draw, ``ancestral`` is the same step with eta = 1, which is DDPM's
        posterior on the respaced chain (Song et al. 2021, eq. 12 and 16).

        Parameters
        ----------
        denoise : callable
            The network under its condition.
        shape : tuple of int
            (c, h, w) of one sample.
        member : int
            Number of the sample within its ensemble; with `seed` and the sample's number it keys all randomness.
        samples : iterable of int
            Patch numbers, one for each element of the batch.

        Returns
        -------
        Tensor, float32 [b, c, h, w]
        """
        generators = [keyed(seed, Draw.SAMPLE, member, sample) for sample in samples]

        def normal() -> Tensor:
            drawn = np.stack([generator.standard_normal(shape, np.float32) for generator in generators])
            return torch.from_numpy(drawn).to(device)

        scheduler = self._make_scheduler()
        scheduler.set_timesteps(self.config.sample_steps)
        eta = 1.0 if self.config.sampler == "ancestral" else 0.0
        x = normal()
        for timestep in scheduler.timesteps.tolist():
            steps = torch.full((len(generators),), timestep, dtype=torch.int64, device=device)
            prediction = denoise(x, steps).float()
            noise = normal() if eta else None
            x = scheduler.step(prediction, timestep, x, eta=eta, variance_noise=noise).prev_sample
        return x
