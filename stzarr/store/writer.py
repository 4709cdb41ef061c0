"""One slide in, one store out: streaming, resumable, and complete only when its root metadata exists."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import zarr

from stzarr import __version__
from stzarr.errors import IngestError
from stzarr.space import PixelGrid
from stzarr.store import layout, sums, tissue
from stzarr.store.counts import write_table
from stzarr.store.journal import Journal, refuse_existing
from stzarr.store.manifest import digest_of
from stzarr.store.plan import StorePlan, WriteOptions, plan_store
from stzarr.store.raster import write_image
from stzarr.store.regions import write_region
from stzarr.store.source import Source, empty_matrix
from stzarr.store.units import Progress, Unit

__all__ = ["Progress", "StorePlan", "WriteOptions", "plan_store", "write_store"]

PRINTED_SPOT_RADIUS_UM = 27.5
_SOFTWARE = ("zarr", "numcodecs", "numpy", "opencv-python-headless")


def write_store(
    source: Source, path: Path, options: WriteOptions | None = None, *, progress: Progress | None = None
) -> Path:
    """Write the store of a source; the same call again continues where an interrupted one stopped.

    Memory does not depend on the slide's size, and the bytes not on the number of threads.

    Parameters
    ----------
    source : Source
        Read in pieces; stays open.
    path : Path
        Folder of the store. Until it is complete it has no root ``zarr.json``.
    options : WriteOptions, optional
    progress : callable, optional
        Called with (stage, bytes done, bytes in all).

    Returns
    -------
    Path
        The store.

    Raises
    ------
    IngestError
        The input turned out to be bad; what was written is deleted, and a store that it was to replace stays.
    StoreError
        ST210-ST213: something is in the way, see `Journal.open`. ST220, ST221: see `plan_store`. ST230: no space for
        decoding; what was written stays, as it does when the system raises an OSError.
    """
    options = options or WriteOptions()
    refuse_existing(path, overwrite=options.overwrite)
    plan = plan_store(source, options)
    for counts in source.counts:
        if counts.matrix.num_nonzero == 0:  # nothing is touched, not even what would be overwritten
            raise empty_matrix(counts.matrix.path)
    journal = Journal.open(path, _header(source, options), overwrite=options.overwrite)
    try:
        with _one_opencv_thread():
            _StoreWriter(source, plan, options, journal, progress).write()
    except IngestError:
        journal.discard()
        raise
    finally:
        journal.close()
    return path


class _StoreWriter:
    """One call of `write_store`: what its steps share."""

    def __init__(
        self, source: Source, plan: StorePlan, options: WriteOptions, journal: Journal, progress: Progress | None
    ) -> None:
        self._source, self._plan, self._options = source, plan, options
        self._journal, self._progress = journal, progress
        self._root = journal.root

    def write(self) -> None:
        """Write all elements, counts first: they are what can turn out to be bad."""
        tables = {counts.name: self._table(index) for index, counts in enumerate(self._source.counts)}
        for picture in self._plan.pictures:
            write_image(
                self._root,
                picture,
                self._plan.frame,
                self._plan.id,
                journal=self._journal,
                threads=self._options.threads,
                progress=self._progress,
            )
        attributes = self._attributes(tables, self._tissue(), self._sources())
        software = {"version": layout.SPATIALDATA_VERSION, "spatialdata_software_version": f"stzarr {__version__}"}
        self._journal.finish({"spatialdata_attrs": software, "stzarr": attributes})

    def _table(self, index: int) -> dict[str, Any]:
        counts = self._source.counts[index]
        result = write_table(
            self._root,
            counts,
            slide_id=self._plan.id,
            frame=self._plan.frame,
            scratch=self._journal.scratch,
            journal=self._journal,
            threads=self._options.threads,
            progress=self._progress,
        )
        write_region(
            self._root,
            counts,
            result,
            slide_id=self._plan.id,
            frame=self._plan.frame,
            journal=self._journal,
            threads=self._options.threads,
            progress=self._progress,
            spot_radius_um=self._spot_radius_um(),
        )
        return result.attrs

    def _spot_radius_um(self) -> float:
        """Return the radius that spatialdata-io's readers give, else that of the printed spots [µm]."""
        diameter_px = self._source.details.get("scalefactors", {}).get("spot_diameter_fullres")
        return PRINTED_SPOT_RADIUS_UM if diameter_px is None else round(diameter_px * self._plan.frame.mpp / 2, 6)

    def _tissue(self) -> dict[str, Any]:
        """Write the tissue map, of the positions if there are any, and return its entry of the root attributes."""
        grid = self._plan.tissue

        def write() -> None:
            if self._source.counts:
                share = tissue.tissue_of_counts(self._source.counts[0], grid)
            else:
                share = tissue.tissue_of_pixels(*self._coarse_level(), grid)
            tissue.write_tissue(self._root, share)

        self._journal.run([Unit(tissue.PATH, write)], stage="tissue", progress=self._progress)
        return {"grid": dict(vars(grid)), "origin": "in_tissue" if self._source.counts else "image"}

    def _coarse_level(self) -> tuple[zarr.Array, PixelGrid]:
        """Return the coarsest level of a plain slide's picture whose pixels are no larger than a tissue cell."""
        picture = self._plan.pictures[0]
        grids = [picture.grid.level(index) for index in range(picture.num_levels)]
        fine_enough = [index for index, grid in enumerate(grids) if grid.mpp <= layout.TISSUE_UM]
        level = fine_enough[-1] if fine_enough else 0
        array = self._root[f"images/{picture.name}/s{level}/image"]
        if not isinstance(array, zarr.Array):
            raise TypeError(f"level {level} of {picture.name} is a group")
        return array, grids[level]

    def _sources(self) -> list[dict[str, Any]]:
        """Return names, sizes and digests of the input files; each is read through once."""
        names = _relative_names(self._source)
        total = sum(file.stat().st_size for file in names)
        done, entries = 0, []
        for file, name in names.items():
            size, digest = self._journal.once(f"source/{name}", partial(digest_of, file))
            entries.append({"path": name, "bytes": size, "sha256": digest})
            done += size
            if self._progress is not None:
                self._progress("digests", done, total)
        return entries

    def _attributes(
        self, tables: dict[str, Any], tissue_map: dict[str, Any], sources: list[dict[str, Any]]
    ) -> dict[str, Any]:
        plan, source = self._plan, self._source
        compared = sums.compare_totals(self._root, list(tables))
        return {
            "layout_version": layout.LAYOUT_VERSION,
            "id": plan.id,
            "assay": plan.assay,
            "simulated": bool(source.details.get("simulated", False)),
            "frame": plan.frame.to_json(),
            "area_um": list(plan.area_um),
            "images": {picture.name: picture.attributes() for picture in plan.pictures},
            "tables": tables,
            "tissue": tissue_map,
            "meta": dict(self._options.meta),
            "sources": sources,
            "software": {"stzarr": __version__} | {name: version(name) for name in _SOFTWARE},
            "options": _decisive(self._options),
            "details": source.details,
            "sums": compared,
            "warnings": [*source.warnings, *sums.warnings_of(compared)],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _decisive(options: WriteOptions) -> dict[str, Any]:
    """Return the options that decide the store's content."""
    return {"image_mpp": options.image_mpp, "image_frame": options.image_frame, "meta": dict(options.meta)}


def _header(source: Source, options: WriteOptions) -> dict[str, Any]:
    """Return what decides the bytes of a store: only a partial store with an equal header is continued."""
    files = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in source.files]
    return {
        "layout_version": layout.LAYOUT_VERSION,
        "software": __version__,
        "id": source.id,
        "sources": sorted(files),
        "images": [[image.name, str(image.handle.path.absolute())] for image in source.images],
        "tables": [counts.name for counts in source.counts],
        "frame": source.frame.to_json(),
        "options": _decisive(options),
    }


def _relative_names(source: Source) -> dict[Path, str]:
    """Name every input file relative to the input folder; a picture from elsewhere by its file name alone."""
    pictures = {image.handle.path for image in source.images if image.name == "full"}
    inside = [file for file in source.files if file not in pictures] or list(source.files)
    folder = Path(os.path.commonpath([file.absolute().parent for file in inside])) if inside else Path()
    return {
        file: str(file.absolute().relative_to(folder)) if file.absolute().is_relative_to(folder) else file.name
        for file in source.files
    }


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Leave the cores to the units, which run side by side."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
