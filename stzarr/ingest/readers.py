"""The contract of readers, and how one is found for a path.

A reader is one class in one file. It names itself, says whether it recognises a path, and opens it as a `Source` of
lazy handles. Third parties register theirs under the entry point group ``stzarr.readers``; ours are asked first, nobody
else can take their names, and one that does not load is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal, Protocol

from stzarr.errors import IngestError, MissingInputError, listing
from stzarr.store.layout import check_id, is_taken
from stzarr.store.source import Source

MAX_DECODED_BYTES = 16 << 30
"""Largest picture without random access that is decoded into scratch, unless the user says otherwise."""

_NAMELESS = re.compile(r"outs|binned_outputs|(?:.*_)?square_\d{3}.*um")


@dataclass(frozen=True)
class ReadOptions:
    """What the user asked of the reader; None means the reader's choice.

    Parameters
    ----------
    id : str, optional
        Name of the slide; else from the path.
    image : Path, optional
        The full-resolution picture.
    bins_um : tuple of float, optional
        Bin sizes to store; else the smallest and 8 µm.
    counts : "filtered" or "raw", optional
        Which matrix; else filtered where it exists.
    mpp_source : float, optional
        µm per pixel of a plain slide whose file does not say.
    max_decoded_bytes : int
        Largest picture without random access that is decoded into scratch.
    """

    id: str | None = None
    image: Path | None = None
    bins_um: tuple[float, ...] | None = None
    counts: Literal["filtered", "raw"] | None = None
    mpp_source: float | None = None
    max_decoded_bytes: int = MAX_DECODED_BYTES


class Reader(Protocol):
    """The contract of a reader: one class in one file."""

    name: str

    def recognises(self, path: Path) -> bool:
        """Whether this path is of the reader's kind; looks at names and first bytes only."""
        ...

    def open(self, path: Path, options: ReadOptions) -> Source:
        """Open lazily: geometry is fitted and checked, counts and pixels stay unread."""
        ...


def open_source(path: Path, options: ReadOptions, *, reader: str | None = None) -> Source:
    """Open a path with the first reader that recognises it, or with the one that is named.

    Raises
    ------
    MissingInputError
        ST101: the path does not exist.
    IngestError
        ST102: no reader recognises it, or the named reader is not installed. ST107: the named reader does not load.
    """
    if not path.exists():
        raise MissingInputError("ST101", f"there is nothing at {path}", file=path, cure="check the path")
    installed = _installed()
    if reader is not None:
        if reader not in installed:
            raise IngestError("ST102", f"no reader is called {reader!r}", cure=f"use one of: {listing(installed)}")
        return _load(installed[reader]).open(path, options)
    broken = []
    for point in installed.values():
        try:
            candidate = _load(point)
        except IngestError as error:
            broken.append(error.what)
            continue
        if candidate.recognises(path):
            return candidate.open(path, options)
    raise IngestError(
        "ST102",
        "; ".join(["no reader recognises this input", *broken]),
        file=path,
        cure=f"give a Space Ranger outs/ folder or a slide file (readers: {listing(installed)})",
    )


def _installed() -> dict[str, EntryPoint]:
    """Return the readers by name, this package's own first; the first of a name counts."""
    points = sorted(entry_points(group="stzarr.readers"), key=lambda point: not point.value.startswith("stzarr."))
    installed: dict[str, EntryPoint] = {}
    for point in points:
        installed.setdefault(point.name, point)
    return installed


def _load(point: EntryPoint) -> Reader:
    """Make the reader of an entry point; ST107 if that fails."""
    try:
        reader: Reader = point.load()()
    except Exception as error:  # whatever foreign code raises when it is imported
        raise IngestError(
            "ST107",
            f"the reader {point.name!r} ({point.value}) does not load: {type(error).__name__}: {error}",
            cure="mend or remove the package that brings it",
        ) from error
    return reader


def slide_id(path: Path, asked: str | None = None) -> str:
    """Return the id of a slide: what the user asked, else the name of its file or folder in letters that fit.

    Folders whose name says nothing (``outs``, ``square_008um``) lend that of their parent. A name with another meaning
    in a store (``um``, ``table``) gets ``_slide`` appended.

    Raises
    ------
    IngestError
        ST110: the id that was asked for cannot be part of a name, or has another meaning in a store.
    """
    if asked is not None:
        return check_id(asked)
    path = path.resolve()
    while _NAMELESS.fullmatch(path.name):
        path = path.parent
    name = path.name if path.is_dir() else path.name.removesuffix(path.suffix).removesuffix(".ome")
    name = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]", "_", name)).lstrip("_.-").rstrip(".")
    return check_id(f"{name}_slide" if is_taken(name) else name or "slide")
