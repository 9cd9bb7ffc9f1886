"""How many groups there are in effect, and blocks of a field."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.patches.groups import Blocks, effective, thin_classes, told


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([], 0), ([7], 1), ([5, 5, 5, 5], 4), ([573, 55], 1.19), ([3, 1], 1.6)],
)
def test_groups_count_by_their_shares(counts, expected):
    groups = [str(i) for i, n in enumerate(counts) for _ in range(n)]
    assert effective(groups) == pytest.approx(expected, abs=0.005)


def test_what_groups_are_worth_is_told():
    assert told(["a"] * 3 + ["b"]) == (
        "2 groups, worth 1.6 of equal size (3 of 4 patches in the largest)"
    )


def test_classes_that_few_groups_hold_are_named():
    labels = pd.Series(["rare"] * 4 + ["common"] * 8)
    groups = pd.Series(["a", "a", "a", "b", *"abcdabcd"])
    (said,) = thin_classes(labels, groups)
    assert said.startswith("rare is in 2 groups, worth 1.6")


@pytest.mark.parametrize(
    ("shape", "size", "most", "grid"),
    [
        ((576, 720), 64, 10, (3, 3)),
        ((1040, 1392), 64, 12, (3, 4)),
        ((64, 2000), 64, 4, (1, 4)),
        ((80, 80), 64, 10, (1, 1)),
    ],
)
def test_a_field_has_as_many_blocks_as_fit_its_patches(shape, size, most, grid):
    blocks = Blocks(shape, size, most)
    assert (blocks.rows, blocks.columns) == grid and len(blocks) <= most


def test_patches_lie_wholly_inside_their_block():
    blocks = Blocks((100, 130), 16, 4)
    owner = np.array([[blocks.name(y, x) for x in range(130)] for y in range(100)])
    inside = blocks.inside()
    assert inside.shape == (85, 115) and 0 < inside.mean() < 1
    for y, x in np.argwhere(np.ones_like(inside))[::97]:
        whole = len(set(owner[y : y + 16, x : x + 16].ravel())) == 1
        assert whole == inside[y, x]
