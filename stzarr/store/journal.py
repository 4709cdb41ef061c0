"""A store that is not finished yet: what is done, whose it is, and how it becomes whole.

While it is written, a store has no root ``zarr.json``, so nothing takes it for finished, and holds a work folder::

    .stzarr-partial/lock        flock of the one process that writes
    .stzarr-partial/journal     JSON lines: the header, then one line per finished unit or fact, each synced to disk
    .stzarr-partial/scratch/    what writers keep on disk meanwhile; outlives an interruption, so they check it

A store that replaces a finished one is written beside it, in ``.<name>.replacing``, and takes its place when whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import dask.threaded
import numcodecs.blosc
import zarr
from zarr.storage import LocalStore

from stzarr.errors import StoreError
from stzarr.store.manifest import (
    MANIFEST_KEY,
    ROOT_KEY,
    DigestStore,
    Entry,
    consolidated_metadata,
    digest_of,
    group_json,
    write_synced,
)
from stzarr.store.units import Progress, Unit

WORK_FOLDER = ".stzarr-partial"


class Journal:
    """The partial store of one call of `write_store`; get one from `Journal.open`.

    Parameters
    ----------
    path : Path
        Folder of the partial store; the caller holds its lock.
    target : Path
        Where the store will be: `path` too, or the finished store that it replaces.
    lock : int
        File descriptor that holds the lock.
    lines : sequence of mapping
        What earlier calls noted, the header left out.
    """

    def __init__(self, path: Path, target: Path, lock: int, lines: Sequence[Mapping[str, Any]]) -> None:
        self.path = path
        self._target = target
        self.scratch = path / WORK_FOLDER / "scratch"
        self.store = DigestStore(LocalStore(path))
        self._finished = {line["unit"] for line in lines if "unit" in line}
        self._facts = {line["fact"]: line["value"] for line in lines if "fact" in line}
        self.store.files.update(_files(lines))
        self._lock = lock
        self._writing = threading.Lock()
        self._lines = (path / WORK_FOLDER / "journal").open("a", encoding="utf-8")

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> Self:
        """Start a partial store, or continue the one that equal input began.

        Parameters
        ----------
        path : Path
            Folder of the store; made if missing.
        header : mapping
            All that decides the store's bytes, as JSON values; a partial store with another header is not continued.
        overwrite : bool
            Whether a partial store of other input is deleted first, and a finished store replaced in `finish`.

        Raises
        ------
        StoreError
            ST210: a finished store is there. ST211: something that is no store is there. ST212: another process
            writes it. ST213: a partial store of other input or options.
        """
        refuse_existing(path, overwrite=overwrite)
        target = path.resolve()
        path = target.with_name(f".{target.name}.replacing") if (target / ROOT_KEY).exists() else target
        refuse_existing(path, overwrite=overwrite)
        lock = _locked(path / WORK_FOLDER)
        try:
            _refuse_finished_since(path, overwrite=overwrite)
            digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
            lines = _read_lines(path / WORK_FOLDER / "journal")
            same = bool(lines) and lines[0].get("header") == digest
            if lines and not same and not overwrite:
                raise StoreError(
                    "ST213",
                    "an unfinished store of other input, options or version is in the way",
                    file=path,
                    cure="repeat the command that began it, or start again with --overwrite",
                )
            if not same or (path / ROOT_KEY).exists() or not _intact(path, lines):
                _clear(path)
                lines = []
            (path / WORK_FOLDER / "scratch").mkdir(exist_ok=True)
            journal = cls(path, target, lock, lines[1:])
            if not lines:
                journal._note({"header": digest, "input": dict(header)})
        except BaseException:
            os.close(lock)
            raise
        return journal

    @property
    def root(self) -> zarr.Group:
        """The root group, for writers; its own metadata is not on disk yet."""
        return zarr.create_group(store=self.store, zarr_format=3)

    @property
    def manifest(self) -> dict[str, Entry]:
        """Size and sha256 of every file so far, by path in the store, but for the two files of `finish`."""
        return {key: entry for key, entry in sorted(self.store.files.items()) if key != MANIFEST_KEY}

    def run(self, units: Sequence[Unit], *, stage: str, threads: int = 1, progress: Progress | None = None) -> None:
        """Execute the units that no earlier call finished, at most `threads` at a time, and note each when it is done.

        The first error stops the run, after the units in flight have ended.
        """
        todo = [unit for unit in units if unit.name not in self._finished]
        total = sum(unit.bytes for unit in units)
        done = total - sum(unit.bytes for unit in todo)

        def work(unit: Unit) -> None:
            nonlocal done
            unit.run()
            with self._writing:
                self._commit(unit.name)
                done += unit.bytes
                if progress is not None:
                    progress(stage, done, total)

        with _no_blosc_threads():
            if threads == 1 or len(todo) < 2:
                for unit in todo:
                    work(unit)
            else:
                graph = {unit.name: (work, unit) for unit in todo}
                with ThreadPoolExecutor(threads) as pool:
                    dask.threaded.get(graph, list(graph), pool=pool, num_workers=threads)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a JSON value that is computed once, also over several calls: a count, the digest of an input."""
        if name not in self._facts:
            value = compute()
            with self._writing:
                self._facts[name] = value
                self._note({"fact": name, "value": value})
        return self._facts[name]

    def record(self, key: str) -> None:
        """Note size and digest of a file that a unit wrote beside Zarr (``shapes.parquet``); `key` as in the store."""
        self.store.note(key, digest_of(self.path / key))

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Write the manifest and, last, the root metadata with a copy of all others; then remove the work folder.

        A store that this one replaces is moved into the work folder first: it is whole until then.

        Parameters
        ----------
        attributes : mapping
            The root group's attributes.
        """
        manifest = self.manifest
        write_synced(self.path / MANIFEST_KEY, group_json({"manifest": manifest}))
        for leftover in list(self.path.rglob("*.partial")):
            leftover.unlink()  # zarr's temporary files of a call that was killed
        nodes = [MANIFEST_KEY, *(key for key in manifest if key.endswith("/zarr.json"))]
        write_synced(self.path / ROOT_KEY, group_json(attributes, consolidated=consolidated_metadata(self.path, nodes)))
        if self.path != self._target:
            if self._target.exists():  # its owner may have made room
                self._target.rename(self.path / WORK_FOLDER / "replaced")
            self.path.rename(self._target)
        self.close()
        shutil.rmtree(self._target / WORK_FOLDER, ignore_errors=True)  # a process that waits may be removing it too

    def discard(self) -> None:
        """Delete the partial store."""
        self.close()
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Release the lock; the partial store stays and can be continued."""
        if not self._lines.closed:
            self._lines.close()
            os.close(self._lock)

    def _commit(self, unit: str) -> None:
        # Files of other units in flight may be among the fresh ones: should those units be cut off, they will write
        # the same bytes again.
        fresh = [self.store.fresh.popleft() for _ in range(len(self.store.fresh))]
        self._note({"unit": unit, "files": {key: self.store.files[key] for key in fresh}})
        self._finished.add(unit)

    def _note(self, line: Mapping[str, Any]) -> None:
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise ST210 for a finished store, unless it may be overwritten, and ST211 for what is no store."""
    if (path / ROOT_KEY).exists():
        if not overwrite:
            raise StoreError("ST210", "a store is there already", file=path, cure="--overwrite, or another path")
    elif path.exists() and not (path / WORK_FOLDER).is_dir() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError("ST211", "something that is no store is in the way", file=path, cure="give another path")


def _refuse_finished_since(path: Path, *, overwrite: bool) -> None:
    """Raise ST210 for a store that another process finished before the lock was ours; leave nothing in it."""
    if (path / ROOT_KEY).exists() and not overwrite:
        shutil.rmtree(path / WORK_FOLDER, ignore_errors=True)
        refuse_existing(path, overwrite=False)


def _locked(work: Path) -> int:
    """Make the work folder and lock it; the descriptor holds the lock until it is closed."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == (work / "lock").stat().st_ino:
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise StoreError(
                "ST212", "another process is writing this store", file=work.parent, cure="wait for it, or end it"
            ) from error
        except FileNotFoundError:
            pass
        os.close(lock)  # the process that held it finished and removed the folder: begin again


def _read_lines(journal: Path) -> list[dict[str, Any]]:
    """Return the journal's whole lines, and cut off one that was torn when its writer was killed."""
    if not journal.exists():
        return []
    text = journal.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(journal, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _files(lines: Sequence[Mapping[str, Any]]) -> dict[str, Entry]:
    """Return the files that a journal's lines name."""
    return {key: (size, digest) for line in lines for key, (size, digest) in line.get("files", {}).items()}


def _intact(path: Path, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every file of the journal is there in full; a crash of the machine may have lost some."""
    files = _files(lines)
    return all((path / key).is_file() and (path / key).stat().st_size == size for key, (size, _) in files.items())


def _clear(path: Path) -> None:
    """Delete a store but for its lock, the root metadata first."""
    (path / ROOT_KEY).unlink(missing_ok=True)
    work = path / WORK_FOLDER
    for child in [*path.iterdir(), *work.iterdir()]:
        if child in (work, work / "lock"):
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


@contextlib.contextmanager
def _no_blosc_threads() -> Iterator[None]:
    """Keep Blosc from its own threads, which make its output vary from run to run."""
    before, numcodecs.blosc.use_threads = numcodecs.blosc.use_threads, False
    try:
        yield
    finally:
        numcodecs.blosc.use_threads = before
