"""The loop on a real store: killed and continued, on two processes, sampled and judged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stzarr.errors import TrainingError
from tests.training.conftest import TINY
from training import evaluate, sample, train
from training.config import Config
from training.distributed import World
from training.loop import averaged, ema_decay
from training.metrics import METRICS
from training.run import Run
from training.tasks.sr import SuperResolution

ROOT = Path(__file__).parents[2]
STEPS = 40


def flags(store: Path, run: Path, *more: str) -> list[str]:
    return ["--store", str(store), "--task", "sr", *TINY, "--run-dir", str(run), "--steps", str(STEPS),
            "--checkpoint-every", "15", *more]  # fmt: skip


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in Run(run).stats()]


def environ() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, on one process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train.main(flags(tiny_store, run))
    return run


def test_a_run_leaves_what_it_was_made_from(whole: Path, tiny_store: Path) -> None:
    run = Run.open(whole)
    lines = list(run.stats())
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0].keys() == {
        "step", "epoch", "loss", "lr", "grad_norm", "patches_per_s", "data_wait_share", "time",
    }  # fmt: skip
    assert lines[-1]["epoch"] > 0, "several epochs"
    assert np.mean([line["loss"] for line in lines[-8:]]) < np.mean([line["loss"] for line in lines[:4]])
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "step_00000015", "step_00000030", "step_00000040",
    ]  # fmt: skip
    inputs = json.loads((whole / "inputs.json").read_text())
    assert inputs["genes"] == 6
    assert len(inputs["stores"]["0"]) == len(inputs["plan"]) == len(inputs["panel"]) == 64
    assert len(np.load(whole / "gene_order.npy")) == len((whole / "gene_names.txt").read_text().split()) == 6
    assert json.loads((whole / "environment.json").read_text())["processes"] == 1
    assert run.config().data.store == (str(tiny_store),)


def test_a_killed_run_continues_bit_by_bit(whole: Path, tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "training/train.py", *flags(tiny_store, run)]
    process = subprocess.Popen(command, cwd=ROOT, env=environ(), stderr=subprocess.PIPE)
    try:
        while len(losses(run)) < 18 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        _, told = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, told.decode()
    assert 18 <= len(losses(run)) < STEPS
    assert losses(run) == losses(whole)[: len(losses(run))]
    train.main(flags(tiny_store, run))
    assert losses(run) == losses(whole)
    for first, second in zip(final_tensors(run), final_tensors(whole), strict=True):
        assert torch.equal(first, second)


def final_tensors(run: Path) -> list[torch.Tensor]:
    """Return the averaged weights at the end of a run."""
    from training.trained import Trained

    trained = Trained.open(run, {}, World(0, 1, torch.device("cpu")))
    return list(trained.model.state_dict().values())


def test_two_processes_train_as_one(whole: Path, tiny_store: Path, tmp_path: Path) -> None:
    """Equal up to the order of float sums, which Adam lets grow from step to step."""
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "training/train.py", *flags(tiny_store, run)]
    done = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    one, two = np.array(losses(whole)), np.array(losses(run))
    assert np.array_equal(one[:, 0], two[:, 0])
    assert two[:5] == pytest.approx(one[:5], rel=1e-5)
    assert two == pytest.approx(one, rel=2e-2)
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    train.main(flags(tiny_store, run, "--steps", str(STEPS + 2)))
    assert len(losses(run)) == STEPS + 2, "a checkpoint of two processes continues on one"


def test_other_settings_do_not_continue_a_run(whole: Path, tiny_store: Path) -> None:
    with pytest.raises(TrainingError, match="ST502"):
        train.main(flags(tiny_store, whole, "--lr", "0.1"))


def test_a_dry_run_writes_nothing(tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(flags(tiny_store, tmp_path / "run", "--dry-run"))
    told = capsys.readouterr().out
    assert "bin_um: 8.0" in told
    assert "parameters" in told
    assert "patches in" in told
    assert not (tmp_path / "run").exists()


def test_evaluation_reports_model_and_baselines(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(["--run-dir", str(whole), "--split", "val", "--out", str(tmp_path), "--threads", "1"])
    report = json.loads((tmp_path / "evaluation.json").read_text())
    methods = report["methods"]
    assert methods.keys() == {"model, one sample", "model, mean of 2", "nearest", "bicubic"}
    assert all(methods[method][metric] is not None for method in methods for metric in METRICS)
    for method in methods.keys() - {"bicubic"}:
        assert methods[method]["total_error"] == pytest.approx(0, abs=1e-6), "sums over LR pixels are kept"
    assert report["provenance"]["checkpoint_step"] == STEPS
    assert "moving average" in report["provenance"]["weights"]
    assert report["ssim_window_px"] == 7
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "| bicubic |" in capsys.readouterr().out


def test_evaluation_refuses_other_held_out_blocks(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    inputs = json.loads((run / "inputs.json").read_text())
    (run / "inputs.json").write_text(json.dumps(inputs | {"split": "0" * 64}))
    with pytest.raises(TrainingError, match="ST506"):
        evaluate.main(["--run-dir", str(run), "--split", "test", "--threads", "1"])
    assert not (run / "evaluation.json").exists()


def test_samples_are_written_with_their_origin(whole: Path, tmp_path: Path) -> None:
    first, second = (sampled(whole, tmp_path / f"{size}.npz", "--batch-size", size) for size in ("4", "2"))
    assert first["samples"].shape == (4, 2, 6, 8, 8)
    assert (first["samples"] >= 0).all()
    assert not np.array_equal(first["samples"][:, 0], first["samples"][:, 1])
    assert json.loads(str(first["provenance"]))["split"] == "val"
    assert np.array_equal(first["sample"], second["sample"])
    assert np.allclose(first["samples"], second["samples"], rtol=1e-3, atol=1e-3), "of any batch size"


def sampled(run: Path, out: Path, *more: str) -> dict[str, Any]:
    sample.main(["--run-dir", str(run), "--split", "val", "--out", str(out), "--max-patches", "4", *more])
    with np.load(out, allow_pickle=False) as stored:
        arrays: dict[str, Any] = dict(stored)
    order = arrays["sample"].argsort()
    return arrays | {name: arrays[name][order] for name in ("sample", "samples")}


def test_a_run_without_checkpoint_cannot_be_used(tiny_store: Path, tmp_path: Path) -> None:
    Run(tmp_path).write_config(Config.from_flat({"store": (str(tiny_store),)}), 1)
    Run(tmp_path).write_inputs({})
    with pytest.raises(TrainingError, match="ST504"):
        evaluate.main(["--run-dir", str(tmp_path)])


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SuperResolution.loss

    def spoilt(self: SuperResolution, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        found = plain(self, model, batch)
        return found * float("nan") if batch["step"] == 3 else found

    monkeypatch.setattr(SuperResolution, "loss", spoilt)
    with pytest.raises(TrainingError, match="ST510"):
        train.main(flags(tiny_store, tmp_path / "run"))
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["step"], failure["loss"], failure["epoch"]) == (3, "nan", 0)
    assert len(failure["sample"]) == len(failure["origin_um"]) == 4
    assert len(losses(tmp_path / "run")) == 2


def test_averaged_weights_follow_the_formula() -> None:
    assert [ema_decay(0.9, t) for t in (0, 8, 90, 1000)] == [0.1, 0.5, 0.9, 0.9]
    model = torch.nn.Linear(1, 1, bias=False)
    ema = averaged(model, 0.4)
    wanted = None
    for t in range(8):
        value = float(t * t)
        model.weight.data.fill_(value)
        ema.update_parameters(model)
        decay = min(0.4, (1 + t) / (10 + t))
        wanted = value if wanted is None else decay * wanted + (1 - decay) * value
        assert ema.module.weight.item() == pytest.approx(wanted), t
