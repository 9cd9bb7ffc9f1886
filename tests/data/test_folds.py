"""No fold trains without a class that two groups hold, wherever these are."""

from itertools import product

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stemcell_lit.data.folds import GroupTable, can_validate
from stemcell_lit.data.splits import MOST_FOLDS, CannotSplit, fold_count, make_split
from stemcell_lit.settings.group_keys import SplitConfig
from tests.data.test_splits import arrays


@st.composite
def tables(draw, most_groups=7):
    """Groups that hold some classes each: (labels, groups), a row a patch."""
    names = [f"g{i}" for i in range(draw(st.integers(2, most_groups)))]
    rows = [
        (label, name)
        for name in names
        for label in draw(st.sets(st.integers(0, 3), min_size=1, max_size=3))
        for _ in range(draw(st.integers(1, 3)))
    ]
    labels, groups = zip(*rows, strict=True)
    return np.array(labels), np.array(groups)


def shared(labels, groups):
    return {c for c in set(labels) if len(set(groups[labels == c])) > 1}


def possible(labels, groups, folds, validate):
    """Whether any assignment at all is as asked for, by trying each."""
    table = GroupTable(labels, groups)
    count = len(table.counts)
    return any(
        table.fits(np.array([0, *rest]), folds, validate)
        for rest in product(range(folds), repeat=count - 1)
        if len(set(rest) | {0}) == folds
    )


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(0, 50), st.sampled_from([0.0, 0.15, 0.4]))
def test_every_training_part_has_each_class_of_two_groups_and_no_group_is_on_both_sides(
    table, seed, share
):
    labels, groups = table
    assume(np.bincount(labels).max() > 1)  # else no class can be both learned and tested
    store = arrays(labels, groups)
    folds = fold_count(store, SplitConfig(seed=seed))
    reachable = possible(labels, groups, folds, False)
    tested = []
    for fold in range(folds):
        config = SplitConfig(fold=fold, folds=folds, seed=seed, validation_share=share)
        try:
            split = make_split(store, config)
        except CannotSplit as error:
            assert error.kind in ("validation", "folds")
            return
        again = make_split(store, config)
        for part in ("train", "val", "test"):
            assert np.array_equal(getattr(split, part), getattr(again, part))
        parts = [set(groups[getattr(split, part)]) for part in ("train", "val", "test")]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        rest = np.union1d(split.train, split.val)
        assert set(labels[split.train]) == set(labels[rest])
        if reachable:
            assert shared(labels, groups) <= set(labels[split.train])
        tested += split.test.tolist()
    assert sorted(tested) == list(range(len(labels)))


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(0, 50), st.booleans())
def test_the_number_of_folds_is_the_usual_one_or_the_least_above_it_that_fits(
    table, seed, validate
):
    labels, groups = table
    found, largest = len(set(groups)), np.bincount(labels).max()
    assume(largest > 1)
    first = max(2, min(3, found, largest))
    config = SplitConfig(seed=seed, validation_share=0.15 if validate else 0)
    chosen = fold_count(arrays(labels, groups), config)
    numbers = range(first, max(first, min(found, largest, MOST_FOLDS)) + 1)
    for must_validate in (True, False) if validate else (False,):
        fits = [n for n in numbers if possible(labels, groups, n, must_validate)]
        if fits:
            assert chosen == fits[0]
            return
    assert chosen == first


@settings(max_examples=40, deadline=None)
@given(tables(6), st.integers(2, 4), st.booleans())
def test_folds_that_fit_go_on_to_fit_when_they_are_divided(table, folds, validate):
    labels, groups = table
    if len(set(groups)) > folds and possible(labels, groups, folds, validate):
        assert possible(labels, groups, folds + 1, validate)


@settings(max_examples=30, deadline=None)
@given(tables(), st.integers(2, 5), st.integers(0, 50), st.booleans())
def test_the_search_finds_an_assignment_where_there_is_one(table, folds, seed, validate):
    labels, groups = table
    found = GroupTable(labels, groups).search(folds, seed, validate)
    assert (found is not None) == possible(labels, groups, folds, validate)
    if found is not None:
        again = GroupTable(labels, groups).search(folds, seed, validate)
        assert np.array_equal(found, again)


def test_who_can_validate_is_the_last_of_no_class():
    holds = np.array([[1, 0], [1, 1], [1, 0]], bool)
    assert can_validate(holds).tolist() == [True, False, True]
    assert can_validate(holds[:1]).tolist() == [False]
