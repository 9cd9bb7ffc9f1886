"""Crops of any size become squares at one scale, and padding is told where it may give a class away."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stemcell_lit.patches.squares import CUE, Squares
from tests.patches.commands import import_crops

SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))


@settings(max_examples=40, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=6), st.integers(0, 99), st.none() | st.integers(1, 64))
def test_what_fits_is_kept_around_the_centre_and_the_rest_is_the_crops_own_background(
    shapes, seed, size
):
    rng = np.random.default_rng(seed)
    squares = Squares.of(np.array(shapes), size)
    for shape, share in zip(shapes, squares.padding, strict=True):
        crop = rng.integers(0, 256, shape, np.uint8)
        made = squares.make(crop)
        assert made.shape == (squares.size,) * 2 and made.dtype == np.uint8
        kept = [min(side, squares.size) for side in shape]
        at = [(side - k) // 2 for side, k in zip(shape, kept, strict=True)]
        to = [(squares.size - k) // 2 for k in kept]
        inside = made[to[0] : to[0] + kept[0], to[1] : to[1] + kept[1]]
        assert np.array_equal(inside, crop[at[0] : at[0] + kept[0], at[1] : at[1] + kept[1]])
        outside = np.ones_like(made, bool)
        outside[to[0] : to[0] + kept[0], to[1] : to[1] + kept[1]] = False
        assert outside.mean() == pytest.approx(share)
        assert len(np.unique(made[outside])) <= 1


def test_equal_squares_stay_as_they_are_without_a_word():
    squares = Squares.of(np.full((5, 2), 64), None)
    crop = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    assert squares.size == 64 and squares.notices(["a"] * 5) == [] and squares.describe() == {}
    assert np.array_equal(squares.make(crop), crop)


def test_the_size_that_is_chosen_holds_three_quarters_whole():
    squares = Squares.of(np.array([(20, 17)] * 3 + [(90, 40)]), None)
    (said,) = squares.notices(list("abab"))[:1]
    assert squares.size == 32 and "3 of 4 padded" in said and "1 cut" in said and "size=" in said


def draw(path, height, width, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(90, 110, (height, width), np.uint8)
    Image.fromarray(values).save(path)


def test_padding_that_may_give_a_class_away_is_told_with_a_size_at_which_it_does_less(tmp_path):
    for i in range(6):
        draw(tmp_path / "src" / "large" / f"{i}.png", 32, 30 + i % 3, i)
        draw(tmp_path / "src" / "small" / f"{i}.png", 18, 18 + i % 3, 10 + i)
    with pytest.warns(UserWarning) as said:
        store = import_crops(tmp_path / "src", tmp_path / "s")
    texts = " ".join(str(w.message) for w in said)
    assert store.size == 32 and store.info["made_by"]["squares"]["size"] == 32
    assert "of small and" in texts and "compare with size=16" in texts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_crops(tmp_path / "src", tmp_path / "t", size=16)
    shapes = np.array([(32, 31)] * 3 + [(18, 18)] * 3)
    shares = Squares.of(shapes, 16).padding
    assert shares.max() - shares.min() < CUE


def test_the_order_of_files_and_other_crops_change_no_pixel(tmp_path):
    draw(tmp_path / "src" / "a" / "0.png", 20, 25, 0)
    draw(tmp_path / "src" / "b" / "0.png", 30, 25, 1)
    first = import_crops(tmp_path / "src", tmp_path / "s").pixels
    draw(tmp_path / "src" / "b" / "1.png", 31, 12, 2)
    again = import_crops(tmp_path / "src", tmp_path / "t").pixels
    assert np.array_equal(first, again[:2])
