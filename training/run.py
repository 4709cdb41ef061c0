"""The folder of a run: what it was started with, what it measured, and where its checkpoints are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzarr.environment import environment
from stzarr.errors import TrainingError, listing
from training.config import FREE_TO_CHANGE, Config

GENE_ORDER = "gene_order.npy"
GENE_NAMES = "gene_names.txt"
INPUTS = "inputs.json"


@dataclass(frozen=True)
class Run:
    """Paths and records of one training run.

    ``config.json``, ``environment.json``, ``inputs.json`` (digests of stores, panel and plan), ``gene_order.npy`` (ids
    of the panel in order), ``gene_names.txt``, ``stats.jsonl``, ``samples/``, ``checkpoints/``. The folder is a run as
    soon as it has inputs.json, which is written last.
    """

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Return the folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        """Return the folder of sample pictures."""
        return self.folder / "samples"

    @property
    def stats_file(self) -> Path:
        """Return the log of steps, one JSON object a line."""
        return self.folder / "stats.jsonl"

    @property
    def exists(self) -> bool:
        """Tell whether a run was set up here."""
        return (self.folder / INPUTS).is_file()

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run that exists.

        Raises
        ------
        TrainingError
            ST505: the folder is no run.
        """
        run = cls(folder)
        if not run.exists:
            cure = "the folder given to train.py as --run-dir"
            raise TrainingError("ST505", f"this is not a training run: it has no {INPUTS}.", file=folder, cure=cure)
        return run

    def config(self) -> Config:
        """Return the settings that the run was last started with."""
        return Config.from_json(read_json(self.folder / "config.json"))

    def write_config(self, config: Config, world_size: int) -> None:
        """Record settings and environment of this start."""
        write_json(self.folder / "config.json", config.to_json())
        write_json(self.folder / "environment.json", environment().to_json() | {"processes": world_size})

    def write_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Record the digests of what is trained on; from now on the folder is a run."""
        write_json(self.folder / INPUTS, inputs)

    def inputs(self) -> dict[str, Any]:
        """Return the digests of what the run is trained on."""
        return dict(read_json(self.folder / INPUTS))

    def check(self, config: Config, inputs: Mapping[str, Any]) -> None:
        """Refuse to continue with other settings or other data.

        Raises
        ------
        TrainingError
            ST502: settings differ that change what is learned; ST503: stores, panel or plan differ.
        """
        old, new = self.config().flat(), config.flat()
        differ = [name for name in new if name not in FREE_TO_CHANGE and _plain(old.get(name)) != _plain(new[name])]
        if differ:
            changes = listing(f"{name} {old.get(name)} -> {new[name]}" for name in differ)
            cure = "the settings of the run, or another --run-dir"
            raise TrainingError(
                "ST502", f"the run was made with other settings: {changes}.", file=self.folder, cure=cure
            )
        before = self.inputs()
        if changed := sorted(name for name in inputs if before.get(name) != _plain(inputs[name])):
            raise TrainingError(
                "ST503", f"the run was made from other data: {listing(changed)} changed.", file=self.folder,
                cure="the same stores, or another --run-dir",
            )  # fmt: skip

    def stats(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of stats.jsonl; a last line that was cut off by a kill is left out."""
        if not self.stats_file.exists():
            return
        for line in self.stats_file.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def append_stats(self, line: Mapping[str, Any]) -> None:
        """Add a line to stats.jsonl."""
        with self.stats_file.open("a") as out:
            out.write(json.dumps(line) + "\n")

    def rewind_stats(self, step: int) -> None:
        """Drop the lines after `step`: what a killed run logged past the checkpoint that it continues from."""
        if self.stats_file.exists():
            kept = [json.dumps(line) + "\n" for line in self.stats() if line["step"] <= step]
            write_text(self.stats_file, "".join(kept))


def store_digest(store: str | Path) -> str:
    """Return the SHA-256 of a store's root metadata, which hold its id, sources' digests, options and layout."""
    return hashlib.sha256((Path(store) / "zarr.json").read_bytes()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises
    ------
    TrainingError
        ST505: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError("ST505", f"a file of the run cannot be read: {error}", file=path) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))
