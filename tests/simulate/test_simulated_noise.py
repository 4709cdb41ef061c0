"""Random fields are functions of place and seed, whatever the block."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stzarr.simulate.noise import hash_lattice, periodic_texture, stream_key, uniforms, value_noise

KEY = stream_key(5, 1)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_hash_depends_on_the_position_only(x: int, y: int) -> None:
    block = hash_lattice(KEY, np.arange(x - 2, x + 3), np.arange(y - 1, y + 4))
    alone = hash_lattice(KEY, np.array([x]), np.array([y]))
    assert block[1, 2] == alone[0, 0]


def test_hashed_uniforms_are_uniform_and_uncorrelated() -> None:
    bits = hash_lattice(KEY, np.arange(200), np.arange(200))
    parts = [uniforms(bits, part).ravel() for part in range(4)]
    for part in parts:
        histogram = np.histogram(part, bins=20, range=(0, 1))[0]
        assert ((histogram - 2000) ** 2 / 2000).sum() < 50  # chi square, 19 degrees of freedom
    grid = parts[0].reshape(200, 200)
    pairs = [(parts[0], parts[1]), (grid[1:].ravel(), grid[:-1].ravel()), (grid[:, 1:].ravel(), grid[:, :-1].ravel())]
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in pairs) < 0.02


def test_streams_and_seeds_differ() -> None:
    keys = {int(stream_key(seed, stream)) for seed in range(4) for stream in range(4)}
    assert len(keys) == 16


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(5, 500))
def test_value_noise_depends_on_the_place_only_and_is_bounded(x: float, y: float, wavelength: float) -> None:
    xs, ys = x + np.linspace(-50, 50, 11), y + np.linspace(-30, 30, 7)
    block = value_noise(KEY, wavelength, xs, ys)
    assert block[3, 5] == value_noise(KEY, wavelength, xs[5:6], ys[3:4])[0, 0]
    assert np.abs(block).max() <= 1


def test_texture_is_periodic_and_normalised() -> None:
    texture = periodic_texture(0, 1)
    assert np.allclose(texture.mean(axis=(0, 1)), 0, atol=0.01)
    assert np.allclose(texture.std(axis=(0, 1)), 1, atol=0.02)
    inside = np.abs(np.diff(texture, axis=0)).mean(axis=(0, 1))
    across_the_seam = np.abs(texture[0] - texture[-1]).mean(axis=0)
    assert (across_the_seam < 1.5 * inside).all()
