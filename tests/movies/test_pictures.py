"""One reader: the same picture gives the same values, whatever file it comes in."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stemcell_lit.movies.frames import open_frames
from stemcell_lit.movies.pictures import image_layout, page_layout
from tests.movies.picture_files import (
    DEEP,
    GRAY,
    RAMP,
    RGB,
    bmp_with_alpha,
    chunk,
    luma,
    paletted,
    png,
    raw_tiff,
    read,
    refused,
    same,
)

WEIGHTS = np.array([299, 587, 114])
GREEN = RAMP * np.array([[0], [1], [0]], np.uint16)
LOSSLESS = ("lzw", "zlib", "zstd", "packbits", "lzma", "deflate", "png", "jpegxl", "jpeg2000", None)
same_file = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


# --- the same picture in every way that the writers know


def tiff_way(draw, values: np.ndarray, file: Path) -> np.ndarray:
    """Writes gray values by tifffile in some way; returns what must be read."""
    kind = draw(st.sampled_from(["black", "white", "rgb", "planes", "alpha", "rgba", "table"]))
    top = np.iinfo(values.dtype).max
    options: dict = {"photometric": "minisblack"}
    if kind == "white":
        array, options = top - values, {"photometric": "miniswhite"}
    elif kind in ("rgb", "rgba"):
        solid = [np.full_like(values, top)] * (kind == "rgba")
        array, options = np.dstack([values] * 3 + solid), {"photometric": "rgb"}
        if solid:
            options["extrasamples"] = ["unassalpha"]
    elif kind == "planes":
        array = np.stack([values] * 3)
        options = {"photometric": "rgb", "planarconfig": "separate"}
    elif kind == "alpha":
        array = np.dstack([values, np.full_like(values, top)])
        options |= {"extrasamples": ["assocalpha"], "planarconfig": "contig"}
    elif kind == "table" and values.dtype == np.uint8:
        array, options = 255 - values, {"photometric": "palette", "colormap": RAMP[:, ::-1]}
    else:
        array = values
    options["compression"] = compression = draw(st.sampled_from(LOSSLESS))
    if compression in ("lzw", "zlib", "zstd", "lzma", "deflate") and kind != "table":
        options["predictor"] = draw(st.booleans())
    if compression not in ("png", "jpegxl", "jpeg2000"):  # these cannot be written big-endian
        options["byteorder"] = draw(st.sampled_from("<>"))
    options["bigtiff"] = draw(st.booleans())
    options["tile"] = draw(st.sampled_from([None, (16, 16), (16, 32)]))
    if options["tile"] is None:
        options["rowsperstrip"] = draw(st.sampled_from([None, 1, 4]))
    tifffile.imwrite(file, array, **options)
    return values


@same_file
@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40), deep=st.booleans())
def test_every_way_of_writing_a_tiff_gives_the_same_values(tmp_path, data, height, width, deep):
    values = (DEEP if deep else GRAY)[
        np.ix_(np.arange(height) % GRAY.shape[0], np.arange(width) % GRAY.shape[1])
    ]
    same(tmp_path / "a.tif", tiff_way(data.draw, values, tmp_path / "a.tif"))


def gray_ways() -> dict:
    """Ways to write 8-bit gray values without loss, by name; the suffix is the name's end."""
    picture = Image.fromarray(GRAY)
    inverted = Image.fromarray(255 - GRAY).convert("P")
    inverted.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3).tobytes())
    ways = {
        f"pillow {mode}{suffix}": lambda f, m=mode: picture.convert(m).save(f)
        for mode in ("L", "P", "RGB", "RGBA")
        for suffix in (".png", ".bmp", ".tif")
    }
    ways |= {
        f"pillow LA{suffix}": lambda f: picture.convert("LA").save(f) for suffix in (".png", ".tif")
    }
    ways |= {
        f"pillow inverted table{suffix}": lambda f: inverted.save(f)
        for suffix in (".png", ".bmp", ".tif")
    }
    ways |= {
        f"pillow {c}.tif": lambda f, c=c: picture.save(f, compression=c)
        for c in ("tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd", "lzma")
    }
    ways["pillow optimize.png"] = lambda f: picture.save(f, optimize=True)
    ways["pillow table optimize.png"] = lambda f: picture.convert("P").save(f, optimize=True)
    solid = np.full_like(GRAY, 255)
    for name, array in {
        "gray": GRAY,
        "gray and alpha": np.dstack([GRAY, solid]),
        "rgb": np.dstack([GRAY] * 3),
        "rgba": np.dstack([GRAY] * 3 + [solid]),
    }.items():
        ways[f"imagecodecs {name}.png"] = lambda f, a=array: f.write_bytes(
            imagecodecs.png_encode(a, level=1)
        )
    ways["imagecodecs gray.bmp"] = lambda f: f.write_bytes(imagecodecs.bmp_encode(GRAY))
    ways["imagecodecs rgb.bmp"] = lambda f: f.write_bytes(
        imagecodecs.bmp_encode(np.dstack([GRAY] * 3))
    )
    return ways


@pytest.mark.parametrize("way", gray_ways())
def test_every_writer_of_gray_gives_the_same_values(tmp_path, way):
    file = tmp_path / way.replace(" ", "_")
    gray_ways()[way](file)
    same(file, GRAY)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_imageio_gives_the_same_values(tmp_path, suffix):
    imageio = pytest.importorskip("imageio.v3")
    imageio.imwrite(tmp_path / f"gray{suffix}", GRAY)
    imageio.imwrite(tmp_path / f"rgb{suffix}", RGB)
    same(tmp_path / f"gray{suffix}", GRAY)
    same(tmp_path / f"rgb{suffix}", luma(RGB))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["gray", "rgb", "gray alpha", "rgb alpha"])
def test_every_kind_of_png_gives_the_same_values(tmp_path, bits, colour, interlaced):
    values = GRAY if bits == 8 else DEEP
    samples = [values] * (1 if colour in (0, 4) else 3)
    samples += [np.full_like(values, 2**bits - 1)] * (colour >= 4)
    (tmp_path / "a.png").write_bytes(png(np.dstack(samples), bits, colour, interlaced=interlaced))
    same(tmp_path / "a.png", values)


def test_16_bit_is_never_cut_to_8(tmp_path):
    deep = np.dstack([DEEP, DEEP[::-1], DEEP[:, ::-1]])
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", byteorder=">")
    Image.fromarray(DEEP).save(tmp_path / "gray.png")
    Image.fromarray(DEEP).save(tmp_path / "gray.tif")
    for suffix in ("png", "tif"):
        same(tmp_path / f"a.{suffix}", luma(deep))
        same(tmp_path / f"gray.{suffix}", DEEP)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_low_bits_are_spread_over_8(tmp_path, bits, interlaced):
    top = 2**bits - 1
    values = GRAY >> (8 - bits)
    expected = values * np.uint8(255 // top)
    (tmp_path / "gray.png").write_bytes(png(values, bits, 0, interlaced=interlaced))
    ramp = np.repeat(np.arange(top + 1) * (255 // top), 3).astype(np.uint8).tobytes()
    (tmp_path / "table.png").write_bytes(
        png(values, bits, 3, chunk(b"PLTE", ramp), interlaced=interlaced)
    )
    tifffile.imwrite(tmp_path / "gray.tif", values, bitspersample=bits, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "white.tif", top - values, bitspersample=bits, photometric="miniswhite"
    )
    for name in ("gray.png", "table.png", "gray.tif", "white.tif"):
        same(tmp_path / name, expected)
    for name in ("gray.png", "table.png", "gray.tif"):
        same(tmp_path / name, values, labels=True)


def test_low_bit_tables_of_tiff_are_applied(tmp_path):
    values = (GRAY >> 4).astype(np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 4:].reshape(19, -1), axis=1)
    ramp = np.arange(15, -1, -1) * 4369
    raw_tiff(
        tmp_path / "a.tif", packed.tobytes(), GRAY.shape, t258=4, t262=3, t320=np.tile(ramp, 3)
    )
    same(tmp_path / "a.tif", (15 - values) * np.uint8(17))
    same(tmp_path / "a.tif", values, labels=True)


def test_12_bit_stays_as_stored(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP >> 4, bitspersample=12)
    same(tmp_path / "a.tif", DEEP >> 4)
    tifffile.imwrite(
        tmp_path / "white.tif", 4095 - (DEEP >> 4), bitspersample=12, photometric="miniswhite"
    )
    same(tmp_path / "white.tif", DEEP >> 4)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits", None])
def test_fax_compressions_of_1_bit_are_0_and_255(tmp_path, mask, compression):
    bits = (GRAY > 100) == mask
    Image.fromarray(bits).save(tmp_path / "a.tif", compression=compression)
    Image.fromarray(bits).save(tmp_path / "a.png")
    Image.fromarray(bits).save(tmp_path / "a.bmp")
    for name in ("a.tif", "a.png", "a.bmp"):
        same(tmp_path / name, bits * np.uint8(255))
        same(tmp_path / name, bits * np.uint8(1), labels=True)


NUMBERS = [f"{sign}int{n}" for sign in ("u", "") for n in (8, 16, 32, 64)]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [*NUMBERS, "float16", "float32", "float64"])
def test_numbers_of_every_type_are_as_stored(tmp_path, dtype, byteorder):
    values = (GRAY.astype(dtype) - 3) if dtype[0] in "if" else GRAY.astype(dtype)
    if dtype[0] in "iu":
        info = np.iinfo(dtype)
        values[0, :2] = info.min, info.max
    else:
        values[0, :3] = np.nan, np.inf, 0.1
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=byteorder)
    same(tmp_path / "a.tif", values)


def test_complex_numbers_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY.astype(np.complex64))
    refused(tmp_path / "a.tif", "pixels of type complex64; expected integers or real numbers")


def test_bits_in_reverse_order_are_read(tmp_path):
    packed = np.packbits(GRAY > 100, axis=1, bitorder="little")
    raw_tiff(tmp_path / "a.tif", packed.tobytes(), GRAY.shape, t258=1, t266=2)
    same(tmp_path / "a.tif", (GRAY > 100) * np.uint8(255))


# --- white is zero


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_white_is_zero_is_the_maximum_minus_what_is_stored(tmp_path, dtype):
    top = np.iinfo(dtype).max
    values = (DEEP.astype(np.uint64) * 65537 % (int(top) + 1)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", top - values, photometric="miniswhite")
    same(tmp_path / "a.tif", values)


def test_white_is_zero_is_read_as_pillow_shows_it(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY, photometric="miniswhite")
    with Image.open(tmp_path / "a.tif") as image:
        same(tmp_path / "a.tif", np.asarray(image.convert("L")))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_white_is_zero_without_a_maximum_is_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", GRAY.astype(dtype), photometric="miniswhite")
    refused(tmp_path / "a.tif", "white-is-zero.*maximum is known.*Edit > Invert")


# --- colour tables


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_coloured_tables_are_refused_everywhere(tmp_path, suffix):
    paletted(GREEN.T >> 8).save(tmp_path / f"a{suffix}")
    refused(tmp_path / f"a{suffix}", "colour table.*Image > Lookup Tables > Grays")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_table_whose_used_entries_are_gray_is_gray(tmp_path, suffix):
    colours = (RAMP.T >> 8).copy()
    colours[255] = 255, 0, 0  # as a table that marks saturated pixels
    colours[0] = 0, 0, 255
    file = tmp_path / f"a{suffix}"
    within = np.clip(GRAY, 1, 254)
    paletted(colours, within).save(file)
    same(file, within)
    paletted(colours, GRAY).save(file)
    refused(file, "colour table.*2 of [0-9]+ used entries")


@pytest.mark.parametrize("factor", [256, 257])
def test_8_bit_tables_of_tiff_give_8_bit(tmp_path, factor):
    table = np.tile(np.arange(255, -1, -1) * factor, 3)
    raw_tiff(tmp_path / "a.tif", GRAY.tobytes(), GRAY.shape, t262=3, t320=table)
    same(tmp_path / "a.tif", 255 - GRAY)


def test_16_bit_tables_of_tiff_give_16_bit(tmp_path):
    table = np.arange(256) * 200 + 7
    raw_tiff(tmp_path / "a.tif", GRAY.tobytes(), GRAY.shape, t262=3, t320=np.tile(table, 3))
    same(tmp_path / "a.tif", table[GRAY].astype(np.uint16))


@pytest.mark.parametrize("ome", [True, False])
def test_each_frame_of_a_movie_has_its_own_table(tmp_path, ome):
    file = tmp_path / ("a.ome.tif" if ome else "a.tif")
    with tifffile.TiffWriter(file, ome=ome) as writer:
        for table in (RAMP, RAMP[:, ::-1]):
            writer.write(
                GRAY, photometric="palette", colormap=table, contiguous=False, compression="zlib"
            )
    for number, expected in enumerate((GRAY, 255 - GRAY)):
        same(file, expected, page=number)
    if not ome:
        with open_frames(file) as frames:
            np.testing.assert_array_equal(frames.read(1), 255 - GRAY)


def test_tables_in_doubt_are_refused(tmp_path):
    small = np.tile(np.arange(256), 3)
    raw_tiff(tmp_path / "small.tif", GRAY.tobytes(), GRAY.shape, t262=3, t320=small)
    refused(tmp_path / "small.tif", "entries are all below 256")
    raw_tiff(tmp_path / "none.tif", GRAY.tobytes(), GRAY.shape, t262=3)
    refused(tmp_path / "none.tif", "no table")
    short = chunk(b"PLTE", bytes(30))
    (tmp_path / "a.png").write_bytes(png(GRAY, 8, 3, short))
    refused(tmp_path / "a.png", "colour table of 10 entries")


def test_transparent_entries_count_where_they_are_used(tmp_path):
    table = chunk(b"PLTE", np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    clear = chunk(b"tRNS", b"\0")
    (tmp_path / "unused.png").write_bytes(png(np.maximum(GRAY, 1), 8, 3, table + clear))
    same(tmp_path / "unused.png", np.maximum(GRAY, 1))
    indices = GRAY.copy()
    indices[0, 0] = 0
    (tmp_path / "used.png").write_bytes(png(indices, 8, 3, table + clear))
    refused(tmp_path / "used.png", "some pixels are transparent.*flatten")
    same(tmp_path / "used.png", indices, labels=True)


# --- colour, channels and alpha


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "float32", "float64"])
def test_colour_is_mixed_by_luma_in_the_stored_type(tmp_path, dtype):
    rgb = RGB.astype(dtype) * (7 if dtype != "uint8" else 1)
    expected = luma(rgb) if dtype[0] != "f" else rgb @ (WEIGHTS / 1000)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    values = read(tmp_path / "a.tif")
    assert values.dtype == dtype
    np.testing.assert_allclose(values, expected, rtol=1e-6 if dtype[0] == "f" else 0)


def test_gray_stored_as_colour_is_exactly_that_gray(tmp_path):
    for dtype in ("uint8", "uint16", "uint32", "int32", "float32", "float64"):
        values = (DEEP.astype(np.float64) * 65535.7 / 3).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", np.dstack([values] * 3), photometric="rgb")
        same(tmp_path / "a.tif", values)


def test_colour_of_every_format_gives_the_same_values(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif"):
        Image.fromarray(RGB).save(tmp_path / name)
    tifffile.imwrite(
        tmp_path / "b.tif", np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"
    )
    for name in ("a.png", "a.bmp", "a.tif", "b.tif"):
        same(tmp_path / name, luma(RGB))
        for number, colour in enumerate(("red", "green", "blue")):
            same(tmp_path / name, RGB[..., number], channel=str(number))
            same(tmp_path / name, RGB[..., number], channel=colour)
        refused(
            tmp_path / name, "channel=3; expected one of 0, 1, 2, red, green, blue", channel="3"
        )


def test_layouts_tell_colour_and_planes(tmp_path):
    planes = np.moveaxis(RGB, 2, 0)
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "i.tif", RGB, photometric="rgb")
    with tifffile.TiffFile(tmp_path / "p.tif") as tiff:
        layout = page_layout(tiff.pages[0], "p.tif")
        chosen = page_layout(tiff.pages[0], "p.tif", channel="1")
    assert layout.colour and "save them as a stack" in layout.notices[0]
    assert not chosen.colour and chosen.notices == ()
    with tifffile.TiffFile(tmp_path / "i.tif") as tiff:
        assert page_layout(tiff.pages[0], "i.tif").notices == ()
    Image.fromarray(GRAY).save(tmp_path / "g.png")
    assert not image_layout(tmp_path / "g.png").colour


def test_several_samples_without_a_colour_must_be_chosen(tmp_path):
    samples = np.dstack([GRAY, 255 - GRAY, GRAY // 2, GRAY // 3])
    tifffile.imwrite(
        tmp_path / "a.tif",
        samples,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unspecified"] * 3,
    )
    refused(tmp_path / "a.tif", "4 samples a pixel.*channel=, 0 to 3")
    same(tmp_path / "a.tif", GRAY // 3, channel="3")
    refused(tmp_path / "a.tif", "channel=red", channel="red")
    two = np.stack([GRAY, 255 - GRAY])
    tifffile.imwrite(tmp_path / "b.tif", two, photometric="minisblack", planarconfig="separate")
    refused(tmp_path / "b.tif", "2 samples a pixel")
    same(tmp_path / "b.tif", 255 - GRAY, channel="1")


def test_a_channel_that_is_not_there_is_refused(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", GRAY)
    for name in ("a.png", "a.tif"):
        refused(tmp_path / name, "channel=green; expected only 0", channel="green")
        same(tmp_path / name, GRAY, channel="0")


def test_opaque_alpha_is_dropped_everywhere(tmp_path):
    solid = np.dstack([RGB, np.full_like(GRAY, 255)])
    (tmp_path / "a.bmp").write_bytes(bmp_with_alpha(solid))
    for name in ("a.png", "a.tif"):
        Image.fromarray(solid).save(tmp_path / name)
    for name in ("a.bmp", "a.png", "a.tif"):
        same(tmp_path / name, luma(RGB))


def test_a_transparent_gray_that_no_pixel_has_is_nothing(tmp_path):
    values = np.maximum(GRAY, 1)
    (tmp_path / "a.png").write_bytes(png(values, 8, 0, chunk(b"tRNS", bytes(2))))
    same(tmp_path / "a.png", values)
    deep = np.maximum(DEEP, 1)
    (tmp_path / "b.png").write_bytes(png(deep, 16, 0, chunk(b"tRNS", bytes(2))))
    same(tmp_path / "b.png", deep)


# --- JPEG


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_gives_the_same_values_in_a_tiff_and_alone(tmp_path, subsampling):
    smooth = np.add.outer(np.arange(40) * 3, np.arange(56) * 2).astype(np.uint8)
    rgb = np.dstack([smooth, smooth[::-1], 255 - smooth])
    for name, picture, tags in (
        ("gray", smooth, {}),
        ("rgb", rgb, {"t262": 6, "t277": 3, "t258": [8, 8, 8], "t530": [1, 1]}),
    ):
        Image.fromarray(picture).save(tmp_path / f"{name}.jpg", subsampling=subsampling, quality=90)
        stream = (tmp_path / f"{name}.jpg").read_bytes()
        raw_tiff(tmp_path / f"{name}.tif", stream, smooth.shape, t259=7, **tags)
        alone = read(tmp_path / f"{name}.jpg")
        same(tmp_path / f"{name}.tif", alone)
        expected = picture if picture.ndim == 2 else luma(picture)
        assert np.abs(alone.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_jpeg_in_tiff_is_decoded_to_colour(tmp_path, subsampling, tile):
    smooth = np.add.outer(np.arange(40) * 3, np.arange(56) * 2).astype(np.uint8)
    rgb = np.dstack([smooth, smooth[::-1], 255 - smooth])
    tifffile.imwrite(
        tmp_path / "a.tif",
        rgb,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 95},
        subsampling=subsampling,
        tile=tile,
    )
    assert np.abs(read(tmp_path / "a.tif").astype(int) - luma(rgb)).mean() < 4


def test_a_cut_jpeg_is_refused_everywhere(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.jpg")
    stream = (tmp_path / "a.jpg").read_bytes()
    cut = stream[: len(stream) - 60]
    (tmp_path / "a.jpg").write_bytes(cut)
    raw_tiff(tmp_path / "a.tif", cut, GRAY.shape, t259=7)
    refused(tmp_path / "a.jpg", "truncated")
    refused(tmp_path / "a.tif", "JPEG data without its end.*truncated")
