"""Every error a user can meet: what happened, which file and value, what to do, and a code that never changes.

Codes are grouped by the part that raises them: ST1xx input files, ST2xx stores, ST3xx slicing, ST4xx the stream,
ST5xx training. A code, once published, keeps its meaning.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import PurePath


class StzarrError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    code : str
        Stable code, ``"ST104"``.
    what : str
        What happened, one sentence, with the offending value.
    file : path or str, optional
        The file or folder at fault, with what was found there if that helps.
    cure : str, optional
        What the user can do about it; a command where there is one.
    """

    def __init__(self, code: str, what: str, *, file: PurePath | str | None = None, cure: str | None = None) -> None:
        self.code = code
        self.what = what
        self.file = None if file is None else str(file)
        self.cure = cure
        super().__init__(code, what)

    def __str__(self) -> str:
        lines = [f"{type(self).__name__} [{self.code}]: {self.what}"]
        if self.file is not None:
            lines.append(f"  file: {self.file}")
        if self.cure is not None:
            lines.append(f"  try:  {self.cure}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.what, self.file, self.cure)


def _rebuild(kind: type[StzarrError], code: str, what: str, file: str | None, cure: str | None) -> StzarrError:
    """Unpickle an error that crossed a process boundary (a Dask or loader worker)."""
    return kind(code, what, file=file, cure=cure)


class IngestError(StzarrError, ValueError):
    """Input files that are missing parts, damaged, or do not belong together (ST1xx)."""


class MissingInputError(IngestError, FileNotFoundError):
    """An input file or folder that does not exist (ST1xx)."""


class GeometryError(IngestError):
    """Positions that no lattice explains (ST1xx)."""


class StoreError(StzarrError, ValueError):
    """A store that is incomplete, damaged, too new, or in the way (ST2xx)."""


class SlideError(StzarrError, ValueError):
    """A slicing request that the slide cannot answer (ST3xx)."""


class BoundsError(SlideError, IndexError):
    """A box or position outside the slide (ST3xx)."""


class GeneError(SlideError, KeyError):
    """A gene that the slide does not have, or a symbol that means several (ST3xx)."""


class StreamError(StzarrError, ValueError):
    """A stream that cannot be planned, divided over ranks, or resumed (ST4xx)."""


class MissingPackageError(StzarrError, ImportError):
    """An optional package that a part needs and that is not installed."""


class TrainingError(StzarrError, ValueError):
    """A training run that cannot start, continue or be evaluated (ST5xx)."""


def is_of_machine(error: BaseException) -> bool:
    """Whether an error is of the disk or the network (EIO, ENOSPC, ENETDOWN), not of a damaged file: it has an errno.

    EINVAL is the file's: it names an offset that no file can have.
    """
    return isinstance(error, OSError) and error.errno not in (None, 0, errno.EINVAL)


def listing(values: Iterable[object], limit: int = 8) -> str:
    """Join values for a message, cut after `limit` with the number left out."""
    names = [str(value) for value in values]
    more = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
