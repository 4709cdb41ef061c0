"""The picture: formats agree, a turn is a turn, previews are means, and expression follows from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from simulated_run import Run

from stzarr.simulate import simulate

SIZE = (160.0, 120.0)


def make(folder: Path, **options: object) -> Run:
    values: dict = {"size_um": SIZE, "num_genes": 30, "seed": 1, "mpp": 0.4} | options
    return Run(folder, simulate(folder, **values))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("plain"))


def test_formats_hold_the_same_picture(plain: Run, tmp_path: Path) -> None:
    raw, deflate, jpeg = plain, make(tmp_path / "d", image_format="deflate"), make(tmp_path / "j", image_format="jpeg")
    assert [run.image.name for run in (raw, deflate, jpeg)] == [
        "tissue_image.btf",
        "tissue_image.tif",
        "tissue_image.tif",
    ]
    assert np.array_equal(raw.pixels(), deflate.pixels())
    assert np.abs(raw.pixels().astype(int) - jpeg.pixels()).mean() < 4
    stored = {}
    for name, run in (("raw", raw), ("deflate", deflate), ("jpeg", jpeg)):
        with tifffile.TiffFile(run.image) as file:
            page = file.pages[0]
            stored[name] = (file.is_bigtiff, page.is_tiled, page.compression.name)
            assert page.shape == (raw.about["image"]["height"], raw.about["image"]["width"], 3)
            assert 1e4 / page.get_resolution("CENTIMETER")[0] == pytest.approx(0.4, rel=1e-6)
    assert stored["raw"] == (True, True, "NONE")
    assert stored["deflate"] == (False, False, "ADOBE_DEFLATE")
    assert stored["jpeg"] == (False, True, "JPEG")


def test_equal_arguments_give_equal_files_on_any_number_of_threads(plain: Run, tmp_path: Path) -> None:
    again = make(tmp_path / "again", threads=1)
    names = sorted(path.relative_to(plain.outs) for path in plain.outs.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again.outs) for path in again.outs.rglob("*") if path.is_file())
    for name in names:
        assert (plain.outs / name).read_bytes() == (again.outs / name).read_bytes(), name


def test_another_seed_gives_another_picture(plain: Run, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=2)
    assert np.abs(plain.pixels().astype(int) - other.pixels()).mean() > 5


def test_turned_picture_is_the_turned_picture(plain: Run, tmp_path: Path) -> None:
    turned = make(tmp_path / "turned", turn=90)
    difference = np.abs(np.rot90(plain.pixels()).astype(int) - turned.pixels())
    assert difference.max() <= 2
    assert np.array_equal(plain.grid(2), turned.grid(2))


def test_margin_is_background_and_the_middle_is_tissue(plain: Run) -> None:
    pixels = plain.pixels()
    assert (pixels[:10].min(), pixels[:, -10:].min()) >= (240, 240)
    middle = pixels[pixels.shape[0] // 2 - 50 : pixels.shape[0] // 2 + 50, pixels.shape[1] // 2 - 50 :][:, :100]
    assert middle.mean() < 225


def test_previews_are_means_at_the_stated_scale(run: Run) -> None:
    pixels, factors = run.pixels().astype(float), run.scale_factors(8)
    for name in ("hires", "lowres"):
        preview = np.asarray(Image.open(run.folder(8) / "spatial" / f"tissue_{name}_image.png"))
        side = round(1 / factors[f"tissue_{name}_scalef"])
        rows, cols = pixels.shape[0] // side, pixels.shape[1] // side
        means = pixels[: rows * side, : cols * side].reshape(rows, side, cols, side, 3).mean(axis=(1, 3))
        assert np.abs(preview[:rows, :cols] - means).max() <= 0.51
        assert preview.shape[:2] == (-(-pixels.shape[0] // side), -(-pixels.shape[1] // side))
    assert max(preview.shape) <= 600


@pytest.mark.parametrize("turn", [0, 90])
def test_landmarks_lie_on_their_bins(tmp_path: Path, turn: int) -> None:
    run = make(tmp_path / "marks", landmarks=True, turn=turn, mpp=0.2738)
    about, dark = run.about, 246.0 - run.pixels().astype(float)[..., 0]
    matrix = np.array(about["array_to_px"]["matrix"])
    assert len(about["landmarks"]) == 25
    for mark in about["landmarks"]:
        x, y, w = matrix @ (mark["array_col"], mark["array_row"], 1)
        assert (mark["x_px"], mark["y_px"]) == pytest.approx((x / w, y / w), abs=1e-9)
        column, row, reach = round(mark["x_px"]), round(mark["y_px"]), 18  # 5 µm, inside the blank disc
        window = dark[row - reach : row + reach + 1, column - reach : column + reach + 1]
        ys, xs = np.mgrid[row - reach : row + reach + 1, column - reach : column + reach + 1]
        centroid = (window * xs).sum() / window.sum(), (window * ys).sum() / window.sum()
        assert centroid == pytest.approx((mark["x_px"], mark["y_px"]), abs=0.02)


def colours_per_bin(run: Run, bin_um: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean colour and its spread around each bin's centre, shape (rows, columns, 6), and in_tissue."""
    where, pixels = run.positions(bin_um), run.pixels().astype(float)
    half = int(bin_um / run.about["image"]["mpp"] / 2)
    shape = where["array_row"].max() + 1, where["array_col"].max() + 1
    centres = np.rint(np.stack([where["pxl_row_in_fullres"], where["pxl_col_in_fullres"]], -1)).astype(int)
    offsets = np.arange(-half, half + 1)
    rows, cols = np.clip(centres[:, 0, None] + offsets, 0, pixels.shape[0] - 1), centres[:, 1, None] + offsets
    windows = pixels[rows[:, :, None], np.clip(cols, 0, pixels.shape[1] - 1)[:, None, :]]
    features = np.concatenate([windows.mean(axis=(1, 2)), windows.std(axis=(1, 2))], axis=1)
    return features.reshape(*shape, 6), where["in_tissue"].reshape(shape).astype(bool)


def explained(features: np.ndarray, target: np.ndarray) -> float:
    """Return R² of a least-squares fit that was made on the even samples, measured on the odd ones."""
    design = np.concatenate([features, features**2, np.ones((len(features), 1))], axis=1)
    weights = np.linalg.lstsq(design[::2], target[::2], rcond=None)[0]
    left = target[1::2] - design[1::2] @ weights
    return float(1 - left.var() / target[1::2].var())


def test_expression_is_predictable_from_the_picture(run: Run) -> None:
    features, inside = colours_per_bin(run, 16)
    counts = run.grid(16)[:, inside]
    with_home = {}
    for home in ("TUM", "STR", "IMM", "ADI"):
        with_home[home] = explained(
            features[inside], counts[[name.startswith(home) for name in run.symbols()]].sum(axis=0)
        )
    assert np.mean(list(with_home.values())) > 0.65, with_home
    assert min(with_home.values()) > 0.4, with_home


def test_nuclear_genes_follow_dark_nuclei(run: Run) -> None:
    features, inside = colours_per_bin(run, 8)
    darkness, counts = -features[inside][:, 0], run.grid(8)[:, inside].sum(axis=0)
    assert np.corrcoef(darkness, counts)[0, 1] > 0.85


def test_shuffled_counts_are_not_predictable(run: Run) -> None:
    """The bound above means something: the same fit explains nothing of counts in random places."""
    features, inside = colours_per_bin(run, 16)
    counts = run.grid(16)[:, inside].sum(axis=0)
    assert explained(features[inside], np.random.default_rng(0).permutation(counts)) < 0.1
