"""The demo keeps what it made, and never replaces a store of other input."""

from __future__ import annotations

from pathlib import Path

import pytest

from stzarr import demo as demos
from stzarr.errors import StoreError
from stzarr.simulate import simulate


@pytest.fixture(autouse=True)
def _no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demos, "_stream", lambda store, slide: "not here: it takes seconds")


def test_a_store_is_kept_and_never_replaced(tmp_path: Path) -> None:
    outs, folder = tmp_path / "outs", tmp_path / "demo"
    image = simulate(outs, size_um=(240.0, 240.0), num_genes=30)
    first = demos.demo(folder, outs=outs, image=image)
    assert " in " in first.steps["ingest"]
    root = folder / "slide.zarr" / "zarr.json"
    written = root.read_bytes()

    again = demos.demo(folder, outs=outs, image=image)
    assert again.steps["ingest"] == f"{folder / 'slide.zarr'} is there already"
    with pytest.raises(StoreError) as error:
        demos.demo(folder, outs=outs)
    assert error.value.code == "ST241"
    assert "another folder" in str(error.value.cure)
    (folder / "demo.json").unlink()
    with pytest.raises(StoreError, match="was not made from"):
        demos.demo(folder, outs=outs, image=image)
    assert root.read_bytes() == written
