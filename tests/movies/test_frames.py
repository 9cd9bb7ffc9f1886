"""Reading time-lapses: every format, lazily, and one clear sentence for what cannot be read."""

import logging
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import Frames, open_frames
from stemcell_lit.movies.resample import resample, resample_labels, scale_between, scaled_shape
from stemcell_lit.movies.suffixes import natural_key

MOVIE = np.random.default_rng(0).integers(0, 256, (5, 24, 32), np.uint8)
DEEP = (MOVIE.astype(np.uint16) * 16 + 100).astype(np.uint16)


def images(folder: Path, movie: np.ndarray, suffix: str = ".png") -> Path:
    folder.mkdir()
    for i, frame in enumerate(movie):
        if suffix == ".tif":
            tifffile.imwrite(folder / f"t{i}.tif", frame)
        else:
            Image.fromarray(frame).save(folder / f"t{i}{suffix}")
    return folder


# --- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits", "lerc"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_stacks_of_any_compression_are_read_unchanged(tmp_path, compression, bigtiff):
    file = tmp_path / "movie.tif"
    tifffile.imwrite(
        file, MOVIE, compression=compression, bigtiff=bigtiff, photometric="minisblack"
    )
    with open_frames(file) as frames:
        assert frames.shape == MOVIE.shape
        assert frames.scaling == (0, 255)
        np.testing.assert_array_equal([frames.read(i) for i in range(len(frames))], MOVIE)
        assert frames[2].dtype == np.float32
        np.testing.assert_allclose(frames[2], MOVIE[2] / 255, rtol=1e-6)
        np.testing.assert_array_equal(frames.read(-1), MOVIE[-1])
        with pytest.raises(IndexError):
            frames[5]


def test_tiff_written_frame_by_frame_is_one_movie(tmp_path):
    file = tmp_path / "movie.tif"
    with tifffile.TiffWriter(file) as writer:
        for frame in MOVIE:
            writer.write(frame, compression="zlib", photometric="minisblack")
    with open_frames(file) as frames:
        assert frames.shape == MOVIE.shape
        np.testing.assert_array_equal(np.stack([frames.read(i) for i in range(5)]), MOVIE)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_imagej_hyperstack_gives_size_and_interval(tmp_path, truncate, byteorder):
    """`truncate` writes one page description for all frames, as ImageJ does beyond 4 GB."""
    file = tmp_path / "hyperstack.tif"
    tifffile.imwrite(
        file,
        DEEP[:, None, None],
        imagej=True,
        byteorder=byteorder,
        resolution=(1 / 0.65, 1 / 0.65),
        metadata={"axes": "TZCYX", "unit": "um", "finterval": 600, "tunit": "sec"},
        **({"truncate": True} if truncate else {}),
    )
    with open_frames(file) as frames:
        assert (frames.source, frames.shape) == ("imagej", DEEP.shape)
        assert frames.um_per_px == pytest.approx(0.65, rel=1e-4)
        assert frames.hours_per_frame == pytest.approx(1 / 6)
        np.testing.assert_array_equal(np.stack([frames.raw(i) for i in range(5)]), DEEP)


@pytest.mark.parametrize(
    ("size", "size_unit", "step", "step_unit", "um", "hours"),
    [
        (0.65, "µm", 10, "min", 0.65, 1 / 6),
        (650, "nm", 600, "s", 0.65, 1 / 6),
        (0.0012, "mm", 2, "h", 1.2, 2),
        (1.6, "µm", 90_000, "ms", 1.6, 0.025),
        (3, "pixel", 1, "s", None, 1 / 3600),
    ],
)
def test_ome_tiff_gives_size_and_interval_in_any_unit(
    tmp_path, size, size_unit, step, step_unit, um, hours
):
    file = tmp_path / "movie.ome.tif"
    metadata = {
        "axes": "TYX",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": size_unit,
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": size_unit,
        "TimeIncrement": step,
        "TimeIncrementUnit": step_unit,
    }
    tifffile.imwrite(file, MOVIE, metadata=metadata, compression="lzw")
    with open_frames(file) as frames:
        assert (frames.source, frames.shape) == ("ome-tiff", MOVIE.shape)
        assert frames.um_per_px == (None if um is None else pytest.approx(um))
        assert frames.hours_per_frame == pytest.approx(hours)
        np.testing.assert_array_equal(frames.read(3), MOVIE[3])
    with open_frames(file, um_per_px=2, hours_per_frame=0.5) as frames:
        assert (frames.um_per_px, frames.hours_per_frame) == (2, 0.5)


def test_ome_tiff_interval_from_the_times_of_its_planes(tmp_path):
    file = tmp_path / "movie.ome.tif"
    planes = {"DeltaT": [0, 598, 1201, 1800, 2402], "DeltaTUnit": ["s"] * 5}
    tifffile.imwrite(file, MOVIE, metadata={"axes": "TYX", "Plane": planes})
    with open_frames(file) as frames:
        assert frames.hours_per_frame == pytest.approx(1 / 6, rel=0.01)


def test_a_printers_resolution_is_no_pixel_size(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", MOVIE, resolution=(72, 72), resolutionunit="INCH")
    tifffile.imwrite(tmp_path / "b.tif", MOVIE, resolution=(1e4, 1e4), resolutionunit="CENTIMETER")
    assert open_frames(tmp_path / "a.tif").um_per_px is None
    assert open_frames(tmp_path / "b.tif").um_per_px == pytest.approx(1)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_folders_are_read_in_natural_order(tmp_path, suffix):
    movie = np.stack([np.full((16, 16), 10 * i, np.uint8) for i in range(12)])
    folder = images(tmp_path / "movie", movie, suffix)
    (folder / "notes.txt").write_text("not a frame")
    with open_frames(folder) as frames:
        assert frames.shape == (12, 16, 16)
        assert [int(frames.read(i)[0, 0]) for i in range(12)] == list(range(0, 120, 10))


@given(st.lists(st.integers(0, 10**9), unique=True, min_size=2), st.integers(1, 8))
def test_natural_order_is_the_order_of_numbers_padded_or_not(numbers, width):
    for names in ([f"t{n}.png" for n in numbers], [f"t{n:0{width}d}.png" for n in numbers]):
        order = sorted(names, key=natural_key)
        assert [int(n[1:-4]) for n in order] == sorted(numbers)


@given(st.lists(st.text(), unique=True))
def test_natural_order_does_not_depend_on_the_order_found(names):
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(names, key=natural_key) == sorted(shuffled, key=natural_key)


@pytest.mark.parametrize("where", ["stack", "planar", "png"])
def test_colour_becomes_gray_with_a_notice(tmp_path, where, caplog):
    color = np.stack([MOVIE, MOVIE, MOVIE], -1)
    if where == "png":
        path = images(tmp_path / "movie", color)
    else:
        path = tmp_path / "movie.tif"
        pixels = color if where == "stack" else np.moveaxis(color, -1, 1)
        tifffile.imwrite(path, pixels, photometric="rgb", planarconfig=None)
    with open_frames(path) as frames:
        assert frames.shape == MOVIE.shape
        np.testing.assert_array_equal(frames.read(1), MOVIE[1])
        assert any("gray" in n for n in frames.notices)
    assert "gray" in caplog.text


def test_slices_of_a_plain_imagej_stack_are_times_with_a_notice(tmp_path):
    """Fiji calls the frames of every plain stack slices."""
    text = "ImageJ=1.53t\nimages=5\nslices=5\nloop=false\n"
    with tifffile.TiffWriter(tmp_path / "z.tif") as writer:
        for frame in MOVIE:
            writer.write(frame, photometric="minisblack", description=text, metadata=None)
    with open_frames(tmp_path / "z.tif") as frames:
        assert len(frames) == 5
        assert any("planes" in n for n in frames.notices)


def test_focal_planes_are_never_taken_for_times(tmp_path):
    tifffile.imwrite(tmp_path / "z.ome.tif", MOVIE, metadata={"axes": "ZYX"})
    refused(tmp_path / "z.ome.tif", "5 planes", "plane=0")
    meta = {"axes": "ZYX", "spacing": 0.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "z.tif", MOVIE, imagej=True, metadata=meta)
    refused(tmp_path / "z.tif", "5 planes", "plane=0")
    with open_frames(tmp_path / "z.tif", plane=3) as frames:
        assert len(frames) == 1
        np.testing.assert_array_equal(frames.raw(0), MOVIE[3])


# --- scaling ------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(low=st.integers(0, 30_000), span=st.integers(1, 35_000), seed=st.integers(0, 99))
def test_scaling_is_one_per_movie_and_can_be_undone(tmp_path, low, span, seed):
    """Within the recorded limits, intensities come back; outside they are clipped."""
    rng = np.random.default_rng(seed)
    movie = rng.integers(low, low + span, (4, 12, 14), endpoint=True).astype(np.uint16)
    file = tmp_path / f"{low}-{span}-{seed}.tif"
    tifffile.imwrite(file, movie, photometric="minisblack")
    with open_frames(file) as frames:
        a, b = frames.scaling
        assert low <= a < b
        for i in range(4):
            values = frames[i]
            assert values.min() >= 0 and values.max() <= 1
            back = values * (b - a) + a
            np.testing.assert_allclose(back, np.clip(movie[i], a, b), atol=1e-2 + (b - a) * 1e-6)
            np.testing.assert_array_equal(
                frames.read(i), np.rint(values * np.float32(255)).astype(np.uint8)
            )
    file.unlink()


def test_a_drifting_lamp_is_seen_by_the_scaling_and_kept_in_the_frames(tmp_path):
    movie = np.stack([DEEP[0] // 4 + 500 * i for i in range(40)]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "drift.tif", movie, photometric="minisblack")
    with open_frames(tmp_path / "drift.tif") as frames:
        low, high = frames.scaling
        assert low < movie[1].min() + 50
        assert high > movie[-2].max() - 50
        assert frames[0].mean() < 0.1 < 0.9 < frames[39].mean()
        assert frames.describe()["scaling"] == [low, high]


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32", "float64", "uint32", "bool"])
def test_other_types_become_8_bit(tmp_path, dtype):
    file = tmp_path / "movie.tif"
    tifffile.imwrite(file, (MOVIE > 127 if dtype == "bool" else MOVIE).astype(dtype))
    with open_frames(file) as frames:
        assert frames.read(0).dtype == np.uint8
        assert frames.read(0).max() == 255 and frames.read(0).min() == 0


def test_a_blank_movie_is_black(tmp_path):
    tifffile.imwrite(
        tmp_path / "blank.tif", np.full((3, 9, 9), 700, np.uint16), photometric="minisblack"
    )
    assert open_frames(tmp_path / "blank.tif")[1].max() == 0


def test_16_bit_png_folder_keeps_its_depth(tmp_path):
    folder = images(tmp_path / "movie", DEEP)
    with open_frames(folder) as frames:
        assert frames.dtype == np.uint16
        np.testing.assert_array_equal(frames.raw(4), DEEP[4])


def test_frames_travel_to_other_processes(tmp_path):
    tifffile.imwrite(tmp_path / "movie.tif", MOVIE)
    with open_frames(tmp_path / "movie.tif") as frames:
        frames.read(0)
        copy = pickle.loads(pickle.dumps(frames))
        np.testing.assert_array_equal(copy.read(4), MOVIE[4])
        copy.close()


def test_opening_reads_no_frames_of_an_8_bit_movie(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "movie.tif", MOVIE, compression="zlib")
    with monkeypatch.context() as patch:
        patch.setattr(tifffile.TiffPage, "asarray", lambda *_a, **_k: pytest.fail("read a frame"))
        frames = open_frames(tmp_path / "movie.tif")
    np.testing.assert_array_equal(frames.read(1), MOVIE[1])


# --- what cannot be read ------------------------------------------------------------------------


def refused(path, *words: str) -> str:
    """One sentence or two that names the file; found on opening or on reading all frames."""
    with pytest.raises(UserError) as caught, open_frames(path) as frames:
        for _ in frames:
            pass
    message = str(caught.value)
    assert str(path) in message or str(Path(path).parent) in message
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message
    return message


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    refused(tmp_path / "none.tif", "no such file")
    (tmp_path / "empty.tif").touch()
    refused(tmp_path / "empty.tif", "empty")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no TIFF, PNG, JPEG")
    (tmp_path / "movie.avi").write_bytes(b"RIFF")
    refused(tmp_path / "movie.avi", r"\.avi", "export")
    (tmp_path / "text.tif").write_text("this is not a TIFF file at all")
    refused(tmp_path / "text.tif", "not a")
    images(tmp_path / "pngs", MOVIE)
    (tmp_path / "pngs" / "t2.png").write_text("not a png")
    refused(tmp_path / "pngs", "t2.png", "expected PNG")
    (tmp_path / "pngs" / "t2.png").write_bytes(b"")
    refused(tmp_path / "pngs", "t2.png", "empty")


def test_nan_and_infinity_are_refused_with_their_frame(tmp_path):
    for value in (np.nan, np.inf):
        movie = MOVIE.astype(np.float32)
        movie[3, 4, 5] = value
        tifffile.imwrite(tmp_path / "movie.tif", movie)
        refused(tmp_path / "movie.tif", "frame 3", "NaN")


def test_pages_of_different_shape_or_type_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "shape.tif") as writer:
        writer.write(MOVIE[0])
        writer.write(MOVIE[0, :10])
    refused(tmp_path / "shape.tif", "different shapes", "24 x 32", "10 x 32")
    with tifffile.TiffWriter(tmp_path / "type.tif") as writer:
        writer.write(MOVIE[0])
        writer.write(DEEP[0])
    refused(tmp_path / "type.tif", "uint8", "uint16")


def test_channels_and_volumes_are_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "tc.tif", MOVIE[:4].reshape(2, 2, 24, 32), imagej=True, metadata={"axes": "TCYX"}
    )
    refused(tmp_path / "tc.tif", "2 time points x 2 channels", "one channel")
    tifffile.imwrite(tmp_path / "complex.tif", MOVIE.astype(np.complex64))
    refused(tmp_path / "complex.tif", "complex64")


def test_folders_of_mixed_type_size_or_depth_are_refused(tmp_path):
    folder = images(tmp_path / "types", MOVIE)
    Image.fromarray(MOVIE[0]).save(folder / "t9.jpg")
    refused(folder, "jpeg, png")
    folder = images(tmp_path / "sizes", MOVIE)
    Image.fromarray(MOVIE[0, :10]).save(folder / "t9.png")
    refused(folder, "t9.png", "10 x 32", "24 x 32")
    folder = images(tmp_path / "depths", MOVIE)
    Image.fromarray(DEEP[0]).save(folder / "t9.png")
    refused(folder, "t9.png", "uint16", "uint8")
    folder = images(tmp_path / "stacks", MOVIE, ".tif")
    tifffile.imwrite(folder / "t9.tif", MOVIE)
    refused(folder, "t9.tif", "5 frames", "one frame a file")


def test_wrong_settings_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "movie.tif", MOVIE)
    for settings_ in ({"um_per_px": 0}, {"hours_per_frame": -1}, {"scaling": (5, 5)}):
        with pytest.raises(UserError, match=next(iter(settings_))):
            open_frames(tmp_path / "movie.tif", **settings_)


def test_pixels_that_are_not_square_have_no_size(tmp_path):
    metadata = {"axes": "TYX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 2.0}
    tifffile.imwrite(tmp_path / "movie.ome.tif", MOVIE, metadata=metadata)
    with open_frames(tmp_path / "movie.ome.tif") as frames:
        assert frames.um_per_px is None
        assert any("2 x 1 um" in n and "square" in n for n in frames.notices)


KINDS = {
    "plain": {},
    "bare": {"metadata": None, "compression": "lzw"},
    "deflate": {"compression": "zlib"},
    "lzw": {"compression": "lzw"},
    "bigtiff": {"bigtiff": True, "compression": "zlib"},
    "imagej": {"imagej": True, "metadata": {"axes": "TYX"}},
    "imagej-one-page": {"imagej": True, "truncate": True, "metadata": {"axes": "TYX"}},
    "ome": {"ome": True, "compression": "zlib"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_refused_or_read_in_full(tmp_path, kind):
    """Never fewer frames in silence, never other pixels, never an error of a library."""
    movie = MOVIE[:, :9, :10]
    tifffile.imwrite(tmp_path / "whole.tif", movie, **KINDS[kind])
    content = (tmp_path / "whole.tif").read_bytes()
    cut = tmp_path / ("cut.ome.tif" if kind == "ome" else "cut.tif")
    for size in range(0, len(content), 4):  # TIFF fields are aligned to 2 bytes
        cut.write_bytes(content[:size])
        try:
            with open_frames(cut) as frames:
                found = np.stack([frames.read(i) for i in range(len(frames))])
        except UserError as error:
            assert str(cut) in str(error) and "\n" not in str(error)
        else:
            np.testing.assert_array_equal(found, movie, f"{size} of {len(content)} bytes")


def test_a_cut_file_is_refused_whatever_was_done_to_logging(tmp_path, monkeypatch):
    """tifffile only logs that a chain of pages breaks off."""
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", True)
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    tifffile.imwrite(tmp_path / "whole.tif", MOVIE[:, :9, :10], **KINDS["imagej-one-page"])
    content = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[:444])
    with pytest.raises(UserError, match=r"cut\.tif"), open_frames(tmp_path / "cut.tif") as frames:
        frames.read(0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.9))
def test_a_cut_image_in_a_folder_is_refused(tmp_path, suffix, share):
    folder = tmp_path / "movie"
    if not folder.exists():
        images(folder, MOVIE, suffix)
        (tmp_path / "whole").write_bytes((folder / f"t3{suffix}").read_bytes())
    content = (tmp_path / "whole").read_bytes()
    (folder / f"t3{suffix}").write_bytes(content[: int(share * len(content))])
    refused(folder, f"t3{suffix}")


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "jpegxl", "webp"])
def test_pictures_compressions_are_read(tmp_path, compression):
    smooth = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    frames = np.stack([smooth, smooth[::-1]])
    try:
        tifffile.imwrite(tmp_path / "movie.tif", frames, compression=compression)
    except (ValueError, TypeError) as error:  # webp holds colours alone
        pytest.skip(str(error))
    with open_frames(tmp_path / "movie.tif") as found:
        for i, frame in enumerate(frames):
            assert np.abs(found.read(i).astype(int) - frame).mean() < 3


def test_scaling_reads_a_few_frames_of_a_long_movie_alone(tmp_path, monkeypatch):
    movie = np.random.default_rng(0).integers(0, 4000, (200, 16, 16), np.uint16)
    tifffile.imwrite(tmp_path / "movie.tif", movie, compression="zlib")
    read, real = [], Frames._checked
    monkeypatch.setattr(Frames, "_checked", lambda self, i: read.append(i) or real(self, i))
    with open_frames(tmp_path / "movie.tif") as frames:
        assert len(read) == len(set(read)) <= 16 and {0, 199} <= set(read)
        low, high = frames.describe()["scaling"]
    assert 0 <= low < 100 and 3900 < high < 4000


@pytest.mark.parametrize(
    ("um", "wanted", "scale"),
    [
        (1.0, 2.0, 0.5),
        (1.0, 2.009, 0.5),
        (1, 1.5, 2 / 3),
        (2, 1, 2),
        (None, 1.0, 1),
        (1.0, None, 1),
    ],
)
def test_scales_between_pixel_sizes_snap_to_whole_factors(um, wanted, scale):
    assert scale_between(um, wanted) == pytest.approx(scale)


def test_resampling_averages_areas_and_labels_keep_their_values():
    image = MOVIE[0]
    whole = resample(image, 0.5)
    assert np.abs(whole - image.reshape(12, 2, 16, 2).mean((1, 3))).max() <= 0.5
    odd = resample(image, 2 / 3)
    assert odd.shape == scaled_shape(image.shape, 2 / 3) == (16, 21)
    assert abs(odd.mean() - image.mean()) < 2 and resample(image, 1.0) is image
    labels = np.kron(np.array([[1, 2], [3, 0]], np.uint16), np.ones((12, 16), np.uint16))
    small = resample_labels(labels, 0.5)
    assert small.shape == (12, 16) and (small == labels[::2, ::2]).all()
    assert set(np.unique(resample_labels(labels, 2 / 3))) == {0, 1, 2, 3}
    assert (resample_labels(labels, 2.0) == np.kron(labels, np.ones((2, 2)))).all()
