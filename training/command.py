"""What the three commands share: exit codes, threads, and the flags for using a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from stzarr.errors import StzarrError


def guarded(main: Callable[[], None]) -> int:
    """Run a command: 0, or 2 with the error on stderr, or 130 when interrupted."""
    try:
        main()
    except StzarrError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr, flush=True)
        return 130
    return 0


def set_up_torch(threads: int) -> None:
    """Fix the number of CPU threads (0: as OMP_NUM_THREADS says) and choose deterministic kernels on the CPU."""
    if threads:
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)


def add_use_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that use a trained run."""
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--store", nargs="+", help="other stores than the run's own")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="default: test")
    parser.add_argument("--members", type=int, help="samples of a patch")
    parser.add_argument("--sampler", choices=("ddim", "ancestral"), help="reverse process")
    parser.add_argument("--sample-steps", type=int, help="network calls for a sample")
    parser.add_argument("--conserve", action=argparse.BooleanOptionalAction, help="rescale samples to the LR sums")
    parser.add_argument("--batch-size", type=int, help="patches at a time")
    parser.add_argument("--max-patches", type=int, help="stop after this many patches")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: as the environment says")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
