"""A cell's parts are read once, and what it shows its trainings in is no part of what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stemcell_lit.data.patches import reduce_pixels
from stemcell_lit.experiment import cell as module
from stemcell_lit.experiment.cell import prepare
from stemcell_lit.experiment.encoders import TrainedEncoder, encoder_of
from stemcell_lit.gan.encoder import Encoder
from stemcell_lit.schema import typed
from stemcell_lit.settings.compose import compose


@pytest.fixture
def cell(store, tmp_path):
    words = ["profile=smoke", "trainer=cpu", "data.patch_size=8", "split.labelled_fraction=0.5"]
    words += ["quality.encoder_images=60", f"data.store={store.path}", f"out={tmp_path / 'out'}"]
    return prepare(typed(compose("run", words)))


def test_parts_hold_the_patches_of_the_split_at_the_cells_size(cell):
    for name in ("train", "val", "test", "unlabelled"):
        part, rows = getattr(cell, name), getattr(cell.split, name)
        assert len(part) == len(rows) > 0
        assert np.array_equal(part.pixels, reduce_pixels(cell.store.pixels[rows], 8))
        assert np.array_equal(part.labels, cell.store.labels[rows])
        labels = cell.store.manifest["label"].to_numpy()[rows]
        assert part.counts == {c: int((labels == c).sum()) for c in cell.store.classes}
        assert np.array_equal(part.facts["times"], cell.store.manifest["time_h"].to_numpy()[rows])
    assert cell.size == 8 and cell.um_per_px == cell.store.size / 8


def test_patches_are_reduced_once_and_kept_only_where_they_are_small(cell, monkeypatch):
    reduced = []

    def watched(pixels, size):
        reduced.append(len(pixels))
        return reduce_pixels(pixels, size)

    monkeypatch.setattr(module, "reduce_pixels", watched)
    assert cell.train.pixels is cell.train.pixels
    assert reduced == [len(cell.train)]
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    assert np.array_equal(cell.val.pixels, cell.val.pixels)
    assert reduced == [len(cell.train), len(cell.val), len(cell.val)]


def test_the_run_that_shows_a_training_is_no_part_of_a_cell(cell):
    shown = replace(cell, wandb_run=object())
    assert shown.hash == cell.hash and "wandb_run" not in repr(shown)


def test_an_encoder_is_made_once_and_named_by_its_hash(cell, monkeypatch):
    first = encoder_of(cell)
    assert first.name == cell.artifacts.locate(TrainedEncoder(cell)).name[:6]
    monkeypatch.setattr(Encoder, "fit", None)  # another training would fail
    again = encoder_of(cell)
    assert np.array_equal(first.features(cell.test.pixels), again.features(cell.test.pixels))
    quality = replace(cell.config.quality, encoder_images=61)
    other = replace(cell, config=replace(cell.config, quality=quality))
    assert cell.artifacts.locate(TrainedEncoder(other)) != cell.artifacts.locate(
        TrainedEncoder(cell)
    )
