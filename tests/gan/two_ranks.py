"""Trains on the ranks that it finds, one JSON file each: `python -m tests.gan.two_ranks FOLDER {NAME: SETTINGS}`."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from stemcell_lit.experiment.training import join_ranks
from stemcell_lit.settings.group_keys import TrainerConfig
from tests.gan.helpers import fit


def train(out: Path, settings: dict) -> None:
    """Trains a pair of networks on two ranks."""
    module = fit(out, devices=2, **settings)
    state = module.generator_ema.state_dict().values()  # what was measured, too
    kept = [*module.parameters(), *state]
    weights = b"".join(p.detach().contiguous().numpy().tobytes() for p in kept)
    result = {
        "images": module.images_seen,
        "batches": module.batches_seen,
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_ranks(TrainerConfig("cpu", 2))
    for name, settings in json.loads(sys.argv[2]).items():
        train(Path(sys.argv[1]) / name, settings)
