from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import TrainingError
from tests.training.test_baselines import lr_of
from training.normalise import Normaliser


def batch_of(seed: int, *, genes: int = 3, patches: int = 4, scale: float = 5.0) -> dict[str, Any]:
    rates = torch.rand(patches, genes, 9, 9, generator=torch.Generator().manual_seed(seed)) * scale
    hr = torch.poisson(rates, torch.Generator().manual_seed(seed)).int()
    lr, area = lr_of(hr, 4)
    return {
        "hr_counts": hr,
        "lr_counts": lr,
        "lr_area": area,
        "gene_mask": torch.ones(patches, genes, dtype=torch.bool),
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["sqrt", "log1p"]), st.floats(0.01, 1000))
def test_restore_inverts_residual(seed: int, transform: Literal["sqrt", "log1p"], scale: float) -> None:
    batch = batch_of(seed, scale=scale)
    fitted = Normaliser.fit(lambda: [batch], transform) if batch["hr_counts"].any() else None
    if fitted is None:
        return
    base = fitted.base(batch)
    back = fitted.restore(fitted.residual(batch["hr_counts"], base), base)
    assert torch.allclose(back, batch["hr_counts"].double(), rtol=1e-5, atol=1e-4)


def test_residuals_of_the_fitted_data_are_standardised() -> None:
    batches = [batch_of(seed) for seed in range(3)]
    fitted = Normaliser.fit(lambda: batches, "sqrt")
    residuals = torch.cat([fitted.residual(b["hr_counts"], fitted.base(b)) for b in batches]).double()
    assert torch.allclose(residuals.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(residuals.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(fitted.scale, torch.cat([b["hr_counts"] for b in batches]).double().mean((0, 2, 3)))


def test_a_gene_that_a_slide_lacks_does_not_count() -> None:
    whole, lacking = batch_of(0), batch_of(1)
    lacking["gene_mask"][:, 1] = False
    fitted = Normaliser.fit(lambda: [whole, lacking], "sqrt")
    assert fitted.scale[1] == pytest.approx(whole["hr_counts"][:, 1].double().mean().item())


def test_no_counts_are_refused() -> None:
    empty = batch_of(0)
    empty["hr_counts"].zero_()
    with pytest.raises(TrainingError, match="ST531"):
        Normaliser.fit(lambda: [empty], "sqrt")
    with pytest.raises(TrainingError, match="ST531"):
        Normaliser.fit(list, "sqrt")


def test_it_survives_its_file(tmp_path: Path) -> None:
    fitted = Normaliser.fit(lambda: [batch_of(0)], "log1p")
    fitted.save(tmp_path / "n.npz")
    loaded = Normaliser.load(tmp_path / "n.npz")
    assert loaded.transform == "log1p"
    for name in ("scale", "mean", "std"):
        assert torch.equal(getattr(loaded, name), getattr(fitted, name))
