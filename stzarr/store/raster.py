"""Pictures in the store: sharded NGFF pyramids, every shard written once, whole, and none of a node read back.

A level's pixels are means of 2 x 2 pixels of the level below it, rounded half up. The unit of work is a node of the
quad tree: it writes the shards of its lowest level one after another and keeps their means for the two levels above.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from stzarr.space import Frame
from stzarr.store import layout
from stzarr.store.image_plan import AXES, ImagePlan, element_attributes
from stzarr.store.journal import Journal
from stzarr.store.units import Progress, Unit
from stzarr.store.warp import BlockReader, Warp, halved

_NODE_LEVELS = 3
_ENOUGH_NODES = 16


def write_image(
    root: zarr.Group,
    picture: ImagePlan,
    frame: Frame,
    slide_id: str,
    *,
    journal: Journal,
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write one image element with all its levels.

    A source without random access is decoded into the journal's scratch folder first. Memory is a few shards a
    thread, whatever the picture's size.
    """

    def write() -> None:
        folder = journal.scratch / picture.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        handle = picture.source.handle.decoded(folder)
        try:
            run = partial(journal.run, stage=picture.name, threads=threads, progress=progress)
            run([Unit(f"images/{picture.name}", lambda: _create(root, picture, frame, slide_id))])
            warp = Warp(handle, picture.source.um_to_px, picture.grid, picture.factor)
            for units in _stages(root, picture, warp if picture.frame == "um" else handle.read):
                run(units)
        finally:
            if handle is not picture.source.handle:
                handle.close()
            shutil.rmtree(folder)

    journal.once(f"images/{picture.name}", write)


# ------------------------------------------------------------------------------------------------------- pyramid


def _stages(root: zarr.Group, picture: ImagePlan, read: BlockReader) -> list[list[Unit]]:
    """Return the units of the lowest levels, then those of the levels above, which read the level below them."""
    arrays = [_array(root, f"images/{picture.name}/s{index}/image") for index in range(picture.num_levels)]
    stages, first = [], 0
    while first < len(arrays):
        depth = min(_node_levels(arrays[first].shape), len(arrays) - first)
        nodes = _nodes(arrays[first : first + depth], read if first == 0 else partial(_read_halved, arrays[first - 1]))
        size = arrays[first].nbytes // len(nodes)
        stages.append([Unit(f"images/{picture.name}/s{first}/{where}", run, size) for where, run in nodes])
        first += depth
    return stages


def _node_levels(shape: Sequence[int]) -> int:
    """Return how many levels a node spans: fewer where the nodes would be too few to share out."""
    span = layout.SHARD_PX << (_NODE_LEVELS - 1)
    return _NODE_LEVELS if -(-shape[1] // span) * -(-shape[2] // span) >= _ENOUGH_NODES else _NODE_LEVELS - 1


def _nodes(arrays: Sequence[zarr.Array], read: BlockReader) -> list[tuple[str, Callable[[], None]]]:
    """Return (name, job) of every shard of the top level with all that lies below it."""
    rows, cols = (-(-size // layout.SHARD_PX) for size in arrays[-1].shape[1:])
    return [
        (f"{row}.{col}", partial(_write_node, arrays, read, row, col)) for row in range(rows) for col in range(cols)
    ]


def _write_node(arrays: Sequence[zarr.Array], read: BlockReader, row: int, col: int) -> None:
    _shard(arrays, read, row, col)


def _shard(arrays: Sequence[zarr.Array], read: BlockReader, row: int, col: int) -> NDArray[Any]:
    """Write one shard of the last of `arrays` after those below it, and return its pixels."""
    array, side = arrays[-1], layout.SHARD_PX
    num_channels, height, width = array.shape
    y0, x0 = row * side, col * side
    y1, x1 = min(y0 + side, height), min(x0 + side, width)
    if len(arrays) == 1:
        pixels = read(y0, y1, x0, x1)
    else:
        pixels = np.empty((num_channels, y1 - y0, x1 - x0), array.dtype)
        for dy in range(0, y1 - y0, side // 2):
            for dx in range(0, x1 - x0, side // 2):
                below = (2 * row + (dy > 0), 2 * col + (dx > 0))
                part = halved(_shard(arrays[:-1], read, *below))
                pixels[:, dy : dy + part.shape[1], dx : dx + part.shape[2]] = part
    if pixels.any():  # a shard of zeros is not stored
        array[:, y0:y1, x0:x1] = pixels
    return pixels


def _read_halved(below: zarr.Array, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
    """Return a box of the level above an array; a `BlockReader`."""
    return halved(np.asarray(below[:, 2 * y0 : 2 * y1, 2 * x0 : 2 * x1]))


def _array(root: zarr.Group, path: str) -> zarr.Array:
    """Open an array for writing, without the comparison of every chunk with zeros that takes a third of the time."""
    array = root[path]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{path} is a group")
    return array.with_config({"write_empty_chunks": True})


# ------------------------------------------------------------------------------------------------------ metadata


def _create(root: zarr.Group, picture: ImagePlan, frame: Frame, slide_id: str) -> None:
    """Create the element's groups and arrays, with the coordinates of its pixel centres [µm] beside each level."""
    attributes = element_attributes(picture, frame, slide_id)
    group = root.create_group(f"images/{picture.name}", overwrite=True, attributes=attributes)
    levels = layout.pixel_levels(picture.grid, picture.num_levels)
    for index, (shape, level) in enumerate(zip(picture.shapes, levels, strict=True)):
        blocks = [layout.block_shape(size, layout.IMAGE_CHUNK_PX, layout.SHARD_PX) for size in shape[1:]]
        channels = shape[0] if shape[0] <= 4 else 1
        group.create_array(
            f"s{index}/image",
            shape=shape,
            dtype=picture.dtype,
            chunks=(channels, *(chunk for chunk, _ in blocks)),
            shards=(shape[0], *(shard for _, shard in blocks)),
            compressors=layout.codec(picture.dtype),
            fill_value=0,
            dimension_names=tuple(AXES),
        )
        for axis, size, start, step in zip("yx", shape[1:], level["move"], level["scale"], strict=True):
            centres = start + step * np.arange(size, dtype=np.float64)
            coords = group.create_array(
                f"s{index}/{axis}",
                shape=(size,),
                dtype=np.float64,
                chunks=(size,),
                compressors=layout.codec(centres.dtype),
                dimension_names=(axis,),
            )
            coords[:] = centres
