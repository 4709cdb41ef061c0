"""Splits never leak: for random slides no cell of a held-out patch is in, or near, a training patch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import StreamError
from stzarr.stream.split import CellGrid, Share, SlideSplit, SplitSpec, split_slide


def share_of(tissue: np.ndarray, grid: CellGrid) -> Share:
    """Return the share of tissue of boxes, from a map with one value a cell."""
    table = np.pad(tissue.astype(float).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def share(bounds_um: np.ndarray) -> np.ndarray:
        (dx, dy), (ox, oy) = grid.cell_um, grid.origin_um
        cells = np.round((bounds_um - [ox, oy, ox, oy]) / [dx, dy, dx, dy]).astype(int)
        area = (cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])
        x = np.clip(cells[:, [0, 2]], 0, tissue.shape[1])
        y = np.clip(cells[:, [1, 3]], 0, tissue.shape[0])
        inside = table[y[:, 1], x[:, 1]] - table[y[:, 0], x[:, 1]] - table[y[:, 1], x[:, 0]] + table[y[:, 0], x[:, 0]]
        return inside / np.maximum(area, 1)

    return share


@st.composite
def slides(draw: st.DrawFn) -> tuple[CellGrid, np.ndarray]:
    patch = draw(st.integers(1, 6))
    shape = (draw(st.integers(patch, 60)), draw(st.integers(patch, 60)))
    cell = (100.0, 87.0) if draw(st.booleans()) else (8.0, 8.0)
    grid = CellGrid(cell, (0.0, 0.5 * cell[1]), shape, patch)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    y, x = np.mgrid[: shape[0], : shape[1]]
    radius = draw(st.floats(0.3, 1.5)) * max(shape) / 2
    disc = (y - shape[0] * rng.random()) ** 2 + (x - shape[1] * rng.random()) ** 2 < radius**2
    return grid, disc & (rng.random(shape) < 0.95)


def all_windows(grid: CellGrid, stride: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(0, grid.shape[0] - grid.patch + 1, stride)
    cols = np.arange(0, grid.shape[1] - grid.patch + 1, stride)
    return np.repeat(rows, len(cols)), np.tile(cols, len(rows))


def covered(grid: CellGrid, split: SlideSplit, name: str, stride: int, grow: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the cells that patches of a split cover, grown by some rows and columns."""
    out = np.zeros(grid.shape, bool)
    r0, c0 = all_windows(grid, stride)
    for row, col in np.stack([r0, c0], -1)[split.members(r0, c0, name)].tolist():  # type: ignore[arg-type]
        rows = slice(max(row - grow[0], 0), row + grid.patch + grow[0])
        out[rows, max(col - grow[1], 0) : col + grid.patch + grow[1]] = True
    return out


@settings(max_examples=60, deadline=None)
@given(slides(), st.integers(0, 50), st.integers(1, 4), st.integers(1, 4), st.none() | st.sampled_from([0.0, 30.0]))
def test_no_cell_of_a_held_out_patch_is_near_a_training_patch(
    slide: tuple[CellGrid, np.ndarray], seed: int, train_stride: int, val_stride: int, buffer_um: float | None
) -> None:
    grid, tissue = slide
    spec = SplitSpec(seed=seed, buffer_um=buffer_um)
    split = split_slide(grid, share_of(tissue, grid), "s", spec, None)
    train = covered(grid, split, "train", train_stride, split.buffer)
    val, test = (covered(grid, split, name, val_stride) for name in ("val", "test"))
    assert not (train & val).any()
    assert not (train & test).any()
    assert not (val & test).any()
    if buffer_um is not None:
        assert split.buffer[0] * grid.cell_um[1] >= buffer_um
        assert split.buffer[1] * grid.cell_um[0] >= buffer_um


@settings(max_examples=40, deadline=None)
@given(slides(), st.integers(0, 50))
def test_val_and_test_get_a_block_where_there_are_three(slide: tuple[CellGrid, np.ndarray], seed: int) -> None:
    grid, tissue = slide
    share = share_of(tissue, grid)
    split = split_slide(grid, share, "s", SplitSpec(seed=seed), None)
    side = split.side[0]
    r0, c0 = all_windows(grid, grid.patch)
    good = share(grid.bounds_um(r0, c0, grid.patch, grid.patch)) >= 0.5
    roomy = {(r // side, c // side) for r, c in zip(r0[good].tolist(), c0[good].tolist(), strict=True)}
    num = [int((split.label == code).sum()) for code in (1, 2)]
    assert num[0] >= 1 or len(roomy) < 2
    assert num[1] >= 1 or len(roomy) < 3
    for code, name in ((1, "val"), (2, "test")):
        if num[code - 1]:
            assert split.members(r0[good], c0[good], name).any(), "a held-out block without a valid patch"  # type: ignore[arg-type]


def test_fractions_are_met_on_a_large_slide() -> None:
    grid = CellGrid((8.0, 8.0), (0.0, 0.0), (800, 800), 8)
    split = split_slide(grid, lambda boxes: np.ones(len(boxes)), "s", SplitSpec(), None)
    assert split.side == (32, 32)
    assert split.buffer == (8, 8)
    assert [(split.label == code).mean() for code in (1, 2)] == pytest.approx([0.1, 0.1], abs=0.005)
    r0, c0 = all_windows(grid, 8)
    assert split.members(r0, c0, "train").mean() > 0.5


def test_a_small_slide_takes_small_blocks_and_one_lr_pixel() -> None:
    grid = CellGrid((100.0, 87.0), (0.0, 43.5), (64, 64), 16)
    split = split_slide(grid, lambda boxes: np.ones(len(boxes)), "s", SplitSpec(), lr_cells=4)
    assert (split.side, split.buffer) == ((16, 16), (4, 4))
    assert str(split) == "blocks of 16 x 16 cells (2 val, 2 test), buffer 4 x 4"


def test_labels_do_not_depend_on_lr_or_buffer_but_on_seed_and_slide() -> None:
    grid = CellGrid((8.0, 8.0), (0.0, 0.0), (200, 200), 5)

    def label(seed: int = 0, slide: str = "s", lr: int | None = None, buffer_um: float | None = None) -> bytes:
        spec = SplitSpec(seed=seed, buffer_um=buffer_um)
        return split_slide(grid, lambda boxes: np.ones(len(boxes)), slide, spec, lr).label.tobytes()

    assert label() == label(lr=5) == label(buffer_um=3.0)
    assert len({label(), label(seed=1), label(slide="t")}) == 3


@pytest.mark.parametrize(
    "fields", [{"fractions": (0.5, 0.1, 0.1)}, {"fractions": (1.2, -0.1, -0.1)}, {"buffer_um": -1.0}]
)
def test_a_split_that_cannot_be(fields: dict) -> None:
    with pytest.raises(StreamError, match="ST400"):
        SplitSpec(**fields)


def test_blocks_are_whole_patches() -> None:
    grid = CellGrid((8.0, 8.0), (0.0, 0.0), (64, 64), 8)
    with pytest.raises(StreamError, match="ST400"):
        split_slide(grid, lambda boxes: np.ones(len(boxes)), "s", SplitSpec(split_um=100.0), None)
