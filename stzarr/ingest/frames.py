"""A run's ``um`` frame: the fit of array to pixels, and whether the run's files agree about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stzarr.errors import GeometryError, IngestError
from stzarr.ingest.outs import SpatialFolder
from stzarr.ingest.positions import Positions
from stzarr.space import (
    SPOT_PITCH_UM,
    BinLattice,
    Frame,
    Homography,
    MapFit,
    SpotLattice,
    fit_affine,
    fit_homography,
    lattice_extent,
)

FIDUCIAL_UM = 105.0
"""Diameter of a Visium fiducial spot (formats.md: five real runs)."""

AGREEMENT = 0.01
"""Relative difference above which two sizes of one thing mean files of different runs."""

REFUSED_PX = 1.0
NOTED_PX = 1e-3
_SAME_FILE = 1e-3


@dataclass(frozen=True)
class FittedFrame:
    """A frame, facts about its fit for provenance, and what the user should know."""

    frame: Frame
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()


def spot_frame(positions: Positions, spatial: SpatialFolder) -> FittedFrame:
    """Fit the frame of a Visium run: an affine map, µm per pixel from the 100 µm lattice.

    Raises
    ------
    GeometryError
        ST120: positions that fix no map; ST121: residual above 1 px (positions rounded to integers leave 0.7).
    IngestError
        ST108: no scale factors; ST122: the fiducials are not 105 µm wide, so the files belong to different runs.
    """
    rows, cols = positions.extent()
    fit = _fitted(fit_affine, positions)
    per_col, per_row = np.hypot(*fit.map.matrix[:2, :2])
    mpp = _rounded(SPOT_PITCH_UM / 2 / per_col)
    pitch = round(mpp * float(per_row), 6)
    fiducial_um = spatial.factor("fiducial_diameter_fullres") * mpp
    if abs(fiducial_um / FIDUCIAL_UM - 1) > AGREEMENT:
        raise IngestError(
            "ST122",
            f"by the positions a pixel is {mpp:.4f} µm, which makes the fiducials {fiducial_um:.1f} µm wide, not "
            f"{FIDUCIAL_UM:g}: positions and scale factors are of different runs",
            file=spatial.scalefactors_file,
            cure=f"use the scale factors that belong to {positions.path.name}",
        )
    lattice = SpotLattice(pitch, rows, cols, mirrored=fit.map.mirrors((0.0, 0.0)))
    facts = _facts(fit, fiducial_um) | {"row_pitch_um": pitch, "mpp_from_file": None}
    return FittedFrame(_frame(fit, lattice, mpp), facts)


def bin_frame(positions: Positions, spatial: SpatialFolder, bin_um: float, found_um: tuple[float, ...]) -> FittedFrame:
    """Fit the frame of a Visium HD run over the positions of its finest bins: an exact homography.

    Parameters
    ----------
    bin_um : float
        The finest bins of the run.
    found_um : tuple of float
        All bin sizes of the run; the lattice's extent is a whole number of those that `bin_um` divides.

    Raises
    ------
    GeometryError
        ST120: positions that fix no map; ST121: residual above 1 px.
    IngestError
        ST108: no scale factors; ST116: scale factors that contradict themselves or the folder; ST122: pixel sizes by
        positions and by scale factors differ by more than 1 %.
    """
    rows, cols = positions.extent()
    stated = stated_mpp(spatial, bin_um)
    fit = _fitted(fit_homography, positions)
    whole = [size for size in found_um if divides(bin_um, size)]
    lattice = BinLattice(
        bin_um,
        lattice_extent(rows, bin_um, whole),
        lattice_extent(cols, bin_um, whole),
        mirrored=fit.map.mirrors(((cols - 1) / 2, (rows - 1) / 2)),
    )
    frame = _frame(fit, lattice, 1.0)
    x0, y0, x1, y1 = lattice.bounds_um
    mpp = _rounded(1.0 / frame.um_to_px.scale(((x0 + x1) / 2, (y0 + y1) / 2)))
    _check_stated(mpp, stated, positions, spatial)
    warnings: tuple[str, ...] = ()
    if fit.residual_px > NOTED_PX:
        warnings = (f"positions miss an exact plane map by up to {fit.residual_px:.3g} px ({positions.path.name})",)
    facts = _facts(fit, spatial.factor("fiducial_diameter_fullres") * mpp)
    return FittedFrame(_frame(fit, lattice, mpp), facts | {"row_pitch_um": None, "mpp_from_file": stated}, warnings)


def check_bins(positions: Positions, spatial: SpatialFolder, lattice: BinLattice, frame: Frame) -> None:
    """See that bins of another size lie where the frame puts them.

    Raises
    ------
    GeometryError
        ST118: bins beyond the array; ST123: bins that are off by more than half their size.
    IngestError
        ST116, ST122: see `bin_frame`.
    """
    _check_stated(frame.mpp, stated_mpp(spatial, lattice.bin_um), positions, spatial)
    rows, cols = positions.extent()
    if rows > lattice.num_rows or cols > lattice.num_cols:
        raise GeometryError(
            "ST118",
            f"bins of {lattice.bin_um:g} µm fill {rows} x {cols}, the finest bins only {lattice.num_rows} x "
            f"{lattice.num_cols} of them",
            file=positions.path,
            cure="use the bin sizes of one run",
        )
    to_px = frame.um_to_px @ lattice.array_to_um
    worst = max(float(np.hypot(*(to_px(array) - px).T).max()) for array, px in positions.points() if len(px))
    if worst * frame.mpp > lattice.bin_um / 2:
        raise GeometryError(
            "ST123",
            f"bins of {lattice.bin_um:g} µm lie up to {worst * frame.mpp:.1f} µm from where the finest bins put them",
            file=positions.path,
            cure="use the bin sizes of one run",
        )


def divides(bin_um: float, size_um: float) -> bool:
    """Whether bins of `size_um` are whole numbers of bins of `bin_um`."""
    return math.isclose(size_um / bin_um, round(size_um / bin_um), rel_tol=1e-9)


def stated_mpp(spatial: SpatialFolder, bin_um: float) -> float:
    """Return ``microns_per_pixel``, after checking the scale factors of one bin size against each other."""
    stated, size = spatial.factor("microns_per_pixel"), spatial.factor("bin_size_um")
    by_spot = size / spatial.factor("spot_diameter_fullres")
    if size != bin_um or abs(by_spot / stated - 1) > _SAME_FILE:
        raise IngestError(
            "ST116",
            f"bin_size_um is {size:g}, microns_per_pixel {stated:.6g}, bin size by spot diameter {by_spot:.6g}",
            file=spatial.scalefactors_file,
            cure=f"use the scale factors that Space Ranger wrote for bins of {bin_um:g} µm",
        )
    return stated


def _check_stated(mpp: float, stated: float, positions: Positions, spatial: SpatialFolder) -> None:
    if abs(mpp / stated - 1) > AGREEMENT:
        raise IngestError(
            "ST122",
            f"by the positions a pixel is {mpp:.4f} µm, by the scale factors {stated:.4f}: they are of different runs",
            file=spatial.scalefactors_file,
            cure=f"use the scale factors that belong to {positions.path.name}",
        )


def _fitted(fit: Any, positions: Positions) -> MapFit:
    try:
        fitted: MapFit = fit(positions.points)
    except GeometryError as error:
        raise GeometryError(error.code, error.what, file=positions.path, cure=error.cure) from error
    if fitted.residual_px > REFUSED_PX:
        raise GeometryError(
            "ST121",
            f"no plane map explains the positions: they miss it by up to {fitted.residual_px:.2f} px",
            file=positions.path,
            cure="use the positions as Space Ranger wrote them, of one capture area",
        )
    return fitted


def _frame(fit: MapFit, lattice: BinLattice | SpotLattice, mpp: float) -> Frame:
    back = lattice.array_to_um.inverse()
    return Frame(
        Homography.from_matrix((fit.map @ back).matrix, digits=13),
        mpp,
        fit.residual_px,
        Homography.from_matrix((fit.affine @ back).matrix, digits=13),
        fit.affine_residual_px,
        lattice,
    )


def _facts(fit: MapFit, fiducial_um: float) -> dict[str, Any]:
    return {
        "num_positions": fit.num_points,
        "residual_px": fit.residual_px,
        "affine_residual_px": fit.affine_residual_px,
        "fiducial_um": round(fiducial_um, 6),
    }


def _rounded(mpp: float) -> float:
    """Round to 12 significant digits, so that builds of BLAS agree."""
    return float(f"{mpp:.12g}")
