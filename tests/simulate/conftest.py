"""One small run that the tests of the simulator share."""

from __future__ import annotations

import pytest
from simulated_run import Run

from stzarr.simulate import simulate


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose width and height differ and are whole numbers of neither 8 nor 16 µm."""
    outs = tmp_path_factory.mktemp("simulated") / "outs"
    return Run(outs, simulate(outs, size_um=(300, 212), seed=6, num_genes=60, mpp=0.5))
