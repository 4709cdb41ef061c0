"""Names of elements."""

from __future__ import annotations

import pytest

from stzarr.errors import IngestError
from stzarr.store.layout import check_id, table_name


@pytest.mark.parametrize(
    "name",
    ["um", "global", "table", "Table", table_name(8.0), table_name(0.5), "SQUARE_016um", "", "a b", "a..b", "-a"],
)
def test_ids_that_cannot_be_names(name):
    with pytest.raises(IngestError) as caught:
        check_id(name)
    assert caught.value.code == "ST110"


@pytest.mark.parametrize("name", ["um1", "table_2", "square_008um_left", "global.1", "S1-a"])
def test_ids_that_can(name):
    assert check_id(name) == name
