import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gan.helpers import family, make_store

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "settings",
    [
        # every option at once, of the family that we use
        {
            **family("tiny"),
            "r1": 0.5,
            "penalty_every": 2,
            "ada_target": 0.6,
            "ada_images": 200,
            "shared_levels": 2,
            "burn_in": 0.5,
            "lr_end": 0.1,
        },
        # a class that one rank has no patch of leaves its pair without a gradient there
        {**family("dcgan"), "batch_size": 6},
    ],
    ids=["options", "dcgan"],
)
def test_two_ranks_share_budget_and_weights(tmp_path, settings):
    settings = {**settings, "images": 120, "validate_every_images": 60}
    make_store(tmp_path / "store")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gan.two_ranks", str(tmp_path), json.dumps(settings)],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert ranks[0] == ranks[1]  # gradients are shared, so the weights stay equal
    assert ranks[0]["images"] == 120  # over both ranks
    assert ranks[0]["batches"] == 2 * math.ceil(60 / settings["batch_size"])
    assert len(list((tmp_path / "grids").iterdir())) == 2
    if settings.get("ada_target"):  # the sum over two batches of the mean over both ranks
        assert ranks[0]["ada"][1] != 0
