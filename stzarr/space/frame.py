"""A slide's frame as it is stored: the lattice in it and the map to the vendor's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stzarr.space.lattice import Lattice, lattice_from_json
from stzarr.space.maps import Homography


@dataclass(frozen=True)
class Frame:
    """A slide's ``um`` frame: the lattice in it and the map to the vendor's full-resolution pixels.

    Parameters
    ----------
    um_to_px : Homography
        µm to full-resolution pixel centres counted from 0.
    mpp : float
        µm per full-resolution pixel: from the lattice at its middle, or from the file of a plain slide.
    residual_px : float
        Largest distance between fitted and given positions [px]; 0 for a plain slide.
    um_to_px_affine : Homography
        The nearest affine map, for software that knows no homography.
    affine_residual_px : float
        Largest distance that the affine misses by, over the positions [px].
    lattice : BinLattice or SpotLattice, optional
        Lattice of the finest bins or of the spots; None for a plain slide.
    """

    um_to_px: Homography
    mpp: float
    residual_px: float
    um_to_px_affine: Homography
    affine_residual_px: float
    lattice: Lattice | None = None

    @classmethod
    def plain(cls, mpp: float) -> Frame:
        """Return the frame of a slide without expression: level-0 px times mpp from the top left corner."""
        to_px = Homography.scale_then_move(1 / mpp, 1 / mpp, -0.5, -0.5)
        return cls(to_px, mpp, 0.0, to_px, 0.0)

    @property
    def mirrored(self) -> bool:
        """Whether the array runs against the image in x."""
        return self.lattice is not None and self.lattice.mirrored

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for attributes and ``--json``."""
        return {
            "um_to_px": self.um_to_px.tolist(),
            "mpp": self.mpp,
            "residual_px": self.residual_px,
            "um_to_px_affine": self.um_to_px_affine.tolist(),
            "affine_residual_px": self.affine_residual_px,
            "lattice": None if self.lattice is None else dict(vars(self.lattice)),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Frame:
        """Rebuild a frame from `to_json`."""
        return cls(
            Homography.from_matrix(fields["um_to_px"]),
            fields["mpp"],
            fields["residual_px"],
            Homography.from_matrix(fields["um_to_px_affine"]),
            fields["affine_residual_px"],
            None if fields["lattice"] is None else lattice_from_json(fields["lattice"]),
        )
