"""The lanes: same global batches for any ranks x workers, every patch once, resume from any step."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stzarr.stream.lanes import Lanes, draws, epoch_order
from stzarr.stream.world import World


@st.composite
def blocks(draw: st.DrawFn) -> np.ndarray:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=25))
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draw (global batch, ranks, workers) that divide."""
    ranks, workers, per = (draw(st.integers(1, 4)) for _ in range(3))
    return ranks * workers * per, ranks, workers


@given(blocks(), st.integers(0, 2**40), st.integers(0, 5))
def test_order_is_a_permutation_that_keeps_blocks_together(block: np.ndarray, seed: int, epoch: int) -> None:
    order = epoch_order(block, seed, epoch)
    assert sorted(order.tolist()) == list(range(len(block)))
    assert np.count_nonzero(np.diff(block[order])) == block.max()
    assert np.array_equal(order, epoch_order(block, seed, epoch))


def test_order_changes_with_seed_and_epoch() -> None:
    block = np.repeat(np.arange(20, dtype=np.int32), 16)
    orders = {epoch_order(block, seed, epoch).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    inside = [epoch_order(block, 0, epoch) for epoch in range(40)]
    first_of_block_0 = {int(next(sample for sample in order if block[sample] == 0)) for order in inside}
    assert len(first_of_block_0) > 8, "patches inside a block are not permuted"


def test_draws_are_pinned() -> None:
    """Equal on every machine and NumPy: a state must mean the same after an update."""
    assert draws(3, 5, "blocks", 2).tolist() == [1643616817891503291, 6122324068101744239]
    assert draws(3, 5, "jitter", 9)[:4].tolist() == draws(3, 5, "jitter", 4).tolist()
    assert not set(draws(3, 5, "blocks", 50).tolist()) & set(draws(3, 5, "patches", 50).tolist())


@given(st.integers(1, 200), worlds(), st.integers(1, 4), st.booleans(), st.data())
def test_global_batches_do_not_depend_on_the_world(
    num: int, world: tuple[int, int, int], per_slot: int, padded: bool, data: st.DataObject
) -> None:
    batch, ranks, workers = world
    lanes = Lanes(num, batch, 1 if padded else per_slot, padded)
    step = data.draw(st.integers(0, max(0, lanes.steps - 1)))
    shares = [
        lanes.positions(step, World(rank, ranks).slots(batch, worker, workers))
        for rank in range(ranks)
        for worker in range(workers)
    ]
    assert np.array_equal(np.concatenate(shares), lanes.positions(step, range(batch)))


@given(st.integers(1, 300), st.integers(1, 24))
def test_evaluation_gives_every_patch_once_and_pads_the_last_step_only(num: int, batch: int) -> None:
    lanes = Lanes(num, batch, padded=True)
    seen = np.stack([lanes.positions(step, range(batch)) for step in range(lanes.steps)])
    assert sorted(seen[seen >= 0].tolist()) == list(range(num))
    assert (seen[:-1] >= 0).all()
    assert lanes.left_out == 0


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 4))
def test_training_gives_no_patch_twice_and_leaves_out_less_than_all_lanes(num: int, batch: int, per_slot: int) -> None:
    lanes = Lanes(num, batch, per_slot)
    seen = [p for step in range(lanes.steps) for p in lanes.positions(step, range(batch)).tolist()]
    assert len(seen) == len(set(seen)) == num - lanes.left_out == lanes.steps * batch
    assert min(seen, default=0) >= 0
    assert lanes.left_out < batch * per_slot


def test_a_lane_takes_its_patches_in_order() -> None:
    """The scheme itself, spelled out: step t takes for slot j the next patch of lane j m + (t mod m)."""
    lanes = Lanes(num_patches=26, batch_size=2, per_slot=3)
    assert (lanes.steps, lanes.left_out) == (12, 2)
    assert [lanes.positions(step, [1]).tolist() for step in range(5)] == [[12], [16], [20], [13], [17]]


@given(blocks(), worlds(), st.integers(1, 3), st.booleans(), st.data())
def test_reads_cover_what_the_steps_need_once_and_in_order(
    block: np.ndarray, world: tuple[int, int, int], per_slot: int, padded: bool, data: st.DataObject
) -> None:
    batch, ranks, workers = world
    lanes = Lanes(len(block), batch, 1 if padded else per_slot, padded)
    slots = World(data.draw(st.integers(0, ranks - 1)), ranks).slots(batch, 0, workers)
    start = data.draw(st.integers(0, lanes.steps))
    reads = list(lanes.reads(block, slots, start))
    covered = [p for read in reads for p in range(read.start, read.stop)]
    wanted = [p for step in range(start, lanes.steps) for p in lanes.positions(step, slots).tolist() if p >= 0]
    assert sorted(covered) == sorted(wanted)
    assert [read.step for read in reads] == sorted(read.step for read in reads)
    for read in reads:
        assert len(set(block[read.start : read.stop].tolist())) == 1
        assert read.start in lanes.positions(read.step, slots).tolist()


@given(blocks(), st.integers(1, 6), st.integers(1, 3))
def test_a_run_is_as_long_as_its_block_and_lane_allow(block: np.ndarray, batch: int, per_slot: int) -> None:
    lanes = Lanes(len(block), batch, per_slot)
    by_start = {read.start: read for read in lanes.reads(block, range(batch))}
    for read in by_start.values():
        following = by_start.get(read.stop)
        if following is not None and following.lane == read.lane:
            assert block[read.stop] != block[read.stop - 1]


def test_no_blocks_no_order() -> None:
    assert epoch_order(np.zeros(0, np.int32), 0, 0).tolist() == []
