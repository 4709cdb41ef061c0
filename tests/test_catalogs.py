"""Every catalog file names what it is, its licence, and files with size and digest."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

CATALOGS = sorted((Path(__file__).parents[1] / "catalogs").glob("*.toml"))


@pytest.mark.parametrize("path", CATALOGS, ids=lambda path: path.stem)
def test_catalog_file_is_complete(path: Path) -> None:
    entry = tomllib.loads(path.read_text())
    assert entry["name"] == path.stem
    assert {"title", "provider", "assay", "organism", "licence"} <= set(entry)
    assert entry["files"]
    for file in entry["files"]:
        assert "/" not in file["name"]
        assert file["bytes"] > 0
        assert re.fullmatch(r"[0-9a-f]{32}", file["md5"])
