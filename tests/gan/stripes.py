"""Made-up data for the tests of quality, choice and selection: stripes of one direction a class."""

from __future__ import annotations

import numpy as np
import torch

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
