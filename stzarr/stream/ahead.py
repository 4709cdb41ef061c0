"""Reading ahead with Dask: tasks run before their patches are wanted, in a queue that time and memory bound.

Every read is one Dask task; it runs in Dask's threads by default, or on the workers of a `distributed.Client`.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import dask.threaded

from stzarr.stream.lanes import Read

Task = Callable[[], Any]
_NUM_DRIVERS = 2


class Pending(Protocol):
    """A result that comes later."""

    def result(self) -> Any:
        """Wait for the result, or raise what the task raised."""
        ...


class Runner(Protocol):
    """Where tasks run."""

    def submit(self, task: Task) -> Pending:
        """Start a task."""
        ...

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and free the threads."""
        ...


class ThreadRunner:
    """Tasks in Dask's threaded scheduler on one pool of threads, which lives until `close`.

    Two drivers hand waves of waiting tasks to the scheduler, so that one wave fills the threads that the end of the
    other leaves idle. A result is there when its task is done, not when the wave is.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stzarr-read")
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Task] | None] = queue.SimpleQueue()
        self._futures: set[Future[Any]] = set()
        self._wave = 2 * threads
        self._drivers = [
            threading.Thread(target=self._drive, name=f"stzarr-dask-{index}", daemon=True)
            for index in range(_NUM_DRIVERS)
        ]
        for driver in self._drivers:
            driver.start()

    def submit(self, task: Task) -> Future[Any]:
        """Start a task; see `Runner`."""
        future: Future[Any] = Future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self._waiting.put((future, task))
        return future

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and free the threads."""
        for future in list(self._futures):
            future.cancel()
        for _ in self._drivers:
            self._waiting.put(None)
        for driver in self._drivers:
            driver.join()
        self._pool.shutdown(wait=True)

    def _drive(self) -> None:
        while True:
            item = self._waiting.get()
            if item is None:
                return
            graph: dict[str, tuple[Task]] = {}
            while item is not None:
                graph[f"read-{len(graph)}"] = (partial(_settle, list(item)),)
                item = self._next() if len(graph) < self._wave else None
            self._run(graph)
            del graph

    def _run(self, graph: dict[str, tuple[Task]]) -> None:
        try:
            dask.threaded.get(graph, list(graph), pool=self._pool)
        except BaseException as error:  # the scheduler's own: nobody may wait for ever, whatever went wrong
            for future in list(self._futures):
                if not future.done():
                    future.set_exception(error)

    def _next(self) -> tuple[Future[Any], Task] | None:
        try:
            item = self._waiting.get_nowait()
        except queue.Empty:
            return None
        if item is None:
            self._waiting.put(None)
        return item


def _settle(item: list[Any]) -> None:
    """Run a task and give its result, or its error, to the future; the scheduler keeps neither."""
    future, task = item
    item.clear()
    if not future.set_running_or_notify_cancel():
        return
    try:
        found = task()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(found)


class ClientRunner:
    """Tasks on a `distributed.Client`; its workers must see the stores under the same paths."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pending: deque[Any] = deque()

    def submit(self, task: Task) -> Pending:
        """Start a task; see `Runner`."""
        future = self._client.submit(task, pure=False)
        while self._pending and self._pending[0].done():
            self._pending.popleft()
        self._pending.append(future)
        return future

    def close(self) -> None:
        """Cancel what has not been fetched; the client stays open, it is the caller's."""
        self._client.cancel([future for future in self._pending if not future.done()])
        self._pending.clear()


class ReadAhead:
    """Reads in the order in which they are needed, some of them begun before.

    Parameters
    ----------
    reads : iterator of Read
        In the order of need.
    submit : callable
        Starts a read.
    size_of : callable
        Bytes that the result of a read will hold, about.
    lookahead : int
        Reads that this many steps from now need are begun now ...
    buffer_bytes : int
        ... as long as all that is begun and not released stays within this. What the current step needs is begun
        whatever the buffer says.
    """

    def __init__(
        self,
        reads: Iterator[Read],
        submit: Callable[[Read], Pending],
        size_of: Callable[[Read], int],
        lookahead: int,
        buffer_bytes: int,
    ) -> None:
        self._reads = reads
        self._submit = submit
        self._size_of = size_of
        self._lookahead = lookahead
        self._buffer_bytes = buffer_bytes
        self._held = 0
        self._begun: deque[tuple[Read, Pending]] = deque()
        self._next = next(reads, None)

    def advance(self, step: int) -> None:
        """Begin what a step needs, and what the next ones need as far as the buffer allows."""
        while self._next is not None and self._next.step <= step + self._lookahead:
            size = self._size_of(self._next)
            if self._next.step > step and self._held + size > self._buffer_bytes:
                return
            self._held += size
            self._begun.append((self._next, self._submit(self._next)))
            self._next = next(self._reads, None)

    def take(self) -> tuple[Read, Any]:
        """Wait for the read that is needed next."""
        read, pending = self._begun.popleft()
        return read, pending.result()

    def release(self, read: Read) -> None:
        """Say that the patches of a read are used up."""
        self._held -= self._size_of(read)
