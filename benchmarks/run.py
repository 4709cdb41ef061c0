#!/usr/bin/env python
"""Measure how fast stores stream, case by case, and append the results to benchmarks/results/stream.jsonl.

python benchmarks/run.py                      on a simulated slide, made in a temporary folder
python benchmarks/run.py --store slide.zarr   on a store of your own
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from stzarr.bench import bench
from stzarr.ingest import ReadOptions, ingest
from stzarr.simulate import simulate

RESULTS = Path(__file__).parent / "results" / "stream.jsonl"
SIZE_UM = (2000.0, 2000.0)
CASES: dict[str, dict[str, Any]] = {
    "image": {"num_genes": 0},
    "image and 200 genes": {"num_genes": 200},
    "image and 20 genes": {"num_genes": 20},
}


def main() -> None:
    """Run all cases in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="store to stream from (default: simulate one)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each case [10]")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"lines of JSON [{RESULTS.name}]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stzarr-bench-") as folder:
        store = args.store or simulated(Path(folder))
        for name, case in CASES.items():
            result = bench(store, seconds=args.seconds, **case)
            result.append_to(args.out)
            print(f"{name:20}{result}", flush=True)


def simulated(folder: Path) -> Path:
    """Simulate a slide with 1000 genes and ingest it."""
    image = simulate(folder / "outs", size_um=SIZE_UM, num_genes=1000)
    return ingest(folder / "outs", folder / "slide.zarr", read=ReadOptions(id="simulated", image=image))


if __name__ == "__main__":
    main()
