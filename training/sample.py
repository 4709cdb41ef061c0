#!/usr/bin/env python
"""Draw samples of held-out patches and write them with what they were made from.

python training/sample.py --run-dir runs/sr-slide --out samples.npz
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    # Run as a script, the folder of the script comes first on the path; the package is one level up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from stzarr.errors import TrainingError
from stzarr.stream.split import SplitName
from training.command import add_use_flags, guarded, set_up_torch
from training.distributed import world
from training.run import GENE_ORDER
from training.trained import Trained, changes_from

DEFAULT_PATCHES = 16
KEPT = ("sample", "slide", "origin_um", "tissue", "gene_mask", "lr_counts", "hr_counts")


def parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="the .npz (default: samples.npz in the run)")
    add_use_flags(made)
    made.set_defaults(max_patches=DEFAULT_PATCHES)
    return made


def main(argv: list[str] | None = None) -> None:
    """Sample, and write arrays and provenance.

    The .npz holds ``samples`` float32 [patch, member, gene, y, x] in counts an HR pixel, ``genes``, the truth and LR
    counts, where each patch lies (``slide``, ``origin_um``, ``sample``), and ``provenance`` as JSON text.
    """
    args = parser().parse_args(argv)
    set_up_torch(args.threads)
    with world(args.device) as here:
        trained = Trained.open(args.run_dir, changes_from(args), here)
        members = trained.config.diffusion.members
        out = args.out or args.run_dir / "samples.npz"
        arrays = collect(trained, args.split, members, args.max_patches)
        provenance = trained.provenance(args.split, members)
        genes = np.load(args.run_dir / GENE_ORDER, allow_pickle=False)
        with out.open("wb") as target:
            np.savez_compressed(target, genes=genes, provenance=json.dumps(provenance), **arrays)  # type: ignore[arg-type]
    print(f"{out}: {len(arrays['samples'])} patches x {members} samples, step {provenance['checkpoint_step']}")


def collect(trained: Trained, split: SplitName, members: int, max_patches: int) -> dict[str, NDArray[Any]]:
    """Return samples, truth and places of up to `max_patches` held-out patches, as arrays over patches."""
    parts: dict[str, list[NDArray[Any]]] = {}
    for batch in trained.batches(split, max_patches):
        samples = trained.sample(batch, members).transpose(0, 1)
        for name, values in {"samples": samples, **{name: batch[name] for name in KEPT}}.items():
            parts.setdefault(name, []).append(values.numpy())
    if not parts:
        raise TrainingError("ST531", f"the split {split} has no patch.", cure="another --split or --store")
    return {name: np.concatenate(values) for name, values in parts.items()}


if __name__ == "__main__":
    sys.exit(guarded(main))
