"""What the command line says while it works: progress on stderr, nothing on stdout."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_EVERY_S = 30.0


class ProgressBar:
    """Show (stage, done, total) in bytes: a bar on a terminal, a line every 30 s elsewhere, nothing if quiet.

    An instance is the `progress` callable that long calls take; use it as a context manager.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._stage = ""
        self._bar: tqdm | None = None
        self._said = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` bytes of a stage are finished."""
        if self._quiet:
            return
        if self._terminal:
            self._draw(stage, done, total)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            share = 100 * done / total if total else 100.0
            print(f"{stage}: {share:.0f} % of {total / 1e6:.0f} MB", file=sys.stderr, flush=True)

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, unit="B", unit_scale=True, file=sys.stderr, leave=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def say(message: str, *, quiet: bool = False) -> None:
    """Print talk, as opposed to data, to stderr."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)
