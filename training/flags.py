"""From a command line to a Config: defaults < preset < file < flags."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from stzarr.errors import TrainingError, listing
from stzarr.store.reader import StoreReader
from training.config import GROUPS, Config, listed, option
from training.tasks import TASKS

SPOTS = {"patch_um": 800.0, "bin_um": 100.0, "lr_bin_um": 400.0, "image_mpp": 12.5, "stride_um": 200.0}
"""Geometry on Visium spots: HR is the lattice, LR its 4 x 4 sums. A capture area has few patches that share no spot:
larger ones would leave a single held-out patch."""

SMALL: dict[str, Any] = {
    "jitter": True, "num_genes": 16, "fit_batches": 8,
    "channels": (32, 48, 64), "layers": 1, "image_channels": 32,
    "sample_steps": 10, "members": 16,
    "batch_size": 16, "steps": 300, "lr": 2e-3, "warmup_steps": 20, "ema_decay": 0.98,
    "checkpoint_every": 100, "preview_every": 150,
}  # fmt: skip

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"bins": {}, "spots": SPOTS},
    "demo": {
        "bins": SMALL | {"patch_um": 320.0, "bin_um": 10.0, "lr_bin_um": 40.0, "image_mpp": 2.0, "stride_um": 80.0},
        "spots": SMALL | SPOTS,
    },
}
"""Settings by preset, then by the lattice of the first store: a spot grid has another geometry than bins."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add --preset, --config, --task and one flag for every setting; flags that are not given stay absent."""
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default", help="start from these settings")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings by name, flat or in groups")
    parser.add_argument("--task", choices=sorted(TASKS), default=argparse.SUPPRESS, help="what is learned")
    for name, kind in GROUPS.items():
        group = parser.add_argument_group(name, (kind.__doc__ or "").strip())
        hints = get_type_hints(kind)
        for setting in fields(kind):
            text = setting.metadata["help"]
            if setting.default is not MISSING and setting.default is not None and setting.default != ():
                text += f" (default: {listed(setting.default)})"
            words = _kind(hints[setting.name])
            group.add_argument(option(setting.name), help=text, default=argparse.SUPPRESS, **words)


def _kind(hint: Any) -> dict[str, Any]:
    """Translate a type into argparse's words."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"type": get_args(hint)[0], "nargs": "+", "metavar": get_args(hint)[0].__name__.upper()}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": hint.__name__.upper()}


def read_config(args: argparse.Namespace) -> Config:
    """Put presets, file and flags together.

    Raises
    ------
    TrainingError
        ST500: a value that breaks a rule; ST501: no store, or a file with settings that do not exist.
    """
    given = {name: value for name, value in vars(args).items() if name in _names()}
    from_file = _read_file(args.config) if args.config else {}
    stores = given.get("store", from_file.get("store"))
    if not stores:
        raise TrainingError("ST501", "no store is given.", cure="--store STORE [STORE ...]")
    stores = (stores,) if isinstance(stores, str) else tuple(stores)
    preset = PRESETS[args.preset][_lattice_kind(stores[0])]
    values = preset | from_file | given | {"store": stores}
    config = Config.from_flat(values)
    if config.run.run_dir is None:
        values["run_dir"] = str(Path("runs") / f"{config.task}-{Path(stores[0]).stem}")
    return Config.from_flat(values)


def _lattice_kind(store: str) -> str:
    lattices = [table.lattice.kind for table in StoreReader(store).tables.values()]
    return "bins" if "bins" in lattices or not lattices else "spots"


def _names() -> dict[str, Any]:
    """Return every setting's name and type."""
    return {"task": str} | {name: hint for kind in GROUPS.values() for name, hint in get_type_hints(kind).items()}


def _read_file(path: Path) -> dict[str, Any]:
    """Read settings from YAML (or JSON, which is YAML): flat, or in the groups of config.json."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError("ST501", f"the configuration cannot be read: {error}", file=path) from error
    if not isinstance(content, dict):
        raise TrainingError("ST501", "the configuration is not a table of settings.", file=path, cure="name: value")
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= value if name in GROUPS and isinstance(value, dict) else {name: value}
    known = _names()
    if unknown := sorted(set(flat) - set(known)):
        near: Sequence[str] = difflib.get_close_matches(unknown[0], known, n=2) or sorted(known)
        raise TrainingError(
            "ST501", f"unknown settings: {listing(unknown)}.", file=path, cure=f"{unknown[0]} -> {listing(near)}"
        )
    return {name: _checked(name, value, known[name], path) for name, value in flat.items()}


def _checked(name: str, value: Any, hint: Any, path: Path) -> Any:
    """Bring a value of the file to the type of its setting."""
    words = _kind(hint)
    kind = words.get("type", bool if "action" in words else str)
    if value is None and type(None) in get_args(hint):
        return None
    try:
        if "nargs" in words:
            return tuple(kind(item) for item in ([value] if isinstance(value, str | int) else value))
        if kind is bool and not isinstance(value, bool):
            raise TypeError("true or false is needed")
        if kind is int and int(value) != float(value):
            raise TypeError("a whole number is needed")
        return kind(value)
    except (TypeError, ValueError) as error:
        raise TrainingError("ST501", f"setting {name}: {value!r} does not fit: {error}", file=path) from error
