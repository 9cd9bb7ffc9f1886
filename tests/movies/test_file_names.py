"""What the names of a folder's files say: numbers, hours, channels, planes, positions."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemcell_lit.errors import UserError
from stemcell_lit.movies.file_names import arrange

FOLDER = Path("/frames")


def read(names, **choice):
    """position -> (names in order, numbers, hours)."""
    found = arrange([FOLDER / n for n in names], FOLDER, **choice).movies
    return {p: ([f.name for f in m.files], m.numbers, m.hours) for p, m in found.items()}


def refused(names, *words, **choice):
    with pytest.raises(UserError) as caught:
        read(names, **choice)
    message = str(caught.value)
    assert str(FOLDER) in message and "\n" not in message
    for word in words:
        assert re.search(word, message), message


@pytest.mark.parametrize(
    ("names", "numbers", "hours"),
    [
        (["t0.png", "t1.png", "t2.png", "t10.png"], [0, 1, 2, 10], None),
        (["img_t000.png", "img_t001.png", "img_t005.png"], [0, 1, 5], None),
        (["1.png", "2.png", "10.png"], [1, 2, 10], None),
        (["a_1_1.png", "a_2_2.png", "a_3_3.png"], [1, 2, 3], None),
        (["img-1.png", "img-2.png", "img-10.png"], [1, 2, 10], None),
        (["a.png", "b.png", "c.png"], [0, 1, 2], None),
        ([f"P37_T0000{t}_Crfp_Z1_S1.tif" for t in (1, 2, 3)], [1, 2, 3], None),
        (["c_0h.png", "c_0.25h.png", "c_0.5h.png", "c_1h.png"], [0, 1, 2, 3], [0, 0.25, 0.5, 1]),
        (["t0,5h.png", "t1,5h.png"], [0, 1], [0.5, 1.5]),
        (["c_30min.png", "c_60min.png", "c_120min.png"], [0, 1, 2], [0.5, 1, 2]),
        (["day1.png", "day2.png", "day10.png"], [0, 1, 2], [24, 48, 240]),
        (["x_-2h.png", "x_-1h.png", "x_0h.png"], [0, 1, 2], [-2, -1, 0]),
        (
            ["A1_1_00d00h00m.tif", "A1_1_00d06h30m.tif", "A1_1_01d00h00m.tif"],
            [0, 1, 2],
            [0, 6.5, 24],
        ),
        (["2024-01-01_12-00-00.png", "2024-01-02_13-30-00.png"], [0, 1], [0, 25.5]),
        (["t-1.png", "t0.png", "t1.png"], [0, 1, 2], None),
        (["img_1700000000123.png", "img_1700000060123.png"], [0, 1], None),
    ],
)
def test_names_tell_the_order_the_numbers_and_the_hours(names, numbers, hours):
    shuffled = names[::-1]
    assert read(shuffled) == {"": (names, numbers, None if hours is None else pytest.approx(hours))}


def test_positions_are_movies_of_their_own():
    names = [f"xy{s:02d}c1t{t:03d}.tif" for s in (1, 2) for t in (1, 2, 3)]
    assert read(names) == {
        "xy01": (names[:3], [1, 2, 3], None),
        "xy02": (names[3:], [1, 2, 3], None),
    }
    assert read(names, position="2") == {"xy02": (names[3:], [1, 2, 3], None)}
    refused(names, "xy01, xy02", position="7")
    wells = [f"scan_{w}_1_00d{h:02d}h00m.tif" for w in ("A1", "B1") for h in (0, 6)]
    assert [*read(wells)] == ["A1", "B1"]
    harmony = [f"r01c01f0{f}p01-ch1sk{t}fk1fl1.tiff" for f in (1, 2) for t in (1, 2)]
    assert {p: n for p, (_, n, _) in read(harmony).items()} == {
        "r01c01f01": [1, 2],
        "r01c01f02": [1, 2],
    }


def test_channels_and_planes_are_chosen_never_mixed():
    names = [f"a_t{t}_ch{c:02d}.tif" for t in (1, 2) for c in (0, 1)]
    refused(names, "2 channels", "ch00, ch01", "channel=ch00")
    for choice in ("1", "01", "ch01", "CH01"):
        assert read(names, channel=choice)[""][0] == ["a_t1_ch01.tif", "a_t2_ch01.tif"]
    refused(names, "ch00, ch01", channel="3")
    metamorph = [f"e_w{c}{n}_s1_t{t}.TIF" for c, n in ((1, "GFP"), (2, "Phase")) for t in (1, 2)]
    refused(metamorph, "gfp, phase")
    for choice in ("phase", "Phase", "w2", "2"):
        assert read(metamorph, channel=choice)[""][0] == metamorph[2:]
    words = [f"{n}_t{t}.png" for n in ("gfp", "phase") for t in (1, 2)]
    refused(words, "gfp, phase")
    assert read(words, channel="phase")[""][0] == words[2:]
    planes = [f"img_{t:09d}_Default_{z:03d}.tif" for t in (0, 1) for z in (0, 1)]
    refused(planes, "2 planes", "plane=0")
    assert read(planes, plane=1)[""][:2] == ([planes[1], planes[3]], [0, 1])
    assert read([f"T={t}_C={c}_Z=0.tif" for t in (0, 1) for c in (0, 1)], channel="0")[""][1] == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["a_1_1.png", "a_1_2.png", "a_2_1.png"], "several numbers change"),
        (["t1.png", "t01.png"], "same frame"),
        (["start.png", "t1.png"], "different kinds"),
        (["v1.9.png", "v1.10.png"], "decimal point"),
        (["t1_2h.png", "t2_1h.png"], "not by its time"),
    ],
)
def test_what_names_do_not_settle_is_refused(names, word):
    refused(names, word)


@given(
    st.lists(st.integers(0, 10**6), unique=True, min_size=2, max_size=20),
    st.integers(1, 8),
    st.sampled_from(["img_t{}", "{}", "T={}_C=0_Z=0", "exp 3 (2)_t{}_ch00", "frame{}"]),
)
def test_numbers_padded_or_not_are_read_as_they_stand(numbers, width, pattern):
    ordered = sorted(numbers)
    names = [pattern.format(f"{n:0{width}d}") + ".png" for n in numbers]
    assert read(names)[""][1] == ordered


@given(
    st.lists(st.text("abt0129._-=h ", min_size=1, max_size=8), unique=True, min_size=1, max_size=6)
)
def test_any_names_are_arranged_or_refused(stems):
    names = [f"{s}.png" for s in stems]
    try:
        found = read(names)
    except UserError as error:
        assert str(FOLDER) in str(error)
    else:
        assert sorted(n for files, _, _ in found.values() for n in files) == sorted(names)
        for _, numbers, hours in found.values():
            assert numbers == sorted(set(numbers))
            assert hours is None or hours == sorted(set(hours))
