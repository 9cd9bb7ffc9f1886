"""A stage is trained in cycles until validation no longer gains; kills do not change it."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stemcell_lit.base.ranks import Ranks
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.experiment import stages
from stemcell_lit.experiment.run import train
from stemcell_lit.experiment.stages import later_phases, most_images
from stemcell_lit.settings.command_keys import TrainCommand, typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.group_keys import StageConfig
from tests.conftest import make_store


@pytest.fixture
def trained(tmp_path):
    make_store(tmp_path / "store", movies=8)

    def make(out, *settings):
        words = ["profile=smoke", "trainer=cpu", "task=stage", f"data.store={tmp_path / 'store'}"]
        words += ["stage.images=384", "stage.first_images=96", f"out={tmp_path / out}", *settings]
        file = train(typed(compose("train", words), TrainCommand))
        about = json.loads((file.parent / "stage.json").read_text())
        return torch.load(file, weights_only=True)["state_dict"], about

    return make


def losses_of(monkeypatch, values):
    """Lets validation say what it is told to."""
    told = iter(values)
    monkeypatch.setattr(stages, "_validation", lambda *rest: {"loss": next(told)})


def test_a_stage_is_trained_no_longer_than_validation_gains_and_the_best_cycle_is_kept(
    trained, monkeypatch
):
    losses_of(monkeypatch, [0.5, 0.4, 0.41])
    weights, about = trained("stop", "method=flat")
    assert [cycle["loss"] for cycle in about["cycles"]] == [0.5, 0.4, 0.41]
    assert [cycle["images"] // 96 for cycle in about["cycles"]] == [1, 2, 4]
    assert about["kept"] == 1 and not about["capped"]
    losses_of(monkeypatch, [0.5, 0.51])
    first, about = trained("first", "method=flat")
    assert [cycle["images"] // 96 for cycle in about["cycles"]] == [1, 2] and about["kept"] == 0
    losses_of(monkeypatch, [0.5, 0.4])
    two, _ = trained("two", "method=flat", "stage.images=192", "stage.first_images=96")
    assert all(torch.equal(two[name], weights[name]) for name in two)
    assert not all(torch.equal(first[name], weights[name]) for name in first)


def test_every_cycle_learns_from_patches_however_large_a_batch_is(trained, monkeypatch):
    losses_of(monkeypatch, [0.5, 0.4, 0.3])
    _, about = trained(
        "batch", "method=flat", "stage.first_images=2", "stage.images=256", "stage.batch_size=64"
    )
    seen = [cycle["images"] for cycle in about["cycles"]]
    assert len(seen) == 3 and sorted(set(seen)) == seen and seen[-1] >= 256


def test_a_stage_that_would_still_gain_at_its_cap_says_so(trained, monkeypatch):
    losses_of(monkeypatch, [0.5, 0.4, 0.3])
    _, about = trained("cap", "method=flat")
    assert about["capped"] and about["kept"] == 2 and about["images"] // 96 == 4


def test_a_cycle_is_cleared_away_after_all_ranks_have_read_it(trained, monkeypatch, tmp_path):
    there = []
    monkeypatch.setattr(Ranks, "wait", lambda self: there.append([*tmp_path.rglob("phase.ckpt")]))
    losses_of(monkeypatch, [0.5, 0.51])
    trained("ranks", "method=flat")
    assert any(len(files) == 2 for files in there) and not [*tmp_path.rglob("phase.ckpt")]


def test_all_ranks_take_the_pseudo_labels_of_the_first(monkeypatch):
    split = SimpleNamespace(unlabelled=np.array([3, 5, 8]))
    part = SimpleNamespace(counts={"a": 1, "b": 2})
    trial = SimpleNamespace(
        split=split,
        train=part,
        unlabelled=SimpleNamespace(pixels=None),
        config=SimpleNamespace(stage=StageConfig(pseudo_confidence=0.5)),
    )

    class Network:
        groups = ("a", "b")

        def __init__(self, *p):
            self.p = np.array([[x, 1 - x] for x in p])

        def cpu(self):
            return self

        def probabilities(self, pixels):
            return self.p

    said = []
    monkeypatch.setattr(Ranks, "share", lambda self, value: said.append(value) or said[0])
    first = stages._pseudo_labels(trial, Network(0.9, 0.8, 0.2))
    other = stages._pseudo_labels(trial, Network(0.8, 0.9, 0.2))
    assert said[0] != said[1]
    assert [part.tolist() for part in first] == [part.tolist() for part in other] == [[3], [0]]


def test_without_validation_patches_the_whole_budget_is_spent(trained):
    _, about = trained("none", "method=flat", "split.validation_share=0")
    assert about["images"] // 96 == 4 and about["kept"] == 2 and not about["capped"]
    assert [set(cycle) for cycle in about["cycles"]] == [{"images"}] * 3


SHARE = ["method=sampler_repeat", "mix.amount=0.5"]


def test_at_no_dose_and_no_finish_a_sampler_is_flat_sampler_bit_for_bit(trained, tmp_path):
    plain, _ = trained("plain", "method=flat_sampler")
    words = ["method=sampler_gan", "mix.amount=0", "mix.weight=0.5", "mix.finish=0"]
    dosed, _ = trained("dosed", *words)
    assert all(torch.equal(plain[name], dosed[name]) for name in plain)
    names = [p.parent.name for o in ("plain", "dosed") for p in tmp_path.glob(f"{o}/**/stage.ckpt")]
    assert len(names) == 2 and len(set(names)) == 1  # one artifact for both


def test_a_finish_changes_statistics_alone_where_no_place_is_filled(trained):
    """In the first cycle the patches are the same; only what is measured after it differs."""
    one = ["stage.images=96", "stage.first_images=96"]
    plain, _ = trained("plain", "method=flat_sampler", *one)
    finished, _ = trained("finished", "method=sampler_gan", *one)
    differ = {name for name in plain if not torch.equal(plain[name], finished[name])}
    assert differ and all("running_" in name or "num_batches" in name for name in differ)


def test_a_cycle_with_places_and_a_finish_goes_on_exactly_after_a_kill(trained, monkeypatch):
    settings = [*SHARE, "mix.weight=0.5", "mix.finish=0.25"]
    whole, about = trained("whole", *settings)
    step, seen = StageModule.training_step, []

    def killed(self, batch, index):
        seen.append(batch["images"])
        if (
            sum(seen) > 96 + 60 and len(seen) < 1000
        ):  # in the second cycle, in the middle of an epoch
            seen.extend([0] * 1000)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    monkeypatch.setattr(StageModule, "training_step", killed)
    with pytest.raises(SystemExit):
        trained("cut", *settings)
    again, known = trained("cut", *settings)
    assert known == about and len(about["cycles"]) > 1
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("method", ["flat", "flat_crt"])
def test_a_training_that_is_killed_in_a_later_cycle_ends_like_an_undisturbed_one(
    trained, monkeypatch, method
):
    settings = [f"method={method}", "stage.gain=0"]
    whole, about = trained("whole", *settings)
    fit, begun = stages.fit, []

    class Killed(BaseException):
        pass

    def killed(module, data, *rest):
        begun.append(rest)
        if len(begun) == len(about["cycles"]):
            raise Killed
        return fit(module, data, *rest)

    monkeypatch.setattr(stages, "fit", killed)
    with pytest.raises(Killed):
        trained("cut", *settings)
    monkeypatch.setattr(stages, "fit", fit)
    again, known = trained("cut", *settings)
    assert known == about and len(about["cycles"]) > 1
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_all_phases_together_stay_within_the_budget():
    for share in (0, 0.2, 0.5):
        for rounds in (0, 1, 3):
            stage = StageConfig(images=10_000, retrain_head=share, pseudo_rounds=rounds)
            body = most_images(stage)
            later = later_phases(stage, body)
            assert abs(body + sum(p.images for p in later) - 10_000) <= rounds + 2
            assert [p.head for p in later] == [False] * rounds + [True] * (share > 0)
