"""The tissue: what lies at a place of the capture area, as a pure function of the seed and of x and y in micrometres.

Picture and counts are both drawn from it, which is why expression can be predicted from the picture. Coordinates run
along the array: x = (array_col + 0.5) bin, y = (array_row + 0.5) bin. Around the section there is background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from stzarr.simulate.noise import (
    TEXTURE_PX,
    TEXTURE_UM,
    hash_lattice,
    periodic_texture,
    stream_key,
    uniforms,
    value_noise,
)

REGIONS = ("tumour", "stroma", "immune", "adipose")

Field = NDArray[np.float32]

_TEXTURE, _OUTLINE, _CELL_PLACE, _CELL_SHAPE, _REGION = 1, 2, 3, 4, 10
"""Streams of the seed; region k uses _REGION + k."""

_NODE_UM = 8.0
"""Regions and outline are exact on nodes of this distance and linear between them."""
_CELL_UM = 8.0
"""One nucleus at most in each square of this side. None reaches further than 0.7 of it from its centre, and centres
keep 0.2 of it from the square's border, so the nearest 2 x 2 squares hold every nucleus that covers a point."""
_REACH_UM = 0.7 * _CELL_UM
_EDGE_UM = 3.0
_NUCLEUS_EDGE_UM = 0.5
_WOBBLE_UM = 0.35

_DENSITY = np.array([0.72, 0.34, 0.95, 0.10])
_RADIUS_UM = np.array([3.9, 2.6, 2.9, 2.3])
_ELONGATION = np.array([1.15, 2.2, 1.05, 1.6])
_CONTRAST = 14.0


@dataclass(frozen=True)
class TissueSample:
    """Fields at some places, float32, all of the places' shape (h, w).

    Parameters
    ----------
    regions : shape (h, w, 4)
        Share of each of `REGIONS`; they sum to 1.
    coverage : 0 outside the tissue, 1 inside.
    stain : how strongly a nucleus is stained here, 0 to 1; 0 between nuclei.
    halo : cytoplasm, 1 at the centre of a cell, 0 at its reach.
    fibre, grain : texture of mean 0 and variance 1.
    """

    regions: Field
    coverage: Field
    stain: Field
    halo: Field
    fibre: Field
    grain: Field


@dataclass(frozen=True)
class Tissue:
    """One simulated section.

    Parameters
    ----------
    seed : int
    size_um : (width, height)
        The capture area; the section covers about three quarters of it.
    """

    seed: int
    size_um: tuple[float, float]

    def sample(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> TissueSample:
        """Evaluate the tissue at places that lie close together: memory follows their bounding box.

        Parameters
        ----------
        x_um, y_um : float64, shape (h, w)
            Each side below 32,767, a limit of OpenCV.
        """
        nodes = self._nodes(x_um, y_um)
        x, y = (x_um - nodes.x0_um).astype(np.float32), (y_um - nodes.y0_um).astype(np.float32)
        fibre, grain, wobble_x, wobble_y = cv2.split(self._textured(x_um, y_um))
        stain, halo = self._nuclei(nodes, x + _WOBBLE_UM * wobble_x, y + _WOBBLE_UM * wobble_y)
        depth_um = nodes.at(nodes.depth_um, x, y)
        coverage = np.clip(depth_um / _EDGE_UM + 0.5, 0, 1)
        return TissueSample(nodes.at(nodes.regions, x, y), coverage, stain, halo, fibre, grain)

    @cached_property
    def _texture(self) -> Field:
        return periodic_texture(self.seed, _TEXTURE)

    def _textured(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> Field:
        period = TEXTURE_PX * TEXTURE_UM
        x, y = (((t - period * np.floor(t.min() / period)) / TEXTURE_UM).astype(np.float32) for t in (x_um, y_um))
        return cv2.remap(self._texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)

    def _nodes(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> _Nodes:
        """Evaluate the slow fields on the nodes around some places and around every cell that reaches them."""
        (left, right), (top, bottom) = (
            (np.floor(t.min() / _NODE_UM) - 3, np.ceil(t.max() / _NODE_UM) + 4) for t in (x_um, y_um)
        )
        xs, ys = np.arange(left, right) * _NODE_UM, np.arange(top, bottom) * _NODE_UM
        logits = np.stack([self._logit(k, xs, ys) for k in range(len(REGIONS))], axis=-1)
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return _Nodes(xs[0], ys[0], shares.astype(np.float32), self._depth(xs, ys).astype(np.float32))

    def _logit(self, region: int, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log weight of a region; on small slides its patches are smaller, so that all regions appear."""
        key, side = stream_key(self.seed, _REGION + region), min(self.size_um)
        slow = value_noise(key, min(260.0, 0.5 * side), xs, ys)
        return _CONTRAST * (slow + 0.8 * value_noise(key, min(70.0, 0.15 * side), xs, ys))

    def _depth(self, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the depth inside the section [µm], about: a rounded square with a wavy edge, negative outside."""
        width, height = self.size_um
        half = min(width, height) / 2
        u, v = 2 * xs / width - 1, 2 * ys / height - 1
        radius = (u[None, :] ** 4 + v[:, None] ** 4) ** 0.25
        key = stream_key(self.seed, _OUTLINE)
        waves = 0.2 * value_noise(key, 0.5 * half, xs, ys) + 0.06 * value_noise(key, 0.15 * half, xs, ys)
        return half * (0.89 - radius + waves)

    def _nuclei(self, nodes: _Nodes, x: Field, y: Field) -> tuple[Field, Field]:
        """Return stain and halo at places given from the nodes' origin."""
        cells = self._cells(nodes)
        column = np.floor(x / np.float32(_CELL_UM) - np.float32(0.5)).astype(np.int32)
        row = np.floor(y / np.float32(_CELL_UM) - np.float32(0.5)).astype(np.int32)
        first = row * np.int32(cells.columns) + column
        stain, halo = np.zeros_like(x), np.zeros_like(x)
        for step in (0, 1, cells.columns, cells.columns + 1):
            cells.draw(first + np.int32(step), x, y, stain, halo)
        return stain, halo

    def _cells(self, nodes: _Nodes) -> _Cells:
        """Lay out the cells of the nodes' extent; nodes and cells share their lattice."""
        num_y, num_x = nodes.depth_um.shape
        ix = np.arange(num_x - 1) + round(nodes.x0_um / _CELL_UM)
        iy = np.arange(num_y - 1) + round(nodes.y0_um / _CELL_UM)
        place = hash_lattice(stream_key(self.seed, _CELL_PLACE), ix, iy)
        shape = hash_lattice(stream_key(self.seed, _CELL_SHAPE), ix, iy)
        x = (np.arange(len(ix))[None, :] + 0.2 + 0.6 * uniforms(place, 0)) * _CELL_UM
        y = (np.arange(len(iy))[:, None] + 0.2 + 0.6 * uniforms(place, 1)) * _CELL_UM
        regions = nodes.at(nodes.regions, x.astype(np.float32), y.astype(np.float32)).astype(np.float64)
        present = uniforms(place, 2) < regions @ _DENSITY
        return _Cells.build(
            x,
            y,
            radius_um=regions @ _RADIUS_UM * (0.85 + 0.3 * uniforms(shape, 0)),
            elongation=1 + (regions @ _ELONGATION - 1) * (0.6 + 0.8 * uniforms(shape, 1)),
            angle=np.pi * uniforms(shape, 2),
            darkness=present * (0.7 + 0.3 * uniforms(shape, 3)),
        )


@dataclass(frozen=True)
class _Nodes:
    """Slow fields on the nodes of a block, and where the block's first node lies."""

    x0_um: float
    y0_um: float
    regions: Field
    depth_um: Field

    def at(self, field: Field, x: Field, y: Field) -> Field:
        """Interpolate a field linearly at places given from the first node [µm]."""
        to_node = np.float32(1 / _NODE_UM)
        return cv2.remap(field, x * to_node, y * to_node, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True)
class _Cells:
    """Nuclei of a block as flat float32 tables, one entry a square of the lattice."""

    columns: int
    x: Field
    y: Field
    xx: Field
    xy: Field
    yy: Field
    sharpness: Field
    darkness: Field

    @classmethod
    def build(
        cls,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        *,
        radius_um: NDArray[np.float64],
        elongation: NDArray[np.float64],
        angle: NDArray[np.float64],
        darkness: NDArray[np.float64],
    ) -> _Cells:
        """Turn ellipses into quadratic forms: q = xx dx² + xy dx dy + yy dy² is 1 on the nucleus' edge."""
        long = np.minimum(radius_um * np.sqrt(elongation), _REACH_UM - _NUCLEUS_EDGE_UM)
        short = radius_um**2 / long
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = 1 / long**2, 1 / np.minimum(short, long) ** 2
        tables = (
            x,
            y,
            a * cos**2 + b * sin**2,
            2 * (a - b) * cos * sin,
            a * sin**2 + b * cos**2,
            radius_um / _NUCLEUS_EDGE_UM,
            darkness,
        )
        return cls(x.shape[1], *(table.astype(np.float32).ravel() for table in tables))

    def draw(self, index: NDArray[np.int32], x: Field, y: Field, stain: Field, halo: Field) -> None:
        """Raise `stain` and `halo` to what the cells at `index` give at these places."""
        dx, dy = x - self.x.take(index), y - self.y.take(index)
        darkness = self.darkness.take(index)
        xx, yy = dx * dx, dy * dy
        around = 1 - (xx + yy) * np.float32(_REACH_UM**-2)
        np.maximum(halo, around * (darkness > 0), out=halo)
        q = self.xx.take(index) * xx + self.xy.take(index) * (dx * dy) + self.yy.take(index) * yy
        inside = (1 - np.sqrt(q)) * self.sharpness.take(index) + np.float32(0.5)
        np.maximum(stain, np.clip(inside, 0, 1) * darkness, out=stain)
