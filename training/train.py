#!/usr/bin/env python
"""Train a diffusion model on stores. The same command again continues the run.

One process:   python training/train.py --store slide.zarr --task sr
One machine:   torchrun --nproc-per-node 8 training/train.py --store slide.zarr --task sr
Two machines:  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \
                   training/train.py --store slide.zarr --task sr --run-dir /shared/runs/first

``--dry-run`` prints settings and plan and writes nothing. ``--preset demo`` is small enough for two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a script, the folder of the script comes first on the path; the package is one level up. Threads that wait
    # must not spin: the stream's readers need the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.command import guarded, set_up_torch
from training.config import Config
from training.distributed import World, world
from training.flags import add_settings, read_config
from training.loop import train
from training.run import Run, store_digest
from training.tasks import Task, task_class


def parser() -> argparse.ArgumentParser:
    """Declare the flags: one for every setting."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dry-run", action="store_true", help="print settings and plan, write nothing")
    add_settings(made)
    return made


def main(argv: list[str] | None = None) -> None:
    """Set up or reopen the run, and train."""
    args = parser().parse_args(argv)
    config = read_config(args)
    set_up_torch(config.run.threads)
    with world(config.run.device) as here:
        run = Run(Path(str(config.run.run_dir)))
        if args.dry_run:
            if here.leads:
                print(config, task_class(config.task).outline(config), sep="\n")
            return
        train(config, run, set_up(config, run, here), here)


def set_up(config: Config, run: Run, here: World) -> Task:
    """Make the run's folder, or check that it fits, on the leading process; then load the task everywhere."""
    kind = task_class(config.task)
    if here.leads:
        if run.exists:
            run.check(config, inputs(config, kind.load(config, run.folder)))
            run.write_config(config, here.size)
        else:
            make(config, run, here)
    here.barrier()
    return kind.load(config, run.folder)


def make(config: Config, run: Run, here: World) -> None:
    """Write everything that a run starts with; what a start that failed left behind is replaced."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.write_config(config, here.size)
    kind = task_class(config.task)
    kind.fit(config, run.folder)
    run.write_inputs(inputs(config, kind.load(config, run.folder)))


def inputs(config: Config, task: Task) -> dict[str, Any]:
    """Return digests of all that a run is trained on, by what they digest."""
    stream = task.stream("train", train=True)
    stores = {str(number): store_digest(store) for number, store in enumerate(config.data.store)}
    return {
        "stores": stores,
        "plan": stream.plan.digest,
        "split": stream.plan.split_digest,
        "panel": stream.genes.digest,
        "genes": len(stream.genes),
    }


if __name__ == "__main__":
    sys.exit(guarded(main))
