"""The unit of work that every writer of a store is made of: done whole, or done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""Called with (stage, bytes done, bytes in all); from one thread at a time."""


@dataclass(frozen=True)
class Unit:
    """A piece of a store that is written whole, with bytes that depend on the input alone.

    The journal notes a unit when it has run, and a later call skips it. A unit that was cut off runs again, so it
    overwrites what it finds (``overwrite=True`` where it creates groups or arrays) and reads nothing that a unit of
    the same `Journal.run` writes. Units of one run may execute at the same time in any order.

    Parameters
    ----------
    name : str
        Unique in the store and equal in every call: the journal's key, ``"images/a_image_um/s0/0.1"``.
    run : callable
        Writes the unit's files through the journal's Zarr store.
    bytes : int
        Size of the work, for progress [bytes, uncompressed].
    """

    name: str
    run: Callable[[], None]
    bytes: int = 0
