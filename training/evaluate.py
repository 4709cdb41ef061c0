#!/usr/bin/env python
"""Judge a run on held-out patches, beside predictions without learning: table, evaluation.json, comparison.png.

python training/evaluate.py --run-dir runs/sr-slide --split test
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a script, the folder of the script comes first on the path; the package is one level up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from stzarr.errors import TrainingError
from stzarr.stream.split import SplitName
from training.command import add_use_flags, guarded, set_up_torch
from training.distributed import world
from training.preview import Example, draw
from training.run import write_json
from training.tasks import Scores
from training.trained import Trained, changes_from

PICTURE_PATCHES = 2


def parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="folder for the results (default: the run)")
    add_use_flags(made)
    return made


def main(argv: list[str] | None = None) -> None:
    """Evaluate, write evaluation.json and comparison.png, print the table."""
    args = parser().parse_args(argv)
    set_up_torch(args.threads)
    with world(args.device) as here:
        trained = Trained.open(args.run_dir, changes_from(args), here)
        members = trained.config.diffusion.members
        scores, examples = judge(trained, args.split, members, args.max_patches)
        out = args.out or args.run_dir
        out.mkdir(parents=True, exist_ok=True)
        provenance = trained.provenance(args.split, members)
        report: dict[str, Any] = {"provenance": provenance, **scores.report()}
        write_json(out / "evaluation.json", report)
        title = f"held-out patches ({args.split}), step {provenance['checkpoint_step']}, averaged weights"
        draw(out / "comparison.png", examples, title=title, unit="counts a pixel")
    print(f"{report['patches']} {args.split} patches, {members} samples each, weights: {provenance['weights']}\n")
    print(scores.table())
    print(f"\n{out / 'evaluation.json'}\n{out / 'comparison.png'}")


def judge(trained: Trained, split: SplitName, members: int, max_patches: int | None) -> tuple[Scores, list[Example]]:
    """Return the metrics over a split, and the rows of a picture of its first patches."""
    scores = trained.task.scores()
    examples: list[Example] = []
    pictured = 0
    for batch in trained.batches(split, max_patches):
        samples = trained.sample(batch, members)
        spread = samples.std(0, correction=0)
        predicted = {"model, one sample": samples, f"model, mean of {members}": samples.mean(0)}
        scores.update(predicted | trained.task.baselines(batch), batch, spread)
        for index in range(min(len(batch["valid"]), PICTURE_PATCHES - pictured)):
            examples += trained.task.examples(batch, samples, index)
            pictured += 1
    if not examples:
        raise TrainingError("ST531", f"the split {split} has no patch.", cure="another --split or --store")
    return scores, examples


if __name__ == "__main__":
    sys.exit(guarded(main))
