"""A trained run, opened for use: its task, and the network with its averaged weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stzarr.errors import TrainingError
from stzarr.stream.split import SplitName
from training import checkpoints
from training.batch import Batch, select, to_device
from training.config import Config
from training.distributed import World
from training.loop import autocast, averaged
from training.run import Run, store_digest
from training.tasks import Task, task_class


@dataclass(frozen=True)
class Trained:
    """What sample.py and evaluate.py start from."""

    run: Run
    config: Config
    task: Task
    model: nn.Module
    checkpoint: Path
    world: World

    @classmethod
    def open(cls, folder: Path, changes: dict[str, Any], world: World) -> Trained:
        """Load the newest checkpoint of a run, averaged weights only.

        Parameters
        ----------
        folder : Path
            The run.
        changes : dict
            Settings by name to use instead of the run's (stores, sampler, ...).

        Raises
        ------
        TrainingError
            ST504: the run has no checkpoint. ST505: it is no run. ST511: the checkpoint is damaged.
        """
        run = Run.open(folder)
        config = Config.from_flat(run.config().flat() | changes)
        path = checkpoints.latest(run.checkpoints)
        if path is None:
            cure = "train it up to --checkpoint-every steps"
            raise TrainingError("ST504", "the run has no complete checkpoint.", file=run.checkpoints, cure=cure)
        task = task_class(config.task).load(config, folder)
        ema = averaged(task.model(), config.optim.ema_decay)
        tensors = {"ema": ema.state_dict()}
        checkpoints.load(path, tensors)
        ema.load_state_dict(tensors["ema"])
        return cls(run, config, task, ema.module.eval().to(world.device), path, world)

    def batches(self, split: SplitName, max_patches: int | None) -> Iterator[Batch]:
        """Yield the patches of a split, padding left out, until `max_patches` have come.

        Raises
        ------
        TrainingError
            ST506: on the run's own stores, the blocks that are held out are others than in training.
        """
        stream = self.task.stream(split, train=False)
        own = self.config.data.store == self.run.config().data.store
        if own and stream.plan.split_digest != self.run.inputs()["split"]:
            raise TrainingError(
                "ST506",
                "other blocks are held out now than when the run was trained: its training patches may be among them.",
                file=self.run.folder,
                cure="the stores as they were then, or other slides with --store",
            )
        left = max_patches
        for batch in stream:
            valid = batch["valid"]
            if left is not None:
                valid = valid & (valid.cumsum(0) <= left)
                left -= int(valid.sum())
            if not valid.any():
                return
            yield select(batch, valid)

    @torch.no_grad()
    def sample(self, batch: Batch, members: int) -> Tensor:
        """Return `members` samples of each patch of a batch, [members, b, ...], on the CPU."""
        with autocast(self.config, self.world):
            return self.task.sample(self.model, to_device(batch, self.world.device), members)

    def provenance(self, split: str, members: int) -> dict[str, Any]:
        """Return what a result was made from."""
        return {
            "run": self.run.folder.name,
            "checkpoint_step": checkpoints.step_of(self.checkpoint),
            "weights": f"exponential moving average, decay {self.config.optim.ema_decay:g} with warm-up",
            "stores": {Path(store).name: store_digest(store) for store in self.config.data.store},
            "split": split,
            "members": members,
            "diffusion": dataclasses.asdict(self.config.diffusion),
            "seed": self.config.run.seed,
        }


def changes_from(args: Any) -> dict[str, Any]:
    """Collect the settings that a command line changes for using a run."""
    names = ("store", "sampler", "sample_steps", "conserve", "batch_size", "device", "threads", "members", "precision")
    given = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in given.items() if value is not None}
