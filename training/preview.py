"""Pictures that show image, input, truth and predictions side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

mpl.use("Agg")

COLOURS = "magma"
PANEL_INCHES = 1.9


@dataclass(frozen=True)
class Example:
    """One row of a picture: an image and maps of one quantity, all of the same square of tissue.

    Parameters
    ----------
    label : str
        What the row shows, for its left margin.
    image : ndarray, uint8 (h, w, 3)
    maps : mapping of str to ndarray, float (h, w)
        By title, in order; they share one colour scale, so they must share a unit.
    scale_from : str
        Title of the map whose 99.5th percentile is the upper end of the colours (the truth).
    """

    label: str
    image: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.floating]]
    scale_from: str


def draw(path: Path, examples: Sequence[Example], *, title: str, unit: str) -> None:
    """Write one PNG with a row an example.

    Parameters
    ----------
    path : Path
        The PNG; its folder is made.
    title, unit : str
        Heading, and the unit of the colour bar of each row.
    """
    columns = 1 + max(len(example.maps) for example in examples)
    size = (PANEL_INCHES * columns + 0.9, PANEL_INCHES * len(examples) + 0.7)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        _row(figure, row, example, unit)
    for axis, name in zip(axes[0], ["image", *examples[0].maps], strict=False):
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _row(figure: Figure, axes: NDArray, example: Example, unit: str) -> None:
    """Fill one row; all maps get the colours of the truth."""
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0].imshow(example.image)
    axes[0].set_ylabel(example.label, fontsize=8)
    top = max(float(np.percentile(example.maps[example.scale_from], 99.5)), 1e-6)
    shown = None
    for axis, values in zip(axes[1:], example.maps.values(), strict=False):
        shown = axis.imshow(values, cmap=COLOURS, vmin=0, vmax=top, interpolation="nearest")
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes[-1], fraction=0.08, pad=0.04)
        bar.ax.tick_params(labelsize=6)
        bar.set_label(unit, fontsize=6)
