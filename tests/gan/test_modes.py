import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.gan.modes import Modes


def blobs(sizes, seed=0, width=0.05):
    """Features of one class around far apart centres."""
    random = np.random.default_rng(seed)
    centres = 10 * np.eye(len(sizes), 6)
    return np.concatenate(
        [c + random.normal(0, width, (n, 6)) for c, n in zip(centres, sizes, strict=True)]
    )


def test_a_rare_kind_of_a_class_is_a_mode_with_its_share():
    features = np.concatenate([blobs([54, 6]), blobs([20], seed=1)])
    labels = np.repeat([0, 1], [60, 20])
    modes = Modes.fit(features, labels, ["a", "b"], most=2, patches=12)
    assert sorted(modes.shares[0]) == [0.1, 0.9] and modes.shares[1] == [1.0]
    found = modes.of(features, labels)
    assert len(set(found[:54])) == len(set(found[54:60])) == 1
    assert found[0] != found[54] and set(found[60:]) == {2}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    most=st.integers(1, 5),
    patches=st.integers(1, 15),
    seed=st.integers(0, 1000),
)
def test_modes_part_each_class_and_nothing_else(sizes, most, patches, seed):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = random.normal(size=(len(labels), 3))
    names = [str(i) for i in range(len(sizes))]
    modes = Modes.fit(features, labels, names, most=most, patches=patches)
    found = modes.of(features, labels)
    first = np.cumsum([0, *map(len, modes.shares)])
    for i, (n, shares) in enumerate(zip(sizes, modes.shares, strict=True)):
        assert len(shares) <= max(1, min(most, n // patches))
        np.testing.assert_allclose(sum(shares), 1)
        own = found[labels == i] - first[i]
        assert ((own >= 0) & (own < len(shares))).all()
        if n:
            np.testing.assert_allclose(np.bincount(own, minlength=len(shares)) / n, shares)
            assert min(shares) > 0
    again = Modes.fit(features, labels, names, most=most, patches=patches)
    assert again.shares == modes.shares
    assert np.array_equal(again.of(features, labels), found)


def test_equal_patches_are_one_mode():
    modes = Modes.fit(np.ones((50, 4)), np.zeros(50, int), ["a"], most=8, patches=5)
    assert modes.shares == [[1.0]]
