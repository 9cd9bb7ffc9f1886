"""Patches without a label: marked one way, kept with their group, learned from where that trains, never of a class."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.leaks import check_labelled
from stemcell_lit.data.splits import CannotSplit, Split, make_split, whole_split
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import SplitConfig

CLASSES = ["a", "b"]


def a_store(path, labels, groups):
    """Patches of 8 x 8 px whose gray values are the number of their row."""
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    manifest = pd.DataFrame({"label": labels, "group": groups})
    return PatchStore.write(path, pixels, manifest, classes=CLASSES)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Eight groups of two patches of each class and one without a label, and two groups without any label."""
    labels = ["a", "a", "b", "b", ""] * 8 + [""] * 6
    groups = [f"g{i}" for i in range(8) for _ in range(5)] + ["h0", "h1"] * 3
    return a_store(tmp_path_factory.mktemp("unlabelled") / "s", labels, groups)


@settings(max_examples=10, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b", "", ""]), st.integers(0, 6)), min_size=24, max_size=60
    ),
    seed=st.integers(0, 50),
    fraction=st.sampled_from([0.4, 1.0]),
    kind=st.sampled_from(["grouped", "leaky"]),
)
def test_no_unlabelled_patch_of_a_held_out_group_reaches_a_training(rows, seed, fraction, kind):
    labels, groups = [r[0] for r in rows], [f"g{r[1]}" for r in rows]
    if {"a", "b"} - set(labels):
        return
    pixels = np.arange(len(rows), dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    manifest = pd.DataFrame({"label": labels, "group": groups, "time_h": np.nan})
    found = PatchStore(Path("s"), pixels, manifest, {"classes": CLASSES})
    config = SplitConfig(kind=kind, folds=3, seed=seed, labelled_fraction=fraction)
    for fold in range(3):
        config.fold = fold
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                split = make_split(found, config)
        except CannotSplit:
            continue
        group, label = found.manifest["group"], found.manifest["label"]
        known = np.concatenate([split.train, split.val, split.test])
        assert found.labelled[known].all()
        held = set(group.iloc[split.val]) | set(group.iloc[split.test])
        bare = split.unlabelled[~found.labelled[split.unlabelled]]
        assert not held & set(group.iloc[bare])
        free = np.flatnonzero((label == "") & ~group.isin(held))
        assert np.array_equal(np.sort(bare), free)
        try:
            data = PatchDataModule(found, split, Scope.of_classes(CLASSES), unlabelled=True)
        except UserError:  # a fold without a class
            continue
        shown = data.bank["train"][:, 0, 0].numpy()
        assert set(shown) <= {*split.train, *split.unlabelled}
        told = data.labels["train"].numpy()
        assert set(shown[told < 0]) == set(split.unlabelled)
        assert not set(data.bank["val"][:, 0, 0].numpy()) & set(split.unlabelled)


def test_labelled_patches_are_split_as_if_the_others_were_not_there(store, tmp_path):
    rows = np.flatnonzero(store.labelled)
    part = store.manifest.iloc[rows]
    alone = a_store(tmp_path / "s", part["label"].tolist(), part["group"].tolist())
    for fold in range(3):
        config = SplitConfig(folds=3, fold=fold, validation_share=0.3)
        whole, less = make_split(store, config), make_split(alone, config)
        for name in ("train", "val", "test"):
            assert np.array_equal(getattr(whole, name), rows[getattr(less, name)])
        assert len(less.unlabelled) == 0 < len(whole.unlabelled)


def test_groups_without_a_labelled_patch_train_in_every_fold_and_in_the_delivered_model(store):
    free = set(np.flatnonzero(store.manifest["group"].str.startswith("h")))
    for fold in range(3):
        assert free <= set(make_split(store, SplitConfig(folds=3, fold=fold)).unlabelled)
    split = whole_split(store, SplitConfig())
    held = set(store.manifest["group"].iloc[split.val])
    assert free < set(split.unlabelled)
    assert not held & set(store.manifest["group"].iloc[split.unlabelled])


def test_half_of_every_batch_has_no_label_and_all_of_them_come(store):
    split = make_split(store, SplitConfig(folds=3, validation_share=0.3))
    scope = Scope.of_classes(CLASSES)
    data = PatchDataModule(
        store, split, scope, unlabelled=True, epoch_images=64, batch_size=8, augment="none"
    )
    labels = data.labels["train"].numpy()
    batches = list(data.batches())
    assert all(int((labels[b] < 0).sum()) == 4 for b in batches)
    shown = {i for b in batches for i in b}
    assert set(np.flatnonzero(labels < 0)) <= shown
    assert data.class_counts == [int((labels == i).sum()) for i in range(2)]
    assert list(data.batches()) == batches  # a resumed training sees the same ones


def test_a_hidden_label_stays_hidden_from_the_generator(store):
    config = SplitConfig(folds=3, validation_share=0.3, labelled_fraction=0.4)
    split = make_split(store, config)
    assert store.labelled[split.unlabelled].any()
    data = PatchDataModule(store, split, Scope.of_classes(CLASSES), unlabelled=True)
    hidden = np.isin(data.bank["train"][:, 0, 0].numpy(), split.unlabelled)
    assert hidden.any() and (data.labels["train"].numpy()[hidden] == -1).all()


def test_whoever_takes_a_patch_without_a_label_as_of_a_class_is_stopped(store):
    bare = np.flatnonzero(~store.labelled)
    with pytest.raises(ValueError, match="without a label taken as of a class"):
        _ = store.labels
    with pytest.raises(ValueError, match="1 patches without a label"):
        store.labels_of(np.array([0, bare[0]]))
    assert store.labels_of(np.array([0, 2])).tolist() == [0, 1]
    nothing = np.empty(0, np.int64)
    for split in (
        Split(np.arange(5), nothing, nothing),
        Split(np.arange(4), nothing, np.arange(4, 6)),
    ):
        with pytest.raises(ValueError, match="without a label"):
            PatchDataModule(store, split, Scope.of_classes(CLASSES))
    leak = Split(np.arange(4), nothing, np.arange(5, 9), unlabelled=np.array([9]))
    with pytest.raises(ValueError, match="of validation or test groups"):
        check_labelled(store, leak)


def test_a_store_says_how_many_have_no_label_and_needs_some_that_have(store, tmp_path):
    assert "without a label 14" in repr(store) and store.unlabelled == 14
    assert PatchStore.open(store.path).unlabelled == 14
    pixels = np.zeros((2, 8, 8), np.uint8)
    for rows in (
        {"label": ["", ""]},
        {"label": ["a", ""], "origin": "generated"},
    ):
        with pytest.raises(UserError, match="have no label"):
            PatchStore.write(tmp_path / "t", pixels, pd.DataFrame(rows), classes=["a"])
    with pytest.raises(UserError, match="are not among the classes"):
        rows = pd.DataFrame({"label": ["a", None]})
        PatchStore.write(tmp_path / "t", pixels, rows, classes=["a"])
