"""Readers of raw data, and the verb `ingest` that turns a path into a store."""

from __future__ import annotations

from pathlib import Path

from stzarr.ingest.readers import ReadOptions, open_source
from stzarr.store.writer import Progress, WriteOptions, write_store


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
        Called with (stage, done, total), in bytes.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    IngestError
        The input is damaged or incomplete (ST1xx); nothing is left that looks finished.
    StoreError
        The store exists and `overwrite` was not asked for (ST2xx).
    """
    source = open_source(Path(path), read or ReadOptions(), reader=reader)
    try:
        return write_store(source, Path(store), write or WriteOptions(), progress=progress)
    finally:
        source.close()
