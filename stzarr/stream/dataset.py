"""The stream as torch sees it: an `IterableDataset` of batches, and a loader that merges its workers' shares.

The only module of the package that imports torch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np

from stzarr.errors import MissingPackageError, StreamError
from stzarr.stream.ahead import ClientRunner, Runner, ThreadRunner
from stzarr.stream.batches import SHARED, Batch, BatchReader
from stzarr.stream.panel import GenePanel
from stzarr.stream.plan import Plan, PlanSpec, make_plan
from stzarr.stream.prepare import Request, prepare
from stzarr.stream.split import SplitName, SplitSpec
from stzarr.stream.stats import Meter, StreamStats
from stzarr.stream.world import World

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
except ModuleNotFoundError as missing:
    raise MissingPackageError(
        "ST413", f"the stream needs a package: {missing}", cure="pip install 'stzarr[torch]'"
    ) from missing

StorePath = str | Path


class _Position:
    """Where a stream is: the next batch to hand out, and what was handed out so far."""

    def __init__(self, plan: Plan, epoch: int = 0, step: int = 0) -> None:
        self._plan = plan
        self.epoch, self.step = epoch, step
        self.meter = Meter()

    def set_epoch(self, epoch: int, step: int | None = None) -> None:
        if step is None:
            step = self.step if epoch == self.epoch else 0
        self.epoch, self.step = epoch, step

    def track(self, batches: Generator[Batch]) -> Iterator[Batch]:
        """Pass batches on; each counts from the moment the consumer gets it."""
        self.meter.start()
        with closing(batches):
            while (batch := self._next(batches)) is not None:
                yield batch

    def _next(self, batches: Generator[Batch]) -> Batch | None:
        self.meter.ask()
        batch = next(batches, None)
        if batch is None:
            return None
        read_bytes = batch.pop("read_bytes")
        num_bytes = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
        last = batch["step"] == self._plan.steps_per_epoch
        self.epoch, self.step = (batch["epoch"] + 1, 0) if last else (batch["epoch"], batch["step"])
        self.meter.hand_over(int(batch["valid"].sum()), num_bytes, read_bytes)
        return batch

    def state_dict(self) -> dict[str, Any]:
        plan = self._plan
        facts = {"facts": dict(plan.facts), "seed": plan.spec.seed}
        return {"plan": plan.digest, "epoch": self.epoch, "step": self.step} | facts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["plan"] != self._plan.digest:
            ours, theirs = dict(self._plan.facts), state["facts"]
            names = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            told = "; ".join(f"{name}: {_short(theirs.get(name))} then, {_short(ours.get(name))} now" for name in names)
            raise StreamError(
                "ST406",
                f"the state belongs to another plan ({told})",
                cure="make the stream as it was when the state was saved, or start without the state",
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class PatchStream(IterableDataset):
    """Co-registered image patches and gene grids of one or more stores, in batches.

    Iterating gives one epoch, from the current step on, of this rank's share of each global batch. The global batches
    are a function of the plan, seed and epoch alone, the same for any number of ranks x workers that divides
    `batch_size`. Breaking off in mid-epoch and iterating again continues; `set_epoch` moves.

    Parameters
    ----------
    source : path or sequence of paths
        Stores.
    patch_um : float
        Side of a patch [µm]. On spots, ``patch_um / 100`` cells of the lattice in rows and columns.
    batch_size : int
        Patches of a *global* batch, over all ranks.
    image_mpp : float, optional
        Pixel size [µm]; `patch_um` is a multiple of it. None gives no image.
    bin_um : float, optional
        HR bin [µm], a stored size or a multiple of one. None is the finest; on spots the lattice, as 100 is.
    lr_bin_um : float, optional
        LR pixel [µm], a multiple of the HR bin; on spots a multiple of 100, in cells.
    genes : sequence of str, optional
        The panel, by id or symbol; ``()`` gives no counts. None is all genes, refused above 1000.
    split : {"train", "val", "test"}, optional
        Spatial split; None takes everything. See `stzarr.stream.split`.
    stride_um : float, optional
        Distance of candidate patches [µm], a multiple of the HR bin; by default the patch.
    min_tissue : float
        Least share of tissue of a patch.
    seed : int
        Of the order and of jitter.
    train : bool
        True: shuffled, the remainder left out. False: every patch once, in order, padded with ``valid=False``.
    jitter : bool
        Move patches in training by whole HR bins, at most half a stride, other moves each epoch.
    split_um, buffer_um, split_fractions, split_seed
        See `SplitSpec`.
    block_patches, lanes_per_slot : int, optional
        Strides on a side of a block, the unit of reading; lanes of a batch slot. By default what `buffer_mb` allows.
    buffer_mb : float
        Memory for patches that wait, over all ranks and workers [MB]; part of the plan, since it decides the order.
    lookahead : int
        Steps to read ahead.
    threads : int
        Threads that read, in each process.
    rank, world_size : int, optional
        By default from torch.distributed, else from RANK and WORLD_SIZE, else one rank.
    client : distributed.Client, optional
        Read on its workers instead of in threads.

    Raises
    ------
    StreamError
        ST400 to ST410: see `prepare`, `make_plan` and `World`.

    Notes
    -----
    A batch is a dict; b = ``batch_size / world_size``::

        hr_counts  int32 (b, gene, h, w)       lr_counts  int32 (b, gene, lh, lw), sums of hr_counts
        tissue     bool  (b, h, w)             lr_area    float32 (lh, lw), share of a full LR pixel
        gene_mask  bool  (b, gene)             image      uint8 or uint16 (b, c, P, P)
        slide      int64 (b,)                  origin_um  float64 (b, 2), upper left corner (x, y)
        sample     int64 (b,), in the plan     valid      bool (b,), False is padding: sample -1, arrays 0
        epoch, step  int, step counts from 1
    """

    def __init__(
        self,
        source: StorePath | Sequence[StorePath],
        *,
        patch_um: float,
        batch_size: int,
        image_mpp: float | None = None,
        bin_um: float | None = None,
        lr_bin_um: float | None = None,
        genes: Sequence[str] | None = None,
        split: SplitName | None = None,
        stride_um: float | None = None,
        min_tissue: float = 0.5,
        seed: int = 0,
        train: bool = True,
        jitter: bool = False,
        split_um: float | None = None,
        buffer_um: float | None = None,
        split_fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        block_patches: int | None = None,
        lanes_per_slot: int | None = None,
        buffer_mb: float = 1024.0,
        lookahead: int = 8,
        threads: int = 2,
        rank: int | None = None,
        world_size: int | None = None,
        client: Any = None,
    ) -> None:
        panel = None if genes is None else tuple(genes)
        request = Request(patch_um, image_mpp, bin_um, lr_bin_um, panel, stride_um, jitter)
        paths = [source] if isinstance(source, str | Path) else list(source)
        prepared = prepare([str(path) for path in paths], request)
        spec = PlanSpec(
            batch_size=batch_size,
            stride=prepared.stride,
            min_tissue=min_tissue,
            split=split,
            split_spec=SplitSpec(split_fractions, split_seed, split_um, buffer_um),
            lr_cells=prepared.lr_cells,
            seed=seed,
            train=train,
            jitter=jitter,
            block_patches=block_patches,
            lanes_per_slot=lanes_per_slot,
            patch_bytes=prepared.patch_bytes,
            buffer_bytes=int(buffer_mb * 1e6),
        )
        self.genes: GenePanel = prepared.panel
        self.tables = prepared.tables
        self.world = World.find(rank, world_size)
        self.world.slots(batch_size)
        facts = {"patch_um": patch_um, "image_mpp": image_mpp, "bin_um": bin_um, "lr_bin_um": lr_bin_um,
                 "genes": self.genes.digest}  # fmt: skip
        self.plan: Plan = make_plan(spec, prepared.slides, prepared.shares, facts)
        self._reader = BatchReader(self.plan, prepared.recipes, prepared.fields, lookahead, spec.buffer_bytes)
        self._threads = threads
        self._client = client
        self._position = _Position(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the rest of the epoch.

        In a worker of a torch DataLoader over the worker's share: each item is a part of a batch, and this process does
        not learn how far the workers came. `loader` merges the parts and keeps the position.
        """
        return self._position.track(self._rest())

    def _rest(self) -> Generator[Batch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        yield from self._share(worker, num_workers, self.epoch, self.step)

    def _share(self, worker: int, num_workers: int, epoch: int, step: int) -> Generator[Batch]:
        slots = self.world.slots(self.plan.spec.batch_size, worker, num_workers)
        runner: Runner = ThreadRunner(self._threads) if self._client is None else ClientRunner(self._client)
        with closing(self._reader.batches(slots, epoch, step, runner)) as batches:
            for batch in batches:
                yield {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in batch.items()}

    def __getstate__(self) -> dict[str, Any]:
        if self._client is not None:
            raise StreamError(
                "ST410",
                "a stream with a Dask client cannot go to another process",
                cure="loader(num_workers=0): the client's workers read already; or leave the client out",
            )
        return self.__dict__

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return self._position.epoch

    @property
    def step(self) -> int:
        """Steps of that epoch that were handed out."""
        return self._position.step

    @property
    def stats(self) -> StreamStats:
        """What was handed out so far."""
        return self._position.meter.stats

    def set_epoch(self, epoch: int, step: int | None = None) -> None:
        """Move to an epoch, to its start or to `step`; the current epoch goes on where it is unless `step` is given."""
        self._position.set_epoch(epoch, step)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is: what the caller has got, not what was read ahead. Plain values."""
        return self._position.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a state, on any number of ranks and workers.

        Raises
        ------
        StreamError
            ST406: the state belongs to another plan; the message says what differs.
        """
        self._position.load_state_dict(state)

    def loader(self, num_workers: int = 0) -> PatchLoader:
        """Return a loader that gives the same batches, read in `num_workers` processes (0: in this one)."""
        return PatchLoader(self, num_workers)

    def __repr__(self) -> str:
        return f"<PatchStream rank {self.world.rank} of {self.world.size}>\n{self.plan}"


class _WorkerStream(IterableDataset):
    """A worker's share of epoch after epoch: workers live on between epochs and read ahead across them."""

    def __init__(self, stream: PatchStream) -> None:
        self._stream, self._epoch, self._step = stream, stream.epoch, stream.step

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        assert info is not None, "iterated by DataLoader workers only"
        epoch, step = self._epoch, self._step
        while True:
            yield from self._stream._share(info.id, info.num_workers, epoch, step)
            epoch, step = epoch + 1, 0


class PatchLoader:
    """The batches of a `PatchStream`, read in worker processes and merged in slot order.

    It shares its position with the stream: a batch counts when it is handed out, whatever the workers have prefetched.
    Workers are spawned, never forked: a fork after threads were used hangs. So the calling script needs the usual
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    stream : PatchStream
    num_workers : int
        Divides this rank's share of the global batch.
    """

    def __init__(self, stream: PatchStream, num_workers: int = 0) -> None:
        self.stream, self.num_workers = stream, num_workers
        self._workers: Iterator[Batch] | None = None
        self._workers_at = (-1, -1)
        if num_workers:
            stream.world.slots(stream.plan.spec.batch_size, 0, num_workers)
            stream.__getstate__()

    def __len__(self) -> int:
        return self.stream.plan.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the rest of the epoch."""
        return iter(self.stream) if not self.num_workers else self.stream._position.track(self._merged())

    def _merged(self) -> Generator[Batch]:
        # The workers belong to one iterator at a time, which leaves them behind only in a known place: after an
        # error or an interrupt some have given their share of a batch and others not.
        workers, at = self._workers, self._workers_at
        self.close()
        if workers is None or at != (self.stream.epoch, self.stream.step):
            workers = self._spawned()
        for _ in range(self.stream.step, len(self)):
            batch = _merge([next(workers) for _ in range(self.num_workers)])
            last = batch["step"] == len(self)
            at = (batch["epoch"] + 1, 0) if last else (batch["epoch"], batch["step"])
            try:
                yield batch
            except GeneratorExit:
                self._workers, self._workers_at = workers, at
                raise
        self._workers, self._workers_at = workers, at

    def _spawned(self) -> Iterator[Batch]:
        return iter(
            DataLoader(
                _WorkerStream(self.stream),
                batch_size=None,
                num_workers=self.num_workers,
                multiprocessing_context="spawn",
                prefetch_factor=2,
            )
        )

    def close(self) -> None:
        """Stop the workers; iterating again starts new ones."""
        self._workers, self._workers_at = None, (-1, -1)

    @property
    def stats(self) -> StreamStats:
        """What was handed out so far."""
        return self.stream.stats

    def set_epoch(self, epoch: int, step: int | None = None) -> None:
        """Move to an epoch; see `PatchStream.set_epoch`."""
        self.stream.set_epoch(epoch, step)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is; see `PatchStream.state_dict`."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a state; see `PatchStream.load_state_dict`."""
        self.stream.load_state_dict(state)


def _merge(shares: Sequence[Batch]) -> Batch:
    """Join the workers' shares of one global batch, worker by worker, which is slot by slot."""
    first = shares[0]
    where = {(share["epoch"], share["step"]) for share in shares}
    assert len(where) == 1, f"workers are at different steps: {sorted(where)}"
    merged: Batch = {
        key: torch.cat([cast(torch.Tensor, share[key]) for share in shares])
        for key, value in first.items()
        if isinstance(value, torch.Tensor) and key not in SHARED
    }
    rest = {key: value for key, value in first.items() if key not in merged}
    return merged | rest | {"read_bytes": sum(share["read_bytes"] for share in shares)}
