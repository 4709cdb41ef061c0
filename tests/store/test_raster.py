from __future__ import annotations

import numpy as np
import pytest
import spatialdata
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import MemoryPicture, bin_slide, noise, plain_slide, turned
from spatialdata.transformations import get_transformation

from stzarr.space import Homography, PixelGrid
from stzarr.store import layout, raster, warp
from stzarr.store.means import block_means
from stzarr.store.source import ImageSource, Source
from stzarr.store.warp import Warp, halved, oversampling
from stzarr.store.writer import WriteOptions, write_store


def reference_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means over the pixels that exist, rounded half up, in the slow and obvious way."""
    c, height, width = pixels.shape
    rows, cols = -(-height // factor), -(-width // factor)
    out = np.empty((c, rows, cols), pixels.dtype)
    for i in range(rows):
        for j in range(cols):
            block = pixels[:, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].astype(np.int64)
            num = block.shape[1] * block.shape[2]
            out[:, i, j] = (2 * block.sum(axis=(1, 2)) + num) // (2 * num)
    return out


pictures = st.sampled_from([np.uint8, np.uint16]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9))
)


@given(pictures)
def test_halving_is_the_exact_mean_rounded_half_up(pixels):
    assert np.array_equal(halved(pixels), reference_means(pixels, 2))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_block_means_are_exact(factor, rows, cols, seed):
    plane = noise((1, rows * factor, cols * factor), np.uint16, seed)
    assert np.array_equal(block_means(plane[0], factor), reference_means(plane, factor)[0])


@pytest.mark.parametrize(("scale", "samples"), [(0.7, 1), (1.0, 1), (1.1, 1), (1.3, 2), (2.0, 2), (2.05, 2), (8.0, 8)])
def test_shrinking_takes_more_samples(scale, samples):
    assert oversampling(scale) == samples


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_whole_pixel_shift_copies_pixels_and_leaves_zeros_outside(tmp_path, dtype, channels):
    pixels = noise((channels, 40, 50), dtype)
    shift = Homography.scale_then_move(1.0, 1.0, 7.0 - 0.5, -3.0 - 0.5)  # µm = px of side 1, moved by (7, -3)
    made = Warp(MemoryPicture(tmp_path / "a", pixels), shift, PixelGrid(1.0, 0.0, 0.0, 60, 60))(0, 60, 0, 60)
    expected = np.zeros((channels, 60, 60), dtype)
    expected[:, 3:43, :43] = pixels[:, :, 7:]
    assert np.array_equal(made, expected)


def test_a_turn_by_90_degrees_moves_pixels_exactly(tmp_path):
    pixels = noise((3, 32, 32))
    quarter = Homography.from_matrix([[0.0, 1.0, -0.5], [-1.0, 0.0, 31.5], [0.0, 0.0, 1.0]])
    made = Warp(MemoryPicture(tmp_path / "a", pixels), quarter, PixelGrid(1.0, 0.0, 0.0, 32, 32))(0, 32, 0, 32)
    assert np.array_equal(made, np.rot90(pixels, -1, axes=(1, 2)))


def test_shrinking_by_a_whole_factor_is_the_block_mean(tmp_path):
    pixels = noise((3, 64, 64))
    to_px = Homography.scale_then_move(4.0, 4.0, -0.5, -0.5)
    reader = Warp(MemoryPicture(tmp_path / "a", pixels), to_px, PixelGrid(1.0, 0.0, 0.0, 16, 16), oversampling(4.0))
    assert np.array_equal(reader(0, 16, 0, 16), reference_means(pixels, 4))


def test_bilinear_values_follow_a_plane_through_a_perspective(tmp_path):
    """A linear ramp stays what the map says it is, so every value is known."""
    y, x = np.mgrid[:300, :300]
    pixels = (100.0 * x + 50.0 * y).astype(np.uint16)[None]
    to_px = turned(23.0, 1.1, (150.0, 140.0), True, 3e-5)
    grid = PixelGrid(1.0, -80.0, -80.0, 160, 160)
    made = Warp(MemoryPicture(tmp_path / "a", pixels), to_px, grid)(0, 160, 0, 160)[0]
    cols, rows = np.meshgrid(np.arange(160), np.arange(160))
    u, v = np.moveaxis(to_px(grid.centres_to_um(np.stack([cols, rows], -1))), -1, 0)
    assert np.abs(made - (100.0 * u + 50.0 * v)).max() <= 100 / 32 + 50 / 32 + 1  # OpenCV interpolates in 1/32 px


def test_pieces_and_split_sources_agree_with_one_call(tmp_path, monkeypatch):
    picture = MemoryPicture(tmp_path / "a", noise((3, 300, 320)))
    reader = Warp(picture, turned(30.0, 0.8, (160.0, 150.0), False, 1e-5), PixelGrid(1.0, -60.0, -60.0, 130, 120))
    whole = reader(0, 120, 0, 130).astype(int)
    picture.largest_read_px = 0
    monkeypatch.setattr(warp, "PIECE_PX", 64)
    monkeypatch.setattr(warp, "MAX_SOURCE_PX", 48)
    parts = reader(0, 120, 0, 130)
    assert picture.largest_read_px <= 48
    # Coordinates are rounded to 1/32 px from each piece's own origin: noise turns that into a few grey values.
    assert np.abs(parts - whole).max() <= 255 / 16
    assert np.array_equal(parts == 0, whole == 0)


# ------------------------------------------------------------------------------------------------------ pyramids


@pytest.fixture
def small_shards(monkeypatch):
    """Several nodes and stages for few pixels."""
    monkeypatch.setattr(layout, "IMAGE_CHUNK_PX", 128)
    monkeypatch.setattr(layout, "SHARD_PX", 256)


def level(store, name: str, index: int) -> np.ndarray:
    return np.asarray(zarr.open_array(store / f"images/{name}/s{index}/image", mode="r")[:])


@pytest.mark.parametrize(
    ("shape", "dtype", "enough_nodes"),
    [((3, 1100, 1500), np.uint8, 16), ((1, 2563, 700), np.uint16, 1), ((5, 1025, 1027), np.uint8, 1)],
)
def test_native_pyramids_are_copies_and_exact_means(tmp_path, small_shards, monkeypatch, shape, dtype, enough_nodes):
    monkeypatch.setattr(raster, "_ENOUGH_NODES", enough_nodes)
    picture = MemoryPicture(tmp_path / "a.tif", noise(shape, dtype))
    store = write_store(plain_slide(picture, 0.5), tmp_path / "s.zarr", WriteOptions(image_frame="native"))
    expected, index = picture.pixels, 0
    while True:
        assert np.array_equal(level(store, "p1_full_image", index), expected)
        if max(expected.shape) <= 1024:
            break
        expected, index = halved(expected), index + 1
    assert not (store / f"images/p1_full_image/s{index + 1}").exists()


def test_one_shard_is_one_file_and_zeros_are_none(tmp_path, small_shards):
    pixels = noise((3, 600, 600))
    pixels[:, :256, 256:512] = 0
    store = write_store(
        plain_slide(MemoryPicture(tmp_path / "a", pixels), 0.5), tmp_path / "s", WriteOptions(image_frame="native")
    )
    files = [path for path in (store / "images/p1_full_image/s0/image/c").rglob("*") if path.is_file()]
    assert len(files) == 9 - 1
    assert np.array_equal(level(store, "p1_full_image", 0), pixels)


@settings(max_examples=3, deadline=None)
@given(st.floats(-180, 180), st.booleans())
def test_registered_levels_are_means_of_whole_pixels(tmp_path_factory, angle, mirror):
    folder = tmp_path_factory.mktemp("r")
    picture = MemoryPicture(folder / "a.tif", noise((3, 700, 700)))
    source = bin_slide(picture, turned(angle, 1.1, (350.0, 350.0), mirror, 1e-6), 960.0, 1.1)
    store = write_store(source, folder / "s.zarr")
    first, second = level(store, "b1_image_um", 0), level(store, "b1_image_um", 1)
    assert first.shape == (3, 1160, 1160)
    assert np.array_equal(halved(first), second)


# ------------------------------------------------------------------------------------------------- plain libraries

plain_libraries = pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning")
"""spatialdata 0.7 warns when it is imported."""


@plain_libraries
def test_spatialdata_opens_it_and_boxes_in_um_are_plain_slices(tmp_path):
    picture = MemoryPicture(tmp_path / "a.tif", noise((3, 900, 900)))
    source = bin_slide(picture, turned(8.0, 0.9, (440.0, 450.0), True, 0.0), 400.0, 0.9)
    store = write_store(source, tmp_path / "s.zarr", WriteOptions(image_frame="both", image_mpp=0.5))
    data = spatialdata.read_zarr(store)
    extent = spatialdata.get_extent(data["b1_image_um"], coordinate_system="um")
    assert extent == {"x": (-100.0, 500.0), "y": (-100.0, 500.0)}
    box = spatialdata.bounding_box_query(
        data["b1_image_um"],
        axes=("x", "y"),
        min_coordinate=[10.0, 32.0],
        max_coordinate=[42.0, 96.0],
        target_coordinate_system="um",
    )
    plain = level(store, "b1_image_um", 0)[:, 264:392, 220:284]
    assert np.array_equal(box["scale0"]["image"].to_numpy(), plain)
    # The pixel under a point is the same in both pictures: corner counts from 0, vendor's px from the first centre.
    to_um = get_transformation(data["b1_full_image"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
    to_px = get_transformation(data["b1_full_image"], "b1").to_affine_matrix(("x", "y"), ("x", "y"))
    assert to_px == pytest.approx(np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]]))
    point = np.array([120.0, 77.0])
    assert to_um @ [*(source.frame.um_to_px(point) + 0.5), 1] == pytest.approx([120.0, 77.0, 1.0], abs=1e-6)
    registered = get_transformation(data["b1_image_um"], "b1").to_affine_matrix(("x", "y"), ("x", "y"))
    assert registered @ [440.0, 354.0, 1.0] == pytest.approx([*source.frame.um_to_px(point), 1.0], abs=1e-6)


@plain_libraries
def test_previews_carry_the_systems_of_spatialdata_io(tmp_path):
    full = MemoryPicture(tmp_path / "a.tif", noise((3, 600, 600)))
    small = MemoryPicture(tmp_path / "tissue_hires_image.png", noise((3, 150, 150)), random_access=False)
    base = bin_slide(full, turned(0.0, 1.0, (300.0, 300.0), False, 1e-6), 400.0, 1.0)
    to_hires = Homography.scale_then_move(0.25, 0.25, 0.0, 0.0) @ base.frame.um_to_px
    images = (*base.images, ImageSource("hires", small, to_hires, 0.25))
    source = Source("b1", base.assay, base.frame, images, (), (full.path, small.path))
    store = write_store(source, tmp_path / "s.zarr")
    data = spatialdata.read_zarr(store)
    systems = get_transformation(data["b1_hires_image"], get_all=True)
    assert set(systems) == {"um", "b1", "b1_downscaled_hires"}
    matrices = {name: map_.to_affine_matrix(("x", "y"), ("x", "y")) for name, map_ in systems.items()}
    assert matrices["b1"] == pytest.approx(np.array([[4, 0, -2], [0, 4, -2], [0, 0, 1]]))
    assert matrices["b1_downscaled_hires"] == pytest.approx(np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]]))
    assert np.array_equal(data["b1_hires_image"].to_numpy(), small.pixels)
    assert len(small.decoded_into) == 1
    assert not small.decoded_into[0].exists()


def test_metadata_is_valid_ngff_but_for_what_spatialdata_wants(tmp_path):
    picture = MemoryPicture(tmp_path / "a.tif", noise((4, 300, 300), np.uint16))
    store = write_store(plain_slide(picture, 0.5), tmp_path / "s.zarr")
    attrs = zarr.open_group(store / "images/p1_image_um", mode="r").attrs.asdict()
    (multiscale,) = attrs["ome"]["multiscales"]
    assert attrs["ome"]["version"] == "0.5-dev-spatialdata"
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    scale, move = multiscale["datasets"][0]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1.0, 0.5, 0.5]}
    assert move == {"type": "translation", "translation": [0.0, 0.25, 0.25]}
    channels = attrs["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == ["ch0", "ch1", "ch2", "ch3"]
    assert channels[0]["window"] == {"min": 0, "max": 65535, "start": 0, "end": 65535}
    coords = zarr.open_array(store / "images/p1_image_um/s0/x", mode="r")[:3]
    assert coords.tolist() == [0.25, 0.75, 1.25]
