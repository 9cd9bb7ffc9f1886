"""Run as a script by the test of two processes: trains on two CPU ranks, one JSON file a rank."""

import hashlib
import json
import sys
from pathlib import Path

import torch

from tests.gan.helpers import fit


def main(out: Path, settings: dict) -> None:
    """Trains on two ranks."""
    torch.set_num_threads(1)
    module = fit(out, devices=2, **settings)
    weights = b"".join(p.detach().contiguous().numpy().tobytes() for p in module.parameters())
    result = {
        "images": module.images_seen,
        "batches": module.batches_seen,
        "weights": hashlib.sha256(weights).hexdigest(),
        "ada": module.ada.tolist(),
    }
    (out / f"rank{module.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
