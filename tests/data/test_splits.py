import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemcell_lit.data.splits import fold_count, make_split
from stemcell_lit.errors import UserError
from stemcell_lit.schema import SplitConfig
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
        (SplitConfig(kind="random"), "grouped or leaky"),
        (SplitConfig(labelled_fraction=0), "labelled_fraction"),
    ],
)
def test_impossible_splits_say_why(many, config, says):
    with pytest.raises(UserError, match=says):
        make_split(many, config)
