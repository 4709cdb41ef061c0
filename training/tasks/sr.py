"""Expression super-resolution: an LR grid of counts and the histology image become the HR grid of counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stzarr.errors import TrainingError
from stzarr.stream.dataset import PatchStream
from stzarr.stream.panel import panel_by_counts
from stzarr.stream.split import SplitName
from training.baselines import bicubic, conserve, nearest
from training.batch import Batch
from training.config import Config
from training.diffusion import Diffusion, Draw, keyed_normal
from training.distributed import World
from training.metrics import MapScores
from training.models.unet import ConditionalUNet
from training.normalise import Normaliser
from training.preview import Example
from training.run import GENE_NAMES, GENE_ORDER

NORMALISATION = "normalisation.npz"
IMAGE_CENTRE, IMAGE_SPREAD = 127.5, 64.0
MAX_ROWS = 2


@dataclasses.dataclass(frozen=True)
class SuperResolution:
    """The task `sr`. Counts are maps [b, g, h, w]; the network sees residuals over the bicubic LR map.

    Parameters
    ----------
    config : Config
        Settings of the run.
    genes : tuple of str
        Ids of the panel, in the order of the maps.
    symbols : tuple of str
        Their names.
    normaliser : Normaliser
        Scales from training data.
    """

    config: Config
    genes: tuple[str, ...]
    symbols: tuple[str, ...]
    normaliser: Normaliser

    @classmethod
    def outline(cls, config: Config) -> str:
        """Return the plan of the training stream and the size of the network."""
        genes = _read_genes(Path(config.data.genes)) if config.data.genes else [""] * config.data.num_genes
        unit = torch.ones(len(genes), dtype=torch.float64)
        task = cls(config, tuple(genes), tuple(genes), Normaliser(config.data.transform, unit, unit, unit))
        number = sum(parameter.numel() for parameter in task.model().parameters())
        stream = _open(config, "train", train=True, genes=())
        return f"model: {number:,} parameters, {len(genes)} genes\n{stream.plan}"

    @classmethod
    def fit(cls, config: Config, folder: Path) -> None:
        """Choose the gene panel and measure scales on training patches; write both into the run's folder."""
        if config.data.genes:
            genes = _read_genes(Path(config.data.genes))
        else:
            genes = list(panel_by_counts(_open(config, "train", train=False, genes=()), config.data.num_genes).ids)
        stream = _open(config, "train", train=True, genes=genes)
        _save_panel(folder, stream.genes.ids, stream.genes.symbols)

        def batches() -> Iterator[Batch]:
            return islice(_open(config, "train", train=True, genes=genes), config.data.fit_batches)

        Normaliser.fit(batches, config.data.transform).save(folder / NORMALISATION)

    @classmethod
    def load(cls, config: Config, folder: Path) -> SuperResolution:
        """Build the task from the files that `fit` wrote."""
        genes, symbols = load_panel(folder)
        return cls(config, genes, symbols, Normaliser.load(folder / NORMALISATION))

    def stream(self, split: SplitName, *, train: bool, world: World | None = None) -> PatchStream:
        """Open patches of a split: jittered, shuffled shares of ranks in training, side by side otherwise."""
        # Held-out patches lie side by side, so that no pixel is judged twice.
        return _open(self.config, split, train=train, genes=self.genes, world=world, stride=train)

    def model(self) -> nn.Module:
        """Return the network; its conditions are the LR maps on the HR grid, the tissue mask and the image."""
        size = self.config.model
        return ConditionalUNet(
            num_maps=len(self.genes),
            num_conditions=len(self.genes) + 1,
            image_factor=round(self.config.data.bin_um / self.config.data.image_mpp),
            channels=size.channels,
            layers=size.layers,
            image_channels=size.image_channels,
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the squared error of the prediction, mean over pixels and the genes that the slide has, [b]."""
        diffusion, seed = Diffusion(self.config.diffusion), self.config.run.seed
        maps, image, base = self._condition(batch)
        clean = self.normaliser.residual(batch["hr_counts"], base)
        samples, epoch = batch["sample"].tolist(), int(batch["epoch"])
        noise = keyed_normal(seed, Draw.NOISE, epoch, samples, tuple(clean.shape[1:])).to(clean.device)
        steps = diffusion.timesteps(seed, epoch, samples).to(clean.device)
        predicted = model(diffusion.add_noise(clean, noise, steps), steps, maps, image)
        error = (predicted.float() - diffusion.target(clean, noise, steps)).square().mean((-2, -1))
        present = batch["gene_mask"].float()
        return (error * present).sum(1) / present.sum(1).clamp_min(1)

    @torch.no_grad()
    def sample(self, model: nn.Module, batch: Batch, members: int) -> Tensor:
        """Return counts of `members` samples of each patch, float32 [members, b, g, h, w], on the CPU."""
        maps, image, base = self._condition(batch)
        assert isinstance(model, ConditionalUNet)
        condition = model.encode(maps, image)
        diffusion = Diffusion(self.config.diffusion)
        drawn = [
            diffusion.sample(
                lambda x, steps: model.denoise(x, steps, condition),
                tuple(base.shape[1:]),
                seed=self.config.run.seed,
                member=member,
                samples=batch["sample"].tolist(),
                device=base.device,
            )
            for member in range(members)
        ]
        return torch.stack([self._counts(residual, base, batch).float().cpu() for residual in drawn])

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return counts without learning: nearest and bicubic from the LR grid, float64 [b, g, h, w]."""
        shape = (batch["hr_counts"].shape[-2], batch["hr_counts"].shape[-1])
        return {
            "nearest": nearest(batch["lr_counts"], batch["lr_area"], shape),
            "bicubic": bicubic(batch["lr_counts"], batch["lr_area"], shape),
        }

    def scores(self) -> MapScores:
        """Return empty metrics over the panel."""
        return MapScores(self.symbols)

    def examples(self, batch: Batch, samples: Tensor, index: int) -> Sequence[Example]:
        """Return rows for the two genes of a patch that vary most, counts an HR pixel."""
        truth = batch["hr_counts"][index].double()
        order = truth.std((-2, -1)).argsort(descending=True)[:MAX_ROWS].tolist()
        baselines = {name: maps[index] for name, maps in self.baselines(batch).items()}
        maps = {
            "LR": baselines["nearest"], "HR": truth, "bicubic": baselines["bicubic"], "one sample": samples[0, index],
            f"mean of {len(samples)}": samples[:, index].mean(0),
        }  # fmt: skip
        x, y = batch["origin_um"][index].tolist()
        return [
            Example(
                label=f"{self.symbols[gene]}\nx {x:.0f}, y {y:.0f} µm",
                image=batch["image"][index].permute(1, 2, 0).numpy(),
                maps={name: values[gene].numpy() for name, values in maps.items()},
                scale_from="HR",
            )
            for gene in order
        ]

    def _counts(self, residual: Tensor, base: Tensor, batch: Batch) -> Tensor:
        """Return counts, float64 [b, g, h, w], from what the network predicts."""
        counts = self.normaliser.restore(residual, base)
        return conserve(counts, batch["lr_counts"], batch["lr_area"]) if self.config.diffusion.conserve else counts

    def _condition(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return condition maps float32 [b, g + 1, h, w], image float32 [b, 3, kh, kw], and the base y."""
        base = self.normaliser.base(batch)
        maps = torch.cat([base.float(), batch["tissue"][:, None].float()], dim=1)
        return maps, (batch["image"].float() - IMAGE_CENTRE) / IMAGE_SPREAD, base


def _open(
    config: Config,
    split: SplitName,
    *,
    train: bool,
    genes: Sequence[str],
    world: World | None = None,
    stride: bool = True,
) -> PatchStream:
    data = config.data
    return PatchStream(
        list(data.store),
        patch_um=data.patch_um,
        batch_size=config.optim.batch_size,
        image_mpp=data.image_mpp,
        bin_um=data.bin_um,
        lr_bin_um=data.lr_bin_um,
        genes=genes,
        split=split,
        stride_um=data.stride_um if stride else None,
        min_tissue=data.min_tissue,
        seed=config.run.seed,
        train=train,
        jitter=data.jitter and train,
        rank=world.rank if world else 0,
        world_size=world.size if world else 1,
    )


def _read_genes(path: Path) -> list[str]:
    """Read a panel: one id or symbol a line, blank lines and lines that start with # left out."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError("ST501", f"the gene list cannot be read: {error}", file=path) from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise TrainingError("ST501", "the gene list is empty.", file=path, cure="one gene id or symbol a line")
    return names


def _save_panel(folder: Path, ids: Sequence[str], symbols: Sequence[str]) -> None:
    np.save(folder / GENE_ORDER, np.array(list(ids), np.str_))
    (folder / GENE_NAMES).write_text("".join(f"{symbol}\n" for symbol in symbols))


def load_panel(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ids and symbols of a run's gene panel."""
    ids = np.load(folder / GENE_ORDER, allow_pickle=False)
    return tuple(ids.tolist()), tuple((folder / GENE_NAMES).read_text().splitlines())
