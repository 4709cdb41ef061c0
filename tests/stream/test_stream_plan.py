from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzarr.errors import StreamError
from stzarr.stream.plan import Plan, PlanSlide, PlanSpec, make_plan
from stzarr.stream.split import CellGrid, Share

GRID = CellGrid((8.0, 8.0), (0.0, 0.0), (100, 120), 10)


def everywhere(boxes: np.ndarray) -> np.ndarray:
    return np.ones(len(boxes))


def left_half(boxes: np.ndarray) -> np.ndarray:
    """Tissue left of x = 480 µm."""
    return np.clip((480.0 - boxes[:, 0]) / (boxes[:, 2] - boxes[:, 0]), 0, 1)


def plan_of(spec: PlanSpec, *shares: Share, grid: CellGrid = GRID) -> Plan:
    slides = [PlanSlide(f"s{index}", "d", grid) for index in range(len(shares))]
    return make_plan(spec, slides, shares, {"patch_um": 80.0})


def test_patches_lie_on_the_stride_grid_inside_the_slide_on_tissue() -> None:
    plan = plan_of(PlanSpec(batch_size=2, stride=5, min_tissue=0.5), left_half)
    r0, c0 = plan.patches["r0"], plan.patches["c0"]
    wanted = {(r, c) for r in range(0, 91, 5) for c in range(0, 56, 5)}
    assert set(zip(r0.tolist(), c0.tolist(), strict=True)) == wanted
    assert plan.num_patches == len(wanted)
    assert plan.patches["tissue"].min() == 0.5
    assert np.array_equal(plan.origins_um(np.arange(plan.num_patches), plan.windows(0)), np.stack([c0, r0], -1) * 8.0)


def test_blocks_are_squares_and_neighbours_in_the_plan() -> None:
    plan = plan_of(PlanSpec(batch_size=2, stride=10, block_patches=4), everywhere, left_half)
    patches = plan.patches
    assert np.array_equal(np.unique(patches["block"]), np.arange(patches["block"].max() + 1))
    assert (np.diff(patches["block"]) >= 0).all()
    for block in np.unique(patches["block"]):
        mine = patches[patches["block"] == block]
        assert len(set(mine["slide"].tolist())) == 1
        assert len({(r // 40, c // 40) for r, c in zip(mine["r0"].tolist(), mine["c0"].tolist(), strict=True)}) == 1


def test_blocks_and_lanes_follow_the_buffer() -> None:
    spec = PlanSpec(batch_size=4, stride=1, patch_bytes=1000, buffer_bytes=10**9)
    roomy = plan_of(spec, everywhere)
    assert (roomy.block_patches, roomy.lanes.per_slot) == (4, 4)
    tight = plan_of(replace(spec, buffer_bytes=130_000), everywhere)
    assert (tight.block_patches, tight.lanes.per_slot) == (4, 1)
    tiny = plan_of(replace(spec, buffer_bytes=10_000), everywhere)
    assert (tiny.block_patches, tiny.lanes.per_slot) == (1, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 10), st.integers(0, 4), st.sampled_from([None, "train", "val", "test"]))
def test_a_plan_is_a_function_of_its_arguments(batch: int, stride: int, seed: int, split: str | None) -> None:
    spec = PlanSpec(batch_size=batch, stride=stride, seed=seed, split=split, train=False)  # type: ignore[arg-type]
    first, second = plan_of(spec, everywhere, left_half), plan_of(spec, everywhere, left_half)
    assert first.digest == second.digest
    assert np.array_equal(first.patches, second.patches)
    assert plan_of(replace(spec, batch_size=batch + 1), everywhere, left_half).digest != first.digest


def test_the_split_digest_joins_streams_that_share_a_split() -> None:
    spec = PlanSpec(batch_size=1, stride=5, split="train")
    train = plan_of(spec, everywhere)
    val = plan_of(replace(spec, split="val", stride=10, train=False, min_tissue=0.7), everywhere)
    other = plan_of(replace(spec, split_spec=replace(spec.split_spec, seed=1)), everywhere)
    assert train.split_digest == val.split_digest != other.split_digest


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 11), st.integers(0, 20), st.integers(0, 3), st.sampled_from([None, "train"]))
def test_jitter_stays_near_on_the_grid_and_in_its_split(stride: int, seed: int, epoch: int, split: str | None) -> None:
    spec = PlanSpec(batch_size=1, stride=stride, seed=seed, jitter=True, split=split)  # type: ignore[arg-type]
    plan = plan_of(spec, everywhere, everywhere)
    windows, home = plan.windows(epoch), np.stack([plan.patches["r0"], plan.patches["c0"]], -1)
    assert np.abs(windows - home).max() <= stride // 2
    assert (windows >= 0).all()
    assert (windows + GRID.patch <= GRID.shape).all()
    assert np.array_equal(windows, plan.windows(epoch))
    if split:
        for index, slide_split in enumerate(plan.splits):
            mine = windows[plan.patches["slide"] == index]
            assert slide_split is not None
            assert slide_split.members(mine[:, 0], mine[:, 1], "train").all()


def test_jitter_moves_differ_by_epoch_and_never_in_evaluation() -> None:
    plan = plan_of(PlanSpec(batch_size=1, stride=8, jitter=True), everywhere)
    assert not np.array_equal(plan.windows(0), plan.windows(1))
    still = plan_of(PlanSpec(batch_size=1, stride=8, jitter=True, train=False), everywhere)
    assert np.array_equal(still.windows(0), np.stack([still.patches["r0"], still.patches["c0"]], -1))


def test_the_remainder_is_reported() -> None:
    plan = plan_of(PlanSpec(batch_size=7, stride=10, lanes_per_slot=1), everywhere)
    assert (plan.num_patches, plan.steps_per_epoch, plan.lanes.left_out) == (120, 17, 1)
    assert "1 patches left out" in str(plan)
    assert "120 patches" in str(plan)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"batch_size": 0}, "ST400"),
        ({"stride": 0}, "ST400"),
        ({"min_tissue": 1.5}, "ST400"),
        ({"split": "validation"}, "ST400"),
        ({"batch_size": 500}, "ST405"),
    ],
)
def test_plans_that_cannot_be(fields: dict, code: str) -> None:
    with pytest.raises(StreamError, match=code):
        plan_of(PlanSpec(**({"batch_size": 2, "stride": 10} | fields)), everywhere)


def test_no_tissue_and_a_slide_twice() -> None:
    with pytest.raises(StreamError, match="ST404"):
        plan_of(PlanSpec(batch_size=1, stride=10), lambda boxes: np.zeros(len(boxes)))
    with pytest.raises(StreamError, match="ST403"):
        make_plan(PlanSpec(batch_size=1, stride=10), [PlanSlide("s", "d", GRID)] * 2, [everywhere] * 2, {})


def test_planning_imports_no_torch() -> None:
    code = "import sys, stzarr.stream.batches, stzarr.stream.panel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
