from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save as save_anything

from stzarr.errors import TrainingError
from training import checkpoints
from training.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


def trained(seed: int) -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model, ema = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, ema, optimizer


def write(folder: Path, step: int, keep: int = 3, seed: int = 0) -> dict[str, Any]:
    tensors = checkpoints.training_tensors(*trained(seed))
    checkpoints.save(folder, step, tensors, {"step": step}, world=ALONE, keep=keep)
    return tensors


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = write(tmp_path, 7)
    model, ema, optimizer = trained(1)
    tensors = checkpoints.training_tensors(model, ema, optimizer)
    path = checkpoints.latest(tmp_path)
    assert path is not None
    assert checkpoints.load(path, tensors) == {"step": 7}
    checkpoints.restore_optimizer(model, optimizer, tensors["optimizer"])
    again = checkpoints.training_tensors(model, ema, optimizer)
    for group in ("model", "ema", "optimizer"):
        assert saved[group].keys() == again[group].keys()
        for name, value in saved[group].items():
            assert torch.equal(value, tensors[group][name]), name
    assert all(torch.equal(saved["optimizer"][name], again["optimizer"][name]) for name in saved["optimizer"])


def test_the_last_ones_are_kept_and_a_partial_one_is_no_checkpoint(tmp_path: Path) -> None:
    for step in (5, 10, 15, 99_999_999, 100_000_005):
        write(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step_99999999", "step_100000005"]
    (tmp_path / "step_100000005" / checkpoints.STATE).unlink()
    latest = checkpoints.latest(tmp_path)
    assert latest is not None
    assert latest.name == "step_99999999"


def test_what_a_killed_save_left_behind_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / ".partial_step_00000005"
    left.mkdir(parents=True)
    (left / "__0_0.distcp").write_bytes(b"half")
    assert checkpoints.latest(tmp_path) is None
    write(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 5)
    (tmp_path / "step_00000005" / ".metadata").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(TrainingError, match="ST511"):
        checkpoints.load(tmp_path / "step_00000005", checkpoints.training_tensors(*trained(0)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_values_that_torch_would_unpickle_are_refused(tmp_path: Path) -> None:
    save_anything({"model": {"weight": {1, 2}}}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(TrainingError, match="ST511"):
        checkpoints.load(tmp_path, {"model": {"weight": torch.zeros(2)}})


def test_a_damaged_checkpoint_and_one_of_another_network_are_errors(tmp_path: Path) -> None:
    write(tmp_path, 5)
    path = tmp_path / "step_00000005"
    with pytest.raises(TrainingError, match="ST511"):
        checkpoints.load(path, {"model": {"weight": torch.zeros(4, 4)}})
    with pytest.raises(TrainingError, match="ST511"):
        checkpoints.load(path, {"model": {"other": torch.zeros(2)}})
    data = next(path.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(TrainingError, match="ST511"):
        checkpoints.load(path, checkpoints.training_tensors(*trained(0)))
