"""The command line as a user meets it: exit status, stdout for data, stderr for talk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stzarr import cli


def test_import_is_light_and_without_torch() -> None:
    code = "import sys; before = set(sys.modules); import stzarr; print(sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in out for name in ("torch", "zarr", "xarray", "dask", "anndata", "numpy"))


def test_env_reports_versions_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    assert "zarr" in capsys.readouterr().out
    assert cli.main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["zarr"]
    assert report["cores"] >= 1


def test_missing_input_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ingest", str(tmp_path / "none"), str(tmp_path / "s.zarr")]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "[ST101]" in streams.err
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["ingest", "a", "b", "--bin-um", "-3"], "--bin-um: '-3' is not a positive number"),
        (["ingest", "a", "b", "--mpp", "half"], "--mpp: 'half' is not a positive number"),
        (["ingest", "a", "b", "--mpp", "nan"], "--mpp: 'nan' is not a positive number"),
        (["ingest", "a", "b", "--threads", "0"], "--threads: '0' is not a positive whole number"),
        (["ingest", "a", "b", "--threads", "1.5"], "--threads: '1.5' is not a positive whole number"),
        (["simulate", "a", "--size-um", "1", "2", "3"], "--size-um: takes one or two values, not 3"),
    ],
)
def test_values_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str], command: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("sizes", "wanted"), [(["300"], (300.0, 300.0)), (["300", "200"], (300.0, 200.0))])
def test_the_size_of_a_simulation(monkeypatch: pytest.MonkeyPatch, sizes: list[str], wanted: tuple) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("stzarr.simulate.simulate", lambda out, **options: asked.update(options))
    assert cli.main(["simulate", "outs", "--size-um", *sizes]) == 0
    assert asked["size_um"] == wanted


def _raises(error: BaseException) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_an_interruption_says_whether_the_command_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stzarr.ingest.ingest", _raises(KeyboardInterrupt()))
    monkeypatch.setattr("stzarr.store.validate.validate", _raises(KeyboardInterrupt()))
    assert cli.main(["ingest", "a", "b"]) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert cli.main(["validate", "b"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_fault_of_ours_is_a_traceback_and_no_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stzarr.store.validate.validate", _raises(RuntimeError("unforeseen")))
    assert cli.main(["validate", "b"]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "Traceback" in streams.err
    assert "RuntimeError: unforeseen" in streams.err


def test_warnings_of_an_ingest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs = tmp_path / "outs"
    assert cli.main(["simulate", str(outs), "--size-um", "240", "--genes", "30", "-q"]) == 0
    capsys.readouterr()
    command = ["ingest", str(outs), str(tmp_path / "s.zarr"), "--threads", "1"]
    assert cli.main([*command, "--dry-run"]) == 0
    streams = capsys.readouterr()
    assert "warning  no --image: the best picture is tissue_hires_image.png" in streams.out
    assert cli.main([*command, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["warnings"]

    assert cli.main(command) == 0
    streams = capsys.readouterr()
    assert [line for line in streams.err.splitlines() if line.startswith("warning: ")] == [
        f"warning: {text}" for text in planned
    ]
    assert "no --image" in streams.out
    assert cli.main([*command, "--overwrite", "-q", "--json"]) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    assert json.loads(streams.out)["warnings"] == planned


def test_whole_way_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs, store = tmp_path / "outs", tmp_path / "s.zarr"
    assert cli.main(["simulate", str(outs), "--size-um", "240", "--genes", "30", "--json", "-q"]) == 0
    image = json.loads(capsys.readouterr().out)["image"]

    command = ["ingest", str(outs), str(store), "--image", image, "--meta", "donor=D1", "-q", "--json"]
    assert cli.main([*command, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["frame"]["residual_px"] < 1e-6
    assert not store.exists()

    assert cli.main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["meta"] == {"donor": "D1"}
    assert cli.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0
    capsys.readouterr()

    assert cli.main(["info", str(store)]) == 0
    assert "square_002um" in capsys.readouterr().out
    assert cli.main(["validate", "--deep", str(store), "-q"]) == 0
    assert capsys.readouterr().out == ""

    shard = max((p for p in store.rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert cli.main(["validate", "--deep", str(store), "--json", "-q"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert any(finding["file"].endswith(shard.relative_to(store).as_posix()) for finding in findings)


@pytest.mark.real
def test_dry_run_prints_the_geometry_of_a_run_that_ingest_refuses(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A genuine Visium HD layout with an empty matrix: a mirrored homography, and what an affine would miss."""
    command = ["ingest", str(real_data / "visium_hd_empty" / "outs"), str(tmp_path / "s.zarr"), "-q"]
    assert cli.main([*command, "--dry-run", "--json"]) == 0
    frame = json.loads(capsys.readouterr().out)["frame"]
    assert frame["lattice"]["mirrored"] is True
    assert frame["residual_px"] < 1e-6
    assert 0.5 < frame["affine_residual_px"] < 2
    assert cli.main(command) == 2
    assert "ST136" in capsys.readouterr().err
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.real
def test_the_main_real_run_arrives_whole(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outs = real_data / "visium_v2_mouse" / "outs"
    image = outs / "spatial" / "aligned_fiducials.jpg"
    assert cli.main(["ingest", str(outs), str(tmp_path / "s.zarr"), "--image", str(image), "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frame"]["mpp"] == pytest.approx(4.67762, abs=5e-6)
    assert told["frame"]["residual_px"] < 1e-6
    assert told["frame"]["lattice"]["row_pitch_um"] == pytest.approx(87.0, abs=1e-4)
    assert told["details"]["fit"]["fiducial_um"] == pytest.approx(105.0, abs=0.01)
    table = told["tables"]["table"]
    assert (table["n_obs"], table["n_vars"], table["nnz"], table["total"]) == (2898, 19465, 1069459, 3085005)
    assert len(table["repeated_symbols"]) == 11
    assert sum(path.is_file() for path in (tmp_path / "s.zarr").rglob("*")) < 300
