"""Whether a store is what was written: its files, its attributes, and counts that add up to what ingest recorded."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from stzarr.errors import StoreError
from stzarr.store import checks
from stzarr.store.checks import Element, Problem
from stzarr.store.manifest import MANIFEST_KEY, ROOT_KEY, Entry, digest_of
from stzarr.store.reader import StoreReader
from stzarr.store.units import Progress

_log = logging.getLogger(__name__)

_AGAIN = "stzarr ingest with --overwrite, or copy the file again from where it is whole"
_CURES = {
    "ST250": _AGAIN,
    "ST251": _AGAIN,
    "ST252": _AGAIN,
    "ST253": _AGAIN,
    "ST254": "zarr.consolidate_metadata(store)",
    "ST255": "stzarr ingest with --overwrite",
    "ST256": "stzarr ingest with --overwrite",
    "ST257": "stzarr ingest with --overwrite",
    "ST258": "stzarr ingest with --overwrite",
    "ST259": "compare the versions in `stzarr env` with those in constraints.txt",
    "ST260": "rename the element that was added; for the slide's own, stzarr ingest with --overwrite and another --id",
}

_KINDS = ("images", "labels", "points", "shapes", "tables")
_CONTAINERS = frozenset(f"{kind}/zarr.json" for kind in _KINDS)
"""Metadata that others rewrite when they add elements."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a store.

    Parameters
    ----------
    code : str
        ST250 a file or element is missing, ST251 it has another size, ST252 other bytes, ST253 it cannot be read,
        ST254 the root's copy of the metadata is stale, ST255 attributes, ST256 shapes or indexes, ST257 sums of
        counts, ST258 a region that does not hold each row of its table once, ST259 SpatialData cannot open it, ST260
        a name that several elements have.
    file : str
        Path inside the store.
    what : str
    cure : str
    """

    code: str
    file: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.code}: {self.what}\n  file: {self.file}\n  try:  {self.cure}"


def validate(path: str | Path, *, deep: bool = False, progress: Progress | None = None) -> list[Finding]:
    """Check a store; what others added to it is left alone.

    Sizes of all files, attributes of all elements, indexes and regions of all tables, and the counts, which are summed
    again, shard by shard. An element with a damaged file is not looked into further.

    Parameters
    ----------
    path : path
        The store.
    deep : bool
        Also compare the sha256 of every file with the manifest, and open all elements with spatialdata and anndata
        if they are installed (tables and pixels lazily); a log message says so if they are not.
    progress : callable, optional
        Called with (stage, bytes done, bytes in all).

    Returns
    -------
    list of Finding
        Empty for a good store.

    Raises
    ------
    StoreError
        ST201-ST204: there is no store, or no finished one, or its root metadata is damaged.
    """
    reader = StoreReader(path)
    manifest = _manifest(reader.path)
    problems = [*_file_problems(reader.path, manifest, deep, progress), *_stale_copies(reader.path, manifest)]
    damaged = {_element_of(problem.file) for problem in problems if problem.code != "ST254"}
    root = zarr.open_group(reader.path, mode="r", zarr_format=3, use_consolidated=False)
    for element in checks.elements(reader.attrs, reader.path):
        if damaged.isdisjoint(element.paths):
            problems += _content_problems(root, element, progress)
    if deep and not problems:
        problems += [*_repeated_names(reader.path), *_foreign_problems(reader.path, list(reader.tables))]
    return [_finding(problem) for problem in problems]


def damaged_files(path: str | Path) -> list[Finding]:
    """Return the files that are missing or have another size than was written; looks at no content.

    What reads much from a store asks this first: Zarr gives zeros for a chunk whose file is gone.

    Raises
    ------
    StoreError
        ST204: the store's manifest cannot be read.
    """
    problems = _file_problems(Path(path), _manifest(Path(path)), False, None)
    return [_finding(problem) for problem in problems]


def _finding(problem: Problem) -> Finding:
    return Finding(problem.code, problem.file, problem.what, _CURES[problem.code])


def _content_problems(root: zarr.Group, element: Element, progress: Progress | None) -> list[Problem]:
    problems: list[Problem] = []
    try:
        problems.extend(element.check(root, progress))
    except checks.UNREADABLE as error:
        problems.append(Problem("ST253", element.paths[0], f"it cannot be read: {type(error).__name__}: {error}"))
    return problems


# -------------------------------------------------------------------------------------------------------- files


def _manifest(path: Path) -> dict[str, Entry]:
    """Return size and sha256 of every managed file, by its path in the store."""
    try:
        manifest = json.loads((path / MANIFEST_KEY).read_bytes())["attributes"]["manifest"]
        return {key: (int(size), str(digest)) for key, (size, digest) in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            "ST204", "the manifest of the store cannot be read", file=path / MANIFEST_KEY, cure=_AGAIN
        ) from error


def _element_of(key: str) -> str:
    return "/".join(key.split("/")[:2])


def _file_problems(path: Path, manifest: dict[str, Entry], deep: bool, progress: Progress | None) -> Iterator[Problem]:
    """Compare the files with the manifest; an element that is gone is one problem."""
    gone = {element for element in map(_element_of, manifest) if not (path / element).exists()}
    yield from (Problem("ST250", element, "the element is missing") for element in sorted(gone))
    total, done = sum(size for size, _ in manifest.values()), 0
    for key, entry in manifest.items():
        if _element_of(key) not in gone:
            yield from _file_problem(path, key, entry, deep)
        done += entry[0]
        if progress is not None and deep:
            progress("digests", done, total)


def _file_problem(path: Path, key: str, entry: Entry, deep: bool) -> Iterator[Problem]:
    file, (size, digest) = path / key, entry
    is_metadata = key.endswith("zarr.json")
    if not file.is_file():
        yield Problem("ST250", key, "the file is missing")
    elif not is_metadata and file.stat().st_size != size:
        yield Problem("ST251", key, f"the file has {file.stat().st_size} bytes where {size} were written")
    elif is_metadata and _json(file) is None:
        yield Problem("ST253", key, "the metadata is not a JSON object")
    elif deep and key not in _CONTAINERS and digest_of(file)[1] != digest:
        yield Problem("ST252", key, "the file's content is not what was written (sha256)")


def _json(file: Path) -> dict[str, Any] | None:
    """Return the object that a file holds, or None if it holds anything else."""
    try:
        return _object(json.loads(file.read_bytes()))
    except ValueError:
        return None


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _stale_copies(path: Path, manifest: dict[str, Entry]) -> Iterator[Problem]:
    """Compare the metadata that the root holds copies of with that of our elements; a root without copies is fine."""
    consolidated = _object((_json(path / ROOT_KEY) or {}).get("consolidated_metadata")) or {}
    copies = _object(consolidated.get("metadata")) or {}
    for key in sorted(manifest.keys() - _CONTAINERS):
        name = key.removesuffix("/zarr.json")
        if name == key or not copies or not (path / key).is_file():
            continue
        node = _json(path / key)
        copy = _object(copies.get(name)) or {}
        if node is not None and any(
            copy.get(field) != node[field] for field in node if field != "consolidated_metadata"
        ):
            yield Problem("ST254", key, "the copy of this metadata in the root, which readers use, differs")


# -------------------------------------------------------------------------------------------------- other software


def _repeated_names(path: Path) -> Iterator[Problem]:
    """Find element names that occur twice, whatever their kind: SpatialData compares them without case."""
    first: dict[str, str] = {}
    for kind in _KINDS:
        for node in sorted((path / kind).glob("*/zarr.json")):
            element = f"{kind}/{node.parent.name}"
            other = first.setdefault(node.parent.name.casefold(), element)
            if other != element:
                yield Problem("ST260", element, f"another element has its name: {other}")


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep the warnings of a logger back."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _foreign_problems(path: Path, tables: list[str]) -> Iterator[Problem]:
    """Open everything with spatialdata and anndata, lazily, if they are installed."""
    try:
        import spatialdata
        from anndata.experimental import read_lazy
    except ImportError as error:
        _log.warning("not opened with spatialdata: %s", error)
        return
    with warnings.catch_warnings(), _quiet("ome_zarr"):  # it logs "no parent found" for labels without a picture
        warnings.simplefilter("ignore")  # theirs about numbers as names, and about their own dependencies
        try:
            spatialdata.read_zarr(path, selection=("images", "labels", "shapes"))
        except Exception as error:  # whatever it raises is what its users would meet
            yield Problem("ST259", "", f"spatialdata cannot open it: {type(error).__name__}: {error}")
        for name in tables:
            try:
                read_lazy(path / "tables" / name)
            except Exception as error:
                yield Problem("ST259", f"tables/{name}", f"anndata cannot open it: {type(error).__name__}: {error}")
