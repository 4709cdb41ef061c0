from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from stzarr.errors import TrainingError
from training.config import Config, DataConfig, DiffusionConfig, ModelConfig, OptimConfig, RunConfig
from training.flags import add_settings, read_config


@pytest.mark.parametrize(
    ("kind", "values", "flag"),
    [
        (DataConfig, {"lr_bin_um": 15.0}, "--lr-bin-um 15 "),
        (DataConfig, {"lr_bin_um": 10.0}, "--lr-bin-um 10 "),
        (DataConfig, {"patch_um": 1285.0}, "--patch-um 1285 "),
        (DataConfig, {"image_mpp": 3.0}, "--image-mpp 3"),
        (DataConfig, {"bin_um": -1.0}, "--bin-um -1.0 "),
        (DataConfig, {"min_tissue": 1.5}, "--min-tissue 1.5 "),
        (DataConfig, {"num_genes": 0}, "--num-genes 0 "),
        (DataConfig, {"transform": "cube"}, "--transform cube "),
        (ModelConfig, {"channels": (32, 60)}, "--channels 32 60 "),
        (ModelConfig, {"image_channels": 4}, "--image-channels 4 "),
        (DiffusionConfig, {"sample_steps": 30}, "--sample-steps 30 "),
        (DiffusionConfig, {"prediction": "x"}, "--prediction x "),
        (OptimConfig, {"ema_decay": 1.0}, "--ema-decay 1.0 "),
        (OptimConfig, {"lr": float("nan")}, "--lr nan "),
        (RunConfig, {"log_every": 0}, "--log-every 0 "),
    ],
)
def test_a_bad_setting_is_refused_and_its_flag_named(kind: type, values: dict, flag: str) -> None:
    with pytest.raises(TrainingError, match="ST500") as caught:
        kind(**values)
    assert flag in str(caught.value)


def test_settings_survive_config_json() -> None:
    config = Config.from_flat({"store": ("a.zarr",), "channels": (8, 16), "stride_um": 320.0, "jitter": True})
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=4, steps=104)
    assert [optim.lr_at(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert optim.lr_at(54) == pytest.approx(0.5)
    assert optim.lr_at(103) < 1e-3
    assert OptimConfig(lr=1.0, warmup_steps=0, decay="none").lr_at(10_000) == 1.0


def _parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return parser.parse_args(list(flags))


def test_flags_win_over_the_file_and_the_file_over_the_preset(tiny_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("optim: {steps: 7, batch_size: 3}\nchannels: [8, 24]\n")
    config = read_config(
        _parse(
            "--store", str(tiny_store), "--preset", "demo", "--config", str(file), "--batch-size", "5", "--no-jitter"
        )
    )
    assert (config.optim.steps, config.optim.batch_size, config.model.channels) == (7, 5, (8, 24))
    assert config.data.num_genes == 16, "from the preset"
    assert config.data.patch_um == 320.0, "a preset has the geometry of bins for a store of bins"
    assert config.data.jitter is False
    assert config.run.run_dir == str(Path("runs") / "sr-slide")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stpes: 3", "stpes -> steps"),
        ("steps: many", "steps: 'many'"),
        ("steps: 2.5", "whole number"),
        ("jitter: 1", "true or false"),
        ("- steps", "not a table"),
        ("steps: [", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_and_its_setting_named(tiny_store: Path, tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(TrainingError, match="ST501") as caught:
        read_config(_parse("--store", str(tiny_store), "--config", str(file)))
    assert told in str(caught.value)
    assert str(file) in str(caught.value)


def test_no_store_is_an_error_with_a_cure() -> None:
    with pytest.raises(TrainingError, match="ST501") as caught:
        read_config(_parse())
    assert "--store" in str(caught.value)
