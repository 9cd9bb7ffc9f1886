import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemcell_lit.data.splits import CannotSplit, fold_count, make_split
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import SplitConfig
from tests.conftest import make_store


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("splits") / "s", movies=12, frames=3)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    folds=st.integers(2, 6),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.15, 0.4]),
    fraction=st.sampled_from([0.2, 0.5, 1.0]),
    kind=st.sampled_from(["grouped", "leaky"]),
)
def test_no_group_on_both_sides_and_every_patch_tested_once(
    many, folds, seed, share, fraction, kind
):
    tested = []
    for fold in range(folds):
        config = SplitConfig(
            kind=kind,
            folds=folds,
            fold=fold,
            seed=seed,
            validation_share=share,
            labelled_fraction=fraction,
        )
        split = make_split(many, config)
        parts = [split.units(many, part) for part in ("train", "val", "test")]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert len(split.train) > 0
        tested += split.test.tolist()
    assert sorted(tested) == list(range(len(many)))


def test_leaky_split_puts_frames_of_one_movie_on_both_sides(many):
    split = make_split(many, SplitConfig(kind="leaky"))
    assert set(split.groups(many, "train")) & set(split.groups(many, "test"))


def test_labelled_fraction_keeps_every_class_and_about_the_share(many):
    whole = make_split(many, SplitConfig(folds=3))
    part = make_split(many, SplitConfig(folds=3, labelled_fraction=0.25))
    assert set(part.train) < set(whole.train)
    assert (part.test == whole.test).all() and (part.val == whole.val).all()
    assert set(many.labels[part.train]) == set(many.labels[whole.train])
    assert 0.2 <= len(part.train) / len(whole.train) <= 0.6


def test_split_depends_on_the_seed_alone(many):
    first, again = (make_split(many, SplitConfig(folds=4, seed=3)) for _ in range(2))
    assert (first.train == again.train).all()
    other = make_split(many, SplitConfig(folds=4, seed=4))
    assert not np.array_equal(first.test, other.test)


def test_folds_follow_the_number_of_groups(many, tmp_path):
    assert fold_count(many, SplitConfig()) == 3
    assert fold_count(make_store(tmp_path / "s", movies=25, frames=2), SplitConfig()) == 5
    assert fold_count(many, SplitConfig(folds=4)) == 4


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SplitConfig(folds=40), "12 groups cannot make 40 folds"),
        (SplitConfig(folds=3, fold=3), "expected 0 to 2"),
        (SplitConfig(kind="random"), "grouped | leaky"),
        (SplitConfig(labelled_fraction=0), "labelled_fraction"),
    ],
)
def test_impossible_splits_say_why(many, config, says):
    with pytest.raises(UserError, match=says):
        make_split(many, config)


def arrays(labels, groups):
    """What `make_split` knows of a store."""
    names = [f"class-{i}" for i in range(max(labels) + 1)]
    manifest = pd.DataFrame({"label": [names[i] for i in labels], "group": groups})
    pixels = np.zeros((len(manifest), 1, 1), np.uint8)
    return PatchStore(Path("s"), pixels, manifest, {"classes": names})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    folds=st.integers(2, 4),
    share=st.sampled_from([0.15, 0.4]),
    kind=st.sampled_from(["grouped", "leaky"]),
)
def test_validation_never_takes_the_last_training_group_of_a_class(seed, folds, share, kind):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(8, 60))
    groups = np.array([f"g{i}" for i in rng.integers(0, 9, count)])
    labels = rng.choice(3, count, p=rng.dirichlet(np.full(3, 0.6)))
    for fold in range(folds):
        config = SplitConfig(
            kind=kind, folds=folds, fold=fold, seed=seed % 5, validation_share=share
        )
        try:
            split = make_split(arrays(labels, groups), config)
        except CannotSplit:
            continue
        rest = np.union1d(split.train, split.val)
        assert set(labels[split.train]) == set(labels[rest])
        assert not np.intersect1d(split.train, split.val).size
        if kind == "grouped":
            assert not set(groups[split.train]) & set(groups[split.val])


def test_a_split_that_was_valid_is_the_same_as_ever():
    """Names of results and generators stand for these rows; they were written down before the last group was kept."""
    rng = np.random.default_rng(4)
    groups = np.array([f"g{i:02d}" for i in rng.integers(0, 12, 90)])
    store = arrays(rng.choice(3, 90, p=[0.6, 0.3, 0.1]), groups)
    told = ""
    for fold in range(3):
        for fraction in (0.3, 1.0):
            config = SplitConfig(folds=3, fold=fold, labelled_fraction=fraction)
            split = make_split(store, config)
            told += f"{split.train.tolist()}{split.val.tolist()}{split.test.tolist()}"
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "47e2e27d50af8710"


def test_few_patches_a_class_still_leave_some_to_validate():
    """Nine crops a class in three folds: a seventh of six cannot be drawn from each class, a sixth can."""
    store = arrays(np.repeat([0, 1], 9), [f"crop-{i}" for i in range(18)])
    for fold in range(3):
        split = make_split(store, SplitConfig(folds=3, fold=fold))
        assert np.bincount(store.labels[split.train]).tolist() == [5, 5]
        assert np.bincount(store.labels[split.val]).tolist() == [1, 1]


def test_where_every_training_group_is_the_last_of_a_class_none_validates():
    store = arrays([0, 0, 1, 1, 0, 1], ["a", "a", "b", "b", "c", "c"])
    config = SplitConfig(folds=3, seed=0)
    for fold in range(3):
        one = dataclasses.replace(config, fold=fold)
        test = set(
            store.manifest["group"].iloc[
                make_split(store, dataclasses.replace(one, validation_share=0)).test
            ]
        )
        if test == {"c"}:
            with pytest.raises(CannotSplit, match="give split.validation_share=0"):
                make_split(store, one)
            break
    else:
        raise AssertionError("no fold tests c alone")
