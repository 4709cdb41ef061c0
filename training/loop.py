"""The training loop, in one fixed order: picture, checkpoint, done?, batch, loss, step, average, log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from stzarr.errors import TrainingError
from stzarr.stream.dataset import PatchStream
from training import checkpoints
from training.batch import Batch, select, to_device
from training.config import Config
from training.distributed import World
from training.preview import draw
from training.run import Run, write_json
from training.tasks import Task

PREVIEW_MEMBERS = 4
PREVIEW_PATCHES = 2


def train(config: Config, run: Run, task: Task, world: World) -> None:
    """Train until ``config.optim.steps``, from the newest checkpoint of the run if there is one.

    Raises
    ------
    TrainingError
        ST510: the loss or the gradient is not finite; ``failure.json`` says on which patches.
    """
    torch.manual_seed(config.run.seed)
    model = task.model().to(world.device)
    ema = averaged(model, config.optim.ema_decay)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    loader = task.stream("train", train=True, world=world).loader(num_workers=config.data.workers)
    step = _resume(run, model, ema, optimizer, loader, world)
    shared = world.share(model)
    preview = _previewer(config, run, task, ema, world)
    batches = endless(loader)
    log = Log(run, config, world)
    first = step
    while True:
        # 1. Show what it can do.
        if config.run.preview_every and step % config.run.preview_every == 0 and step > first:
            preview(step)
        # 2. Save.
        last = step >= config.optim.steps
        if step > first and (last or step % config.run.checkpoint_every == 0):
            tensors = checkpoints.training_tensors(model, ema, optimizer)
            state = {"step": step, "stream": loader.state_dict()}
            checkpoints.save(run.checkpoints, step, tensors, state, world=world, keep=config.run.keep_checkpoints)
        # 3. Done?
        if last:
            return
        # 4. Wait for data.
        with log.waiting():
            batch = to_device(next(batches), world.device)
        # 5. Loss, averaged over the global batch.
        rate = config.optim.lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        valid = batch["valid"].float()
        number = world.total(valid.sum())
        with autocast(config, world):
            local = (task.loss(shared, batch) * valid).sum() / number
        loss = float(world.total(local))
        optimizer.zero_grad(set_to_none=True)
        (local * world.size).backward()
        # 6. Step, unless something is not a number.
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(run, step + 1, loss, norm, batch, world)
        optimizer.step()
        # 7. Average the weights.
        ema.update_parameters(model)
        step += 1
        # 8. Log.
        log.write(step, batch, loss=loss, rate=rate, norm=norm, num_patches=int(number))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a model whose weights follow it with decay min(decay, (1 + t) / (10 + t)), t updates so far."""

    @torch.no_grad()
    def update(average: Any, current: Any, num_averaged: Any) -> None:
        torch._foreach_lerp_(list(average), list(current), 1 - ema_decay(decay, int(num_averaged)))

    return AveragedModel(model, multi_avg_fn=update)


def ema_decay(decay: float, num_averaged: int) -> float:
    """Return the decay of update t: a warm-up, so that early averages forget the random weights."""
    return min(decay, (1 + num_averaged) / (10 + num_averaged))


def endless(loader: Any) -> Iterator[Batch]:
    """Yield batches epoch after epoch, from where the loader stands."""
    while True:
        yield from loader


def autocast(config: Config, world: World) -> AbstractContextManager[Any]:
    """Return the precision of forward passes: bf16 where asked for, or where the GPU has it."""
    wanted = config.optim.precision
    cuda = world.device.type == "cuda"
    if wanted == "bf16" or (wanted == "auto" and cuda and torch.cuda.is_bf16_supported()):
        return torch.autocast(world.device.type, torch.bfloat16)
    return nullcontext()


def _resume(
    run: Run, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, world: World
) -> int:
    """Load the newest checkpoint into everything and return its step, 0 without one."""
    path = checkpoints.latest(run.checkpoints)
    step = 0
    if path is not None:
        tensors = checkpoints.training_tensors(model, ema, optimizer)
        state = checkpoints.load(path, tensors, world=world)
        model.load_state_dict(tensors["model"])
        ema.load_state_dict(tensors["ema"])
        checkpoints.restore_optimizer(model, optimizer, tensors["optimizer"])
        loader.load_state_dict(state["stream"])
        step = int(state["step"])
    if world.leads:
        run.rewind_stats(step)
    return step


def _previewer(config: Config, run: Run, task: Task, ema: AveragedModel, world: World) -> Callable[[int], None]:
    """Return a function that draws samples of fixed held-out patches; only the leading process does."""
    batch: Batch | None = None

    def preview(step: int) -> None:
        nonlocal batch
        if not world.leads:
            return
        if batch is None:
            batch = first_patches(task.stream("val", train=False), PREVIEW_PATCHES)
        network = ema.module.eval()
        with autocast(config, world):
            samples = task.sample(network, to_device(batch, world.device), PREVIEW_MEMBERS)
        rows = [row for index in range(len(samples[0])) for row in task.examples(batch, samples, index)]
        title = f"held-out patches (val) after {step} steps, averaged weights"
        draw(run.samples / f"step_{step:08d}.png", rows, title=title, unit="counts a pixel")

    return preview


def first_patches(stream: PatchStream, number: int) -> Batch:
    """Return up to `number` valid patches of the first batch of a stream.

    Raises
    ------
    TrainingError
        ST531: the split holds no patch.
    """
    batch = next(iter(stream), None)
    if batch is None:
        raise TrainingError("ST531", "the held-out split has no patch.", cure="a smaller --patch-um")
    return select(batch, batch["valid"] & (batch["valid"].cumsum(0) <= number))


def _not_finite(run: Run, step: int, loss: float, norm: float, batch: Batch, world: World) -> TrainingError:
    """Save which patches a bad loss came from, each process its own."""
    where = run.folder / (f"failure_{world.rank}.json" if world.size > 1 else "failure.json")
    provenance = {name: batch[name].tolist() for name in ("slide", "sample", "origin_um")}
    found = {"step": step, "loss": repr(loss), "gradient_norm": repr(norm), "epoch": int(batch["epoch"])}
    write_json(where, found | provenance)
    cure = "a smaller --lr, --precision fp32, or look at the patches in the file"
    return TrainingError("ST510", f"loss {loss}, gradient norm {norm} at step {step}.", file=where, cure=cure)


@dataclass
class Log:
    """Speed and loss between two lines of stats.jsonl."""

    run: Run
    config: Config
    world: World
    _start: float = field(default_factory=time.perf_counter)
    _waited_s: float = 0.0
    _patches: int = 0

    def waiting(self) -> _Stopwatch:
        """Measure a wait for data."""
        return _Stopwatch(self)

    def write(self, step: int, batch: Batch, *, loss: float, rate: float, norm: float, num_patches: int) -> None:
        """Count a step; every `log_every` steps and at the end add a line and say so."""
        self._patches += num_patches
        if not self.world.leads or (step % self.config.run.log_every and step < self.config.optim.steps):
            return
        now = time.perf_counter()
        line = {
            "step": step,
            "epoch": int(batch["epoch"]),
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "patches_per_s": round(self._patches / (now - self._start), 2),
            "data_wait_share": round(self._waited_s / (now - self._start), 4),
            "time": round(time.time(), 3),
        }
        self.run.append_stats(line)
        speed = (
            f"{line['patches_per_s']} patches/s, {100 * self._waited_s / (now - self._start):.0f} % waiting for data"
        )
        print(f"step {step}/{self.config.optim.steps}  loss {loss:.4f}  {speed}", file=sys.stderr, flush=True)
        self._start, self._waited_s, self._patches = now, 0.0, 0


class _Stopwatch:
    def __init__(self, log: Log) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._log._waited_s += time.perf_counter() - self._begin
