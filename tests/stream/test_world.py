from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stzarr.errors import StreamError
from stzarr.stream.world import World


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_slots_are_shared_out_whole_and_in_order(ranks: int, workers: int, per: int) -> None:
    batch = ranks * workers * per
    shares = [World(r, ranks).slots(batch, w, workers) for r in range(ranks) for w in range(workers)]
    assert [slot for share in shares for slot in share] == list(range(batch))
    assert {len(share) for share in shares} == {per}


def test_a_batch_that_does_not_divide_names_what_works() -> None:
    with pytest.raises(StreamError) as caught:
        World(0, 3).slots(16, 0, 2)
    assert caught.value.code == "ST401"
    assert "16" in caught.value.what
    assert "3 ranks x 2 workers" in caught.value.what
    assert caught.value.cure == "ranks x workers that work: 1, 2, 4, 8, 16; or batch_size=18"


def test_the_world_comes_from_arguments_else_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert World.find() == World(1, 4)
    assert World.find(2, 3) == World(2, 3)
    monkeypatch.delenv("RANK")
    assert World.find() == World(0, 1)


def test_the_world_comes_from_torch_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("torch.distributed")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 6)
    assert World.find() == World(2, 6)


@pytest.mark.parametrize(("rank", "size"), [(0, None), (None, 2), (2, 2), (-1, 2)])
def test_a_world_that_cannot_be(rank: int | None, size: int | None) -> None:
    with pytest.raises(StreamError) as caught:
        World.find(rank, size)
    assert caught.value.code == "ST402"
