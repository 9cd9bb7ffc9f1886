import json

import numpy as np
import pytest
import torch

from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.gan.module import GANModule
from stemcell_lit.gan.synthesis import load_generator, synthesize
from tests.gan.helpers import CLASSES, SIDE, TINY

GIVEN = {"seed": 3, "generator_hash": "abc", "seen_groups": ["b", "a"]}


@pytest.fixture(scope="module")
def module():
    return GANModule(TINY, CLASSES, SIDE).eval()


def brightness(pixels, name):
    return pixels.mean((1, 2))


def test_store_carries_its_provenance(module, tmp_path):
    store = synthesize(module, {"rows": 5, "flat": 3}, tmp_path / "made", um_per_px=0.5, **GIVEN)
    again = PatchStore.open(store.path)
    again.verify()
    assert again.pixels.shape == (8, SIDE, SIDE)
    assert again.manifest["label"].value_counts().to_dict() == {"rows": 5, "flat": 3}
    assert set(again.manifest["origin"]) == {"generated"}
    assert again.manifest["time_h"].isna().all()
    assert again.classes == CLASSES
    assert again.seen_groups == {"a", "b"}
    made_by = json.loads((store.path / "store.json").read_text())["made_by"]
    assert made_by["generator"] == "abc"
    assert made_by["seed"] == 3
    assert made_by["acceptance"] == {"rows": 1.0, "flat": 1.0}


def test_same_seed_same_store_and_classes_are_independent(module, tmp_path):
    first = synthesize(module, {"rows": 5, "flat": 3}, tmp_path / "a", **GIVEN)
    second = synthesize(module, {"rows": 5, "flat": 3}, tmp_path / "b", **GIVEN)
    alone = synthesize(module, {"flat": 3}, tmp_path / "c", **GIVEN)
    other = synthesize(module, {"flat": 3}, tmp_path / "d", **{**GIVEN, "seed": 4})
    assert first.content_hash == second.content_hash
    assert np.array_equal(first.pixels[5:], alone.pixels)
    assert not np.array_equal(alone.pixels, other.pixels)


def test_selection_keeps_the_best(module, tmp_path):
    plain = synthesize(module, {"rows": 40}, tmp_path / "plain", **GIVEN)
    best = synthesize(module, {"rows": 10}, tmp_path / "best", select=brightness, draws=4, **GIVEN)
    every = np.sort(brightness(plain.pixels, ""))
    assert np.allclose(np.sort(brightness(best.pixels, "")), every[-10:])
    assert best.info["made_by"]["acceptance"] == {"rows": 0.25}


def test_a_class_that_cannot_be_filled_says_so_and_ends(module, tmp_path):
    scored = []

    def only_rows(pixels, name):
        scored.append(len(pixels))
        return np.full(len(pixels), 1.0 if name == "rows" else 0.0)

    with pytest.warns(UserWarning, match="missing 7 of 7 flat"):
        store = synthesize(
            module,
            {"rows": 5, "flat": 7},
            tmp_path / "made",
            select=only_rows,
            threshold=0.5,
            draws=3,
            batch_size=4,
            **GIVEN,
        )
    assert sum(scored) == 8 + 21  # rows: two batches of four fill five; flat: three draws for each
    assert store.info["made_by"]["missing"] == {"flat": 7}
    assert len(store) == 5
    with pytest.raises(UserError, match="threshold"):
        synthesize(module, {"flat": 7}, tmp_path / "none", select=only_rows, threshold=0.5, **GIVEN)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("wanted", [{"debris": 3}, {"rows": 0}, {}, {"rows": -1, "flat": 3}])
def test_wrong_wishes_are_refused(module, tmp_path, wanted):
    with pytest.raises(UserError):
        synthesize(module, wanted, tmp_path / "made", **GIVEN)


def test_a_file_that_is_no_generator_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_generator(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not the checkpoint of a generator"):
        load_generator(tmp_path / "other.ckpt")
