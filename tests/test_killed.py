"""An ingest that is killed again and again, and then run to its end, leaves the bytes of one that never was."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stzarr.simulate import simulate

KILLS = 20


def digests(store: Path) -> dict[str, str]:
    """Return the digest of every file; of the root metadata without the time of writing."""
    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path == store / "zarr.json":
                root = json.loads(content)
                del root["attributes"]["stzarr"]["created"]
                content = json.dumps(root, sort_keys=True).encode()
            found[path.relative_to(store).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_killed_ingest_continues_to_equal_bytes(tmp_path: Path, threads: int) -> None:
    image = simulate(tmp_path / "outs", size_um=(2000, 2000), num_genes=300, image_format="deflate")
    command = [
        sys.executable,
        "-m",
        "stzarr.cli",
        "ingest",
        str(tmp_path / "outs"),
        "--image",
        str(image),
        "--id",
        "s",
        "-q",
    ]
    start = time.perf_counter()
    subprocess.run([*command, str(tmp_path / "whole.zarr"), "--threads", "2"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start

    killed, rng = 0, random.Random(threads)
    command += [str(tmp_path / "killed.zarr"), "--threads", str(threads)]
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.15, 0.6) * seconds)
        process.kill()
        killed += process.wait() != 0
        if (tmp_path / "killed.zarr" / "zarr.json").exists():
            break
    assert killed >= 1
    if not (tmp_path / "killed.zarr" / "zarr.json").exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert digests(tmp_path / "killed.zarr") == digests(tmp_path / "whole.zarr")
