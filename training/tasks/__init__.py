"""Tasks by name. A task is one file that says what is learned from what; loop, model and diffusion know none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from stzarr.stream.dataset import PatchStream
from stzarr.stream.split import SplitName
from training.batch import Batch
from training.config import Config
from training.distributed import World
from training.preview import Example

TASKS = {"sr": "training.tasks.sr:SuperResolution"}
"""Name of a task -> module:class."""


class Scores(Protocol):
    """Metrics that grow batch by batch."""

    def update(self, predicted: Mapping[str, Tensor], batch: Batch, spread: Tensor) -> None:
        """Take predictions by method, and the truth from the batch."""

    def report(self) -> dict[str, Any]:
        """Return plain values by method and metric, with what was excluded."""

    def table(self) -> str:
        """Return the report as a text table."""


class Task(Protocol):
    """What is learned from what. It is made by `fit` for a new run and by `load` for one that exists."""

    config: Config

    @classmethod
    def outline(cls, config: Config) -> str:
        """Return the plan of the training stream and the size of the network, for a dry run."""

    @classmethod
    def fit(cls, config: Config, folder: Path) -> None:
        """Measure on training data what the task needs (gene panel, scales) and write it into the run's folder."""

    @classmethod
    def load(cls, config: Config, folder: Path) -> Task:
        """Build the task from the files that `fit` wrote."""

    def stream(self, split: SplitName, *, train: bool, world: World | None = None) -> PatchStream:
        """Return the stream that the task wants, over this process's share or (no world) the whole."""

    def model(self) -> nn.Module:
        """Return the network, with weights from the global random state."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample, [b]; random draws are keyed by seed, epoch and sample."""

    def sample(self, model: nn.Module, batch: Batch, members: int) -> Tensor:
        """Return `members` samples of each patch in the data's own units, [members, b, ...], on the CPU."""

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return predictions without learning by name, [b, ...]."""

    def scores(self) -> Scores:
        """Return empty metrics."""

    def examples(self, batch: Batch, samples: Tensor, index: int) -> Sequence[Example]:
        """Return the rows of a picture for one patch of a batch with its samples."""


def task_class(name: str) -> type[Task]:
    """Import the class of a task."""
    module, _, kind = TASKS[name].partition(":")
    return getattr(import_module(module), kind)
