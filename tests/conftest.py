"""Fixtures that every part of the test suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("STZARR_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the published inputs; tests that need it skip where it is missing."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real inputs at {REAL_DATA} (set STZARR_REAL_DATA)")
    return REAL_DATA
