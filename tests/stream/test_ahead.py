from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from stzarr.errors import StoreError
from stzarr.stream.ahead import ReadAhead, ThreadRunner
from stzarr.stream.lanes import Read


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stzarr-")]


def test_tasks_run_in_threads_and_results_keep_their_order() -> None:
    runner = ThreadRunner(3)
    names: set[str] = set()

    def task(value: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.001 * (value % 3))
        return value

    pending = [runner.submit(lambda value=value: task(value)) for value in range(60)]
    assert [future.result() for future in pending] == list(range(60))
    assert len(names) == 3
    runner.close()
    assert our_threads() == []


def test_a_result_does_not_wait_for_its_wave() -> None:
    runner, gate = ThreadRunner(2), threading.Event()
    slow = runner.submit(lambda: gate.wait(10))
    quick = runner.submit(lambda: 1)
    assert quick.result(timeout=5) == 1
    gate.set()
    assert slow.result(timeout=5)
    runner.close()


def test_errors_keep_their_type_and_others_go_on() -> None:
    runner = ThreadRunner(2)

    def fail() -> None:
        raise StoreError("ST204", "gone")

    bad, good = runner.submit(fail), runner.submit(lambda: 2)
    with pytest.raises(StoreError, match="gone"):
        bad.result()
    assert good.result() == 2
    runner.close()


def test_closing_drops_what_waits_and_leaves_no_thread() -> None:
    runner, done = ThreadRunner(1), []
    for value in range(50):
        runner.submit(lambda value=value: (time.sleep(0.02), done.append(value)))
    runner.close()
    assert our_threads() == []
    assert len(done) < 10


class Recorder:
    """Reads of 10 bytes a patch that are there at once."""

    def __init__(self, reads: list[Read]) -> None:
        self.begun: list[Read] = []
        self.reads = reads

    def ahead(self, lookahead: int, buffer_bytes: int) -> ReadAhead:
        return ReadAhead(iter(self.reads), self._submit, self._size, lookahead, buffer_bytes)

    def _submit(self, read: Read) -> Recorder:
        self.begun.append(read)
        return self

    def _size(self, read: Read) -> int:
        return 10 * (read.stop - read.start)

    def result(self) -> str:
        return "patches"


def reads(per_step: int, steps: int) -> Iterator[Read]:
    return (Read(lane, step, step + 1, step) for step in range(steps) for lane in range(per_step))


def test_reading_ahead_is_bounded_by_steps() -> None:
    recorder = Recorder(list(reads(2, 20)))
    ahead = recorder.ahead(lookahead=3, buffer_bytes=10**9)
    ahead.advance(0)
    assert len(recorder.begun) == 2 * 4
    ahead.advance(1)
    assert len(recorder.begun) == 2 * 5


def test_reading_ahead_is_bounded_by_memory_but_never_stalls() -> None:
    recorder = Recorder(list(reads(2, 20)))
    ahead = recorder.ahead(lookahead=10, buffer_bytes=15)
    for step in range(20):
        ahead.advance(step)
        assert len(recorder.begun) == min(2 * (step + 1), 40), "exactly what the step needs"
        taken = [ahead.take() for _ in range(2)]
        assert [read.step for read, _ in taken] == [step, step]
        assert {result for _, result in taken} == {"patches"}
        for read, _ in taken:
            ahead.release(read)
    recorder = Recorder(list(reads(1, 20)))
    ahead = recorder.ahead(lookahead=10, buffer_bytes=35)
    ahead.advance(0)
    assert len(recorder.begun) == 3


def test_a_result_that_was_taken_and_dropped_is_freed() -> None:
    """The driver's graph must not keep what the consumer let go, even while it waits for more work."""

    class Result:
        """An object that can be watched."""

    runner = ThreadRunner(2)
    watched = []
    for _ in range(20):
        future = runner.submit(Result)
        watched.append(weakref.ref(future.result()))
        del future
    deadline = time.monotonic() + 5
    while any(ref() is not None for ref in watched) and time.monotonic() < deadline:
        time.sleep(0.01)
    alive = sum(ref() is not None for ref in watched)
    runner.close()
    assert alive == 0
