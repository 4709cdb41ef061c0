"""Space Ranger runs in all their layouts: found, fitted, placed, and refused where parts do not belong together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import small_runs as small

from stzarr.errors import IngestError, MissingInputError
from stzarr.ingest.readers import ReadOptions
from stzarr.ingest.spaceranger import SpaceRangerReader
from stzarr.store.plan import WriteOptions, plan_store
from stzarr.store.source import Source


def opened(path: Path, **options) -> Source:
    """Open a run, check what holds for all, and close it."""
    reader = SpaceRangerReader()
    assert reader.recognises(path)
    source = reader.open(path, ReadOptions(**options))
    source.close()
    assert all(file.is_file() for file in source.files)
    assert len(set(source.files)) == len(source.files)
    for counts in source.counts:
        assert len(counts.array_row) == counts.matrix.num_barcodes
    return source


def fails(path: Path, code: str, **options) -> IngestError:
    """Open a run that must be refused with `code`; the error names a file and a cure."""
    with pytest.raises(IngestError) as error:
        SpaceRangerReader().open(path, ReadOptions(**options))
    assert error.value.code == code, str(error.value)
    assert error.value.file
    assert error.value.cure
    return error.value


def no_image(file: str = "tissue_hires_image.png", mpp: str = "5") -> str:
    """What a run that is opened without its full-resolution picture warns of."""
    return f"no --image: the best picture is {file}, {mpp} µm per pixel"


# ---------------------------------------------------------------------------------------------------------- Visium


@pytest.mark.parametrize("matrix", ["h5", "mex"])
@pytest.mark.parametrize("positions", ["csv", "list", "list_header", "parquet"])
@pytest.mark.parametrize("prefix", ["", "S1_"])
def test_visium_layouts(tmp_path: Path, matrix: str, positions: str, prefix: str) -> None:
    run = small.write_visium(tmp_path / "run 7" / "outs", matrix=matrix, positions=positions, prefix=prefix)
    source = opened(tmp_path / "run 7")
    assert (source.id, source.assay) == ("run_7", "Visium")
    assert source.warnings == (no_image(f"{prefix}tissue_hires_image.png"),)
    assert source.frame.mpp == pytest.approx(small.MPP, rel=1e-9)
    assert source.frame.residual_px < 1e-9
    lattice = source.frame.lattice
    assert lattice is not None
    assert lattice.kind == "spots"
    assert (lattice.row_pitch_um, lattice.num_rows, lattice.num_cols, lattice.mirrored) == (87.0, 10, 14, False)
    (counts,) = source.counts
    wanted = run.positions.set_index("barcode").loc[run.barcodes]
    np.testing.assert_array_equal(counts.array_row, wanted.array_row)
    np.testing.assert_array_equal(counts.array_col, wanted.array_col)
    assert counts.name == "table"
    assert counts.in_tissue.all()
    assert [image.name for image in source.images] == ["hires", "lowres"]
    assert source.details["matrices"] == {"table": {"counts": "filtered", "format": matrix}}
    assert source.details["simulated"] is False
    assert source.details["fit"]["fiducial_um"] == pytest.approx(105)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_frame_leads_from_array_to_pixels(tmp_path: Path, mirrored: bool) -> None:
    run = small.write_visium(tmp_path, mirrored=mirrored)
    source = opened(tmp_path)
    lattice, spots = source.frame.lattice, run.positions
    assert lattice is not None
    assert lattice.mirrored is mirrored
    row, col = lattice.grid(spots.array_row.to_numpy(), spots.array_col.to_numpy())
    px = source.frame.um_to_px(lattice.centres_um(row, col))
    np.testing.assert_allclose(px, spots[["pxl_col_in_fullres", "pxl_row_in_fullres"]], atol=1e-8)
    for image in source.images:
        np.testing.assert_allclose(image.um_to_px(lattice.centres_um(row, col)) + 0.5, (px + 0.5) * image.scale)


def test_mex_stands_in_for_h5_and_raw_for_filtered(tmp_path: Path) -> None:
    run = small.write_visium(tmp_path, which="raw")
    source = opened(tmp_path)
    assert source.warnings == (
        f"{tmp_path.name} has no filtered matrix: the raw one is used (raw_feature_bc_matrix.h5)",
        no_image(),
    )
    assert (
        source.counts[0].in_tissue.sum() == (run.positions.in_tissue == 1).sum() < source.counts[0].matrix.num_barcodes
    )
    assert opened(tmp_path, counts="raw").warnings == (no_image(),)
    fails(tmp_path, "ST103", counts="filtered")
    small.write_visium(tmp_path)
    small.write_mex(tmp_path / "filtered_feature_bc_matrix", small.random_counts(5), run.barcodes[:5])
    assert opened(tmp_path).counts[0].matrix.path.suffix == ".h5"
    (tmp_path / "filtered_feature_bc_matrix.h5").unlink()
    assert opened(tmp_path).details["matrices"]["table"] == {"counts": "filtered", "format": "mex"}


def test_plain_text_called_gz_is_one_warning_of_the_source(tmp_path: Path) -> None:
    run = small.write_visium(tmp_path, matrix="mex")
    small.write_mex(tmp_path / "filtered_feature_bc_matrix", run.counts, run.barcodes, compressed=False)
    warning, no_picture = opened(tmp_path).warnings
    assert "plain text" in warning
    assert no_picture == no_image()


def test_missing_previews_are_one_warning_and_no_picture_at_all_another(tmp_path: Path) -> None:
    small.write_visium(tmp_path, previews=())
    source = opened(tmp_path)
    assert source.images == ()
    assert source.warnings == (
        "not in this run, left out: tissue_hires_image.png, tissue_lowres_image.png",
        "no --image and no preview: the store has no picture",
    )


def test_without_an_image_the_plan_says_what_stands_in_for_it(tmp_path: Path) -> None:
    small.write_visium(tmp_path, previews=("lowres",))
    planned = plan_store(opened(tmp_path), WriteOptions())
    warnings = ["not in this run, left out: tissue_hires_image.png", no_image("tissue_lowres_image.png", "16.7")]
    assert planned.to_json()["warnings"] == warnings
    assert str(planned).splitlines()[-2:] == [f"warning  {text}" for text in warnings]


def test_the_full_picture_comes_first(tmp_path: Path) -> None:
    small.write_visium(tmp_path)
    full = tmp_path / "full.tif"
    pixels = small.write_image(full, small.FULL_HEIGHT, small.FULL_WIDTH, tile=(64, 64))
    source = SpaceRangerReader().open(tmp_path, ReadOptions(image=full))
    assert [(image.name, image.scale) for image in source.images] == [("full", 1.0), ("hires", 0.1), ("lowres", 0.03)]
    assert source.images[0].um_to_px == source.frame.um_to_px
    np.testing.assert_array_equal(source.images[0].handle.read(9, 30, 7, 50), pixels[:, 9:30, 7:50])
    assert full in source.files
    assert source.warnings == ()
    source.close()


def test_id_and_mark(tmp_path: Path) -> None:
    small.write_visium(tmp_path / "x")
    (tmp_path / "x" / "SIMULATED.json").write_text("{}")
    source = opened(tmp_path / "x", id="D1.s-2")
    assert source.id == "D1.s-2"
    assert source.details["simulated"] is True
    with pytest.raises(IngestError) as error:
        SpaceRangerReader().open(tmp_path / "x", ReadOptions(id="a/b"))
    assert error.value.code == "ST110"


def test_two_prefixes_cannot_be_told_apart(tmp_path: Path) -> None:
    small.write_visium(tmp_path, prefix="A_")
    small.write_visium(tmp_path, prefix="B_")
    assert "A_" in fails(tmp_path, "ST106").what


def _edit(**changes) -> Callable[[Path], object]:
    return lambda run: small.edit_json(run / "spatial" / "scalefactors_json.json", **changes)


def _positions(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    return lambda run: small.write_positions(run / "spatial", change(small.spot_positions()), "csv")


def _bend(spots: pd.DataFrame) -> pd.DataFrame:
    return spots.assign(pxl_row_in_fullres=spots.pxl_row_in_fullres + 4 * (spots.array_col == 0))


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(data)


def _preview(name: str, scale: float) -> Callable[[Path], object]:
    return lambda run: small.write_preview(run / "spatial", name, scale, (small.FULL_HEIGHT, small.FULL_WIDTH))


MATRIX = "filtered_feature_bc_matrix.h5"
SPOILED = {
    "no positions": ("ST103", lambda run: (run / "spatial/tissue_positions.csv").unlink()),
    "no scale factors": ("ST103", lambda run: (run / "spatial/scalefactors_json.json").unlink()),
    "no spatial folder": ("ST103", lambda run: shutil.rmtree(run / "spatial")),
    "no matrix": ("ST103", lambda run: (run / MATRIX).unlink()),
    "truncated matrix": ("ST130", lambda run: (run / MATRIX).write_bytes((run / MATRIX).read_bytes()[:2000])),
    "scale factors are no JSON": ("ST108", _write("spatial/scalefactors_json.json", b"{")),
    "a scale factor is missing": ("ST108", _edit(fiducial_diameter_fullres=None)),
    "a scale factor is a word": ("ST108", _edit(tissue_hires_scalef="0.1")),
    "scale factors of another run": ("ST122", _edit(fiducial_diameter_fullres=144.46)),
    "positions of another run": ("ST115", _positions(lambda spots: spots.assign(barcode=spots.barcode + "x"))),
    "a bent array": ("ST121", _positions(_bend)),
    "one row of spots": ("ST120", _positions(lambda spots: spots[spots.array_row == 2])),
    "three spots": ("ST120", _positions(lambda spots: spots.iloc[:3])),
    "previews of two runs": ("ST126", _preview("lowres", 0.05)),
    "positions beyond the preview": (
        "ST125",
        _positions(lambda spots: spots.assign(pxl_col_in_fullres=spots.pxl_col_in_fullres + 900)),
    ),
    "a damaged preview": ("ST127", _write("spatial/tissue_lowres_image.png", b"\x89PNG\r\n\x1a\n")),
}


@pytest.mark.parametrize("case", SPOILED)
def test_visium_runs_that_are_refused(tmp_path: Path, case: str) -> None:
    code, spoil = SPOILED[case]
    small.write_visium(tmp_path)
    spoil(tmp_path)
    fails(tmp_path, code)


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    small.write_visium(tmp_path)
    fails(tmp_path, "ST109", bins_um=(8.0,))
    fails(tmp_path, "ST109", mpp_source=0.5)
    fails(tmp_path, "ST103", image=tmp_path / "none.tif")


def test_rounded_positions_need_no_warning(tmp_path: Path) -> None:
    small.write_visium(tmp_path)
    _positions(lambda spots: spots.round())(tmp_path)
    source = opened(tmp_path)
    assert 0.3 < source.frame.residual_px < 1.0
    assert source.warnings == (no_image(),)


@pytest.mark.parametrize(
    ("height", "width", "ok"),
    [
        (small.FULL_HEIGHT, small.FULL_WIDTH, True),
        (small.FULL_HEIGHT + 8, small.FULL_WIDTH - 8, True),
        (small.FULL_HEIGHT + 12, small.FULL_WIDTH, False),
        (small.FULL_WIDTH, small.FULL_HEIGHT, False),
        (190, 175, False),
    ],
)
def test_the_size_of_the_full_picture(tmp_path: Path, height: int, width: int, ok: bool) -> None:
    small.write_visium(tmp_path)
    full = tmp_path / "full.png"
    full.write_bytes(imagecodecs.png_encode(np.zeros((height, width), np.uint8)))
    if ok:
        assert opened(tmp_path, image=full).images[0].handle.shape == (1, height, width)
    else:
        error = fails(tmp_path, "ST124", image=full)
        assert error.file == str(full)
        assert f"{width} x {height}" in error.what


def test_without_previews_positions_still_say_that_a_picture_is_too_small(tmp_path: Path) -> None:
    small.write_visium(tmp_path, previews=())
    full = tmp_path / "full.tif"
    small.write_image(full, 900, 900)
    fails(tmp_path, "ST125", image=full)


# ------------------------------------------------------------------------------------------------------- Visium HD


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("prefix", ["", "S1_"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_hd_layouts(tmp_path: Path, flat: bool, prefix: str, mirrored: bool) -> None:
    runs = small.write_hd(tmp_path / "H1" / "outs", flat=flat, prefix=prefix, mirrored=mirrored)
    source = opened(tmp_path / "H1")
    assert (source.id, source.assay) == ("H1", "Visium HD")
    assert source.warnings == (
        "not in this run, left out: tissue_lowres_image.png",
        no_image(f"{prefix}tissue_hires_image.png", "0.5"),
    )
    assert source.details["bins_um_found"] == [2.0, 8.0, 16.0]
    assert source.frame.residual_px < 1e-8 < source.frame.affine_residual_px
    assert source.frame.mpp == pytest.approx(small.HD_MPP, rel=1e-3)
    lattice = source.frame.lattice
    assert lattice is not None
    assert lattice.kind == "bins"
    assert (lattice.bin_um, lattice.num_rows, lattice.num_cols, lattice.mirrored) == (2.0, 40, 48, mirrored)
    assert [counts.name for counts in source.counts] == ["square_002um", "square_008um"]
    for counts, bin_um in zip(source.counts, (2, 8), strict=True):
        run, cells = runs[bin_um], counts.lattice
        assert cells == lattice.at(bin_um)
        wanted = run.positions.set_index("barcode").loc[run.barcodes]
        np.testing.assert_array_equal(counts.array_row, wanted.array_row)
        np.testing.assert_array_equal(counts.array_col, wanted.array_col)
        px = source.frame.um_to_px(cells.centres_um(*cells.grid(counts.array_row, counts.array_col)))
        np.testing.assert_allclose(px, wanted[["pxl_col_in_fullres", "pxl_row_in_fullres"]], atol=1e-6)


def test_bins_on_request_share_the_frame_of_the_finest(tmp_path: Path) -> None:
    small.write_hd(tmp_path)
    default, coarse = opened(tmp_path), opened(tmp_path, bins_um=(16.0, 8.0))
    assert [counts.bin_um for counts in coarse.counts] == [8.0, 16.0]
    assert coarse.frame == default.frame
    one = opened(tmp_path / "binned_outputs" / "square_008um")
    assert [counts.bin_um for counts in one.counts] == [8.0]
    assert one.id == tmp_path.name.rstrip("_")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("other", ["B_square_002um", "B_square_008um"])
def test_bins_of_two_runs_in_one_folder(tmp_path: Path, flat: bool, other: str) -> None:
    small.write_hd(tmp_path, bins=(2,), flat=flat)
    folder = tmp_path if flat else tmp_path / "binned_outputs"
    square = (folder / "square_002um").rename(folder / "A_square_002um")
    assert [counts.bin_um for counts in opened(tmp_path).counts] == [2.0]
    shutil.copytree(square, folder / other)
    error = fails(tmp_path, "ST106")
    assert f"A_square_002um, {other}" in error.what
    assert error.file == str(folder)


def test_bins_without_a_prefix_come_before_those_with_one(tmp_path: Path) -> None:
    small.write_hd(tmp_path, bins=(2,), flat=True)
    for prefix in ("A", "B"):
        shutil.copytree(tmp_path / "square_002um", tmp_path / f"{prefix}_square_002um")
    assert opened(tmp_path).counts[0].matrix.path.parent.name == "square_002um"


def test_a_bin_size_that_is_not_there(tmp_path: Path) -> None:
    small.write_hd(tmp_path)
    error = fails(tmp_path, "ST104", bins_um=(4.0,))
    assert str(error).splitlines() == [
        "IngestError [ST104]: bin size 4 µm is not in this run",
        f"  file: {tmp_path / 'binned_outputs'} (found: 2, 8, 16)",
        f"  try:  stzarr ingest {tmp_path} STORE --bin-um 8",
    ]


def test_a_bin_size_that_does_not_divide(tmp_path: Path) -> None:
    small.write_hd(tmp_path, bins=(8, 12))
    assert "8 µm do not divide bins of 12 µm" in fails(tmp_path, "ST105", bins_um=(12.0,)).what
    assert [counts.bin_um for counts in opened(tmp_path).counts] == [8.0]


def test_a_feature_slice_file_does_not_matter(tmp_path: Path) -> None:
    small.write_hd(tmp_path)
    before = opened(tmp_path).files
    (tmp_path / "feature_slice.h5").write_bytes(b"x")
    assert opened(tmp_path).files == before


def _hd_positions(bin_um: int, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        spatial = run / "binned_outputs" / f"square_{bin_um:03d}um" / "spatial"
        small.write_positions(spatial, change(small.bin_positions(bin_um)), "parquet")

    return spoil


def _hd_matrix(bin_um: int, other_um: int) -> Callable[[Path], object]:
    folder = "binned_outputs/square_{:03d}um"
    return lambda run: shutil.copy(run / folder.format(other_um) / MATRIX, run / folder.format(bin_um) / MATRIX)


def _hd_factors(bin_um: int, **changes) -> Callable[[Path], object]:
    path = f"binned_outputs/square_{bin_um:03d}um/spatial/scalefactors_json.json"
    return lambda run: small.edit_json(run / path, **changes)


def _moved(pixels: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda bins: bins.assign(pxl_col_in_fullres=bins.pxl_col_in_fullres + pixels)


def _noisy(bins: pd.DataFrame, size: float = 3.0) -> pd.DataFrame:
    return bins.assign(pxl_row_in_fullres=bins.pxl_row_in_fullres + size * (bins.index % 7 == 3))


HD_SPOILED = {
    "a bin without position": ("ST115", _hd_positions(2, lambda bins: bins[bins.array_col != 20])),
    "a bin twice": ("ST112", _hd_positions(2, lambda bins: pd.concat([bins, bins.iloc[:1]]))),
    "positions of other bins": ("ST122", _hd_positions(2, lambda _: small.bin_positions(8))),
    "the matrix of other bins": ("ST114", _hd_matrix(2, 8)),
    "shuffled pixels": ("ST121", _hd_positions(2, _noisy)),
    "8 µm of another run": ("ST123", _hd_positions(8, _moved(40.0))),
    "8 µm beyond the array": ("ST118", _hd_positions(8, lambda bins: bins.assign(array_col=bins.array_col + 9))),
    "pixel size of another run": (
        "ST122",
        _hd_factors(2, microns_per_pixel=0.2738, spot_diameter_fullres=2 / 0.2738),
    ),
    "pixel size of another run, 8 µm": (
        "ST122",
        _hd_factors(8, microns_per_pixel=0.2738, spot_diameter_fullres=8 / 0.2738),
    ),
    "scale factors of another bin size": ("ST116", _hd_factors(8, bin_size_um=16.0, spot_diameter_fullres=64.0)),
    "scale factors that contradict themselves": ("ST116", _hd_factors(2, spot_diameter_fullres=9.0)),
}


@pytest.mark.parametrize("case", HD_SPOILED)
def test_hd_runs_that_are_refused(tmp_path: Path, case: str) -> None:
    code, spoil = HD_SPOILED[case]
    small.write_hd(tmp_path)
    spoil(tmp_path)
    fails(tmp_path, code)


def test_a_small_residual_is_a_warning(tmp_path: Path) -> None:
    small.write_hd(tmp_path, bins=(2,))
    _hd_positions(2, lambda bins: _noisy(bins, 0.1))(tmp_path)
    warnings = opened(tmp_path).warnings
    assert any("miss an exact plane map" in warning for warning in warnings)


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    reader = SpaceRangerReader()
    assert not reader.recognises(tmp_path)
    assert not reader.recognises(tmp_path / "notes.txt")
    with pytest.raises(MissingInputError) as error:
        reader.open(tmp_path, ReadOptions())
    assert error.value.code == "ST103"


# ------------------------------------------------------------------------------------------------------ real runs


@pytest.mark.real
def test_real_visium_v2(real_data: Path, tmp_path: Path) -> None:
    outs = real_data / "visium_v2_mouse" / "outs"
    source = opened(outs, image=outs / "spatial" / "aligned_fiducials.jpg")
    assert source.id == "visium_v2_mouse"
    assert source.frame.mpp == pytest.approx(4.6776, abs=5e-5)
    assert source.frame.residual_px < 1e-6
    assert source.details["fit"]["fiducial_um"] == pytest.approx(105.0, abs=0.05)
    assert source.details["fit"]["row_pitch_um"] == 87.0
    assert [(image.name, image.handle.shape) for image in source.images] == [
        ("full", (3, 3000, 3000)),
        ("lowres", (3, 600, 600)),
    ]
    (tmp_path / "spatial").symlink_to(outs / "spatial")
    name = "filtered_feature_bc_matrix.h5"
    (tmp_path / name).symlink_to(real_data / "visium_v2_mouse" / "derived" / name)
    derived = opened(tmp_path)
    assert derived.frame == source.frame
    assert derived.details["matrices"]["table"]["format"] == "h5"
    for field in ("array_row", "array_col", "in_tissue"):
        np.testing.assert_array_equal(getattr(derived.counts[0], field), getattr(source.counts[0], field))
    assert source.counts[0].matrix.num_barcodes == source.counts[0].in_tissue.sum() == 2_898


@pytest.mark.real
def test_real_visium_v1(real_data: Path) -> None:
    source = opened(real_data / "visium_v1_human" / "1.0.0")
    (warning,) = source.warnings
    assert warning.startswith("no --image: the best picture is ")
    assert 0.5 < source.frame.residual_px < 1
    assert source.details["fit"]["row_pitch_um"] == pytest.approx(87.0, abs=1e-3)
    assert source.details["fit"]["fiducial_um"] == pytest.approx(105.0, abs=0.01)
    assert source.images[0].handle.shape == (3, 2000, 2000)
    fails(real_data / "visium_v1_human" / "1.0.0", "ST124", image=real_data / "slides_he/tiff-images/kidney-48-5.tif")


@pytest.mark.real
def test_real_sections_of_one_run(real_data: Path) -> None:
    first = opened(real_data / "visium_v1_sections" / "section1")
    assert first.counts[0].matrix.num_barcodes == 50
    assert any("raw one is used" in warning for warning in first.warnings)
    error = fails(real_data / "visium_v1_sections" / "section2", "ST115")
    assert "AAACAACGAATAGTTC-1" in error.what


@pytest.mark.real
def test_real_hd_geometry_without_counts(real_data: Path) -> None:
    source = SpaceRangerReader().open(real_data / "visium_hd_empty" / "outs", ReadOptions())
    assert source.frame.mirrored
    assert source.frame.residual_px < 1e-6
    assert 0.5 < source.frame.affine_residual_px < 2
    assert source.frame.mpp == pytest.approx(0.2738242950835738, rel=1e-3)
    assert source.counts[0].matrix.num_nonzero == 0
    with pytest.raises(IngestError, match="no counts"):
        source.counts[0].matrix.nonzero_per_barcode()
    source.close()
    error = fails(real_data / "visium_hd_empty" / "outs", "ST104", bins_um=(8.0,))
    assert "(found: 2)" in str(error.file)
    fails(real_data / "visium_hd_segmented_excerpt" / "outs", "ST103")
