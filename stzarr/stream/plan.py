"""The plan: every patch of a stream, its block, and the order of an epoch, from geometry and a tissue map alone.

Nothing is read here and nothing depends on the process: every rank and worker builds the same plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzarr.errors import StreamError, listing
from stzarr.stream.lanes import Lanes, draws, epoch_order
from stzarr.stream.split import CellGrid, Share, SlideSplit, SplitName, SplitSpec, split_slide

PATCH_DTYPE = np.dtype(
    [("slide", np.int32), ("r0", np.int32), ("c0", np.int32), ("block", np.int32), ("tissue", np.float32)]
)
"""One patch: its slide, first cell, block and share of tissue. Its place in the array is its `sample` number."""

_BLOCK_SIDES = (4, 2, 1)
_MAX_LANES_PER_SLOT = 4


@dataclass(frozen=True)
class PlanSpec:
    """What is asked of a plan, in cells of the slides' grids and bytes.

    Parameters
    ----------
    batch_size : int
        Global batch.
    stride : int
        Distance of candidates [cells].
    min_tissue : float
        Least share of tissue of a patch.
    split : {"train", "val", "test"}, optional
        None takes everything.
    split_spec : SplitSpec
    lr_cells : int, optional
        Cells on a side of an LR pixel.
    seed : int
    train : bool
        Shuffle and leave the remainder out; else every patch once, in order, padded.
    jitter : bool
        Move training patches by up to half a stride, other moves each epoch.
    block_patches : int, optional
        Strides on a side of a block, the unit of reading; by default 4, 2 or 1, as `buffer_bytes` allows.
    lanes_per_slot : int, optional
        Lanes of a batch slot in training; by default up to 4, as `buffer_bytes` allows.
    patch_bytes, buffer_bytes : int
        Size of a patch in memory, and what the open lanes of the global batch may hold.
    """

    batch_size: int
    stride: int
    min_tissue: float = 0.5
    split: SplitName | None = None
    split_spec: SplitSpec = field(default_factory=SplitSpec)
    lr_cells: int | None = None
    seed: int = 0
    train: bool = True
    jitter: bool = False
    block_patches: int | None = None
    lanes_per_slot: int | None = None
    patch_bytes: int = 1
    buffer_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("batch_size", "stride", "block_patches", "lanes_per_slot"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise StreamError("ST400", f"{name} = {value} is less than 1", cure=f"{name} >= 1")
        if not 0 <= self.min_tissue <= 1:
            raise StreamError("ST400", f"min_tissue = {self.min_tissue:g} is no share", cure="between 0 and 1")
        if self.split not in (None, "train", "val", "test"):
            raise StreamError("ST400", f"there is no split {self.split!r}", cure="train, val, test, or None")


@dataclass(frozen=True)
class PlanSlide:
    """One slide of a plan: its name, a digest of its content, and its grid."""

    id: str
    digest: str
    grid: CellGrid


@dataclass(frozen=True)
class Plan:
    """All patches of a stream and their order.

    Parameters
    ----------
    spec : PlanSpec
    slides : tuple of PlanSlide
    splits : tuple of SlideSplit or None
        Of every slide; None without a split.
    patches : structured array of PATCH_DTYPE, shape (num_patches,)
        In the order slide, block, row, column; the place is the `sample` number.
    lanes : Lanes
    block_patches : int
        Strides on a side of a block.
    facts : mapping
        Everything that the digest covers, by name, as plain values.
    """

    spec: PlanSpec
    slides: tuple[PlanSlide, ...]
    splits: tuple[SlideSplit | None, ...]
    patches: NDArray[np.void]
    lanes: Lanes
    block_patches: int
    facts: Mapping[str, Any]

    @property
    def num_patches(self) -> int:
        """Number of patches."""
        return len(self.patches)

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return self.lanes.steps

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the stream gives, hexadecimal."""
        return _sha256(json.dumps(self.facts, sort_keys=True).encode())

    @cached_property
    def split_digest(self) -> str:
        """SHA-256 of the held-out blocks: equal for streams whose train, val and test do not overlap."""
        parts = [
            f"{slide.id} {split.patch} {split.side} ".encode() + split.label.tobytes() if split else b"none"
            for slide, split in zip(self.slides, self.splits, strict=True)
        ]
        return _sha256(b"\n".join(parts))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the samples in the order of an epoch, shape (num_patches,); in evaluation always the same."""
        if not self.spec.train:
            return np.arange(self.num_patches)
        return epoch_order(self.patches["block"], self.spec.seed, epoch)

    def windows(self, epoch: int) -> NDArray[np.int32]:
        """Return the first cell (row, column) of every sample in an epoch, shape (num_patches, 2).

        Jitter is drawn by (seed, epoch, sample), in whole cells, at most half a stride. A patch that it would move off
        the grid or out of its split stays where it is. Its tissue share remains that of its place in the plan.
        """
        home = np.stack([self.patches["r0"], self.patches["c0"]], axis=-1)
        if not (self.spec.jitter and self.spec.train):
            return home
        most = self.spec.stride // 2
        words = draws(self.spec.seed, epoch, "jitter", 2 * len(home)).reshape(-1, 2)
        moved = (home + (words % np.uint64(2 * most + 1)).astype(np.int32) - most).astype(np.int32)
        return np.where(self._allowed(moved)[:, None], moved, home)

    def _allowed(self, windows: NDArray[np.int32]) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = np.asarray((windows >= 0).all(axis=1))
        for index, (slide, split) in enumerate(zip(self.slides, self.splits, strict=True)):
            mine = np.flatnonzero((self.patches["slide"] == index) & allowed)
            inside = (windows[mine] + slide.grid.patch <= slide.grid.shape).all(axis=1)
            allowed[mine[~inside]] = False
            mine = mine[inside]
            if split is not None and self.spec.split is not None:
                allowed[mine] = split.members(windows[mine, 0], windows[mine, 1], self.spec.split)
        return allowed

    def origins_um(self, samples: NDArray[np.int64], windows: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return the upper left corners (x, y) of samples with these first cells, shape (n, 2) [µm]."""
        out = np.zeros((len(samples), 2))
        for index in np.unique(self.patches["slide"][samples]):
            mine = self.patches["slide"][samples] == index
            out[mine] = self.slides[index].grid.bounds_um(windows[mine, 0], windows[mine, 1], 0, 0)[:, :2]
        return out

    def __str__(self) -> str:
        spec, per_slide = self.spec, np.bincount(self.patches["slide"], minlength=len(self.slides))
        num_blocks = int(self.patches["block"].max()) + 1 if self.num_patches else 0
        lines = [
            f"{self.num_patches} patches in {num_blocks} blocks of {self.block_patches} x {self.block_patches} strides"
            f", split {spec.split or 'none'}, {'training' if spec.train else 'evaluation'}",
            f"{self.steps_per_epoch} steps of {spec.batch_size}, {self.lanes.per_slot} lanes a slot, "
            f"{self.lanes.left_out} patches left out each epoch, digest {self.digest[:12]}",
        ]
        for slide, num, split in zip(self.slides, per_slide, self.splits, strict=True):
            lines.append(f"  {slide.id}: {num} patches" + (f", {split}" if split else ""))
        return "\n".join(lines)


def make_plan(spec: PlanSpec, slides: Sequence[PlanSlide], shares: Sequence[Share], facts: Mapping[str, Any]) -> Plan:
    """Plan a stream.

    Parameters
    ----------
    spec : PlanSpec
    slides : sequence of PlanSlide
    shares : sequence of callable
        Share of tissue of boxes in µm, of every slide.
    facts : mapping
        What else decides what the stream gives (pixel sizes, panel), as plain values, for the digest.

    Raises
    ------
    StreamError
        ST403: a slide twice. ST404: no patch. ST405: fewer patches than one global batch of training.
    """
    ids = [slide.id for slide in slides]
    if len(set(ids)) < len(ids):
        raise StreamError("ST403", f"a slide comes twice: {listing(sorted(ids))}", cure="name each store once")
    splits = tuple(
        None if spec.split is None else split_slide(slide.grid, share, slide.id, spec.split_spec, spec.lr_cells)
        for slide, share in zip(slides, shares, strict=True)
    )
    side = spec.block_patches or _block_side(spec)
    patches = _blocked(
        [_valid(spec, slide.grid, share, split) for slide, share, split in zip(slides, shares, splits, strict=True)],
        side * spec.stride,
    )
    if not len(patches):
        raise _no_patches(spec, slides)
    lanes = Lanes(len(patches), spec.batch_size, _lanes_per_slot(spec, side, len(patches)), padded=not spec.train)
    if not lanes.steps:
        raise StreamError(
            "ST405",
            f"{len(patches)} patches do not fill one batch of {spec.batch_size} x {lanes.per_slot} lanes",
            cure="a smaller batch_size or stride_um, a lower min_tissue, or more slides",
        )
    all_facts = _facts(spec, slides, splits, patches, lanes, side) | dict(facts)
    return Plan(spec, tuple(slides), splits, patches, lanes, side, all_facts)


def _block_side(spec: PlanSpec) -> int:
    """Return the largest block whose open lanes fill at most half the buffer; the rest is for reading ahead."""
    for side in _BLOCK_SIDES:
        if 2 * spec.batch_size * side**2 * spec.patch_bytes <= spec.buffer_bytes:
            return side
    return 1


def _lanes_per_slot(spec: PlanSpec, side: int, num_patches: int) -> int:
    """Return m: as many as fill half the buffer, and no lane shorter than a block."""
    if not spec.train:
        return 1
    if spec.lanes_per_slot:
        return spec.lanes_per_slot
    per_lane = spec.batch_size * side**2
    most = min(spec.buffer_bytes // (2 * per_lane * spec.patch_bytes), num_patches // per_lane, _MAX_LANES_PER_SLOT)
    return max(1, most)


def _valid(spec: PlanSpec, grid: CellGrid, share: Share, split: SlideSplit | None) -> NDArray[np.void]:
    """Return the valid patches of a slide, a row of candidates at a time."""
    rows = list(_valid_rows(spec, grid, share, split))
    return np.concatenate(rows) if rows else np.zeros(0, PATCH_DTYPE)


def _valid_rows(spec: PlanSpec, grid: CellGrid, share: Share, split: SlideSplit | None) -> Iterator[NDArray[np.void]]:
    cols = np.arange(0, grid.shape[1] - grid.patch + 1, spec.stride)
    for row in range(0, grid.shape[0] - grid.patch + 1, spec.stride):
        r0 = np.full(len(cols), row)
        tissue = share(grid.bounds_um(r0, cols, grid.patch, grid.patch))
        keep = tissue >= spec.min_tissue - 1e-9
        if split is not None and spec.split is not None:
            keep &= split.members(r0, cols, spec.split)
        found = np.zeros(int(keep.sum()), PATCH_DTYPE)
        found["r0"], found["c0"], found["tissue"] = row, cols[keep], tissue[keep]
        yield found


def _blocked(per_slide: Sequence[NDArray[np.void]], side: int) -> NDArray[np.void]:
    """Number the blocks, squares of `side` cells of first cells, and sort the patches by them."""
    for index, found in enumerate(per_slide):
        found["slide"] = index
    patches = np.concatenate(per_slide)
    row, col = patches["r0"] // side, patches["c0"] // side
    by_block = np.lexsort((patches["c0"], patches["r0"], col, row, patches["slide"]))
    patches, row, col = patches[by_block], row[by_block], col[by_block]
    if len(patches):
        place = np.stack([patches["slide"], row, col], axis=-1)
        patches["block"][1:] = (np.diff(place, axis=0) != 0).any(axis=1).cumsum()
    return patches


def _no_patches(spec: PlanSpec, slides: Sequence[PlanSlide]) -> StreamError:
    of_split = f" of split {spec.split!r}" if spec.split else ""
    return StreamError(
        "ST404",
        f"{listing(slide.id for slide in slides)}: no patch{of_split} has {spec.min_tissue:.0%} of tissue",
        cure="a smaller patch_um, stride_um or min_tissue" + (", or a smaller buffer_um" if spec.split else ""),
    )


def _facts(
    spec: PlanSpec,
    slides: Sequence[PlanSlide],
    splits: Sequence[SlideSplit | None],
    patches: NDArray[np.void],
    lanes: Lanes,
    side: int,
) -> dict[str, Any]:
    return {
        "batch_size": spec.batch_size,
        "stride_cells": spec.stride,
        "min_tissue": spec.min_tissue,
        "split": spec.split,
        "splits": [str(split) for split in splits],
        "seed": spec.seed,
        "train": spec.train,
        "jitter": spec.jitter,
        "block_patches": side,
        "lanes_per_slot": lanes.per_slot,
        "slides": {slide.id: slide.digest for slide in slides},
        "slide_order": [slide.id for slide in slides],
        "patches": _sha256(patches.tobytes()),
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
