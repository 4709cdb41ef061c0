"""Digests of a store's files as they are written, and the metadata that makes it whole.

Every file that Zarr writes passes through `DigestStore`, so the manifest costs no second reading.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore, WrapperStore

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer

ROOT_KEY = "zarr.json"
MANIFEST_KEY = "stzarr/zarr.json"

Entry = tuple[int, str]
"""Bytes and sha256 of a file."""


class DigestStore(WrapperStore[LocalStore]):
    """A local Zarr store that notes size and sha256 of what is written, and keeps the root metadata back.

    zarr-python writes the metadata of all parents with every node; the root's must not exist before the store is
    whole, so it is dropped here and written when all else is (`Journal.finish`).
    """

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.files: dict[str, Entry] = {}
        self.fresh: deque[str] = deque()
        """Keys written since they were last taken away; appended to by Zarr's event loop."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file and note its digest."""
        if key == ROOT_KEY:
            return
        data = value.as_buffer_like()
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        await self._store.set(key, value)
        self.note(key, (len(value), digest))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file that this store has not written yet; one that a killed call left is written again."""
        if key not in self.files:
            await self.set(key, value)

    def note(self, key: str, entry: Entry) -> None:
        """Add a file to the manifest."""
        self.files[key] = entry
        self.fresh.append(key)


def digest_of(path: Path) -> Entry:
    """Return size and sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, digest


def group_json(attributes: Mapping[str, Any], *, consolidated: Mapping[str, Any] | None = None) -> bytes:
    """Return the ``zarr.json`` of a group, as zarr-python writes it; `consolidated` maps paths to their metadata."""
    node: dict[str, Any] = {"attributes": attributes, "zarr_format": 3}
    if consolidated is not None:
        node["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": consolidated}
    return json.dumps(node | {"node_type": "group"}, indent=2).encode()


def consolidated_metadata(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of nodes by their path, in zarr-python's order and form."""
    nodes = {}
    for key in sorted(keys, key=lambda key: (key.count("/"), key.casefold())):
        node = json.loads((path / key).read_bytes())
        if node["node_type"] == "group":
            kind = node.pop("node_type")
            node |= {"consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}}}
            node["node_type"] = kind
        nodes[key.removesuffix("/zarr.json")] = node
    return nodes


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
