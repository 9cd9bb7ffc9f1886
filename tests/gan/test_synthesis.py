import json

import numpy as np
import pytest
import torch

from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.entropy import entropy
from stemcell_lit.gan.module import GANModule
from stemcell_lit.gan.patch_filters import FILTERS, Filter, make_filters
from stemcell_lit.gan.synthesis import synthesize
from stemcell_lit.gan.trained import load_generator
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.gan_keys import SelectConfig
from tests.gan.helpers import CLASSES, SIDE, TINY

GIVEN = {"seed": 3, "generator_hash": "abc", "seen_groups": ["b", "a"]}


@pytest.fixture(scope="module")
def module():
    return GANModule(TINY, CLASSES, SIDE).eval()


class Painter(GANModule):
    """Paints gray levels at random: rows dark or bright in halves, others of one level."""

    def sample(self, labels, seed, batch_size=256):
        random = np.random.default_rng(seed)
        low = random.integers(0, 2, (len(labels), 1, 1)) * 128
        levels = random.choice([4, 64], (len(labels), 1, 1), p=[0.8, 0.2])
        made = low + random.integers(0, levels, (len(labels), SIDE, SIDE))
        return made.astype(np.uint8)


class Judge:
    """Stands for an encoder: brightness is the feature and the confidence in `rows`."""

    classes = CLASSES

    def __init__(self, levels=64):
        real = np.random.default_rng(1).integers(0, levels, (64, SIDE, SIDE)).astype(np.uint8)
        self.training = {
            "features": self.features(real),
            "entropy": entropy(real),
            "label": np.zeros(64, np.int64),
        }

    def features(self, pixels):
        return pixels.reshape(len(pixels), -1).mean(1, keepdims=True).astype(np.float32)

    def probabilities(self, pixels):
        p = self.features(pixels)[:, 0] / 255
        return np.stack([p, 1 - p, 0 * p], 1)


@pytest.fixture(scope="module")
def painter():
    return Painter(TINY, CLASSES, SIDE).eval()


def drawn(painter, folder, judge=None, wanted=100, **settings):
    select = SelectConfig(**settings)
    return synthesize(
        painter,
        {"rows": wanted},
        folder,
        filters=make_filters(select, judge, 0),
        draws=select.draws,
        **GIVEN,
    )


def test_store_carries_its_provenance(module, tmp_path):
    store = synthesize(module, {"rows": 5, "flat": 3}, tmp_path / "made", um_per_px=0.5, **GIVEN)
    again = PatchStore.open(store.path)
    assert again.pixels.shape == (8, SIDE, SIDE)
    assert again.manifest["label"].value_counts().to_dict() == {"rows": 5, "flat": 3}
    assert set(again.manifest["origin"]) == {"generated"}
    assert again.manifest["time_h"].isna().all()
    assert again.classes == CLASSES
    assert again.seen_groups == {"a", "b"}
    made_by = json.loads((store.path / "store.json").read_text())["made_by"]
    assert made_by["generator"] == "abc"
    assert made_by["seed"] == 3
    assert made_by["acceptance"] == {"rows": {"all": 1.0}, "flat": {"all": 1.0}}
    assert made_by["filters"] == [] and made_by["missing"] == {}


def test_same_seed_same_store_and_classes_are_independent(module, tmp_path):
    first = synthesize(module, {"rows": 5, "flat": 3}, tmp_path / "a", **GIVEN)
    second = synthesize(module, {"rows": 5, "flat": 3}, tmp_path / "b", **GIVEN)
    alone = synthesize(module, {"flat": 3}, tmp_path / "c", **GIVEN)
    other = synthesize(module, {"flat": 3}, tmp_path / "d", **{**GIVEN, "seed": 4})
    assert first.content_hash == second.content_hash
    assert np.array_equal(first.pixels[5:], alone.pixels)
    assert not np.array_equal(alone.pixels, other.pixels)


def test_confidence_keeps_what_is_called_the_wanted_class(painter, tmp_path):
    store = drawn(painter, tmp_path / "made", Judge(), filters=["confidence"], confidence=0.45)
    assert len(store) == 100
    assert (Judge().probabilities(store.pixels)[:, 0] >= 0.45).all()
    shares = store.info["made_by"]["acceptance"]["rows"]
    assert shares["confidence"] == pytest.approx(0.5, abs=0.15)  # half is painted bright


def test_distance_keeps_what_lies_among_real_patches(painter, tmp_path):
    judge = Judge()
    store = drawn(painter, tmp_path / "made", judge, filters=["distance"], draws=20, wanted=40)
    real, made = judge.training["features"], judge.features(store.pixels)
    assert made.min() > real.min() - 1 and made.max() < real.max() + 1
    assert set(np.ptp(store.pixels, (1, 2)) > 10) == {True}  # neither the bright nor the flat
    everything = painter.sample(torch.zeros(200, dtype=torch.int64), 0)
    assert judge.features(everything).max() > real.max() + 50


def test_entropy_matches_the_histogram_of_real_patches(painter, tmp_path):
    judge = Judge()  # four parts flat, one part fine, in equal shares
    flat = np.random.default_rng(2).integers(0, 4, (64, SIDE, SIDE)).astype(np.uint8)
    judge.training["entropy"] = np.concatenate([judge.training["entropy"], entropy(flat)])
    judge.training["label"] = np.zeros(128, np.int64)
    plain = drawn(painter, tmp_path / "plain", wanted=400)
    store = drawn(painter, tmp_path / "made", judge, wanted=400, filters=["entropy"])
    fine = [(entropy(s.pixels) > 4).mean() for s in (plain, store)]
    assert fine[0] == pytest.approx(0.2, abs=0.07)
    assert fine[1] == pytest.approx(0.5, abs=0.1)
    assert store.info["made_by"]["acceptance"]["rows"]["all"] > 0.25


def test_filters_combine_in_their_order_and_tell_their_shares(painter, tmp_path):
    chosen = {"filters": ["confidence", "entropy"], "confidence": 0.45, "draws": 40}
    store = drawn(painter, tmp_path / "made", Judge(), **chosen)
    shares = store.info["made_by"]["acceptance"]["rows"]
    assert store.info["made_by"]["filters"] == ["confidence", "entropy"]
    assert shares["all"] == pytest.approx(shares["confidence"] * shares["entropy"])
    assert 0.05 < shares["entropy"] < 0.3  # of those that are confident: one in five is not flat
    again = drawn(painter, tmp_path / "again", Judge(), **chosen)
    assert again.content_hash == store.content_hash


def test_a_class_that_cannot_be_filled_says_so_and_ends(module, tmp_path):
    seen = []

    def fit(pilot, name):
        def accept(pixels):
            seen.append(len(pixels))
            return np.full(len(pixels), name == "rows")

        return accept

    given = {"filters": [Filter("picky", fit)], "draws": 3, **GIVEN}
    with pytest.warns(UserWarning, match="missing 7 of 7 flat after 3 draws"):
        store = synthesize(module, {"rows": 5, "flat": 7}, tmp_path / "made", batch_size=4, **given)
    assert sum(seen) == 15 + 21  # three draws for each that is wanted, no more
    assert store.info["made_by"]["missing"] == {"flat": 7}
    assert store.info["made_by"]["acceptance"]["flat"] == {"all": 0.0, "picky": 0.0}
    assert len(store) == 5
    with pytest.raises(UserError, match="loosen the filters"):
        synthesize(module, {"flat": 7}, tmp_path / "none", **given)
    assert not (tmp_path / "none").exists()


def test_draws_beyond_the_pilot_go_on_until_the_quota(module, tmp_path):
    def fit(pilot, name):
        return lambda pixels: np.arange(len(pixels)) % 4 == 0

    store = synthesize(
        module, {"flat": 100}, tmp_path / "made", filters=[Filter("fourth", fit)], draws=8, **GIVEN
    )
    assert len(store) == 100
    assert store.info["made_by"]["acceptance"]["flat"]["all"] == pytest.approx(0.25, abs=0.01)


def test_wrong_filters_are_named():
    for settings, says in (
        ({"filters": ["beauty"]}, "beauty"),
        ({"filters": ["entropy"], "entropy_bins": 0}, "entropy_bins=0"),
        ({"filters": ["distance"]}, "encoder.pt"),
        ({"draws": 0.5}, "expected 1 or more"),
    ):
        with pytest.raises(UserError, match=says):
            make_filters(SelectConfig(**settings), None)
    names = [f.name for f in make_filters(SelectConfig(filters=list(FILTERS)), Judge())]
    assert names == list(FILTERS)


@pytest.mark.parametrize("wanted", [{"debris": 3}, {"rows": 0}, {}, {"rows": -1, "flat": 3}])
def test_wrong_wishes_are_refused(module, tmp_path, wanted):
    with pytest.raises(UserError):
        synthesize(module, wanted, tmp_path / "made", **GIVEN)


def test_a_file_that_is_no_generator_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_generator(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not a readable generator"):
        load_generator(tmp_path / "other.ckpt")
