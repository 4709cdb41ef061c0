"""Space Ranger runs, Visium v1 and v2 and Visium HD, as a `Source` of lazy handles."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stzarr.errors import IngestError, MissingInputError
from stzarr.ingest.frames import FittedFrame, bin_frame, check_bins, divides, spot_frame
from stzarr.ingest.matrix import MexMatrix, TenxH5Matrix, open_matrix
from stzarr.ingest.outs import SpatialFolder, bin_folders, find_entry, find_matrix, find_run
from stzarr.ingest.placing import BinMap, SpotMap
from stzarr.ingest.positions import Positions
from stzarr.ingest.previews import Pictures, check_pictures, image_sources, open_pictures, picture_details
from stzarr.ingest.readers import ReadOptions, slide_id
from stzarr.space import BinLattice, Bounds, Frame, Lattice
from stzarr.store.layout import table_name
from stzarr.store.source import SIMULATED, CountsSource, ImageSource, Source

_DEFAULT_COARSE_UM = 8.0


class SpaceRangerReader:
    """Reads ``outs/`` of Space Ranger 1 to 4.

    Everything but counts and pixels is read and checked at opening: the positions of all spots or bins are streamed,
    the map to pixels is fitted over them, and each barcode of the matrix gets its place.
    """

    name = "spaceranger"

    def recognises(self, path: Path) -> bool:
        """Whether the folder, or ``outs`` in it, has a run's ``spatial``, matrix or ``square_*``."""
        return path.is_dir() and find_run(path) is not None

    def open(self, path: Path, options: ReadOptions) -> Source:
        """Open a run lazily.

        Raises
        ------
        IngestError
            ST103 to ST137: parts are missing, damaged, or of different runs; each message names file and cure.
        """
        run = find_run(path)
        if run is None:
            raise MissingInputError(
                "ST103", "this folder holds no Space Ranger run", file=path, cure="give the folder outs/ of a run"
            )
        if options.mpp_source is not None:
            raise _not_here("--mpp-source", "its pixel size follows from the lattice", path)
        with ExitStack() as opened:
            part = _Parts(run, options, opened)
            source = _open_bins(path, part) if bin_folders(run) else _open_spots(path, part)
            opened.pop_all()
        return source


@dataclass
class _Parts:
    """What opening a run gathers: files, warnings, matrices."""

    run: Path
    options: ReadOptions
    opened: ExitStack
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    matrices: dict[str, Any] = field(default_factory=dict)

    def spatial(self, folder: Path) -> SpatialFolder:
        found = SpatialFolder.find(folder, self.run)
        self.files += [found.positions, found.scalefactors_file]
        return found

    def matrix(self, folder: Path, table: str) -> TenxH5Matrix | MexMatrix:
        """Open the matrix of a folder and note which it is."""
        path, kind = find_matrix(folder, self.options.counts)
        if kind == "raw" and self.options.counts is None:
            self.warnings.append(f"{folder.name} has no filtered matrix: the raw one is used ({path.name})")
        matrix = open_matrix(path)
        self.opened.callback(matrix.close)
        self.files += matrix.files
        self.warnings += matrix.warnings
        self.matrices[table] = {"counts": kind, "format": "h5" if isinstance(matrix, TenxH5Matrix) else "mex"}
        return matrix

    def pictures(self, spatial: SpatialFolder, in_tissue_px: Bounds | None) -> Pictures:
        """Open and check the pictures; previews that are missing are one warning."""
        missing = [f"tissue_{name}_image.png" for name, file in spatial.previews.items() if file is None]
        if missing:
            self.warnings.append(f"not in this run, left out: {', '.join(missing)}")
        pictures = open_pictures(spatial, self.options.image, self.options.max_decoded_bytes)
        for picture in pictures.values():
            self.opened.callback(picture.close)
            self.files.append(picture.path)
        check_pictures(pictures, spatial, in_tissue_px)
        return pictures

    def source(
        self,
        path: Path,
        assay: str,
        fitted: FittedFrame,
        spatial: SpatialFolder,
        pictures: Pictures,
        counts: list[CountsSource],
        details: dict[str, Any],
    ) -> Source:
        """Put the parts together; without --image, a warning says what stands in for it."""
        images = image_sources(pictures, spatial, fitted.frame)
        if self.options.image is None:
            self.warnings.append(_stand_in(images, fitted.frame))
        mark = find_entry(self.run, SIMULATED)
        if mark is not None:
            self.files.append(mark)
        return Source(
            id=slide_id(path, self.options.id),
            assay=assay,
            frame=fitted.frame,
            images=images,
            counts=tuple(counts),
            files=tuple(dict.fromkeys(self.files)),
            details={
                "simulated": mark is not None,
                "scalefactors": spatial.scalefactors,
                "fit": fitted.facts,
                "matrices": self.matrices,
                "images": picture_details(pictures),
                **details,
            },
            warnings=tuple(dict.fromkeys([*fitted.warnings, *self.warnings])),
        )


def _open_spots(path: Path, part: _Parts) -> Source:
    """Open a Visium run."""
    if part.options.bins_um is not None:
        raise _not_here("--bin-um", "it has spots, whose lattice is the grid", path)
    spatial = part.spatial(part.run)
    positions = Positions(spatial.positions)
    spots = SpotMap(positions)
    fitted = spot_frame(positions, spatial)
    matrix = part.matrix(part.run, "table")
    counts = _counts("table", matrix, _lattice(fitted), spots)
    pictures = part.pictures(spatial, spots.in_tissue_px)
    return part.source(path, "Visium", fitted, spatial, pictures, [counts], {})


def _open_bins(path: Path, part: _Parts) -> Source:
    """Open a Visium HD run; its frame is that of the finest bins in the folder, whatever sizes are asked for."""
    folders = bin_folders(part.run)
    chosen = _choose_bins(path, folders, part.options.bins_um)
    finest = next(iter(folders))
    spatial = part.spatial(folders[finest])
    positions = Positions(spatial.positions)
    fitted = bin_frame(positions, spatial, finest, tuple(folders))
    frame = fitted.frame
    counts, in_tissue_px = [], None
    for bin_um in chosen:
        lattice = _at(_lattice(fitted), bin_um)
        place = positions
        if bin_um != finest:
            own = part.spatial(folders[bin_um])
            place = Positions(own.positions)
            check_bins(place, own, lattice, frame)
        bins = BinMap(place, bin_um)
        in_tissue_px = in_tissue_px or bins.in_tissue_px
        table = table_name(bin_um)
        counts.append(_counts(table, part.matrix(folders[bin_um], table), lattice, bins))
    pictures = part.pictures(spatial, in_tissue_px)
    return part.source(path, "Visium HD", fitted, spatial, pictures, counts, {"bins_um_found": list(folders)})


def _choose_bins(path: Path, folders: dict[float, Path], asked: tuple[float, ...] | None) -> list[float]:
    """Return the bin sizes to store, ascending.

    Raises
    ------
    IngestError
        ST104: a size that is not there; ST105: one that the finest bins do not divide.
    """
    finest = min(folders)
    if asked is None:
        coarse = [_DEFAULT_COARSE_UM] if _DEFAULT_COARSE_UM in folders and divides(finest, _DEFAULT_COARSE_UM) else []
        return sorted({finest, *coarse})
    usable = [size for size in folders if divides(finest, size)]
    found = ", ".join(f"{size:g}" for size in folders)
    cure = f"stzarr ingest {path} STORE --bin-um {_DEFAULT_COARSE_UM if _DEFAULT_COARSE_UM in usable else finest:g}"
    folder = folders[finest].parent
    for size in asked:
        if size not in folders:
            raise IngestError(
                "ST104", f"bin size {size:g} µm is not in this run", file=f"{folder} (found: {found})", cure=cure
            )
        if size not in usable:
            raise IngestError(
                "ST105",
                f"bins of {finest:g} µm do not divide bins of {size:g} µm",
                file=f"{folder} (found: {found})",
                cure=cure,
            )
    return sorted(set(asked))


def _counts(table: str, matrix: TenxH5Matrix | MexMatrix, lattice: Lattice, places: SpotMap | BinMap) -> CountsSource:
    placed = places.place(matrix)
    return CountsSource(table, matrix, lattice, placed.array_row, placed.array_col, placed.in_tissue)


def _lattice(fitted: FittedFrame) -> Any:
    return fitted.frame.lattice


def _at(lattice: BinLattice, bin_um: float) -> BinLattice:
    return lattice if bin_um == lattice.bin_um else lattice.at(bin_um)


def _stand_in(images: tuple[ImageSource, ...], frame: Frame) -> str:
    if not images:
        return "no --image and no preview: the store has no picture"
    best = images[0]
    mpp = frame.mpp / best.scale
    return f"no --image: the best picture is {best.handle.path.name}, {mpp:.3g} µm per pixel"


def _not_here(option: str, why: str, path: Path) -> IngestError:
    return IngestError("ST109", f"{option} does not apply to this run: {why}", file=path, cure=f"leave out {option}")
