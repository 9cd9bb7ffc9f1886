"""Makers' files: positions, channels, planes, sizes and steps as their readers tell them, and nothing guessed."""

import pickle
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from stemcell_lit.errors import UserError
from stemcell_lit.movies import vendor
from stemcell_lit.movies.frames import movies_at, open_frames
from stemcell_lit.patches.labelled import movies_in

UM = SimpleNamespace(X=0.65, Y=0.65, Z=None)
RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 4000, (2, 3, 2, 4, 40, 50), dtype=np.uint16)  # scene, T, C, Z, Y, X


class FakeReader:
    """The members of bioio's readers that are used."""

    data, order, scenes = DATA, "TCZYX", ("XYPos:0", "XYPos:1")
    channel_names, physical_pixel_sizes, time_interval = (
        ["Phase", "DAPI"],
        UM,
        timedelta(minutes=10),
    )

    def __init__(self, path):
        self.scene = 0

    def set_scene(self, scene):
        self.scene = scene

    @property
    def dims(self):
        return SimpleNamespace(order=self.order, shape=self.data[self.scene].shape)

    @property
    def dtype(self):
        return self.data.dtype

    def get_image_dask_data(self, order, **place):
        assert order == "YX" and set(place) == set(self.order) - set("YX")
        at = tuple(place[a] for a in self.order if a not in "YX")
        return SimpleNamespace(compute=lambda scheduler: self.data[self.scene][at])


@pytest.fixture
def movie(tmp_path, monkeypatch):
    """A function: the path of a file that a fake reader with these members reads."""

    def make(suffix=".nd2", **members):
        monkeypatch.setattr(vendor, "reader_class", lambda path: type("R", (FakeReader,), members))
        path = tmp_path / f"film{suffix}"
        path.write_bytes(b"x")
        return path

    return make


def test_positions_are_movies_and_one_channel_and_plane_are_chosen_by_name_or_number(movie):
    path = movie()
    found = movies_at(path, channel="dapi", plane=2)
    assert [m.name for m in found] == ["film_XYPos:0", "film_XYPos:1"]
    with open_frames(found[1], channel="dapi", plane=2) as frames:
        assert frames.shape == (3, 40, 50) and frames.dtype == np.uint16 and frames.source == "nd2"
        assert np.array_equal(frames.raw(1), DATA[1, 1, 1, 2])
        assert frames.um_per_px == 0.65
        assert frames.hours == pytest.approx([0, 1 / 6, 2 / 6])
    with open_frames(path, channel="0", plane=0, position="0") as frames:
        assert np.array_equal(frames.raw(2), DATA[0, 2, 0, 0])


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"plane": 0, "position": "0"}, r"found 2 channels.*give channel= \(Phase, DAPI\)"),
        ({"channel": "GFP", "plane": 0, "position": "0"}, "channel=GFP: found 2 channels"),
        ({"channel": "0", "position": "0"}, "found 4 planes.*plane=0 to plane=3"),
        ({"channel": "0", "plane": 4, "position": "0"}, "plane=4: found 4 planes"),
        ({"channel": "0", "plane": 0}, "found 2 stage positions .*give position=XYPos:0"),
        ({"channel": "0", "plane": 0, "position": "9"}, "position=9: found XYPos:0, XYPos:1"),
    ],
)
def test_what_is_not_chosen_is_refused_with_the_choices(movie, chosen, says):
    with pytest.raises(UserError, match=says):
        open_frames(movie(), **chosen)


def test_mosaics_and_colour_are_refused_by_name(movie):
    for axis, name in (("M", "mosaic tiles"), ("S", "samples of colour")):
        path = movie(order=f"{axis}TYX", data=DATA[:, :2, 0], scenes=("0",))
        with pytest.raises(UserError, match=f"found 2 {name}"):
            open_frames(path)


def test_sizes_and_steps_that_are_not_told_are_not_guessed(movie):
    one = {"order": "TYX", "data": DATA[:1, :, 0, 0], "scenes": ("Image:0",)}
    nothing = SimpleNamespace(X=None, Y=None, Z=None)
    with open_frames(movie(**one, physical_pixel_sizes=nothing, time_interval=None)) as frames:
        assert frames.um_per_px is None and frames.hours is None
    with open_frames(movie(**one, physical_pixel_sizes=SimpleNamespace(X=0.3, Y=0.6))) as frames:
        assert frames.um_per_px is None and "not square" in frames.notices[0]
    with open_frames(movie(".vsi", **one)) as frames:
        assert frames.um_per_px is None and "unit of its pixel sizes" in frames.notices[0]


def test_a_reader_travels_to_another_process_without_its_file(movie):
    path = movie()
    reader = vendor.VendorReader(path, channel="1", plane=3, position="1")
    assert reader.__getstate__()["_open"] is None
    reader.close()
    assert np.array_equal(reader.read(0), DATA[1, 0, 1, 3])


def test_a_damaged_file_and_maps_are_refused_in_a_sentence(movie):
    def broken(self, path):
        raise RuntimeError("no header\nat all")

    with pytest.raises(UserError, match=r"film.nd2: cannot be read by bioio-nd2 \(no header at"):
        open_frames(movie(__init__=broken))
    with pytest.raises(UserError, match="class maps are read from TIFF and PNG alone"):
        open_frames(movie(), labels=True)


@pytest.mark.parametrize(
    ("suffix", "package"), [(".nd2", "bioio-nd2"), (".czi", "bioio-czi"), (".lif", "bioio-lif")]
)
def test_a_missing_package_is_asked_for_by_the_command_that_installs_it(
    tmp_path, monkeypatch, suffix, package
):
    monkeypatch.setattr(vendor.importlib.util, "find_spec", lambda name: None)
    path = tmp_path / f"a{suffix.upper()}"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=f"pip install {package}, or export it as OME-TIFF"):
        open_frames(path)


def test_makers_files_of_a_folder_are_movies(movie):
    path = movie(order="TYX", data=DATA[:1, :, 0, 0], scenes=("0",))
    assert [m.name for m in movies_in(path.parent)] == ["film"]


def test_a_czi_is_read_as_it_was_written(tmp_path):
    pytest.importorskip("bioio_czi")
    from pylibCZIrw import czi

    path = tmp_path / "a.czi"
    with czi.create_czi(str(path)) as document:
        for t in range(3):
            for c in range(2):
                document.write(data=DATA[0, t, c, 0][..., None], plane={"T": t, "C": c, "Z": 0})
        names = {0: "Phase", 1: "DAPI"}
        document.write_metadata("a", channel_names=names, scale_x=0.65e-6, scale_y=0.65e-6)
    with pytest.raises(UserError, match=r"give channel= \(Phase, DAPI\)"):
        open_frames(path)
    with open_frames(path, channel="DAPI") as frames:
        assert frames.shape == (3, 40, 50) and frames.um_per_px == pytest.approx(0.65)
        assert all(np.array_equal(frames.raw(t), DATA[0, t, 1, 0]) for t in range(3))
        again = pickle.loads(pickle.dumps(frames))
        assert np.array_equal(again.raw(2), DATA[0, 2, 1, 0])
    two = tmp_path / "two.czi"
    with czi.create_czi(str(two)) as document:
        for s in range(2):
            plane = {"T": 0, "C": 0, "Z": 0}
            document.write(DATA[s, 0, 0, 0][..., None], (s * 200, 0), plane, scene=s)
        document.write_metadata("two")
    with pytest.raises(UserError, match="names 1 scenes, its pixels are in 2"):
        open_frames(two)
