"""The tissue is one pure function: blocks agree, the section covers what it should, nuclei are whole."""

from __future__ import annotations

import numpy as np
import pytest

from stzarr.simulate.tissue import Tissue

TISSUE = Tissue(1, (1000.0, 800.0))


def test_blocks_agree_with_the_whole() -> None:
    xs, ys = np.meshgrid(np.arange(300.0, 420.0, 0.7), np.arange(350.0, 450.0, 0.7))
    whole = TISSUE.sample(xs, ys)
    part = TISSUE.sample(xs[40:90, 60:130].copy(), ys[40:90, 60:130].copy())
    for name in ("regions", "coverage", "stain", "halo", "fibre", "grain"):
        difference = np.abs(getattr(whole, name)[40:90, 60:130] - getattr(part, name))
        assert difference.max() < 2e-3, name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size_um", [(200.0, 200.0), (1000.0, 600.0), (6700.0, 6700.0)])
def test_section_covers_about_three_quarters(seed: int, size_um: tuple[float, float]) -> None:
    width, height = size_um
    xs, ys = np.meshgrid(np.linspace(0, width, 200), np.linspace(0, height, 200))
    sample = Tissue(seed, size_um).sample(xs, ys)
    inside = sample.coverage > 0.5
    assert 0.65 < inside.mean() < 0.85
    assert np.allclose(sample.regions.sum(axis=-1), 1, atol=1e-5)
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    assert border.mean() < 0.05


def test_full_size_holds_every_region() -> None:
    xs, ys = np.meshgrid(np.linspace(0, 6700, 300), np.linspace(0, 6700, 300))
    sample = Tissue(0, (6700.0, 6700.0)).sample(xs, ys)
    assert (sample.regions[sample.coverage > 0.5].mean(axis=0) > 0.1).all()
    assert sample.regions.max(axis=-1).mean() > 0.7, "regions are distinct, not mixtures everywhere"


def test_nuclei_have_no_cut_edges() -> None:
    """Between neighbouring places 0.05 µm apart no field jumps: no nucleus ends at a border of the cell lattice."""
    xs, ys = np.meshgrid(np.arange(400.0, 450.0, 0.05), np.arange(400.0, 450.0, 0.05))
    sample = TISSUE.sample(xs, ys)
    assert sample.stain.max() > 0.9
    for field, limit in ((sample.stain, 0.25), (sample.halo, 0.05)):
        assert max(np.abs(np.diff(field, axis=axis)).max() for axis in (0, 1)) < limit
