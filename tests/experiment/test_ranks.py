"""One rank and two at the same batch over both: the same patches in each step, equal results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from stemcell_lit.errors import UserError
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pool import run_jobs
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store
from tests.experiment import ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What one rank, and each of two, has seen and become."""
    root = tmp_path_factory.mktemp("ranks")
    make_store(root / "store", movies=6)
    words = [str(root / "store"), str(root)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        job = Job("two", [sys.executable, "-m", "tests.experiment.ranks", *words], root / "log")
        (outcome,) = run_jobs([job], slots=1, devices_per_job=2)
    assert outcome.ok, outcome.tail
    ranks.main(*words)
    read = {p: json.loads((root / p).read_text()) for p in ("of1/rank0.json", "of2/rank0.json")}
    read |= {p: json.loads((root / p).read_text()) for p in ("of2/rank1.json",)}
    return list(read.values())


@pytest.mark.parametrize("kind", ["plain", "places", "gan"])
def test_two_ranks_share_the_very_patches_that_one_sees_in_each_step(told, kind):
    one, *both = (t[kind]["steps"] for t in told)
    assert len(one) == len(both[0]) == len(both[1]) > 4
    for step, first, second in zip(one, *both, strict=True):
        assert abs(len(first) - len(second)) <= 1
        assert sorted(step) == sorted(first + second)


@pytest.mark.parametrize("kind", ["plain", "stage", "places", "gan"])
def test_two_ranks_count_the_same_images_and_end_with_the_same_weights(told, kind):
    one, first, second = (t[kind] for t in told)
    assert one["images"] == first["images"] == second["images"]
    assert first["weights"] == second["weights"]
    assert first.get("statistics") == second.get("statistics")


def test_without_batch_norm_and_random_draws_two_ranks_equal_one(told):
    """Tolerance: sums in another order, over 16 steps of SGD."""
    one, two, _ = (t["plain"]["weights"] for t in told)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_with_statistics_and_draws_of_each_rank_the_validation_score_agrees(told):
    """Tolerance: 0.1 of macro F1 on some thirty patches; batch norm, dropout and turns differ, as between two seeds."""
    one, two, _ = (t["stage"]["curve"][-1]["val/macro/f1"] for t in told)
    assert min(one, two) > 0.7  # four classes
    assert abs(one - two) <= 0.1


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path):
    make_store(tmp_path / "store")
    words = [
        "profile=smoke",
        "trainer=cpu",
        "trainer.devices=3",
        f"data.store={tmp_path / 'store'}",
    ]
    with pytest.raises(UserError, match=r"stage\.batch_size=16 .* does not divide"):
        prepare(typed(compose("run", words)))
    words += ["method=flat_gan", "stage.batch_size=12"]
    with pytest.raises(UserError, match=r"gan\.batch_size=16"):
        prepare(typed(compose("run", words)))
