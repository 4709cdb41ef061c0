"""Pure geometry: how array positions, micrometres and pixels relate. No file is read or written here.

One slide has one frame, ``um``: x to the right, y down, in micrometres. Three conventions hold everywhere:

* a cell or a pixel is an area: cell ``i`` of size ``s`` covers ``[i s, (i + 1) s)``, and coordinates name its centre;
* full-resolution pixel coordinates are the vendors': the centre of the first pixel is 0, so pixel ``i`` covers
  ``[i - 0.5, i + 0.5)``;
* ``bounds_um`` is half-open, ``(x0, y0, x1, y1)``.
"""

from stzarr.space.fit import MapFit, PointBatches, fit_affine, fit_homography
from stzarr.space.frame import Frame
from stzarr.space.lattice import SPOT_PITCH_UM, BinLattice, Lattice, SpotLattice, lattice_extent, lattice_from_json
from stzarr.space.maps import Bounds, Homography
from stzarr.space.pixels import PixelGrid, num_levels, registered_grid, registered_levels, registered_mpp

__all__ = [
    "SPOT_PITCH_UM",
    "BinLattice",
    "Bounds",
    "Frame",
    "Homography",
    "Lattice",
    "MapFit",
    "PixelGrid",
    "PointBatches",
    "SpotLattice",
    "fit_affine",
    "fit_homography",
    "lattice_extent",
    "lattice_from_json",
    "num_levels",
    "registered_grid",
    "registered_levels",
    "registered_mpp",
]
