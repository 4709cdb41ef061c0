from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from skimage.metrics import structural_similarity

from stzarr.errors import TrainingError
from training.metrics import MapScores, pearson, squared_error, ssim, ssim_window, total_error


def maps(seed: int, h: int = 16, w: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    target = torch.poisson(torch.rand(2, 3, h, w, generator=draw) * 9, draw).int()
    predicted = (target + torch.randn(2, 3, h, w, generator=draw) * 2).clamp_min(0).double()
    return predicted, target, torch.rand(2, h, w, generator=draw) < 0.7


def test_squared_error_by_hand() -> None:
    predicted = torch.tensor([[[[1.0, 5.0], [0.0, 9.0]]]])
    target = torch.tensor([[[[0, 2], [0, 0]]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    assert squared_error(predicted, target, mask).item() == pytest.approx(10 / 3)


def test_pearson_is_scipys_over_the_tissue() -> None:
    predicted, target, mask = maps(0)
    found = pearson(predicted, target, mask)
    for b in range(2):
        for g in range(3):
            wanted = pearsonr(predicted[b, g][mask[b]].numpy(), target[b, g][mask[b]].numpy()).statistic
            assert found[b, g].item() == pytest.approx(wanted, abs=1e-12)


def test_pearson_has_a_sign_and_is_undefined_for_constants() -> None:
    target = torch.arange(16).reshape(1, 1, 4, 4)
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    assert pearson(-target.double(), target, mask).item() == pytest.approx(-1)
    assert pearson(torch.full((1, 1, 4, 4), 0.1), target, mask).isnan().item()
    assert pearson(target.double(), torch.full_like(target, 3), mask).isnan().item()
    assert pearson(target.double(), target, torch.zeros_like(mask)).isnan().item()


@pytest.mark.parametrize(("h", "w", "window"), [(16, 12, 7), (7, 7, 7), (6, 9, 5), (5, 5, 5), (4, 4, 3), (3, 8, 3)])
def test_ssim_is_scikit_images(h: int, w: int, window: int) -> None:
    predicted, target, _ = maps(1, h, w)
    assert ssim_window(h, w) == window
    found = ssim(predicted, target)
    for b in range(2):
        for g in range(3):
            truth = target[b, g].numpy().astype(np.float64)
            wanted = structural_similarity(
                truth, predicted[b, g].numpy(), win_size=window, data_range=truth.max(), use_sample_covariance=False
            )
            assert found[b, g].item() == pytest.approx(wanted, abs=1e-6)


def test_ssim_needs_three_pixels_and_counts() -> None:
    with pytest.raises(TrainingError, match="ST530"):
        ssim(torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))
    assert ssim(torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)).isnan().item()


def test_total_error_by_hand() -> None:
    target = torch.tensor([[[[3, 1]], [[0, 0]]]])
    predicted = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])
    found = total_error(predicted, target)[0].tolist()
    assert found[0] == pytest.approx(0.25)
    assert math.isnan(found[1])


def test_scores_average_over_valid_patches_and_present_genes_in_any_batches() -> None:
    predicted, target, tissue = maps(2)
    target[1, 2] = 0
    present = torch.tensor([[True, False, True], [True, True, True]])
    batch = {"hr_counts": target, "tissue": tissue, "gene_mask": present, "valid": torch.tensor([True, True])}
    whole = MapScores(["A", "B", "C"])
    whole.update({"method": predicted}, batch, torch.ones_like(predicted))
    parts = MapScores(["A", "B", "C"])
    for keep in ([True, False], [False, True]):
        parts.update({"method": predicted}, batch | {"valid": torch.tensor(keep)}, torch.ones_like(predicted))
    assert parts.report() == whole.report()
    report = whole.report()
    found = report["methods"]["method"]
    errors = squared_error(predicted, target, tissue)
    assert found["rmse"] == pytest.approx(errors[present].mean().sqrt().item())
    assert found["genes"]["rmse"]["B"] == pytest.approx(errors[1, 1].sqrt().item())
    correlations = pearson(predicted, target, tissue)[present]
    assert found["pearson"] == pytest.approx(correlations[~correlations.isnan()].mean().item())
    assert found["undefined"] == {"rmse": 0, "pearson": 1, "ssim": 1, "total_error": 1}
    assert (report["maps"], report["patches"], report["spread"]) == (5, 2, 1.0)
    assert "| method | " in whole.table()


def test_members_are_scored_alone_and_their_mean_can_only_gain() -> None:
    predicted, target, tissue = maps(5)
    members = torch.stack([predicted, predicted.flip(-1), predicted.flip(-2)])
    batch = {
        "valid": torch.ones(2, dtype=torch.bool),
        "hr_counts": target,
        "tissue": tissue,
        "gene_mask": torch.ones(2, 3, dtype=torch.bool),
    }
    scores = MapScores(["A", "B", "C"])
    scores.update({"one": members, "mean": members.mean(0)}, batch, members.std(0, correction=0))
    methods, spread = scores.report()["methods"], scores.report()["spread"]
    alone = torch.stack([squared_error(member, target, tissue) for member in members])
    assert methods["one"]["rmse"] == pytest.approx(alone.mean().sqrt().item())
    assert methods["one"]["rmse"] ** 2 == pytest.approx(methods["mean"]["rmse"] ** 2 + spread**2)
