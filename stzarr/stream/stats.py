"""What a stream has done so far: patches, bytes, and how long its consumer waited."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StreamStats:
    """A snapshot; all counts are of this rank, since the stream was made.

    Parameters
    ----------
    batches, patches : int
        Batches handed out, and their valid patches.
    batch_bytes : int
        Bytes of the arrays handed out.
    read_bytes : int
        Bytes read from the stores, decoded.
    seconds : float
        Time in iterations, from asking for the first batch to the hand-over of the last one [s].
    wait_s : float
        Part of it that the consumer waited for a batch [s]; the rest is the consumer's own work.
    """

    batches: int = 0
    patches: int = 0
    batch_bytes: int = 0
    read_bytes: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0

    @property
    def patches_per_s(self) -> float:
        """Valid patches a second."""
        return self.patches / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        waited = self.wait_s / self.seconds if self.seconds else 0.0
        return (
            f"{self.patches} patches in {self.batches} batches, {self.patches_per_s:.0f} patches/s, "
            f"waited {waited:.0%}, {self.batch_bytes / 1e6:.0f} MB out, {self.read_bytes / 1e6:.0f} MB read"
        )


class Meter:
    """Adds up `StreamStats` while batches are handed out."""

    def __init__(self) -> None:
        self.stats = StreamStats()
        self._asked = 0.0
        self._left: float | None = None

    def start(self) -> None:
        """Begin an iteration: what passed since the last one does not count."""
        self._left = None

    def ask(self) -> None:
        """Note that the consumer asks for a batch."""
        self._asked = time.perf_counter()

    def hand_over(self, patches: int, batch_bytes: int, read_bytes: int) -> None:
        """Note that a batch is ready for the consumer."""
        now, old = time.perf_counter(), self.stats
        since = self._asked if self._left is None else self._left
        self._left = now
        self.stats = replace(
            old,
            batches=old.batches + 1,
            patches=old.patches + patches,
            batch_bytes=old.batch_bytes + batch_bytes,
            read_bytes=old.read_bytes + read_bytes,
            seconds=old.seconds + now - since,
            wait_s=old.wait_s + now - self._asked,
        )
