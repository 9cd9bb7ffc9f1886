"""Made-up data for the GAN tests, stripes of one direction a class with noise, and a training as the product's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.splits import make_split
from stemcell_lit.experiment.training import fit as product_fit
from stemcell_lit.experiment.training import quiet
from stemcell_lit.gan.flow import FlowModule
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.module import GANModule
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import SplitConfig, TrainerConfig

CLASSES = ["rows", "columns", "flat"]
SIDE = 16
TINY = {
    "latent": 8,
    "embedding": 4,
    "channels": [8, 8, 8],
    "critic_channels": [8, 8, 8],
    "batch_size": 12,
    "images": 48,
    "validate_every_images": 24,
    "collapse_below": 0.0,
}
FLOW = {key: value for key, value in TINY.items() if key not in ("latent", "critic_channels")}
FLOW |= {"network": "unet", "steps": 3}
CONF = Path(__file__).parents[2] / "conf" / "gan"
FAMILIES = ("tiny", "style", "dcgan", "acgan", "wgan_gp")
NOISE = [0.02, 0.004, 0.05]  # a camera's strengths


def family(name: str) -> dict:
    """The settings of a file in conf/gan, at the size of the tests."""
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")), **TINY}


def stripes(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches in [-1, 1], (size, SIDE, SIDE), and labels (size,), the classes in turns."""
    label = np.arange(size) % len(CLASSES)
    wave = np.sin(np.arange(SIDE))[None] * random.uniform(0.3, 0.9, (size, 1))
    wave = np.broadcast_to(wave[:, :, None], (size, SIDE, SIDE)).copy()
    wave[label == 1] = wave[label == 1].transpose(0, 2, 1)
    wave[label == 2] = random.uniform(-0.5, 0.5, (int((label == 2).sum()), 1, 1))
    return np.clip(wave + random.normal(0, 0.1, wave.shape), -1, 1), label


def batch_of(seed: int, size: int) -> dict[str, torch.Tensor]:
    """A batch, the same for the same seed."""
    wave, label = stripes(np.random.default_rng(seed), size)
    return {
        "pixels": torch.from_numpy(wave[:, None].astype(np.float32)),
        "label": torch.from_numpy(label),
        "images": size,
    }


class Batches:
    """A loader whose n-th batch depends on n alone; `skip` is where a resumed run goes on."""

    def __init__(self, size: int, count: int = 1000, skip: int = 0):
        self.size, self.count, self.skip = size, count, skip

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for step in range(self.skip, self.skip + self.count):
            yield batch_of(step, self.size)


def make_store(path: Path) -> PatchStore:
    """48 patches of each class in six groups."""
    wave, label = stripes(np.random.default_rng(0), 144)
    groups = [f"movie-{i // 3 % 6}" for i in range(len(label))]
    manifest = pd.DataFrame({"label": [CLASSES[c] for c in label], "group": groups})
    pixels = np.round((wave + 1) * 127.5).astype(np.uint8)
    return PatchStore.write(path, pixels, manifest, classes=CLASSES)


def make_data(folder: Path, gan: dict, modes: list[list[float]] | None = None) -> PatchDataModule:
    """Batches of the store in `folder`, which is made where it is absent, in the generator's scope."""
    store = folder / "store"
    patches = PatchStore.open(store) if store.exists() else make_store(store)
    split = make_split(patches, SplitConfig(folds=3, validation_share=0.25))
    return PatchDataModule(
        patches,
        split,
        Scope.of_classes(CLASSES),
        modes=None if modes is None else modes_in_turn(patches.labels, modes),
        epoch_images=gan["validate_every_images"],
        batch_size=gan["batch_size"],
        augment="none",
    )


def modes_in_turn(labels: np.ndarray, modes: list[list[float]]) -> np.ndarray:
    """The patches of a class are of its modes in turns."""
    first = np.cumsum([0, *map(len, modes)])
    place = np.empty(len(labels), np.int64)
    for i, shares in enumerate(modes):
        rows = np.flatnonzero(labels == i)
        place[rows] = first[i] + np.arange(len(rows)) // 6 % len(shares)  # of six groups
    return place


class Killed(Exception):
    """Ends a training as a kill does: without a word to it."""


class _Mortal:
    """Dies before the batch that follows `dies_at` images."""

    dies_at: int | None = None

    def on_train_batch_start(self, batch, batch_idx):
        if self.dies_at is not None and self.images_seen >= self.dies_at:
            raise Killed


class Mortal(_Mortal, GANModule):
    """A GAN that dies."""


class MortalFlow(_Mortal, FlowModule):
    """A flow that dies."""


def fit(
    out: Path,
    *,
    dies_at: int | None = None,
    seed: int = 0,
    devices: int = 1,
    data: PatchDataModule | None = None,
    shares: list[list[float]] | None = None,
    noise: list[float] | None = None,
    **settings,
) -> GenerativeModule:
    """Trains a tiny GAN or flow by the product's `fit`, to its budget, from `out`/last.ckpt where that is."""
    quiet()
    flow = settings.get("network") == "unet"
    gan = {**(FLOW if flow else TINY), **settings}
    module = (MortalFlow if flow else Mortal)(gan, CLASSES, SIDE, seed, shares, noise)
    module.dies_at = dies_at
    data = data or make_data(out, gan, shares)
    trainer = TrainerConfig(accelerator="cpu", devices=devices)
    product_fit(module, data, trainer, out, "test", gan["images"])
    return module
