"""Where the files of a Space Ranger run lie: v1 to v4, Visium and Visium HD, with or without an ``<id>_`` prefix."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stzarr.errors import IngestError, MissingInputError, listing

PictureName = Literal["full", "hires", "lowres"]

_SQUARE = re.compile(r"(?P<prefix>.*_)?square_(?P<um>\d{3}(?:\.\d+)?)um\Z")
_MATRICES = ("{}_feature_bc_matrix.h5", "{}_feature_bc_matrix")
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")


def find_run(path: Path) -> Path | None:
    """Return the folder that holds the run's files, `path` or its ``outs``; None if this is no Space Ranger run."""
    for folder in (path, path / "outs"):
        if folder.is_dir() and (bin_folders(folder) or _is_visium(folder)):
            return folder
    return None


def _is_visium(folder: Path) -> bool:
    return find_entry(folder, "spatial") is not None or any(
        find_entry(folder, name.format(kind)) for kind in ("filtered", "raw") for name in _MATRICES
    )


def bin_folders(run: Path) -> dict[float, Path]:
    """Return the ``square_*`` folders of a run by bin size [µm], ascending; `run` may itself be one of them.

    Raises
    ------
    IngestError
        ST106: folders of several runs, see `find_entry`.
    """
    if match := _SQUARE.match(run.name):
        return {float(match["um"]): run}
    inside = find_entry(run, "binned_outputs")
    found = _squares(run) | ({} if inside is None else _squares(inside))
    return dict(sorted(found.items()))


def _squares(folder: Path) -> dict[float, Path]:
    """Return the ``square_*`` folders in a folder: those without a prefix, else those of the only prefix."""
    found = [match for entry in sorted(folder.iterdir()) if entry.is_dir() and (match := _SQUARE.match(entry.name))]
    found = [match for match in found if match["prefix"] is None] or found
    if len({match["prefix"] for match in found}) > 1:
        raise _several("bin sizes are of several runs", (match.string for match in found), folder)
    return {float(match["um"]): folder / match.string for match in found}


def find_entry(folder: Path, *names: str) -> Path | None:
    """Return the file or folder with the first of these names that exists, as it is or after a prefix ``<id>_``.

    Raises
    ------
    IngestError
        ST106: several prefixes are there, so that it cannot be told which run is meant.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for name in names:
        exact = [entry for entry in entries if entry.name == name]
        found = exact or [entry for entry in entries if entry.name.endswith(f"_{name}")]
        if len(found) > 1:
            raise _several(f"several files could be {name}", (entry.name for entry in found), folder)
        if found:
            return found[0]
    return None


def _several(what: str, names: Iterable[str], folder: Path) -> IngestError:
    return IngestError("ST106", f"{what}: {listing(names)}", file=folder, cure="put each run into a folder of its own")


def find_matrix(folder: Path, wanted: Literal["filtered", "raw"] | None) -> tuple[Path, Literal["filtered", "raw"]]:
    """Return the matrix of a folder, HDF5 before Matrix Market, and which it is; filtered before raw unless asked.

    Raises
    ------
    MissingInputError
        ST103: there is none.
    """
    kinds: tuple[Literal["filtered", "raw"], ...] = ("filtered", "raw") if wanted is None else (wanted,)
    for kind in kinds:
        found = find_entry(folder, *(name.format(kind) for name in _MATRICES))
        if found is not None:
            return found, kind
    names = " or ".join(f"{kind}_feature_bc_matrix[.h5]" for kind in kinds)
    raise MissingInputError("ST103", f"there is no {names}", file=folder, cure="copy the matrix there, .h5 or folder")


@dataclass(frozen=True)
class SpatialFolder:
    """The ``spatial`` folder of a run or of one bin size: positions, scale factors, previews.

    Parameters
    ----------
    positions : Path
    scalefactors_file : Path
    scalefactors : dict
        As read.
    previews : dict
        ``hires`` and ``lowres`` to their file or None.
    """

    positions: Path
    scalefactors_file: Path
    scalefactors: dict[str, Any]
    previews: dict[PictureName, Path | None]

    @classmethod
    def find(cls, folder: Path, run: Path) -> SpatialFolder:
        """Find the files for `folder`; previews that are not there are taken from the run's own ``spatial``.

        Raises
        ------
        MissingInputError
            ST103: positions or scale factors are missing.
        IngestError
            ST108: scale factors that are no JSON object.
        """
        spatial = find_entry(folder, "spatial")
        if spatial is None or not spatial.is_dir():
            raise MissingInputError("ST103", "the folder spatial/ is missing", file=folder, cure="copy spatial/ there")
        positions = _needed(spatial, *_POSITIONS)
        scalefactors = _needed(spatial, "scalefactors_json.json")
        places = [spatial, *(other for other in [find_entry(run, "spatial")] if other not in (None, spatial))]
        previews: dict[PictureName, Path | None] = {}
        names: tuple[PictureName, ...] = ("hires", "lowres")
        for name in names:
            found = [find_entry(place, f"tissue_{name}_image.png") for place in places if place is not None]
            previews[name] = next((file for file in found if file is not None), None)
        return cls(positions, scalefactors, _read_json(scalefactors), previews)

    def factor(self, name: str) -> float:
        """Return one scale factor; ST108 if it is missing or not a positive number."""
        value = self.scalefactors.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise IngestError(
                "ST108",
                f"the scale factor {name} is {'missing' if value is None else repr(value)}",
                file=self.scalefactors_file,
                cure="use Space Ranger's scalefactors_json.json of this run",
            )
        return float(value)


def _needed(folder: Path, *names: str) -> Path:
    found = find_entry(folder, *names)
    if found is None:
        raise MissingInputError("ST103", f"there is no {' or '.join(names)}", file=folder, cure="copy the file there")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        fields = error
    if not isinstance(fields, dict):
        raise IngestError("ST108", "the scale factors are no JSON object", file=path, cure="copy the file again")
    return fields
