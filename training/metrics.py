"""How predicted count maps are judged; every definition is written where it is computed.

All functions take maps [b, g, h, w] of counts and return one value for each patch and gene, [b, g], NaN where the
metric is not defined. `MapScores` averages them over the patches of a split and counts what was undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image.ssim import structural_similarity_index_measure

from stzarr.errors import TrainingError

SSIM_WINDOW = 7
NAN = float("nan")


def squared_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the mask's pixels of (predicted - target)^2, counts squared.

    Parameters
    ----------
    predicted, target : Tensor, [b, g, h, w]
        Counts an HR pixel.
    mask : Tensor, bool [b, h, w]
        Pixels that count (tissue); a patch without any is NaN.
    """
    weight = mask[:, None].double()
    return ((predicted.double() - target.double()).square() * weight).sum((-2, -1)) / _pixels(weight)


def pearson(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the signed Pearson correlation over the mask's pixels, in [-1, 1].

    NaN where either map is constant over the mask: the correlation of a constant is not defined.
    """
    weight = mask[:, None].double()
    pixels = _pixels(weight)

    def centred(maps: Tensor) -> Tensor:
        values = maps.double()
        return (values - ((values * weight).sum((-2, -1)) / pixels)[..., None, None]) * weight

    p, t = centred(predicted), centred(target)
    norms = p.square().sum((-2, -1)).sqrt() * t.square().sum((-2, -1)).sqrt()
    constant = _constant(predicted, mask) | _constant(target, mask)
    return torch.where(constant, NAN, (p * t).sum((-2, -1)) / norms)


def ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the 2-D structural similarity of whole maps (Wang et al. 2004; K1 0.01, K2 0.03).

    Uniform window of `ssim_window` pixels, population covariance, mean over the pixels whose window lies inside. The
    data range of a map is the maximum of its target; NaN where the target is all zero.

    Raises
    ------
    TrainingError
        ST530: a map with fewer than 3 pixels along a side.
    """
    b, g, h, w = target.shape
    window = ssim_window(h, w)
    top = target.double().amax((-2, -1))
    # SSIM does not change when both maps and the range are divided by one number: with range 1 all maps go at once.
    scale = top.clamp_min(torch.finfo(torch.float64).tiny)[..., None, None]
    p, t = ((maps.double() / scale).reshape(b * g, 1, h, w) for maps in (predicted, target))
    _, similar = structural_similarity_index_measure(
        p, t, gaussian_kernel=False, kernel_size=window, data_range=1.0, return_full_image=True
    )
    edge = window // 2
    values = torch.as_tensor(similar)[..., edge : h - edge, edge : w - edge].mean((-2, -1)).reshape(b, g)
    return torch.where(top == 0, NAN, values)


def ssim_window(h: int, w: int) -> int:
    """Return 7, or for smaller maps the largest odd window that fits, at least 3."""
    fits = min(h, w)
    if fits < 3:
        raise TrainingError(
            "ST530", f"SSIM needs maps of 3 x 3 pixels, these are {h} x {w}.", cure="a larger --patch-um"
        )
    return min(SSIM_WINDOW, fits - 1 + fits % 2)


def total_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return |sum predicted - sum target| / sum target over whole maps; NaN where the target is all zero."""
    truth = target.double().sum((-2, -1))
    wrong = (predicted.double().sum((-2, -1)) - truth).abs() / truth.clamp_min(1)
    return torch.where(truth == 0, NAN, wrong)


def _pixels(weight: Tensor) -> Tensor:
    number = weight.sum((-2, -1))
    return torch.where(number == 0, NAN, number)


def _constant(maps: Tensor, mask: Tensor) -> Tensor:
    """Tell which maps have one value over the mask, [b, g]; exact, where a variance would show rounding."""
    inside = mask[:, None]
    low = torch.where(inside, maps.double(), torch.inf).amin((-2, -1))
    high = torch.where(inside, maps.double(), -torch.inf).amax((-2, -1))
    return ~(high > low)


METRICS = ("rmse", "pearson", "ssim", "total_error")
DEFINITIONS = {
    "rmse": "square root of the mean over patches of the mean squared error of counts over tissue pixels; "
    "a gene's own, and over genes the root of the mean of their squares",
    "pearson": "signed Pearson correlation over tissue pixels for each patch and gene; mean over the defined ones",
    "ssim": "2-D SSIM for each patch and gene, uniform window, data range = maximum of the target map; mean",
    "total_error": "|sum predicted - sum target| / sum target for each patch and gene; mean",
    "spread": "root mean square over patches, genes and tissue pixels of the standard deviation of the samples",
}


class MapScores:
    """Metrics of several methods over the patches of a split; holds sums, not maps.

    Patches with ``valid`` false and genes that a slide lacks (``gene_mask``) are left out.

    Parameters
    ----------
    genes : sequence of str
        Names, in the order of the maps' axis.
    """

    def __init__(self, genes: Sequence[str]) -> None:
        self._genes = list(genes)
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._numbers: dict[tuple[str, str], Tensor] = {}
        self._maps = torch.zeros(len(genes), dtype=torch.int64)
        self._patches = 0
        self._window = SSIM_WINDOW

    def update(self, predicted: Mapping[str, Tensor], batch: dict[str, Any], spread: Tensor) -> None:
        """Add a batch, all on the CPU.

        Parameters
        ----------
        predicted : mapping
            Counts by method, [b, g, h, w]; or [members, b, g, h, w], each scored alone and the scores averaged.
        batch : dict
        spread : Tensor, [b, g, h, w]
            Standard deviation of the samples.
        """
        keep = batch["valid"]
        target, tissue, present = (batch[key][keep] for key in ("hr_counts", "tissue", "gene_mask"))
        self._window = ssim_window(*target.shape[-2:])
        self._patches += int(keep.sum())
        self._maps += present.sum(0)
        measures: dict[str, Callable[[Tensor], Tensor]] = {
            "rmse": lambda maps: squared_error(maps, target, tissue),
            "pearson": lambda maps: pearson(maps, target, tissue),
            "ssim": lambda maps: ssim(maps, target),
            "total_error": lambda maps: total_error(maps, target),
        }
        for method, maps in predicted.items():
            members = maps if maps.ndim == 5 else maps[None]
            for metric, measure in measures.items():
                scores = torch.stack([measure(member[keep]) for member in members])
                self._add(method, metric, scores.nanmean(0), present)
        self._add("samples", "spread", squared_error(spread[keep], torch.zeros_like(target), tissue), present)

    def _add(self, method: str, metric: str, values: Tensor, present: Tensor) -> None:
        defined = present & ~values.isnan()
        key = (method, metric)
        zeros = torch.zeros(len(self._genes), dtype=torch.float64)
        self._sums[key] = self._sums.get(key, zeros) + torch.where(defined, values, 0.0).sum(0)
        self._numbers[key] = self._numbers.get(key, zeros) + defined.sum(0)

    def _mean(self, method: str, metric: str) -> float | None:
        """Average over everything defined; errors squared are averaged before the root."""
        number = float(self._numbers[method, metric].sum())
        if number == 0:
            return None
        mean = float(self._sums[method, metric].sum()) / number
        return mean**0.5 if metric in ("rmse", "spread") else mean

    def _genewise(self, method: str, metric: str) -> dict[str, float | None]:
        means = self._sums[method, metric] / self._numbers[method, metric]
        means = means.sqrt() if metric == "rmse" else means
        return {gene: None if m != m else m for gene, m in zip(self._genes, means.tolist(), strict=True)}

    def report(self) -> dict[str, Any]:
        """Return metrics by method, overall and for each gene, with what each mean left out."""
        methods = list(dict.fromkeys(method for method, metric in self._sums if metric == "rmse"))
        return {
            "patches": self._patches,
            "maps": int(self._maps.sum()),
            "ssim_window_px": self._window,
            "definitions": DEFINITIONS,
            "spread": self._mean("samples", "spread") if methods else None,
            "methods": {
                method: {metric: self._mean(method, metric) for metric in METRICS}
                | {"undefined": {m: int(self._maps.sum() - self._numbers[method, m].sum()) for m in METRICS}}
                | {"genes": {metric: self._genewise(method, metric) for metric in METRICS}}
                for method in methods
            },
        }

    def table(self) -> str:
        """Return the overall metrics as a Markdown table."""
        report = self.report()
        lines = ["| method | RMSE | Pearson | SSIM | total error | undefined Pearson |", "|---|---|---|---|---|---|"]
        for method, found in report["methods"].items():
            cells = ["-" if found[m] is None else f"{found[m]:.4f}" for m in METRICS]
            left_out = f"{found['undefined']['pearson']} of {report['maps']}"
            lines.append(f"| {method} | {' | '.join(cells)} | {left_out} |")
        return "\n".join(lines)
