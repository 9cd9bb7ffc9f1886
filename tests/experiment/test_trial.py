"""A trial's parts are read once, and what it shows its trainings in is no part of what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stemcell_lit.experiment import trial as module
from stemcell_lit.experiment.encoders import TrainedEncoder, encoder_of
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.gan.encoder import Encoder
from stemcell_lit.patches.store import reduce_pixels
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose


@pytest.fixture
def trial(store, tmp_path):
    words = ["profile=smoke", "trainer=cpu", "data.patch_size=8", "split.labelled_fraction=0.5"]
    words += ["quality.encoder_images=60", f"data.store={store.path}", f"out={tmp_path / 'out'}"]
    return prepare(typed(compose("run", words)))


def test_parts_hold_the_patches_of_the_split_at_the_trials_size(trial):
    for name in ("train", "val", "test", "unlabelled"):
        part, rows = getattr(trial, name), getattr(trial.split, name)
        assert len(part) == len(rows) > 0
        assert np.array_equal(part.pixels, reduce_pixels(trial.store.pixels[rows], 8))
        assert np.array_equal(part.labels, trial.store.labels[rows])
        labels = trial.store.manifest["label"].to_numpy()[rows]
        assert part.counts == {c: int((labels == c).sum()) for c in trial.store.classes}
        assert np.array_equal(part.facts["times"], trial.store.manifest["time_h"].to_numpy()[rows])
    assert trial.size == 8 and trial.um_per_px == trial.store.size / 8


def test_patches_are_reduced_once_and_kept_only_where_they_are_small(trial, monkeypatch):
    reduced = []

    def watched(pixels, size):
        reduced.append(len(pixels))
        return reduce_pixels(pixels, size)

    monkeypatch.setattr(module, "reduce_pixels", watched)
    assert trial.train.pixels is trial.train.pixels
    assert reduced == [len(trial.train)]
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    assert np.array_equal(trial.val.pixels, trial.val.pixels)
    assert reduced == [len(trial.train), len(trial.val), len(trial.val)]


def test_the_run_that_shows_a_training_is_no_part_of_a_trial(trial):
    shown = replace(trial, wandb_run=object())
    assert shown.hash == trial.hash and "wandb_run" not in repr(shown)


def test_an_encoder_is_made_once_and_named_by_its_hash(trial, monkeypatch):
    first = encoder_of(trial)
    assert first.name == trial.artifacts.locate(TrainedEncoder(trial)).name[:6]
    monkeypatch.setattr(Encoder, "fit", None)  # another training would fail
    again = encoder_of(trial)
    assert np.array_equal(first.features(trial.test.pixels), again.features(trial.test.pixels))
    quality = replace(trial.config.quality, encoder_images=61)
    other = replace(trial, config=replace(trial.config, quality=quality))
    assert trial.artifacts.locate(TrainedEncoder(other)) != trial.artifacts.locate(
        TrainedEncoder(trial)
    )
