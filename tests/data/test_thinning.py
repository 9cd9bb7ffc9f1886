"""Rare classes are thinned in what is learned from, and nowhere else."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.data.splits import CannotSplit, make_split, whole_split
from stemcell_lit.data.thinning import classes_to_thin, track_units
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import SplitConfig
from tests.conftest import make_store

CLASSES = ["a", "b", "c", "d"]


def tracks(labels, groups, names):
    """What `make_split` knows of a store."""
    labels = np.asarray(labels)
    label = [CLASSES[i] for i in labels]
    manifest = pd.DataFrame({"group": groups, "track": names, "label": label})
    pixels = np.zeros((len(manifest), 1, 1), np.uint8)
    return PatchStore(Path("s"), pixels, manifest, {"classes": CLASSES})


def drawn(seed, count=200, groups=9, classes=4):
    """Movies with tracks that pass through classes, some patches without a track."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, count)
    track = rng.integers(0, 6, count)
    names = [f"g{g}/t{t}" if t else "" for g, t in zip(group, track, strict=True)]
    labels = rng.choice(classes, count, p=rng.dirichlet(np.full(classes, 2.0)))
    return tracks(labels, [f"g{g}" for g in group], names)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ratio=st.floats(1, 200),
    weaker=st.floats(0, 1),
    fraction=st.sampled_from([0.4, 1.0]),
    kind=st.sampled_from(["grouped", "leaky"]),
    classes=st.sampled_from([None, ["a"], ["c", "b"], ["d", "a", "b"]]),
)
def test_only_what_is_learned_from_loses_whole_tracks_of_thinned_classes(
    seed, ratio, weaker, fraction, kind, classes
):
    store = drawn(seed)
    config = SplitConfig(kind=kind, seed=seed % 7, fold=seed % 3, labelled_fraction=fraction)
    try:
        whole = make_split(store, config)
    except CannotSplit:
        return
    config.thin_classes = classes
    assert np.array_equal(make_split(store, config).train, whole.train)  # no ratio, no thinning
    config.thin_ratio = ratio
    split = make_split(store, config)
    config.thin_ratio = 1 + weaker * (ratio - 1)
    less = make_split(store, config)
    named = [CLASSES.index(name) for name in classes_to_thin(store, config)]
    units = track_units(store, kind)
    assert np.array_equal(split.val, whole.val) and np.array_equal(split.test, whole.test)
    for part in ("train", "unlabelled"):
        now, before = getattr(split, part), getattr(whole, part)
        assert set(now) <= set(getattr(less, part)) <= set(before)  # nested
        gone = np.setdiff1d(before, now)
        assert np.isin(store.labels[gone], named).all()
        for label in named:
            of_now, of_gone = (units[rows[store.labels[rows] == label]] for rows in (now, gone))
            assert not set(of_now) & set(of_gone)  # whole tracks
            assert len(of_now) or not len(of_gone)  # one stays
    assert not set(split.unlabelled) & set(np.setdiff1d(whole.train, split.train))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(1, 200))
def test_the_ratio_is_reached_within_one_track(seed, ratio):
    store = drawn(seed)
    try:
        whole = make_split(store, SplitConfig(seed=seed % 7))
        split = make_split(store, SplitConfig(seed=seed % 7, thin_ratio=ratio))
    except CannotSplit:
        return
    units, named = track_units(store, "grouped"), classes_to_thin(store, SplitConfig())
    rest = store.labels[whole.train]
    rest = rest[~np.isin(rest, [CLASSES.index(name) for name in named])]
    wanted = np.bincount(rest).max() / ratio
    for name in named:
        of = whole.train[store.labels[whole.train] == CLASSES.index(name)]
        if not len(of):
            assert name not in split.thinned
            continue
        largest_track = np.bincount(units[of]).max()
        found = split.thinned[name]
        assert found.patches_before == len(of) and found.tracks_before == len(set(units[of]))
        assert found.patches == (store.labels[split.train] == CLASSES.index(name)).sum()
        assert found.ratio == pytest.approx(np.bincount(rest).max() / found.patches, abs=0.01)
        if wanted >= len(of):
            assert found.patches == len(of)  # as rare of its own
        elif found.tracks > 1:
            assert abs(found.patches - wanted) < largest_track
        else:
            assert found.patches <= max(largest_track, 1)


def test_the_choice_is_the_split_seeds_alone_whatever_else_is_thinned():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 60, 700)]
    store = tracks(rng.permutation(np.tile([0, 1, 2, 3, 3, 3, 3], 100)), groups, groups)

    def kept(**more):
        split = make_split(store, SplitConfig(thin_ratio=20, **more))
        return split.train[store.labels[split.train] == 0].tolist()

    alone = kept(thin_classes=["a"])
    assert alone == kept(thin_classes=["a"]) == kept(thin_classes=["c", "a"])
    assert len({tuple(kept(seed=seed, thin_classes=["a"])) for seed in range(4)}) > 1


def test_other_classes_of_a_dropped_track_stay():
    """Every track passes through all classes; only what is thinned of them goes."""
    labels = np.tile([0, 0, 0, 0, 1, 2, 2, 3, 3], 30)
    groups = np.repeat([f"g{i:02d}" for i in range(30)], 9)
    store = tracks(labels, groups, groups)
    split = make_split(store, SplitConfig(thin_ratio=20, thin_classes=["b"]))
    whole = make_split(store, SplitConfig())
    gone = np.setdiff1d(whole.train, split.train)
    assert len(gone) and set(labels[gone]) == {1}
    assert split.groups(store, "train") == whole.groups(store, "train")
    stays = split.thinned["b"]
    assert stays.tracks == stays.patches  # one of each track
    assert stays.patches == round(np.sum(labels[whole.train] == 0) / 20)


def test_rarest_are_the_two_of_fewest_patches_and_never_the_largest():
    store = tracks([0, 0, 0, 1, 2, 2, 3, 3, 3, 3], list("abcdefghij"), list("abcdefghij"))
    assert classes_to_thin(store, SplitConfig()) == ["b", "c"]
    two = SimpleNamespace(classes=["a", "b"], manifest=store.manifest[:4])
    assert classes_to_thin(two, SplitConfig()) == ["b"]


def test_a_class_without_training_patches_and_one_that_is_rare_already_stay_as_they_are():
    labels = np.array([0, 1] * 20 + [2])
    names = [f"g{i:02d}" for i in range(41)]
    store = tracks(labels, names, names)
    folds = [
        make_split(store, SplitConfig(fold=f, thin_ratio=2, thin_classes=["c", "d"]))
        for f in range(5)
    ]
    tested = [split for split in folds if 40 in split.test]
    assert len(tested) == 1 and tested[0].thinned == {}
    for split in folds:
        assert "d" not in split.thinned
        if 40 in split.train:
            assert split.thinned["c"].patches == split.thinned["c"].patches_before == 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SplitConfig(thin_ratio=0.5), "split.thin_ratio=0.5: expected 1 or more"),
        (SplitConfig(thin_ratio=9, thin_classes=[]), "thin_classes"),
        (SplitConfig(thin_ratio=9, thin_classes=["dense", "dense"]), "each once"),
        (
            SplitConfig(thin_ratio=9, thin_classes=["debri"]),
            r"no class debri, expected some of debris, dense, spread, differentiated; did you mean debris\?",
        ),
        (
            SplitConfig(thin_ratio=9, thin_classes=["debris", "dense", "spread", "differentiated"]),
            "all classes of .*; leave out the one that the others are rare against",
        ),
    ],
)
def test_what_cannot_be_thinned_is_told(tmp_path, config, says):
    with pytest.raises(UserError, match=says):
        make_split(make_store(tmp_path / "s", movies=6, frames=2), config)


def test_a_model_of_all_groups_is_trained_on_all_of_them(tmp_path):
    store = make_store(tmp_path / "s", movies=6, frames=2)
    wholes = [whole_split(store, SplitConfig(thin_ratio=ratio)) for ratio in (None, 50)]
    assert np.array_equal(wholes[0].train, wholes[1].train)
