"""A simulated run read back from its files, without the project's own readers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray
from scipy.sparse import csc_matrix

from stzarr.simulate import SIMULATED


@dataclass(frozen=True)
class Run:
    outs: Path
    image: Path

    @property
    def about(self) -> dict[str, Any]:
        return json.loads((self.outs / SIMULATED).read_text())

    def folder(self, bin_um: int) -> Path:
        return self.outs / "binned_outputs" / f"square_{bin_um:03d}um"

    def positions(self, bin_um: int) -> dict[str, NDArray[Any]]:
        table = pq.read_table(self.folder(bin_um) / "spatial" / "tissue_positions.parquet")
        return {name: table[name].to_numpy() for name in table.column_names}

    def scale_factors(self, bin_um: int) -> dict[str, float]:
        return json.loads((self.folder(bin_um) / "spatial" / "scalefactors_json.json").read_text())

    def matrix(self, bin_um: int) -> csc_matrix:
        with h5py.File(self.folder(bin_um) / "filtered_feature_bc_matrix.h5") as file:
            group = file["matrix"]
            return csc_matrix((group["data"][:], group["indices"][:], group["indptr"][:]), tuple(group["shape"][:]))

    def symbols(self) -> list[str]:
        with h5py.File(self.folder(2) / "filtered_feature_bc_matrix.h5") as file:
            return file["matrix/features/name"][:].astype(str).tolist()

    def grid(self, bin_um: int) -> NDArray[np.int64]:
        """Return dense counts, shape (gene, row, column), zero outside the tissue."""
        where, matrix = self.positions(bin_um), self.matrix(bin_um)
        shape = where["array_row"].max() + 1, where["array_col"].max() + 1
        grid = np.zeros((matrix.shape[0], *shape), np.int64)
        inside = where["in_tissue"] == 1
        grid[:, where["array_row"][inside], where["array_col"][inside]] = matrix.toarray()
        return grid

    def pixels(self) -> NDArray[np.uint8]:
        return tifffile.imread(self.image)
