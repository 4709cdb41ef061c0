"""A run is complete and marked, or not there at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated_run import Run

from stzarr.errors import IngestError
from stzarr.simulate import SIMULATED, simulate


def test_run_has_the_files_of_a_real_one_and_is_marked(run: Run) -> None:
    expected = {"tissue_image.btf", SIMULATED}
    for bin_um in (2, 8, 16):
        folder = f"binned_outputs/square_{bin_um:03d}um"
        expected |= {f"{folder}/filtered_feature_bc_matrix.h5"}
        expected |= {
            f"{folder}/spatial/{name}"
            for name in (
                "scalefactors_json.json",
                "tissue_hires_image.png",
                "tissue_lowres_image.png",
                "tissue_positions.parquet",
            )
        }
    assert {path.relative_to(run.outs).as_posix() for path in run.outs.rglob("*") if path.is_file()} == expected
    about = run.about
    assert about["simulated"] is True
    assert about["parameters"]["seed"] == 6
    assert about["parameters"]["size_um"] == [300, 212]
    assert about["landmarks"] == []


def test_progress_counts_up_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    simulate(tmp_path / "o", size_um=(64, 32), num_genes=1, mpp=1.0, progress=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["counts", "image"]
    for stage in stages:
        done = [(count, total) for name, count, total in calls if name == stage]
        step = done[0][0]
        assert step > 0
        assert done == [(index * step, len(done) * step) for index in range(1, len(done) + 1)]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"size_um": (0, 100)}, "ST150"),
        ({"bins_um": (2.0, 3.0)}, "ST151"),
        ({"num_genes": 0}, "ST152"),
        ({"seed": -1}, "ST152"),
        ({"umi_per_um2": 0.0}, "ST152"),
        ({"mpp": 0.0}, "ST152"),
        ({"mpp": float("nan")}, "ST152"),
        ({"image_format": "png"}, "ST152"),
        ({"turn": 45}, "ST152"),
        ({"threads": 0}, "ST152"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(IngestError) as caught:
        simulate(tmp_path / "o", **({"size_um": (100, 100)} | options))
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("o", "file"):
        with pytest.raises(IngestError, match="ST153"):
            simulate(tmp_path / name, size_um=(64, 64))
    assert (tmp_path / "o" / "mine.txt").read_text() == "keep"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    image = simulate(tmp_path / "o", size_um=(64, 48), num_genes=5)
    assert image.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "image":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "o", size_um=(64, 64), num_genes=5, progress=stop)
    assert list(tmp_path.iterdir()) == []
