"""What has no single meaning, is damaged or no picture at all is refused in one sentence."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stemcell_lit.errors import UserError
from stemcell_lit.movies import pictures, stored
from stemcell_lit.movies.frames import open_frames
from stemcell_lit.movies.pictures import image_values, page_layout, page_values
from tests.movies.picture_files import (
    DEEP,
    GRAY,
    RAMP,
    RGB,
    RNG,
    TIFF,
    bmp_with_alpha,
    chunk,
    paletted,
    png,
    raw_tiff,
    refused,
    same,
)


def clear_ways() -> dict:
    alpha = np.full_like(GRAY, 255)
    alpha[3, 4] = 254
    wide = np.full_like(DEEP, 65535)
    wide[3, 4] = 65534
    gray, rgb = np.dstack([GRAY, alpha]), np.dstack([RGB, alpha])
    rgb16 = np.dstack([RGB.astype(np.uint16), wide])
    first = struct.pack(">H", int(GRAY[0, 0]))
    return {
        "LA.png": lambda f: Image.fromarray(gray).save(f),
        "RGBA.png": lambda f: Image.fromarray(rgb).save(f),
        "LA16.png": lambda f: f.write_bytes(imagecodecs.png_encode(np.dstack([DEEP, wide]))),
        "RGBA16.png": lambda f: f.write_bytes(imagecodecs.png_encode(rgb16)),
        "tRNS.png": lambda f: f.write_bytes(png(GRAY, 8, 0, chunk(b"tRNS", first))),
        "RGBA.bmp": lambda f: f.write_bytes(bmp_with_alpha(rgb)),
        "LA.tif": lambda f: Image.fromarray(gray).save(f),
        "RGBA.tif": lambda f: tifffile.imwrite(f, rgb, photometric="rgb", extrasamples=[2]),
        "RGBA16.tif": lambda f: tifffile.imwrite(f, rgb16, photometric="rgb", extrasamples=[1]),
    }


@pytest.mark.parametrize("way", clear_ways())
def test_transparent_pixels_are_refused(tmp_path, way):
    clear_ways()[way](tmp_path / way)
    refused(tmp_path / way, "some pixels are transparent.*flatten it")


# --- colour spaces that are refused


@pytest.mark.parametrize("photometric", ["separated", "cielab", "ycbcr", "cfa", 32844, 34892, 4])
def test_other_colour_spaces_are_refused(tmp_path, photometric):
    array = GRAY if photometric in ("cfa", 4) else RGB
    if photometric == "separated":
        array = np.dstack([RGB, GRAY])
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric)
    refused(tmp_path / "a.tif", "expected gray, or red, green and blue; convert it")


def test_cmyk_is_refused_everywhere(tmp_path):
    for name in ("a.jpg", "a.tif"):
        Image.fromarray(RGB).convert("CMYK").save(tmp_path / name)
        refused(tmp_path / name, "CMYK colours")


def test_samples_of_unequal_bits_are_refused(tmp_path):
    raw_tiff(tmp_path / "a.tif", bytes(2 * GRAY.size), GRAY.shape, t262=2, t277=3, t258=[5, 6, 5])
    refused(tmp_path / "a.tif", "expected gray, or red, green and blue")


# --- labels


def test_label_images_give_the_stored_numbers(tmp_path):
    labels = (GRAY % 4).astype(np.uint8)
    colours = RNG.integers(0, 256, (256, 3))
    for name in ("a.png", "a.bmp", "a.tif"):
        paletted(colours, labels).save(tmp_path / name)
        same(tmp_path / name, labels, labels=True)
    tifffile.imwrite(tmp_path / "wide.tif", labels.astype(np.uint32) * 70_000)
    same(tmp_path / "wide.tif", labels.astype(np.uint32) * 70_000, labels=True)
    Image.fromarray(labels.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    same(tmp_path / "deep.png", labels.astype(np.uint16) * 300, labels=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_label_images_of_floats_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", (GRAY % 4).astype(dtype))
    refused(tmp_path / "a.tif", f"found {dtype}, expected a label image", labels=True)


def test_label_images_in_colour_are_refused(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif"):
        Image.fromarray(np.dstack([GRAY] * 3)).save(tmp_path / name)
        refused(tmp_path / name, "found colours, expected a label image", labels=True)


def test_label_images_with_white_as_zero_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY > 100)  # tifffile marks masks so
    refused(tmp_path / "a.tif", "white-is-zero.*not clear which numbers", labels=True)


def test_lossy_label_images_are_refused(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "a.tif", GRAY, compression="jpeg")
    tifffile.imwrite(tmp_path / "b.tif", GRAY, compression="jpeg2000")
    for name in ("a.jpg", "a.tif", "b.tif"):
        refused(tmp_path / name, "compression that may change numbers", labels=True)


# --- turned, several, too large


@pytest.mark.parametrize("turn", [2, 3, 6, 8])
def test_turned_pictures_are_refused_everywhere(tmp_path, turn):
    exif = Image.Exif()
    exif[274] = turn
    for name in ("a.jpg", "a.png"):
        Image.fromarray(GRAY).save(tmp_path / name, exif=exif)
    raw_tiff(tmp_path / "a.tif", GRAY.tobytes(), GRAY.shape, t274=turn)
    (tmp_path / "late.png").write_bytes(png(GRAY, 8, 0, after=chunk(b"eXIf", exif.tobytes()[6:])))
    for name in ("a.jpg", "a.png", "late.png", "a.tif"):
        refused(tmp_path / name, "turned or mirrored")
        refused(tmp_path / name, "turned or mirrored|may change", labels=True)


def test_upright_pictures_with_an_orientation_are_read(tmp_path):
    exif = Image.Exif()
    exif[274] = 1
    Image.fromarray(GRAY).save(tmp_path / "a.png", exif=exif)
    raw_tiff(tmp_path / "a.tif", GRAY.tobytes(), GRAY.shape, t274=1)
    for name in ("a.png", "a.tif"):
        same(tmp_path / name, GRAY)


def test_animations_and_several_images_are_refused(tmp_path):
    first, second = Image.fromarray(GRAY), Image.fromarray(255 - GRAY)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    for name in ("a.png", "a.jpg"):
        refused(tmp_path / name, "several images or an animation")


def test_headers_that_promise_too_much_are_refused_before_decoding(tmp_path, monkeypatch):
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(pictures, "decoded", decode)
    (tmp_path / "a.png").write_bytes(png(GRAY, 8, 0, size=(100_000, 100_000)))
    head = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54, 40, 90_000, 90_000, 1, 24, *[0] * 6
    )
    (tmp_path / "a.bmp").write_bytes(head)
    raw_tiff(tmp_path / "a.tif", GRAY.tobytes(), (60_000, 60_000))
    for name in ("a.png", "a.bmp", "a.tif"):
        refused(tmp_path / name, "its header says .*; expected at most 268,435,456 px")


def test_pictures_without_pixels_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(GRAY, 8, 0, size=(0, 5)))
    refused(tmp_path / "a.png", "5 x 0 px; expected at least one pixel")
    raw_tiff(tmp_path / "a.tif", GRAY.tobytes(), (0, 23))
    refused(tmp_path / "a.tif", "expected at least one pixel|axes")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_absent_strips_are_refused_not_filled(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", GRAY, rowsperstrip=5, compression=compression)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tag = tiff.pages[0].tags[279]
        width = {3: 2, 4: 4}[int(tag.dtype)]
        at = tag.valueoffset + width
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[at : at + width] = bytes(width)
    (tmp_path / "a.tif").write_bytes(content)
    refused(tmp_path / "a.tif", "1 of its 4 strips or tiles hold no data")


def test_absent_strips_of_a_later_frame_are_refused(tmp_path):
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file) as writer:
        for picture in (GRAY, 255 - GRAY):
            writer.write(
                picture, rowsperstrip=5, compression="zlib", contiguous=False, metadata=None
            )
    with tifffile.TiffFile(file) as tiff:
        tag = tiff.pages[1].tags[279]
    content = bytearray(file.read_bytes())
    content[tag.valueoffset : tag.valueoffset + 2] = bytes(2)
    file.write_bytes(content)
    with open_frames(file) as frames:
        np.testing.assert_array_equal(frames.read(0), GRAY)
        with pytest.raises(UserError, match="frame 1: 1 of its 4 strips or tiles hold no data"):
            frames.read(1)


def test_pages_in_a_circle_are_refused_and_not_followed_for_ever(tmp_path):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, np.stack([GRAY, GRAY]), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(file) as tiff:
        second = tiff.pages[1].offset
        after = second + 2 + 12 * len(tiff.pages[1].tags)
    content = bytearray(file.read_bytes())
    content[after : after + 4] = struct.pack("<I", second)
    file.write_bytes(content)
    with pytest.raises(UserError, match="the description of page 2 is missing"):
        open_frames(file)


# --- what is no picture at all


def test_what_is_no_picture_file_is_said(tmp_path):
    missing = tmp_path / "missing.png"
    refused(missing, "no such file")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "a folder, expected a picture")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", r"empty \(0 bytes\)")
    (tmp_path / "random.png").write_bytes(RNG.bytes(3000))
    refused(tmp_path / "random.png", "its content is unknown, expected PNG, JPEG or BMP")
    tifffile.imwrite(tmp_path / "renamed.tif", GRAY)
    (tmp_path / "renamed.tif").rename(tmp_path / "renamed.png")
    refused(tmp_path / "renamed.png", "its content is TIFF.*name it .tif")
    with pytest.raises(UserError, match="cannot be decoded"):
        image_values(Path("nul\0.png"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "9.png")
    refused(tmp_path / "9.png", "a pipe or device")
    with pytest.raises(UserError, match="a pipe or device"):
        image_values(Path("/dev/zero"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_said(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    refused(tmp_path / "a.png", "may not read it")


def test_the_content_says_the_format_not_the_suffix(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.png")
    same(tmp_path / "a.png", GRAY)


def test_huge_texts_in_a_png_do_no_harm(tmp_path):
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000)))
    (tmp_path / "a.png").write_bytes(png(GRAY, 8, 0, text))
    same(tmp_path / "a.png", GRAY)
    paletted(RAMP.T >> 8).save(tmp_path / "p.png")
    content = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(content[:33] + text + content[33:])
    refused(tmp_path / "p.png", "cannot be decoded")


def test_too_many_chunks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MAX_CHUNKS", 100)
    (tmp_path / "a.png").write_bytes(png(GRAY, 8, 0, chunk(b"teXt", b"") * 200))
    refused(tmp_path / "a.png", "more than 100 chunks")


def victims() -> list[tuple[str, bytes]]:
    """Small valid files of every format."""
    made = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        for kind, suffix in (("PNG", ".png"), ("BMP", ".bmp"), ("TIFF", ".tif")):
            if (mode, kind) != ("LA", "BMP"):
                content = io.BytesIO()
                Image.fromarray(GRAY).convert(mode).save(content, kind)
                made.append((suffix, content.getvalue()))
    for picture in (GRAY, RGB):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "JPEG", progressive=picture is RGB)
        made.append((".jpg", content.getvalue()))
    made.append((".png", imagecodecs.png_encode(np.dstack([DEEP] * 3))))
    for options in ({"compression": "zlib", "tile": (16, 16)}, {"compression": "jpeg"}, {}):
        content = io.BytesIO()
        tifffile.imwrite(content, GRAY, **options)
        made.append((".tif", content.getvalue()))
    return made


VICTIMS = victims()


def damaged(content: bytes, chance: random.Random, suffix: str) -> bytes:
    """A file after a fault of a disk, a copy or an enemy; checksums of PNG are mended at times."""
    data = bytearray(content)
    what = chance.random()
    if what < 0.15:
        return bytes(data[: chance.randrange(1, len(data))])
    if what < 0.25:
        start, end = sorted(chance.randrange(len(data)) for _ in range(2))
        return bytes(data[:start] + data[end:])
    reach = len(data) if chance.random() < 0.4 else min(len(data), 300)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        data[chance.randrange(reach)] = chance.choice((0, 1, 255, chance.randrange(256)))
    at = 8
    while suffix == ".png" and what < 0.8 and at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(bytes(data[at + 4 : end])).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=400,
)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_give_values_or_one_sentence_and_soon(tmp_path, seed):
    chance = random.Random(seed)
    suffix, content = chance.choice(VICTIMS)
    file = tmp_path / f"a{suffix}"
    file.write_bytes(damaged(content, chance, suffix))
    begin = time.monotonic()
    labels = chance.random() < 0.3
    try:
        if suffix in TIFF:
            try:
                tiff = tifffile.TiffFile(file)
            except Exception:
                return  # opening is not this module's
            with tiff:
                if len(tiff.pages):
                    page = tiff.pages[0]
                    page_layout(page, "a", labels=labels)
                    try:
                        array = page.asarray()
                    except Exception:
                        return  # nor is decoding
                    page_values(array, page, "a", labels=labels)
        else:
            image_values(file, labels=labels)
    except UserError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - begin < 5
