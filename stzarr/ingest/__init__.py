"""Readers of raw data, and the verb `ingest` that turns a path into a store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from stzarr.ingest.readers import ReadOptions, open_source
from stzarr.store.writer import Progress, StorePlan, WriteOptions, plan_store, write_store

__all__ = ["ReadOptions", "StorePlan", "WriteOptions", "ingest", "plan"]


def ingest(
    path: str | Path,
    store: str | Path,
    *,
    read: ReadOptions | None = None,
    write: WriteOptions | None = None,
    reader: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert one slide into a store, streaming; the same call again continues an interrupted one.

    Parameters
    ----------
    path : path
        Space Ranger ``outs/`` folder, a slide file, or whatever an installed reader recognises.
    store : path
        Folder of the new store.
    read, write : ReadOptions, WriteOptions, optional
        What to read and how to store it.
    reader : str, optional
        Name of the reader; else the first that recognises `path`.
    progress : callable, optional
        Called with (stage, bytes done, bytes in all).

    Returns
    -------
    Path
        The store.

    Raises
    ------
    IngestError
        The input is damaged or incomplete (ST1xx); nothing is left that looks finished.
    StoreError
        The store exists and `overwrite` was not asked for, or another process writes it (ST2xx).
    """
    with closing(open_source(Path(path), read or ReadOptions(), reader=reader)) as source:
        return write_store(source, Path(store), write, progress=progress)


def plan(
    path: str | Path,
    *,
    read: ReadOptions | None = None,
    write: WriteOptions | None = None,
    reader: str | None = None,
) -> StorePlan:
    """Return geometry and elements of the store that `ingest` would write; reads positions, no counts, no pixels.

    Parameters and errors are those of `ingest`.
    """
    with closing(open_source(Path(path), read or ReadOptions(), reader=reader)) as source:
        return plan_store(source, write or WriteOptions())
