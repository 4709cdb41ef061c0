"""Errors carry code, file and cure, survive process boundaries, and every code keeps one home."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from stzarr import errors

SOURCE = Path(errors.__file__).parent
CODES = {
    "ST1": "ingest|store|simulate|space",
    "ST2": "store|demo|ingest",
    "ST3": "slide|store|xarray_engine|labelled|lazy|stream",
    "ST4": "stream|bench",
}


def test_message_says_what_which_file_and_what_to_do() -> None:
    error = errors.IngestError(
        "ST104",
        "bin size 4 µm is not in this run.",
        file="outs/binned_outputs (found: 2, 8, 16)",
        cure="stzarr ingest outs store.zarr --bin-um 8",
    )
    assert str(error).splitlines() == [
        "IngestError [ST104]: bin size 4 µm is not in this run.",
        "  file: outs/binned_outputs (found: 2, 8, 16)",
        "  try:  stzarr ingest outs store.zarr --bin-um 8",
    ]


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.MissingInputError, FileNotFoundError),
        (errors.IngestError, ValueError),
        (errors.GeneError, KeyError),
        (errors.BoundsError, IndexError),
    ],
)
def test_errors_are_builtins_too_and_keep_their_text(kind: type[errors.StzarrError], builtin: type[Exception]) -> None:
    error = kind("ST999", "what", file="f", cure="c")
    assert isinstance(error, builtin)
    assert str(error) == f"{kind.__name__} [ST999]: what\n  file: f\n  try:  c"


def test_errors_cross_process_boundaries() -> None:
    error = errors.StreamError("ST401", "what", file="f", cure="c")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.StreamError
    assert str(again) == str(error)
    assert again.code == "ST401"


def test_listing_is_cut() -> None:
    assert errors.listing([1, 2, 3]) == "1, 2, 3"
    assert errors.listing(range(10), limit=2) == "0, 1, ... (8 more)"


def test_codes_stay_in_the_part_they_belong_to() -> None:
    raised = {
        (match, path.relative_to(SOURCE).as_posix())
        for path in SOURCE.rglob("*.py")
        if path.name != "errors.py"
        for match in re.findall(r'"(ST\d{3})"', path.read_text())
    }
    assert raised
    strays = [(code, path) for code, path in raised if code[:3] in CODES and not re.match(CODES[code[:3]], path)]
    assert strays == []
