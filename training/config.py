"""The settings of a run: frozen, checked when made, and the only place where a flag is declared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from stzarr.errors import TrainingError

WHOLE = 1e-6


def flag(default: Any, text: str) -> Any:
    """Declare a setting with its default and the help of its flag."""
    return field(default=default, metadata={"help": text})


def refuse(name: str, value: object, rule: str) -> TrainingError:
    """Make the error for a setting that breaks a rule; names the flag."""
    what = f"{option(name)} {value} is not allowed: it must be {rule}."
    return TrainingError("ST500", what, cure=f"change {option(name)}")


def option(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _at_least(config: object, low: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= low:
            raise refuse(name, value, f"at least {low:g}")


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise refuse(name, value, "a positive number")


def _multiple(config: object, name: str, of: str) -> None:
    ratio = getattr(config, name) / getattr(config, of)
    if ratio < 1 - WHOLE or abs(ratio - round(ratio)) > WHOLE * ratio:
        raise refuse(name, f"{getattr(config, name):g}", f"a whole multiple of {option(of)} {getattr(config, of):g}")


@dataclass(frozen=True)
class DataConfig:
    """What is streamed: stores, geometry in µm, genes."""

    store: tuple[str, ...] = flag((), "stores to train on")
    patch_um: float = flag(1280.0, "side of a patch, µm")
    bin_um: float = flag(10.0, "HR pixel, µm; 100 on Visium spots means the lattice")
    lr_bin_um: float = flag(100.0, "LR pixel, µm, a multiple of --bin-um")
    image_mpp: float = flag(2.5, "image pixel, µm; --bin-um must be a multiple of it")
    stride_um: float | None = flag(None, "distance between patches, µm (default: the patch)")
    min_tissue: float = flag(0.5, "smallest share of tissue in a patch")
    jitter: bool = flag(False, "move training patches by whole HR pixels")
    genes: str | None = flag(None, "file with one gene id or symbol a line")
    num_genes: int = flag(50, "without --genes: the genes with the most counts in training patches")
    transform: Literal["sqrt", "log1p"] = flag("sqrt", "variance-stabilising transform of scaled counts")
    fit_batches: int = flag(16, "training batches from which scales are measured")
    workers: int = flag(0, "loader processes of each rank")

    def __post_init__(self) -> None:
        _positive(self, "patch_um", "bin_um", "lr_bin_um", "image_mpp", "stride_um")
        _at_least(self, 1, "num_genes", "fit_batches")
        _at_least(self, 0, "workers")
        _multiple(self, "patch_um", "bin_um")
        _multiple(self, "lr_bin_um", "bin_um")
        _multiple(self, "bin_um", "image_mpp")
        if self.lr_bin_um <= self.bin_um:
            raise refuse("lr_bin_um", f"{self.lr_bin_um:g}", f"larger than --bin-um {self.bin_um:g}")
        if self.lr_bin_um > self.patch_um:
            raise refuse("lr_bin_um", f"{self.lr_bin_um:g}", f"no larger than --patch-um {self.patch_um:g}")
        if not 0 <= self.min_tissue <= 1:
            raise refuse("min_tissue", self.min_tissue, "a share between 0 and 1")
        if self.transform not in ("sqrt", "log1p"):
            raise refuse("transform", self.transform, "sqrt or log1p")


@dataclass(frozen=True)
class ModelConfig:
    """Size of the network."""

    channels: tuple[int, ...] = flag((64, 128, 192, 256), "channels of each resolution of the U-Net")
    layers: int = flag(2, "residual blocks of each resolution")
    image_channels: int = flag(64, "channels of the image features")

    def __post_init__(self) -> None:
        _at_least(self, 1, "layers")
        for name, sizes in (("channels", self.channels), ("image_channels", (self.image_channels,))):
            if not sizes or any(size < 8 or size % 8 for size in sizes):
                raise refuse(name, listed(getattr(self, name)), "multiples of 8 (normalisation has 8 groups)")


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise process and how it is reversed."""

    train_timesteps: int = flag(1000, "steps of the noise process")
    schedule: Literal["linear", "cosine"] = flag("cosine", "betas: linear (DDPM) or squared cosine")
    prediction: Literal["sample", "v", "epsilon"] = flag("sample", "what the network predicts")
    sampler: Literal["ddim", "ancestral"] = flag("ddim", "reverse process: deterministic or with noise")
    sample_steps: int = flag(25, "network calls for a sample; must divide --train-timesteps")
    members: int = flag(8, "samples of a patch, for mean and spread")
    conserve: bool = flag(True, "rescale samples of counts to the sums that their condition states")

    def __post_init__(self) -> None:
        _at_least(self, 1, "train_timesteps", "sample_steps", "members")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise refuse(name, getattr(self, name), " or ".join(allowed))
        if self.train_timesteps % self.sample_steps:
            raise refuse("sample_steps", self.sample_steps, f"a divisor of --train-timesteps {self.train_timesteps}")


CHOICES = {"schedule": ("linear", "cosine"), "prediction": ("sample", "v", "epsilon"), "sampler": ("ddim", "ancestral")}


@dataclass(frozen=True)
class OptimConfig:
    """Batches and the optimiser."""

    batch_size: int = flag(64, "global batch, over all ranks")
    steps: int = flag(20_000, "optimiser steps of the whole run")
    lr: float = flag(3e-4, "peak learning rate")
    warmup_steps: int = flag(200, "steps of linear warm-up")
    decay: Literal["cosine", "none"] = flag("cosine", "learning rate after the warm-up")
    weight_decay: float = flag(1e-5, "AdamW weight decay")
    clip_norm: float = flag(1.0, "largest gradient norm")
    ema_decay: float = flag(0.9999, "decay of the averaged weights, reached by a warm-up")
    precision: Literal["auto", "fp32", "bf16"] = flag("auto", "auto: bf16 where the GPU has it, else fp32")

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "steps")
        _at_least(self, 0, "warmup_steps", "weight_decay")
        _positive(self, "lr", "clip_norm")
        if not 0 <= self.ema_decay < 1:
            raise refuse("ema_decay", self.ema_decay, "at least 0 and less than 1")
        if self.decay not in ("cosine", "none"):
            raise refuse("decay", self.decay, "cosine or none")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise refuse("precision", self.precision, "auto, fp32 or bf16")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0: linear warm-up, then cosine to 0 or constant."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay == "none":
            return self.lr
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how it reports; none of this changes what is learned, the seed excepted."""

    run_dir: str | None = flag(None, "folder of the run (default: runs/<task>-<store>); one that exists is continued")
    seed: int = flag(0, "seed of weights, patch order, timesteps and noise")
    log_every: int = flag(10, "steps between lines of stats.jsonl")
    checkpoint_every: int = flag(1000, "steps between checkpoints")
    keep_checkpoints: int = flag(3, "checkpoints kept")
    preview_every: int = flag(1000, "steps between sample pictures, 0 for none")
    threads: int = flag(0, "CPU threads of each rank, 0: as the environment says")
    device: Literal["auto", "cpu", "cuda"] = flag("auto", "auto: cuda where there is one")

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed", "preview_every", "threads")
        _at_least(self, 1, "log_every", "checkpoint_every", "keep_checkpoints")
        if self.device not in ("auto", "cpu", "cuda"):
            raise refuse("device", self.device, "auto, cpu or cuda")


GROUPS: dict[str, type] = {
    "data": DataConfig, "model": ModelConfig, "diffusion": DiffusionConfig, "optim": OptimConfig, "run": RunConfig,
}  # fmt: skip
FREE_TO_CHANGE = frozenset(
    {"store", "workers", "steps", "members", "sampler", "sample_steps", "conserve"}
    | {setting.name for setting in fields(RunConfig) if setting.name != "seed"}
)


@dataclass(frozen=True)
class Config:
    """All settings of a run, in groups; the names of settings are unique over the groups."""

    task: str = "sr"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build from settings by name, as flags and presets give them; what is missing keeps its default."""
        groups = {
            group: kind(**{s.name: _frozen(values[s.name]) for s in fields(kind) if s.name in values})
            for group, kind in GROUPS.items()
        }
        return cls(task=values.get("task", "sr"), **groups)

    def flat(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {"task": self.task} | {k: v for group in GROUPS for k, v in asdict(getattr(self, group)).items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain values in groups, as config.json keeps them."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from `to_json`'s values."""
        flat = {name: value for group in GROUPS for name, value in content.get(group, {}).items()}
        return cls.from_flat(flat | {"task": content.get("task", "sr")})

    def __str__(self) -> str:
        lines = [f"task: {self.task}"]
        for group in GROUPS:
            lines.append(f"{group}:")
            lines += [f"  {name}: {listed(value)}" for name, value in asdict(getattr(self, group)).items()]
        return "\n".join(lines)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def listed(value: object) -> str:
    """Write a setting as its flag takes it: sequences separated by spaces."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
