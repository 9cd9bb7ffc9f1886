import json
import math
import sys
from pathlib import Path

import pytest

from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pool import run_jobs
from tests.gan.helpers import FLOW, NOISE, family, make_store

ROOT = Path(__file__).parents[2]
BUDGET = {"images": 120, "validate_every_images": 60}
SETTINGS = {
    # every option at once, of the family that we use
    "options": {
        **family("tiny"),
        "r1": 0.5,
        "penalty_every": 2,
        "burn_in": 0.5,
        "lr_end": 0.1,
        **BUDGET,
    },
    # a class that one rank has no patch of leaves its pair without a gradient there
    "dcgan": {**family("dcgan"), "batch_size": 6, **BUDGET},
    # its mean styles and the noise that its camera adds are measured on each rank
    "style": {**family("style"), "truncation": 0.5, "camera": "learned", "noise": NOISE, **BUDGET},
    "flow": {**FLOW, "burn_in": 0.5, "camera": "estimated", "noise": NOISE, **BUDGET},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of each name in SETTINGS, after a training on two ranks."""
    root = tmp_path_factory.mktemp("ranks")
    for name in SETTINGS:
        make_store(root / name / "store")
    words = ["-m", "tests.gan.two_ranks", str(root), json.dumps(SETTINGS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        job = Job("two", [sys.executable, *words], root / "log")
        (outcome,) = run_jobs([job], slots=1, devices_per_job=2)
    assert outcome.ok, outcome.tail
    return root


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_share_budget_and_weights(trained, name):
    ranks = [json.loads((trained / name / f"rank{i}.json").read_text()) for i in range(2)]
    assert ranks[0] == ranks[1]  # gradients are shared, so the weights stay equal
    assert ranks[0]["images"] == 120  # over both ranks
    assert ranks[0]["batches"] == 2 * math.ceil(60 / SETTINGS[name]["batch_size"])
    assert len(list((trained / name / "grids").iterdir())) == 2
