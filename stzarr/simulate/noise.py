"""Random fields that are functions of place: any block of a slide can be evaluated alone and always looks the same.

Randomness comes from a hash of integer lattice positions, never from the state of a generator, so neither the order nor
the size of blocks matters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TEXTURE_PX = 1024
TEXTURE_UM = 0.5
"""Side and pixel of the periodic texture: it repeats every 512 µm."""


def stream_key(seed: int, stream: int) -> np.uint64:
    """Return the key of one independent stream of a seed."""
    return np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]


def hash_lattice(key: np.uint64, ix: NDArray[np.int64], iy: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash integer positions: row `iy` by column `ix`, both 1-D, to uint64 of shape (len(iy), len(ix)).

    The finaliser is splitmix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    columns = _mix(ix.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key)
    rows = iy.astype(np.int64).view(np.uint64) * np.uint64(0xD1B54A32D192ED03)
    return _mix(columns[None, :] ^ rows[:, None])


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(bits: NDArray[np.uint64], part: int) -> NDArray[np.float64]:
    """Return part 0 to 3 of hashed bits as 16-bit uniforms in [0, 1)."""
    return ((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.float64) / 65536.0


def value_noise(
    key: np.uint64, wavelength: float, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Evaluate smooth noise in [-1, 1] on the grid of `xs` by `ys`, shape (len(ys), len(xs)).

    Values hashed on a lattice of `wavelength` (unit of the coordinates) under uniform cubic B-splines, which leave no
    squares of the lattice to be seen.
    """
    (ix, wx), (iy, wy) = _taps(xs / wavelength), _taps(ys / wavelength)
    x0, y0 = ix.min(), iy.min()
    lattice = hash_lattice(key, np.arange(x0, ix.max() + 4), np.arange(y0, iy.max() + 4))
    values = (lattice >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    rows = sum((values[iy - y0 + tap] * wy[tap][:, None] for tap in range(4)), np.zeros(1))
    return sum((rows[:, ix - x0 + tap] * wx[tap] for tap in range(4)), np.zeros(1))


def _taps(t: NDArray[np.float64]) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Return the first of the four lattice points under each coordinate's B-spline, and their weights."""
    cell = np.floor(t)
    f = t - cell
    g = 1 - f
    weights = [g**3, 3 * f**3 - 6 * f**2 + 4, 3 * g**3 - 6 * g**2 + 4, f**3]
    return cell.astype(np.int64) - 1, [weight / 6 for weight in weights]


def periodic_texture(seed: int, stream: int) -> NDArray[np.float32]:
    """Make the four periodic textures of tissue: fibres, grain, and a smooth displacement in x and in y.

    Returns
    -------
    float32, shape (TEXTURE_PX, TEXTURE_PX, 4)
        Mean 0, variance 1, cut at 3 standard deviations; TEXTURE_UM a pixel.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
    shapes_um = ((5.0, 0.7), (0.6, 0.6), (3.0, 3.0), (3.0, 3.0))
    layers = [_filtered_noise(generator, along_um, across_um) for along_um, across_um in shapes_um]
    return np.stack(layers, axis=-1)


def _filtered_noise(generator: np.random.Generator, along_um: float, across_um: float) -> NDArray[np.float32]:
    """Return white noise through an elliptic Gaussian of these standard deviations, its long axis at 30 degrees."""
    white = generator.standard_normal((TEXTURE_PX, TEXTURE_PX), dtype=np.float32)
    fy = np.fft.fftfreq(TEXTURE_PX, TEXTURE_UM)[:, None]
    fx = np.fft.rfftfreq(TEXTURE_PX, TEXTURE_UM)[None, :]
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    along, across = cos * fx + sin * fy, cos * fy - sin * fx
    gain = np.exp(-2 * np.pi**2 * ((along * along_um) ** 2 + (across * across_um) ** 2))
    layer = np.fft.irfft2(np.fft.rfft2(white) * gain, s=white.shape)
    return np.clip((layer - layer.mean()) / layer.std(), -3, 3).astype(np.float32)
