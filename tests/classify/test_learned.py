"""What a model has learned from is known again, in whatever store it lies."""

from __future__ import annotations

import numpy as np
import pytest

from stemcell_lit.classify.learned import PRINTS, Learned
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from tests.conftest import CLASSES, make_store


def rows_of(store, *movies):
    return np.flatnonzero(store.manifest["group"].isin(movies))


def stored(path, store, rows, **columns):
    manifest = store.manifest.iloc[rows].assign(**columns)
    return PatchStore.write(path, np.asarray(store.pixels)[rows], manifest, classes=CLASSES)


def known(learned, store, size=16):
    seen = learned.seen(store, size)
    return set(store.manifest["group"][seen]), set(store.manifest["group"][~seen])


def test_in_the_same_store_training_groups_are_seen_and_no_others(store):
    learned = Learned.of(store, rows_of(store, "movie_00", "movie_03"), 16)
    seen, unseen = known(learned, store)
    assert seen == {"movie_00", "movie_03"} and len(unseen) == 4


@pytest.mark.parametrize("size", [8, 16])
def test_a_part_of_the_store_under_other_names_and_labels_is_known_by_its_pixels(
    store, tmp_path, size
):
    learned = Learned.of(store, rows_of(store, "movie_00", "movie_03"), size)
    some = rows_of(store, "movie_03", "movie_04")[::2]
    names = store.manifest["group"].iloc[some].map({"movie_03": "x", "movie_04": "y"})
    other = stored(tmp_path / "other", store, some, group=names, label=CLASSES[0], track="t")
    assert known(learned, other, size) == ({"x"}, {"y"})


def test_one_known_patch_makes_its_whole_group_seen(store, tmp_path):
    learned = Learned.of(store, rows_of(store, "movie_00")[:1], 16)
    rows = rows_of(store, "movie_00", "movie_01")
    other = stored(tmp_path / "other", store, rows, frame=0)
    assert known(learned, other) == ({"movie_00"}, {"movie_01"})


def test_equal_names_of_groups_do_not_make_other_pixels_seen(store, tmp_path):
    learned = Learned.of(store, np.arange(len(store)), 16)
    assert not learned.seen(make_store(tmp_path / "other", seed=1), 16).any()


def test_patches_of_one_gray_value_tell_nothing(store, tmp_path):
    blank = np.full_like(np.asarray(store.pixels), 7)
    one, two = (
        PatchStore.write(tmp_path / n, blank, store.manifest.assign(track=n), classes=CLASSES)
        for n in ("one", "two")
    )
    learned = Learned.of(one, np.arange(len(one)), 16)
    assert learned.seen(one, 16).all() and not learned.seen(two, 16).any()


def test_what_was_learned_is_kept_with_the_model(store, tmp_path):
    for learned in (Learned(), Learned.of(store, rows_of(store, "movie_00"), 16)):
        found = Learned.load(tmp_path, learned.save(tmp_path), "again")
        assert np.array_equal(found.prints, learned.prints)
        assert (found.store, found.groups) == (learned.store, list(learned.groups))
        assert np.array_equal(found.seen(store, 16), learned.seen(store, 16))


def test_prints_that_do_not_fit_the_model_are_refused(store, tmp_path):
    about = Learned.of(store, rows_of(store, "movie_00"), 16).save(tmp_path)
    np.save(tmp_path / PRINTS, np.zeros((3, 8), np.uint8))
    with pytest.raises(UserError, match=r"learned.npy: .*again"):
        Learned.load(tmp_path, about, "again")
