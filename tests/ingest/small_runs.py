"""Tiny Space Ranger runs written by hand, with the truth beside them, so that each test can spoil one thing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tifffile

from stzarr.space import Homography

MPP = 0.5
SPOT_ROWS, SPOT_COLS = 10, 14
HD_MPP = 0.25
HD_ROWS, HD_COLS = 36, 44
FULL_HEIGHT, FULL_WIDTH = 1900, 1750
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
GENES = [(f"ENSG{number:05d}", f"G{number // 2}", "Gene Expression") for number in range(7)]


@dataclass
class Run:
    """A run on disk: the folder, its positions, its matrix (genes x barcodes) and the barcodes in order."""

    folder: Path
    positions: pd.DataFrame
    counts: sp.csc_array
    barcodes: list[str]


def spot_positions(mirrored: bool = False, turn: float = 0.1) -> pd.DataFrame:
    """Positions of a small Visium array, turned by `turn` radians, 0.5 µm per pixel."""
    rows, cols = np.mgrid[0:SPOT_ROWS, 0:SPOT_COLS].reshape(2, -1)
    keep = (rows + cols) % 2 == 0
    rows, cols = rows[keep], cols[keep]
    x, y = (SPOT_COLS - cols if mirrored else cols) * 50 / MPP, rows * 87 / MPP
    px_x = 200 + np.cos(turn) * x - np.sin(turn) * y
    px_y = 20 + np.sin(turn) * x + np.cos(turn) * y
    if turn > 0:
        px_x += np.sin(turn) * y.max()
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in rows]
    in_tissue = ((rows + cols) // 2 % 3 > 0).astype(int)
    return pd.DataFrame(dict(zip(COLUMNS, (words, in_tissue, rows, cols, px_y, px_x), strict=True)))


def hd_map(mirrored: bool = True) -> Homography:
    """The map from array (col, row) of 2 µm bins to pixels: turned, mirrored, with perspective."""
    sign = -1.0 if mirrored else 1.0
    shift = 380.0 if mirrored else 20.0
    return Homography(((8.0 * sign, 0.15, shift), (0.12, 8.0, 15.0), (1.3e-7, 7.5e-8, 1.0)))


def bin_positions(bin_um: int, mirrored: bool = True) -> pd.DataFrame:
    """Positions of all bins of one size over an area of 36 x 44 bins of 2 µm (whole for 4 µm only)."""
    factor = bin_um // 2
    rows, cols = np.mgrid[0 : -(-HD_ROWS // factor), 0 : -(-HD_COLS // factor)].reshape(2, -1)
    fine = np.stack([(cols + 0.5) * factor - 0.5, (rows + 0.5) * factor - 0.5], axis=1)
    px = hd_map(mirrored)(fine)
    names = [f"s_{bin_um:03d}um_{row:05d}_{col:05d}-1" for row, col in zip(rows, cols, strict=True)]
    in_tissue = (cols * factor < 30).astype(int)
    return pd.DataFrame(dict(zip(COLUMNS, (names, in_tissue, rows, cols, px[:, 1], px[:, 0]), strict=True)))


def random_counts(num_barcodes: int, seed: int = 0) -> sp.csc_array:
    """Counts of the GENES, about half of them zero, some barcodes empty."""
    dense = np.random.default_rng(seed).poisson(0.7, (len(GENES), num_barcodes))
    dense[:, ::5] = 0
    return sp.csc_array(dense.astype(np.int32))


def write_h5(
    path: Path,
    counts: sp.csc_array,
    barcodes: list[str],
    genes: list[tuple[str, str, str]] | None = None,
    *,
    index: str = "int64",
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Write a 10x HDF5 matrix, version 3; `change` may spoil the arrays before they are written."""
    genes = GENES if genes is None else genes
    arrays: dict[str, Any] = {
        "barcodes": np.array(barcodes, "S"),
        "data": counts.data,
        "indices": counts.indices.astype(index),
        "indptr": counts.indptr.astype(index),
        "shape": np.array([len(genes), len(barcodes)], np.int32),
        "features/id": np.array([gene[0] for gene in genes], "S"),
        "features/name": np.array([gene[1] for gene in genes], "S"),
        "features/feature_type": np.array([gene[2] for gene in genes], "S"),
        "features/genome": np.array(["GRCh38"] * len(genes), "S"),
    }
    if change is not None:
        change(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[f"matrix/{name}"] = values
    return path


def write_h5_v2(path: Path, counts: sp.csc_array, barcodes: list[str], genomes: tuple[str, ...] = ("hg19",)) -> Path:
    """Write the old layout: one group a genome, with genes and gene_names."""
    with h5py.File(path, "w") as file:
        for genome in genomes:
            group = file.create_group(genome)
            group["barcodes"], group["data"] = np.array(barcodes, "S"), counts.data
            group["indices"], group["indptr"] = counts.indices.astype("int64"), counts.indptr.astype("int64")
            group["shape"] = np.array(counts.shape, np.int32)
            group["genes"] = np.array([gene[0] for gene in GENES], "S")
            group["gene_names"] = np.array([gene[1] for gene in GENES], "S")
    return path


def write_mex(
    folder: Path,
    counts: sp.csc_array,
    barcodes: list[str],
    *,
    gz: bool = True,
    compressed: bool | None = None,
    features: str = "features.tsv",
    header: str = "%%MatrixMarket matrix coordinate integer general",
    nnz: int | None = None,
    lines: list[str] | None = None,
) -> Path:
    """Write a Matrix Market folder; `compressed` False with `gz` True gives plain text under the name .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    coo = counts.tocoo()
    entries = (
        [f"{r + 1} {c + 1} {v}" for r, c, v in zip(*coo.coords, coo.data, strict=True)] if lines is None else lines
    )
    genes = [gene[: 2 if features == "genes.tsv" else 3] for gene in GENES]
    sizes = f"{counts.shape[0]} {counts.shape[1]} {coo.nnz if nnz is None else nnz}"
    texts = {
        "matrix.mtx": [header, "%made by hand", sizes, *entries],
        features: ["\t".join(gene) for gene in genes],
        "barcodes.tsv": barcodes,
    }
    for name, text in texts.items():
        data = ("\n".join(text) + "\n").encode()
        if gz if compressed is None else compressed:
            data = gzip.compress(data)
        (folder / (f"{name}.gz" if gz else name)).write_bytes(data)
    return folder


def write_positions(spatial: Path, positions: pd.DataFrame, kind: str, prefix: str = "") -> Path:
    """Write positions as csv (header), list (none), list_header or parquet."""
    spatial.mkdir(parents=True, exist_ok=True)
    name = {"csv": "tissue_positions.csv", "parquet": "tissue_positions.parquet"}.get(kind, "tissue_positions_list.csv")
    path = spatial / f"{prefix}{name}"
    if kind == "parquet":
        types = {"in_tissue": "int32", "array_row": "int32", "array_col": "int32"}
        positions.astype(types).to_parquet(path, index=False)
    else:
        positions.to_csv(path, index=False, header=kind != "list")
    return path


def write_preview(spatial: Path, name: str, scale: float, full: tuple[int, int], prefix: str = "") -> None:
    """Write a preview PNG of the size that a full-resolution picture (height, width) has at `scale`."""
    height, width = (round(n * scale) for n in full)
    pixels = np.random.default_rng(2).integers(0, 255, (height, width, 3), dtype=np.uint8)
    (spatial / f"{prefix}tissue_{name}_image.png").write_bytes(imagecodecs.png_encode(pixels))


def write_visium(
    folder: Path,
    *,
    matrix: str = "h5",
    positions: str = "csv",
    which: str = "filtered",
    prefix: str = "",
    mirrored: bool = False,
    previews: tuple[str, ...] = ("hires", "lowres"),
    scalefactors: dict[str, Any] | None = None,
) -> Run:
    """Write a whole Visium run; the filtered matrix holds spots in tissue, in an order of its own."""
    spots = spot_positions(mirrored)
    spatial = folder / "spatial"
    write_positions(spatial, spots, positions, prefix)
    named = spots if which == "raw" else spots[spots.in_tissue == 1]
    barcodes = named.barcode.sample(frac=1, random_state=3).tolist()
    counts = random_counts(len(barcodes))
    if matrix == "h5":
        write_h5(folder / f"{prefix}{which}_feature_bc_matrix.h5", counts, barcodes)
    else:
        write_mex(folder / f"{prefix}{which}_feature_bc_matrix", counts, barcodes)
    factors = {
        "spot_diameter_fullres": 65 / MPP,
        "fiducial_diameter_fullres": 105 / MPP,
        "tissue_hires_scalef": 0.1,
        "tissue_lowres_scalef": 0.03,
    } | (scalefactors or {})
    (spatial / f"{prefix}scalefactors_json.json").write_text(json.dumps(factors))
    for name in previews:
        write_preview(spatial, name, factors[f"tissue_{name}_scalef"], (FULL_HEIGHT, FULL_WIDTH), prefix)
    return Run(folder, spots, counts, barcodes)


def write_hd(
    folder: Path,
    *,
    bins: tuple[int, ...] = (2, 8, 16),
    flat: bool = False,
    prefix: str = "",
    mirrored: bool = True,
    which: str = "filtered",
) -> dict[int, Run]:
    """Write a whole Visium HD run; `flat` puts ``square_*`` directly into it."""
    runs = {}
    for bin_um in bins:
        square = folder / ("" if flat else "binned_outputs") / f"square_{bin_um:03d}um"
        positions = bin_positions(bin_um, mirrored)
        write_positions(square / "spatial", positions, "parquet", prefix)
        barcodes = positions.barcode[positions.in_tissue == 1].sample(frac=1, random_state=4).tolist()
        counts = random_counts(len(barcodes))
        write_h5(square / f"{prefix}{which}_feature_bc_matrix.h5", counts, barcodes)
        factors = {
            "spot_diameter_fullres": bin_um / HD_MPP,
            "bin_size_um": float(bin_um),
            "microns_per_pixel": HD_MPP,
            "fiducial_diameter_fullres": 330 / HD_MPP,
            "tissue_hires_scalef": 0.5,
            "tissue_lowres_scalef": 0.2,
        }
        (square / "spatial" / f"{prefix}scalefactors_json.json").write_text(json.dumps(factors))
        write_preview(square / "spatial", "hires", 0.5, (320, 400), prefix)
        runs[bin_um] = Run(square, positions, counts, barcodes)
    return runs


def edit_json(path: Path, **changes: Any) -> None:
    """Change some fields of a JSON file; None deletes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def write_image(path: Path, height: int, width: int, **options: Any) -> np.ndarray:
    """Write a random RGB TIFF and return its pixels, (c, y, x)."""
    pixels = np.random.default_rng(5).integers(0, 255, (height, width, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", **options)
    return np.moveaxis(pixels, 2, 0)


def dense_counts(matrix: Any, entries: int = 7) -> np.ndarray:
    """Read a matrix handle in small blocks into a dense array, genes x barcodes."""
    dense = np.zeros((len(matrix.genes.ids), matrix.num_barcodes), np.int64)
    for block in matrix.blocks(entries):
        np.add.at(dense, (block.gene, block.barcode), block.value.astype(np.int64))
    return dense
