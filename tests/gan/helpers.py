"""Made-up data and a trainer for the GAN tests: stripes of one direction a class, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from stemcell_lit.gan.module import GANModule, make_callbacks, trainer_settings

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


def batch_of(seed: int, size: int) -> dict[str, torch.Tensor]:
    """A batch, the same for the same seed."""
    random = np.random.default_rng(seed)
    label = np.arange(size) % len(CLASSES)
    wave = np.sin(np.arange(SIDE))[None] * random.uniform(0.3, 0.9, (size, 1))
    wave = np.broadcast_to(wave[:, :, None], (size, SIDE, SIDE)).copy()
    wave[label == 1] = wave[label == 1].transpose(0, 2, 1)
    wave[label == 2] = random.uniform(-0.5, 0.5, (int((label == 2).sum()), 1, 1))
    wave = np.clip(wave + random.normal(0, 0.1, wave.shape), -1, 1)
    return {
        "pixels": torch.from_numpy(wave[:, None].astype(np.float32)),
        "label": torch.from_numpy(label),
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


def fit(
    out: Path, checkpoint: Path | None = None, skip: int = 0, seed: int = 0, **settings
) -> GANModule:
    """Trains a tiny GAN with a real trainer, to its budget."""
    gan = {**TINY, **settings}
    module = GANModule(gan, CLASSES, SIDE, seed)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=make_callbacks(out),
        **trainer_settings(gan),
    )
    train = Batches(gan["batch_size"], skip=skip)
    held_out = Batches(12, count=2, skip=10_000)
    trainer.fit(module, train, held_out, ckpt_path=checkpoint, weights_only=True)
    return module
