"""Positions, channels, planes and times of files; numbers and hours of frames; maps paired with them."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import Movie, movies_at, open_frames, read_picture
from stemcell_lit.movies.maps import pair
from stemcell_lit.patches.labelled import Select, find_movies, movies_in

STACK = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 16, 20), np.uint8)  # C or P, Z, T
OME_UM = {"PhysicalSizeX": 0.65, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.65}


def positions(file, **times):
    with tifffile.TiffWriter(file, ome=True) as writer:
        for p in range(2):
            meta = {"axes": "TYX", "Name": f"Pos{p}", **OME_UM, **times}
            writer.write(STACK[p, 0], photometric="minisblack", metadata=meta)
    return file


def frames_in(folder, values, pattern="t{:03d}.png"):
    folder.mkdir(parents=True)
    for number, value in values.items():
        Image.fromarray(np.full((16, 20), value, np.uint8)).save(folder / pattern.format(number))
    return folder


def test_stage_positions_are_movies_of_their_own(tmp_path):
    file = positions(tmp_path / "two.ome.tif", TimeIncrement=1, TimeIncrementUnit="h")
    with pytest.raises(UserError, match=r"2 stage positions \(Pos0, Pos1\).*position=Pos0"):
        open_frames(file)
    found = movies_at(file)
    assert found == [Movie(file, "two_Pos0", "Pos0"), Movie(file, "two_Pos1", "Pos1")]
    for p, movie in enumerate(found):
        with open_frames(movie) as frames:
            assert (frames.name, frames.um_per_px) == (f"two_Pos{p}", 0.65)
            assert frames.hours.tolist() == [0, 1, 2, 3, 4]
            np.testing.assert_array_equal(np.stack([frames.raw(i) for i in range(5)]), STACK[p, 0])
    assert [m.name for m in movies_in(file, Select(position="1"))] == ["two"]
    with pytest.raises(UserError, match="position=Pos7"):
        open_frames(file, position="Pos7")


@pytest.mark.parametrize("axes", ["TZCYX", "CZTYX", "ZTCYX"])
@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_one_channel_and_one_plane_are_chosen_from_any_order_of_axes(tmp_path, axes, kind):
    if kind == "imagej" and axes != "TZCYX":
        pytest.skip("ImageJ writes one order alone")
    order = {"C": 0, "Z": 1, "T": 2}
    pixels = STACK.transpose(*(order[a] for a in axes[:3]), 3, 4)
    file = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        file, pixels, photometric="minisblack", metadata={"axes": axes}, **{kind: True}
    )
    with pytest.raises(UserError, match=r"2 channels.*give channel= \(0 to 1\)"):
        open_frames(file, plane=1)
    with pytest.raises(UserError, match="plane=0 to plane=2"):
        open_frames(file, channel="1")
    for c in range(2):
        with open_frames(file, channel=str(c), plane=2) as frames:
            np.testing.assert_array_equal(np.stack([frames.raw(i) for i in range(5)]), STACK[c, 2])
    for wrong in ({"channel": "2", "plane": 0}, {"channel": "0", "plane": 3}):
        with pytest.raises(UserError, match="channel=2|plane=3"):
            open_frames(file, **wrong)


def test_channels_are_chosen_by_their_names(tmp_path):
    file = tmp_path / "a.ome.tif"
    meta = {"axes": "TCYX", "Channel": {"Name": ["Phase", "GFP"]}}
    tifffile.imwrite(file, STACK[:, 0].swapaxes(0, 1), photometric="minisblack", metadata=meta)
    with pytest.raises(UserError, match="Phase, GFP"):
        open_frames(file)
    with open_frames(file, channel="gfp") as frames:
        np.testing.assert_array_equal(frames.raw(3), STACK[1, 0, 3])


def test_other_axes_are_refused_by_name(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[:, :2, :2], photometric="minisblack")
    with pytest.raises(UserError, match="2 unnamed entries x 2 unnamed entries"):
        open_frames(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "parts.tif") as writer:
        for part in STACK[0, :2]:
            writer.write(part, photometric="minisblack")
    with pytest.raises(UserError, match="2 stage positions"):
        open_frames(tmp_path / "parts.tif")


def test_a_frame_keeps_its_own_time(tmp_path):
    file = tmp_path / "a.ome.tif"
    times = {"DeltaT": [0.0, 600, 1200, 7200, 7800], "DeltaTUnit": ["s"] * 5}
    tifffile.imwrite(file, STACK[0, 0], metadata={"axes": "TYX", "Plane": times})
    with open_frames(file) as frames:
        np.testing.assert_allclose(frames.hours, [0, 1 / 6, 1 / 3, 2, 13 / 6])
    with open_frames(file, hours_per_frame=1) as frames:
        assert frames.hours.tolist() == [0, 1, 2, 3, 4]
        assert any("own times" in n for n in frames.notices)


def test_gaps_stay_gaps_and_hours_count_from_the_first_number(tmp_path):
    folder = frames_in(tmp_path / "m", {n: 10 * n for n in (1, 2, 5, 6)})
    with open_frames(folder, hours_per_frame=0.5) as frames:
        assert frames.numbers.tolist() == [1, 2, 5, 6]
        assert frames.hours.tolist() == [0, 0.5, 2, 2.5]
        assert frames.index_of(5) == 2 and frames.index_of(3) is None
        assert frames.raw(frames.index_of(5))[0, 0] == 50
        assert frames.each(2) == [0, 2]
        assert any("gaps in time: 2" in n for n in frames.notices)


def test_positions_in_the_names_of_a_folder_are_movies_of_their_own(tmp_path):
    folder = tmp_path / "m"
    frames_in(
        folder, {(s, t): 100 * s + t for s in (1, 2) for t in (0, 3)}, "x_s{0[0]}_t{0[1]}.png"
    )
    found = movies_in(folder)
    assert [m.name for m in found] == ["m_s1", "m_s2"]
    with open_frames(found[1], hours_per_frame=1) as frames:
        assert (frames.numbers.tolist(), frames.hours.tolist()) == ([0, 3], [0, 3])
        assert [int(frames.raw(i)[0, 0]) for i in range(2)] == [200, 203]


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        ({0: 0, 1: 1, 2: 2, 5: 5}, None),
        ({0: 0, 1: 1, 2: 2}, "no map for frame 5"),
        ({0: 0, 1: 1, 2: 2, 4: 4}, "no map for frame 5 and a map but no frame for 4"),
        ({0: 0, 1: 1, 2: 2, 5: 5, 6: 6}, "a map but no frame for 6"),
    ],
)
def test_maps_pair_with_frames_by_number_never_by_place(tmp_path, maps, says):
    movie = frames_in(tmp_path / "m", {n: n for n in (0, 1, 2, 5)})
    folder = frames_in(tmp_path / "c", maps, "seg_{}.png")
    with open_frames(movie) as frames, open_frames(folder, scaling=(0, 1), labels=True) as labels:
        if says:
            with pytest.raises(UserError, match=says):
                pair(frames, labels)
        else:
            at = pair(frames, labels)
            assert [int(labels.raw(i)[0, 0]) for i in at] == [0, 1, 2, 5]


def test_a_stack_of_maps_has_no_numbers_for_a_movie_with_gaps(tmp_path):
    movie = frames_in(tmp_path / "m", {n: n for n in (0, 1, 5)})
    tifffile.imwrite(tmp_path / "c.tif", np.ones((3, 16, 20), np.uint8), photometric="minisblack")
    with (
        open_frames(movie) as frames,
        open_frames(tmp_path / "c.tif", labels=True) as labels,
        pytest.raises(UserError, match="nothing tells which map belongs to which frame"),
    ):
        pair(frames, labels)


def test_maps_are_found_under_suffixes_of_any_case_and_in_folders_of_their_own(tmp_path):
    for folder, name in (("one", "A.TIF"), ("two", "b.tif")):
        (tmp_path / folder).mkdir()
        stem, suffix = name.split(".")
        tifffile.imwrite(tmp_path / folder / name, STACK[0, 0], photometric="minisblack")
        maps = tmp_path / folder / f"{stem}_classes.{suffix}"
        tifffile.imwrite(maps, np.ones((5, 16, 20), np.uint8), photometric="minisblack")
    found = find_movies(tmp_path)
    assert [m.movie.name for m in found] == ["one/A", "two/b"]
    assert [m.classes.path.name for m in found] == ["A_classes.TIF", "b_classes.tif"]


@pytest.mark.parametrize(
    ("size", "um"),
    [
        ((0.65, 0.65, None), 0.65),
        ((350.0, 350.0, None), None),
        ((0.65, 1.3, None), None),
        ((0.65, 0.65, 2.0), None),
    ],
)
def test_sizes_that_no_microscope_has_or_sources_that_disagree_are_told_and_not_used(
    tmp_path, size, um
):
    x, y, tag = size
    file = tmp_path / "a.ome.tif"
    meta = {
        "axes": "TYX",
        "PhysicalSizeX": x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": y,
        "PhysicalSizeYUnit": "µm",
    }
    more = (
        {}
        if tag is None
        else {"resolution": (1e4 / tag, 1e4 / tag), "resolutionunit": "CENTIMETER"}
    )
    tifffile.imwrite(file, STACK[0, 0], metadata=meta, **more)
    with open_frames(file) as frames:
        assert frames.um_per_px == um
        assert bool(frames.notices) == (um is None)
        assert all("give um_per_px" in n for n in frames.notices)


def test_one_picture_is_never_the_first_of_several(tmp_path):
    planes = STACK[0, :, 0]
    for name, meta in (("planes", "ZYX"), ("channels", "CYX"), ("times", "TYX")):
        tifffile.imwrite(tmp_path / f"{name}.tif", planes, imagej=True, metadata={"axes": meta})
        with pytest.raises(UserError, match="planes|channels|3 pictures"):
            read_picture(tmp_path / f"{name}.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "planes.tif", plane=1), planes[1])
    np.testing.assert_array_equal(read_picture(tmp_path / "channels.tif", channel="2"), planes[2])


def test_films_among_the_frames_are_named(tmp_path):
    folder = frames_in(tmp_path / "m", {0: 0, 1: 1})
    (folder / "raw.czi").write_bytes(b"x")
    with open_frames(folder) as frames:
        assert any(".czi" in n and "raw.czi" in n for n in frames.notices)
