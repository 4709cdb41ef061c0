from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stzarr.errors import TrainingError
from training.config import Config
from training.run import Run

INPUTS = {"stores": {"0": "abc"}, "plan": "p"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.write_config(Config.from_flat({"store": ("a",), "channels": (8, 16)}), 1)
    run.write_inputs(INPUTS)
    return run


def test_what_does_not_change_learning_may_change(run: Run) -> None:
    changed = run.config().flat() | {"steps": 5, "workers": 1, "store": ("moved/a",), "checkpoint_every": 7}
    run.check(Config.from_flat(changed), INPUTS)


def test_other_settings_and_other_data_are_refused(run: Run) -> None:
    config = run.config()
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5))
    with pytest.raises(TrainingError, match="ST502") as caught:
        run.check(other, INPUTS)
    assert "lr 0.0003 -> 0.5" in str(caught.value)
    with pytest.raises(TrainingError, match="ST503") as caught:
        run.check(config, INPUTS | {"plan": "q"})
    assert "plan" in str(caught.value)


def test_a_rewound_log_has_no_line_after_the_step_and_no_half_line(run: Run) -> None:
    for step in (1, 2, 3):
        run.append_stats({"step": step, "loss": 0.1 * step})
    with run.stats_file.open("a") as out:
        out.write('{"step": 4, "lo')
    run.rewind_stats(2)
    assert list(run.stats()) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="ST505"):
        Run.open(tmp_path)
