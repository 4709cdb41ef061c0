"""The command line as a user meets it: exit status, stdout for data, stderr for talk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["ingest", "a", "b", "--bin-um", "-3"])
    assert "positive" in capsys.readouterr().err


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
