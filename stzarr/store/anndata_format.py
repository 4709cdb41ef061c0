"""AnnData's on-disk encodings, written by hand so that every array has explicit chunks, shards and codec.

anndata's own writer chooses chunks by itself (and shards or not, by release), takes whole arrays only, and knows no
journal. The encodings below are those that anndata 0.12 and 0.13 write to Zarr v3 (`anndata` 0.1.0, `dataframe` and
`array` 0.2.0, `csr_matrix` 0.1.0 ...), plus what SpatialData adds to a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from stzarr.store import layout


def _encoding(kind: str, version: str) -> dict[str, Any]:
    return {"encoding-type": kind, "encoding-version": version}


ARRAY = _encoding("array", "0.2.0")
STRINGS = _encoding("string-array", "0.2.0")
STRING = _encoding("string", "0.2.0")
DICT = _encoding("dict", "0.1.0")
CATEGORICAL = _encoding("categorical", "0.2.0")
DATAFRAME = _encoding("dataframe", "0.2.0")
CSR = _encoding("csr_matrix", "0.1.0")
ANNDATA = _encoding("anndata", "0.1.0")


def create_table(root: zarr.Group, name: str, *, region: str, instance_key: str) -> zarr.Group:
    """Create ``tables/<name>`` as an AnnData that annotates one region; what was there is replaced.

    SpatialData wants the link twice, as attributes and in ``uns``, and the empty groups; it refuses any other child.
    """
    link = {"region": region, "region_key": "region", "instance_key": instance_key}
    attributes: dict[str, Any] = {
        **ANNDATA,
        "spatialdata-encoding-type": "ngff:regions_table",
        **link,
        "version": layout.TABLE_VERSION,
    }
    table = root.create_group(f"tables/{name}", attributes=attributes, overwrite=True)
    for child in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        table.create_group(child, attributes=DICT)
    attrs = table.create_group("uns/spatialdata_attrs", attributes=DICT)
    for key, value in link.items():
        attrs.create_array(key, shape=(), chunks=(), dtype="string", attributes=STRING)[()] = value
    return table


def create_dataframe(table: zarr.Group, name: str, columns: Sequence[str]) -> zarr.Group:
    """Create the group of ``obs`` or ``var``; its columns and ``_index`` are arrays that the caller adds."""
    order = {"column-order": list(columns), "_index": "_index"}
    return table.create_group(name, attributes=DATAFRAME | order)


def create_csr(table: zarr.Group, shape: tuple[int, int], nnz: int, dtype: np.dtype[Any]) -> zarr.Group:
    """Create ``X`` as an empty CSR matrix: data of `dtype`, int32 indices, int64 indptr."""
    x = table.create_group("X", attributes=CSR | {"shape": list(shape)})
    entries = (layout.ENTRIES_PER_CHUNK, layout.ENTRIES_PER_SHARD)
    create_array(x, "data", (nnz,), dtype, blocks=entries)
    create_array(x, "indices", (nnz,), np.dtype(np.int32), blocks=entries)
    create_array(x, "indptr", (shape[0] + 1,), np.dtype(np.int64))
    return x


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    attributes: Mapping[str, Any] | None = None,
    blocks: tuple[int, int] | None = None,
) -> zarr.Array:
    """Create an array of numbers; `blocks` are the items of a chunk and of a shard along the first axis, else rows."""
    chunk, shard = layout.block_shape(shape[0], *(blocks or (layout.ROWS_PER_CHUNK, layout.ROWS_PER_SHARD)))
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(chunk, *shape[1:]),
        shards=(shard, *shape[1:]),
        compressors=layout.codec(dtype),
        fill_value=0,
        attributes=dict(attributes or {}),
    )


def write_array(
    group: zarr.Group, name: str, values: NDArray[Any], attributes: Mapping[str, Any] | None = None
) -> zarr.Array:
    """Create and fill an array of numbers that is in memory as a whole."""
    array = create_array(group, name, values.shape, values.dtype, attributes=attributes)
    array[...] = values
    return array


def write_strings(group: zarr.Group, name: str, values: Sequence[str]) -> None:
    """Create and fill an array of variable-length UTF-8 strings."""
    chunk, shard = layout.block_shape(len(values), layout.ROWS_PER_CHUNK, layout.ROWS_PER_SHARD)
    array = group.create_array(
        name,
        shape=(len(values),),
        dtype="string",
        chunks=(chunk,),
        shards=(shard,),
        compressors=layout.codec(np.dtype(np.uint8)),
        attributes=dict(STRINGS),
    )
    array[...] = np.asarray(values, dtype=np.dtypes.StringDType())


def write_categorical(group: zarr.Group, name: str, num: int, category: str) -> None:
    """Create a categorical column with one category: its int8 codes are all 0, the fill value, and take no file."""
    column = group.create_group(name, attributes=CATEGORICAL | {"ordered": False})
    create_array(column, "codes", (num,), np.dtype(np.int8), attributes=ARRAY)
    write_strings(column, "categories", [category])


def array_at(group: zarr.Group, path: str) -> zarr.Array:
    """Return the array at a path; KeyError if there is none, TypeError if a group is there."""
    node = group[path]
    if not isinstance(node, zarr.Array):
        raise TypeError(f"{path} is a group, not an array")
    return node


def group_at(group: zarr.Group, path: str) -> zarr.Group:
    """Return the group at a path; KeyError if there is none, TypeError if an array is there."""
    node = group[path]
    if not isinstance(node, zarr.Group):
        raise TypeError(f"{path} is an array, not a group")
    return node
