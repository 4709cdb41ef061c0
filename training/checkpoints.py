"""Checkpoints: torch's distributed format, complete or invisible, read without executing what is in them."""

from __future__ import annotations

import io
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from stzarr.errors import TrainingError
from training.distributed import World
from training.run import read_json, write_json

STATE = "state.json"
NAME = re.compile(r"step_(\d{8,})")
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
READ_ERRORS = (
    OSError, EOFError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError, CheckpointException
)  # fmt: skip


def save(folder: Path, step: int, tensors: dict[str, Any], state: dict[str, Any], *, world: World, keep: int) -> Path:
    """Write ``step_<step>``: all ranks into a partial folder, which gets its name when everything is in it.

    Parameters
    ----------
    folder : Path
        The run's checkpoints.
    tensors : dict
        Nested dicts of tensors, as `training_tensors` gives them; nothing else, since other values would be pickled.
    state : dict
        Plain values (step, state of the stream), written as JSON; its file is the mark of a complete checkpoint.
    keep : int
        Complete checkpoints that stay; older ones are deleted.
    """
    final = folder / f"step_{step:08d}"
    partial = folder / f".partial_step_{step:08d}"
    if world.leads:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    with _single_process_is_meant():
        save_tensors(tensors, storage_writer=FileSystemWriter(partial), no_dist=world.size == 1)
    if world.leads:
        write_json(partial / STATE, state)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        for old in list(complete(folder))[:-keep]:
            shutil.rmtree(old)
    world.barrier()
    return final


@contextmanager
def _single_process_is_meant() -> Iterator[None]:
    """Silence torch's remark that there is no process group, which it makes although `no_dist` says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def complete(folder: Path) -> Iterator[Path]:
    """Yield complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name) and (path / STATE).is_file()]
    yield from sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint."""
    return max(complete(folder), key=step_of, default=None)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def load(path: Path, tensors: dict[str, Any], *, world: World | None = None) -> dict[str, Any]:
    """Fill tensors in place from a checkpoint and return its plain state.

    Parameters
    ----------
    tensors : dict
        Nested dicts of tensors of the right shapes; a part of what was saved is enough.

    Raises
    ------
    TrainingError
        ST511: the checkpoint is damaged, or belongs to another network.
    """
    try:
        with _single_process_is_meant():
            load_tensors(tensors, storage_reader=TensorReader(path), no_dist=world is None or world.size == 1)
    except READ_ERRORS as error:
        cure = f"delete {path.name} to continue from the one before"
        raise TrainingError("ST511", f"the checkpoint cannot be read: {error}", file=path, cure=cure) from error
    return read_json(path / STATE)


def training_tensors(model: torch.nn.Module, ema: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return all tensors of a training state: weights, averaged weights, moments of the optimiser."""
    moments = get_optimizer_state_dict(model, optimizer, options=FLAT)
    tensors = {name: value for name, value in moments.items() if isinstance(value, Tensor)}
    return {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": tensors}


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put moments that were loaded into the optimiser; its settings stay those of the configuration."""
    moments: Any = get_optimizer_state_dict(model, optimizer, options=FLAT)
    set_optimizer_state_dict(model, optimizer, moments | tensors, options=FLAT)


class TensorReader(FileSystemReader):
    """The file reader of torch's checkpoints, without its unpickling of anything.

    torch keeps the index of a checkpoint as a pickle, which could run code; here only the classes that describe
    tensors are let in, and values other than tensors, which torch would unpickle on loading, are refused.
    """

    ALLOWED = frozenset(
        {("torch.distributed.checkpoint.metadata", name) for name in (
            "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
            "StorageMeta", "_MEM_FORMAT_ENCODING")}
        | {("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout"),
           ("torch", "Size"), ("collections", "OrderedDict")}
        | {("pathlib", kind) for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")}
        | {("pathlib._local", kind) for kind in ("PosixPath", "WindowsPath")}
        | {("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    )  # fmt: skip

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index of tensors."""
        content = (Path(self.path) / ".metadata").read_bytes()
        metadata = _DescriptionUnpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("the index does not describe tensors")
        if other := [n for n, v in metadata.state_dict_metadata.items() if not isinstance(v, TensorStorageMetadata)]:
            raise pickle.UnpicklingError(f"{other[0]} is not a tensor")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _DescriptionUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in TensorReader.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in the index of a checkpoint")
        return super().find_class(module, name)
