"""How a reader is found for a path, and how a slide gets its name."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import small_runs as small
from hypothesis import given
from hypothesis import strategies as st

from stzarr.errors import IngestError, MissingInputError
from stzarr.ingest import readers
from stzarr.ingest.readers import ReadOptions, open_source, slide_id
from stzarr.store.layout import check_id
from stzarr.store.source import Source

INSTALLED = [
    EntryPoint("spaceranger", "stzarr.ingest.spaceranger:SpaceRangerReader", "stzarr.readers"),
    EntryPoint("slides", "stzarr.ingest.slides:SlideReader", "stzarr.readers"),
]


@pytest.fixture(autouse=True)
def _entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "entry_points", lambda group: INSTALLED)


def test_the_reader_that_recognises_the_path_opens_it(tmp_path: Path) -> None:
    small.write_visium(tmp_path / "run")
    slide = tmp_path / "x.tif"
    small.write_image(slide, 16, 16)
    assert open_source(tmp_path / "run", ReadOptions()).assay == "Visium"
    assert open_source(slide, ReadOptions(mpp_source=0.5)).assay == "slide"
    with pytest.raises(IngestError) as error:
        open_source(slide, ReadOptions(), reader="spaceranger")
    assert error.value.code == "ST103"


def test_paths_and_readers_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as missing:
        open_source(tmp_path / "none", ReadOptions())
    assert missing.value.code == "ST101"
    for reader in (None, "xenium"):
        with pytest.raises(IngestError, match="no reader") as error:
            open_source(tmp_path, ReadOptions(), reader=reader)
        assert error.value.code == "ST102"
        assert "spaceranger, slides" in str(error.value.cure)


class TakesAll:
    """A third-party reader that claims every path."""

    def recognises(self, path: Path) -> bool:
        return True

    def open(self, path: Path, options: ReadOptions) -> Source:
        raise IngestError("ST999", "opened by a third party")


@pytest.mark.parametrize("value", ["no_such_package.x:Reader", "json:dumps", "json:NoSuchName"])
def test_a_reader_that_does_not_load_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(readers, "entry_points", lambda group: [EntryPoint("broken", value, group), *INSTALLED])
    small.write_visium(tmp_path / "run")
    open_source(tmp_path / "run", ReadOptions()).close()
    with pytest.raises(IngestError) as unknown:
        open_source(tmp_path, ReadOptions())
    assert unknown.value.code == "ST102"
    assert f"the reader 'broken' ({value}) does not load" in unknown.value.what
    with pytest.raises(IngestError) as named:
        open_source(tmp_path / "run", ReadOptions(), reader="broken")
    assert named.value.code == "ST107"
    assert named.value.cure


def test_third_parties_come_last_and_take_no_name_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = [EntryPoint(name, f"{__name__}:TakesAll", "stzarr.readers") for name in ("all", "spaceranger")]
    monkeypatch.setattr(readers, "entry_points", lambda group: [*foreign, *INSTALLED])
    small.write_visium(tmp_path / "run")
    for reader in (None, "spaceranger"):
        source = open_source(tmp_path / "run", ReadOptions(), reader=reader)
        assert source.assay == "Visium"
        source.close()
    for reader in (None, "all"):
        with pytest.raises(IngestError, match="third party"):
            open_source(tmp_path, ReadOptions(), reader=reader)


@given(name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20))
def test_any_name_becomes_an_id(name: str) -> None:
    assert check_id(slide_id(Path("/runs") / name))


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/data/S1/outs", "S1"),
        ("/data/S1/outs/binned_outputs/square_008um", "S1"),
        ("/data/P 07 (left).ome.tif", "P_07__left_"),
        ("/data/slide.svs", "slide"),
        ("/data/_x..y", "x"),
        ("/data/um.tif", "um_slide"),
        ("/data/square_008um.tif", "square_008um_slide"),
        ("/data/Table.svs", "Table_slide"),
    ],
)
def test_ids_from_paths(path: str, wanted: str) -> None:
    assert slide_id(Path(path)) == wanted
