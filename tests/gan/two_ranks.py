"""Run as a script by the test of two processes: trains on two CPU ranks, one JSON line a rank."""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed

from stemcell_lit.gan.module import GANModule, trainer_settings
from tests.gan.helpers import CLASSES, SIDE, TINY, Batches, batch_of


class RankBatches(Batches):
    """Every rank has its own batches."""

    def __iter__(self):
        rank = torch.distributed.get_rank()
        for step in range(self.count):
            yield batch_of(1000 * rank + step, self.size)


def main(out: Path) -> None:
    """Trains 96 images, four batches of twelve on each rank."""
    torch.set_num_threads(1)
    gan = {
        **TINY,
        "batch_size": 24,
        "images": 96,
        "validate_every_images": 48,
        "r1": 0.5,
        "penalty_every": 2,
    }
    module = GANModule(gan, CLASSES, SIDE)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        default_root_dir=out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **trainer_settings(gan, devices=2),
    )
    trainer.fit(module, RankBatches(12), Batches(12, count=2, skip=10_000))
    weights = torch.cat([p.detach().double().flatten() for p in module.parameters()])
    result = {
        "images": module.images_seen,
        "batches": module.batches_seen,
        "weights": [float(weights.sum()), float(weights.norm())],
    }
    (out / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
