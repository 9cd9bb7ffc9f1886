"""Makers of the new inputs: what microscopes, Fiji, labelling tools, spreadsheets, trackers and file systems write."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.cases.makers import (
    SIDE,
    class_folders,
    crop_table,
    frame,
    halves,
    png,
    save,
    textures,
    tiles,
)

# --- names of frames ------------------------------------------------------------------------------


def leica(d: Path) -> None:
    """LAS X, TIFF export: _t00_ch00, two channels of four times."""
    for t in range(4):
        for c in range(2):
            save(d / "frames" / f"Series003_t{t:02d}_ch{c:02d}.tif", frame(10 + 20 * t + 100 * c))
    tiles(d / "tiles.csv", range(4), (0, 1))


def metamorph(d: Path) -> None:
    """MetaMorph: _w1Phase_s1_t1.TIF, two positions of eleven times, not padded, counted from 1."""
    for s in (1, 2):
        for t in range(1, 12):
            save(d / "frames" / f"screen_w1Phase_s{s}_t{t}.TIF", frame(5 * t + 100 * (s - 1)))
    tiles(d / "tiles.csv", range(1, 12), range(1, 6))


def bioformats(d: Path) -> None:
    """bfconvert with %t %c %z in the name, as the manual shows it."""
    for t in range(11):
        for c in range(2):
            save(d / "frames" / f"export_T={t}_C={c}_Z=0.tif", frame(10 * t + 5 + 120 * c))
    tiles(d / "tiles.csv", range(11), range(4))


def micromanager(d: Path) -> None:
    """Micro-Manager 1.4, separate images: a folder per position, the focal plane last; maps under the same names."""
    for p in range(2):
        for t in range(4):
            name = f"img_{t:09d}_Default_000.tif"
            value = 10 * t + 5 + 60 * p
            save(d / "run" / f"Pos{p}" / name, frame(value, value + 100))
            save(d / "run" / f"Pos{p}_classes" / name, halves())
        (d / "run" / f"Pos{p}" / "metadata.txt").write_text('{"Summary": {"Frames": 4}}\n')


def incucyte(d: Path) -> None:
    """Incucyte: well, field, and days, hours and minutes."""
    for name, value in (
        ("00d00h00m", 20),
        ("00d00h30m", 60),
        ("00d10h00m", 100),
        ("01d02h00m", 140),
    ):
        save(d / "frames" / f"VID12_A1_1_{name}.tif", frame(value))
    tiles(d / "tiles.csv", range(4), (0, 1))


def minutes(d: Path) -> None:
    """Minutes, not padded."""
    for i, t in enumerate((0, 5, 10, 100)):
        save(d / "frames" / f"field1_{t}min.png", frame(20 + 40 * i))
    tiles(d / "tiles.csv", range(4), (0, 1))


def negative_hours(d: Path) -> None:
    """Hours before and after a drug was added."""
    for i, t in enumerate((-2, -1, 0, 1)):
        save(d / "frames" / f"well_{t}h.png", frame(20 + 40 * i))
    tiles(d / "tiles.csv", range(4), (0, 1))


def dates(d: Path) -> None:
    """A camera's clock, over midnight."""
    for i, t in enumerate(("01_23-30-00", "02_00-00-00", "02_00-30-00", "02_02-30-00")):
        save(d / "frames" / f"2024-03-{t}.png", frame(20 + 40 * i))
    tiles(d / "tiles.csv", range(4), (0, 1))


def repeated_number(d: Path) -> None:
    """A frame twice: as PNG and, from an earlier export, as TIFF."""
    for t in range(3):
        save(d / "frames" / f"t{t:03d}.png", frame(20 + 40 * t))
    save(d / "frames" / "t001.tif", frame(200))
    tiles(d / "tiles.csv", range(3), (0,))


def maps_from_1(d: Path) -> None:
    """Frames counted from 0, maps that Fiji saved from 1: equally many."""
    for t in range(4):
        save(d / "m" / f"t{t:03d}.png", frame(20 + 40 * t))
        save(d / "m_classes" / f"t{t + 1:03d}.png", frame(1 if t < 2 else 2))


def sparse_maps(d: Path) -> None:
    """Cell Tracking Challenge: man_seg for two frames of six."""
    for t in range(6):
        save(d / "01" / f"t{t:03d}.tif", frame(10 * t + 5))
    for t in (2, 5):
        save(d / "01_GT" / "SEG" / f"man_seg{t:03d}.tif", halves())


# --- axes and metadata of files -------------------------------------------------------------------


def ome_delta(d: Path) -> None:
    """An OME-TIFF whose planes tell when they were taken; the microscope paused before the last."""
    m = np.stack([frame(20 + 40 * t) for t in range(4)])
    when = {"DeltaT": [0.0, 600.0, 1200.0, 4800.0], "DeltaTUnit": ["s"] * 4}
    tifffile.imwrite(
        d / "movie.ome.tif", m, photometric="minisblack", metadata={"axes": "TYX", "Plane": when}
    )
    tiles(d / "tiles.csv", range(4), (0, 1))


def ome_gap(d: Path) -> None:
    """An OME-TIFF that was interrupted: of four times the plane of the third was never written."""
    data = "".join(
        f'<TiffData FirstT="{t}" FirstC="0" FirstZ="0" IFD="{i}" PlaneCount="1"/>'
        for i, t in enumerate((0, 1, 3))
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
        f'SizeX="{SIDE}" SizeY="{SIDE}" SizeZ="1" SizeC="1" SizeT="4" TimeIncrement="1" TimeIncrementUnit="h">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
    )
    with tifffile.TiffWriter(d / "movie.ome.tif") as w:
        for i, t in enumerate((0, 1, 3)):
            w.write(
                frame(5 + 10 * t),
                photometric="minisblack",
                metadata=None,
                description=xml if i == 0 else None,
            )
    tiles(d / "tiles.csv", (0, 1, 3), (0, 1))
    tiles(d / "all.csv", range(4), (0, 1))


def ome_unequal(d: Path) -> None:
    """Two positions; the run was stopped after five times of one and four of the other."""
    with tifffile.TiffWriter(d / "movie.ome.tif", ome=True) as w:
        for p, n in enumerate((5, 4)):
            m = np.stack([frame(10 * t + 5 + 100 * p) for t in range(n)])
            w.write(m, photometric="minisblack", metadata={"axes": "TYX", "Name": f"Pos{p}"})
    tiles(d / "tiles.csv", range(4), (0, 1))


def pyramid(d: Path) -> None:
    """An OME-TIFF with a smaller copy of each frame (sub-IFDs), as whole-slide and light-sheet software writes it."""
    m = np.stack([frame(20 + 40 * t) for t in range(3)])
    with tifffile.TiffWriter(d / "movie.ome.tif", ome=True) as w:
        w.write(m, photometric="minisblack", subifds=1, metadata={"axes": "TYX"})
        w.write(np.ascontiguousarray(m[:, ::2, ::2]), photometric="minisblack", subfiletype=1)
    tiles(d / "tiles.csv", range(3), (0,))


def planes_over_time(d: Path) -> None:
    """An ImageJ hyperstack of three focal planes and four times."""
    m = np.stack([[frame(10 * t + 5 + 60 * z) for z in range(3)] for t in range(4)])
    tifffile.imwrite(d / "movie.tif", m, imagej=True, metadata={"axes": "TZYX"})
    tiles(d / "tiles.csv", range(4), (0, 1))


def slices_as_times(d: Path) -> None:
    """A time-lapse that Fiji opened as an image sequence: five `slices`, one frame."""
    m = np.stack([frame(20 + 40 * t) for t in range(5)])
    tifffile.imwrite(d / "movie.tif", m, imagej=True, metadata={"axes": "ZYX"})
    tiles(d / "tiles.csv", range(5), (0, 1))


def nanometres(d: Path) -> None:
    """ImageJ with the unit nm, as for electron microscopes and super-resolution."""
    m = np.stack([frame(20 + 40 * t) for t in range(3)])
    per = (1 / 650, 1 / 650)
    tifffile.imwrite(
        d / "movie.tif", m, imagej=True, resolution=per, metadata={"axes": "TYX", "unit": "nm"}
    )
    tiles(d / "tiles.csv", range(3), (0,))


def not_square(d: Path) -> None:
    """OME with a pixel twice as high as wide (a line camera, or a binned axis)."""
    m = np.stack([frame(20 + 40 * t) for t in range(3)])
    size = {f"PhysicalSize{a}": v for a, v in (("X", 0.65), ("Y", 1.3))}
    units = {f"PhysicalSize{a}Unit": "µm" for a in "XY"}
    tifffile.imwrite(
        d / "movie.ome.tif", m, photometric="minisblack", metadata={"axes": "TYX", **size, **units}
    )
    tiles(d / "tiles.csv", range(3), (0,))


def two_sizes(d: Path) -> None:
    """OME says 0.65 um, the TIFF's own resolution 0.325: binned after the metadata were written."""
    m = np.stack([frame(20 + 40 * t) for t in range(3)])
    size = {f"PhysicalSize{a}": 0.65 for a in "XY"} | {f"PhysicalSize{a}Unit": "µm" for a in "XY"}
    tifffile.imwrite(
        d / "movie.ome.tif",
        m,
        photometric="minisblack",
        resolution=(1e4 / 0.325, 1e4 / 0.325),
        resolutionunit="CENTIMETER",
        metadata={"axes": "TYX", **size},
    )
    tiles(d / "tiles.csv", range(3), (0,))


# --- pixels ---------------------------------------------------------------------------------------


def big_endian_float(d: Path) -> None:
    """Crops that ImageJ saved as 32 bit (it writes big-endian): one brighter than the other."""
    for i in range(6):
        path = d / "crops" / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = textures(1, seed=i)[0] / 255 * 0.05
        tifffile.imwrite(path, (0.1 * i + noise).astype(np.float32), byteorder=">", imagej=True)


def signed_movie(d: Path) -> None:
    """Signed 16 bit after a background was subtracted."""
    m = np.stack([frame(v, dtype=np.int16) for v in (-1500, -500, 500, 1500)])
    m += np.random.default_rng(0).integers(-50, 50, m.shape).astype(np.int16)
    tifffile.imwrite(d / "movie.tif", m, photometric="minisblack")
    tiles(d / "tiles.csv", range(4), (0, 1))


def deep_colour_png(d: Path) -> None:
    """RGB PNG of 16 bits a sample, gray, from a 12-bit camera: all differences below 8 bits of 16."""
    for i in range(6):
        gray = 1000 + 100 * i + textures(1, seed=i)[0].astype(np.uint16) // 16
        png(d / "crops" / "ab"[i % 2] / f"{i}.png", np.stack([gray] * 3, -1), 16, 2)


def deep_white_is_zero(d: Path) -> None:
    """16 bit, white is zero: as a movie, and as crops."""
    m = np.stack([frame(1000 * t + 500, dtype=np.uint16) for t in range(4)])
    m += np.random.default_rng(0).integers(0, 50, m.shape).astype(np.uint16)
    tifffile.imwrite(d / "movie.tif", m, photometric="miniswhite")
    tiles(d / "tiles.csv", range(4), (0, 1))
    for t in range(4):
        path = d / "crops" / "ab"[t > 1] / f"{t}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, m[t, :16, :16], photometric="miniswhite")


def animated_png(d: Path) -> None:
    """One of the crops is an animated PNG of three pictures."""
    class_folders(d / "crops", ("dense", "spread"))
    first, *rest = [Image.fromarray(c) for c in textures(3, seed=9)]
    first.save(d / "crops" / "dense" / "3.png", save_all=True, append_images=rest)


def turned_jpeg(d: Path) -> None:
    """A phone on the eyepiece: frames to be shown turned (EXIF 6), maps drawn on what a viewer shows."""
    shown = frame(40, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    for t in range(3):
        path = d / "m" / f"t{t}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rot90(shown).copy()).save(path, exif=exif, quality=98)
        save(d / "m_classes" / f"t{t}.png", halves())


def kinds_of_gray(d: Path) -> None:
    """The same grays as L, opaque LA, opaque RGBA, RGB, planar RGB and YCbCr in a TIFF."""
    for k, c in enumerate("ab"):
        (d / "crops" / c).mkdir(parents=True)
        for i in range(6):
            gray = np.full((16, 16), 40 + 100 * k + 10 * i, np.uint8)
            gray[0, 0] = 10 + i  # no two alike
            rgb = np.stack([gray] * 3, -1)
            opaque = np.full_like(gray, 255)
            file = d / "crops" / c / f"{i}.png"
            if i == 0:
                Image.fromarray(gray).save(file)
            elif i == 1:
                Image.fromarray(np.stack([gray, opaque], -1)).save(file)
            elif i == 2:
                Image.fromarray(np.dstack([rgb, opaque])).save(file)
            elif i == 3:
                Image.fromarray(rgb).save(file)
            elif i == 4:
                planar = np.ascontiguousarray(rgb.transpose(2, 0, 1))
                tifffile.imwrite(
                    file.with_suffix(".tif"), planar, photometric="rgb", planarconfig="separate"
                )
            else:
                tifffile.imwrite(
                    file.with_suffix(".tif"),
                    rgb,
                    photometric="rgb",
                    compression="jpeg",
                    compressionargs={"level": 98},
                )


def cmyk(d: Path) -> None:
    """JPEG crops in CMYK, from a layout program."""
    for k, c in enumerate("ab"):
        (d / "crops" / c).mkdir(parents=True)
        for i in range(3):
            gray = Image.fromarray(np.full((16, 16), 40 + 100 * k + 20 * i, np.uint8))
            gray.convert("RGB").convert("CMYK").save(d / "crops" / c / f"{i}.jpg", quality=98)


def inverted_bmp(d: Path) -> None:
    """BMP of 8 bits with the palette of an inverted gray scale, as old microscope software writes it."""
    for k, c in enumerate("ab"):
        (d / "crops" / c).mkdir(parents=True)
        for i in range(3):
            image = Image.fromarray(np.full((16, 16), 40 + 100 * k + 20 * i, np.uint8), mode="P")
            image.putpalette([255 - v for v in range(256) for _ in range(3)])
            image.save(d / "crops" / c / f"{i}.bmp")


# --- tables ---------------------------------------------------------------------------------------


def german_excel(d: Path) -> None:
    """Excel in German: a first line that names the delimiter, decimal commas, cp1252, emptied rows at the end."""
    lines = [f"{i}.png;{'früh' if i % 2 else 'spät'};z{i // 2};{i},5" for i in range(8)]
    crop_table(d / "patches.csv", "path;label;track;time_h", lines)
    text = "\r\n".join(["sep=;", "path;label;track;time_h", *lines, ";;;", ";;;", ""])
    (d / "patches.csv").write_bytes(text.encode("cp1252"))


def r_table(d: Path) -> None:
    """R's write.csv: row names under an empty name, everything quoted; the classes are called NA and yes."""
    names = ("NA", "yes")
    lines = [f'"{i + 1}","{i}.png","{names[i % 2]}","{i // 2}",{i / 2}' for i in range(8)]
    crop_table(d / "patches.csv", '"","path","label","track","time_h"', lines)


def trackmate(d: Path) -> None:
    """TrackMate: after the names three more lines of names and units."""
    lines = [f"{i}.png,{'ab'[i % 2]},{i // 2},{i % 2},{i % 2}" for i in range(8)]
    crop_table(d / "patches.csv", "path,label,track,frame,time_h", lines)
    head = [
        "path,label,track,frame,time_h",
        "File,Label,Track ID,Frame,T",
        "File,Label,Track ID,Frame,T",
        ",,,,(h)",
    ]
    (d / "patches.csv").write_text("\n".join([*head, *lines, ""]))


def other_unicode(d: Path) -> None:
    """Names from a Mac (decomposed letters) and a table typed elsewhere (composed); labels in both forms."""
    labels = ["früh", unicodedata.normalize("NFD", "früh"), "spät", "spät"]
    lines = ["path,label,track"]
    for i, crop in enumerate(textures(8)):
        save(d / unicodedata.normalize("NFD", f"zürich_{i}.png"), crop)
        lines.append(f"zürich_{i}.png,{labels[i % 4]},{i // 2}")
    (d / "patches.csv").write_text("\n".join(lines) + "\n")


def lookalike(d: Path) -> None:
    """Two class folders whose names look the same: one has a Cyrillic letter."""
    class_folders(d / "crops", ("dense", "d\u0435nse", "spread"))


def copied_crop(d: Path) -> None:
    """A crop that was copied, not moved, into the other class."""
    class_folders(d / "crops", ("dense", "spread"))
    copy = d / "crops" / "spread" / "Copy of 3.png"
    copy.write_bytes((d / "crops" / "dense" / "3.png").read_bytes())


def conflicting_tiles(d: Path) -> None:
    """A tile that two people labelled differently."""
    tifffile.imwrite(d / "movie.tif", np.stack([frame(20 + 40 * t) for t in range(3)]))
    tiles(d / "tiles.csv", range(3), (0,))
    with (d / "tiles.csv").open("a") as s:
        s.write("1,0,48,16,early\n")


def timed_tiles(d: Path) -> None:
    """Tiles with hours of their own; the movie tells no interval."""
    tifffile.imwrite(
        d / "movie.tif",
        np.stack([frame(20 + 40 * t) for t in range(4)]),
        photometric="minisblack",
    )
    tiles(d / "tiles.csv", range(4), (0, 1), {"time_h": (0, 0.5, 1, 26)})


# --- file systems ---------------------------------------------------------------------------------


def leftovers(d: Path) -> None:
    """What Windows and a Synology leave among pictures."""
    class_folders(d / "crops", ("dense", "spread"))
    for c in ("dense", "spread"):
        (d / "crops" / c / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
        (d / "crops" / c / "desktop.ini").write_text("[.ShellClassInfo]\n")
        for i in range(2):
            save(d / "crops" / c / "@eaDir" / f"{i}.png" / "SYNOPHOTO_THUMB_M.jpg", textures(1)[0])
    (d / "crops" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    save(d / "crops" / "@eaDir" / "cover.jpg", textures(1, seed=7)[0])


def broken_links(d: Path) -> None:
    """A link to a picture that is gone, and a link to the folder above."""
    class_folders(d / "crops", ("dense", "spread"))
    (d / "crops" / "dense" / "9.png").symlink_to("gone.png")
    (d / "crops" / "dense" / "up").symlink_to("..")


def other_formats(d: Path) -> None:
    """Beside PNG crops of a class others as GIF, and a note."""
    class_folders(d / "crops", ("dense", "spread"))
    for i, crop in enumerate(textures(2, seed=5)):
        Image.fromarray(crop).save(d / "crops" / "dense" / f"x{i}.gif")
    (d / "crops" / "dense" / "note.txt").write_text("two of them are GIFs")


def targets(d: Path) -> None:
    """A table, and a link to a folder of other things, that are given as the store."""
    class_folders(d / "crops", ("dense", "spread"))
    (d / "thesis").mkdir()
    (d / "thesis" / "thesis.tex").write_text("ten years")
    (d / "numbers.csv").write_text("a,b\n1,2\n")
    (d / "link").symlink_to("thesis")
