"""Makers of the cases: inputs after public reports of people who read microscope images and sort crops."""

from __future__ import annotations

import csv
import json
import shutil
import uuid
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

RAMP = np.arange(256)
TABLES = {  # of colours, as (256, 3)
    "green": np.stack([0 * RAMP, RAMP, 0 * RAMP], 1).astype(np.uint8),
    "inverted": np.stack([255 - RAMP] * 3, 1).astype(np.uint8),
}


def stack(path: Path, m: np.ndarray, **more: object) -> None:
    """A TIFF of frames, white at the top of the scale unless it is said otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, m, **{"photometric": "minisblack", **more})  # type: ignore[arg-type]


def steps(number: int, start: int = 5, step: int = 10) -> np.ndarray:
    """Frames of one gray value each."""
    return np.stack([frame(start + step * t) for t in range(number)])


def model(folder: Path) -> None:
    """A trained hierarchy of the classes dark and bright."""
    from tests.predict.test_predict import make_model

    folder.mkdir(parents=True)
    make_model(um_per_px=None).save(folder)


def generator(folder: Path) -> None:
    """A generator that has seen nothing yet, with what is known of it."""
    import pytorch_lightning as pl
    import torch

    from stemcell_lit.gan.module import GANModule
    from tests.gan.helpers import SIDE as PX
    from tests.gan.helpers import TINY

    module = GANModule({**TINY, "images": 24}, ["dark", "bright"], PX)
    folder.mkdir(parents=True)
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": pl.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "generator.ckpt")
    facts = {"format": 1, "hash": "0" * 64, "classes": ["dark", "bright"], "seen_groups": ["a"]}
    trained = {"images": 24, "images_trained": 0, "curve": [], "um_per_px": None}
    (folder / "generator.json").write_text(json.dumps({**facts, **trained}))


def targets(d: Path) -> None:
    """Crops with a user's other files beside them, a model, a generator, and a folder of other files."""
    class_folders(d / "crops", ("dark", "bright"))
    (d / "thesis.txt").write_text("mine")
    (d / "other").mkdir()
    (d / "other" / "photo.jpg").write_bytes(bytes(300))
    stack(d / "movies" / "movie.tif", steps(2))
    model(d / "model")
    generator(d / "generator")


def white_is_zero(d: Path) -> None:
    """Fiji: Invert LUT, then save: a movie, and crops of the same places."""
    m = np.stack(
        [np.tile(np.arange(SIDE, dtype=np.uint8) * 2 + 10 * t, (SIDE, 1)) for t in range(4)]
    )
    stack(d / "movie.tif", m, photometric="miniswhite")
    for t in range(4):
        for x in (0, 48):
            stack(
                d / "crops" / "ab"[x > 0] / f"t{t}.tif",
                m[t, :16, x : x + 16],
                photometric="miniswhite",
            )
    lines = [f"{t},0,{x},16,{'ab'[x > 0]}" for t in range(4) for x in (0, 48)]
    (d / "tiles.csv").write_text("\n".join(["frame,y,x,size,label", *lines, ""]))


def colour_tables(d: Path) -> None:
    """The same pixels with a table of colours as TIFF crops, as a TIFF movie and as PNG."""
    for name, table in TABLES.items():
        wide = table.T.astype(np.uint16) * 257
        crops = [np.full((16, 16), 40 + 20 * i, np.uint8) for i in range(6)]
        for i, crop in enumerate(crops):
            label = "ab"[i // 3]
            path = d / name / "tif" / label / f"{i}.tif"
            stack(path, crop, photometric="palette", colormap=wide)
            image = Image.fromarray(crop, mode="P")
            image.putpalette(table.ravel().tolist())
            (d / name / "png" / label).mkdir(parents=True, exist_ok=True)
            image.save(d / name / "png" / label / f"{i}.png")
        m = np.stack([frame(int(c[0, 0])) for c in crops])
        stack(d / name / "movie.tif", m, photometric="palette", colormap=wide)
        tiles(d / name / "tiles.csv", range(6), (0, 1, 2))


def stacks_as_crops(d: Path) -> None:
    """Crops of three focal planes, of two channels, of three times."""
    for i in range(4):
        z = np.stack([textures(1, seed=i)[0] // 8 + v for v in (10, 100, 200)])
        for kind, part, axes in (
            ("planes", z, "ZYX"),
            ("channels", z[:2], "CYX"),
            ("times", z, "TYX"),
        ):
            stack(
                d / kind / "ab"[i % 2] / f"{i}.tif",
                part,
                photometric=None,
                imagej=True,
                metadata={"axes": axes},
            )


def three_frames(d: Path) -> None:
    """Three frames that a script saved as (3, y, x): the file says RGB."""
    m = np.stack([frame(v) for v in (20, 90, 160)])
    stack(d / "movie.tif", m, photometric="rgb", planarconfig="separate")
    tiles(d / "tiles.csv", (0,), (0,))


def low_bit_maps(d: Path) -> None:
    """Class maps as PNG of 2 and 4 bits, and with a palette."""
    for kind in ("bits2", "bits4", "palette"):
        for t in range(3):
            save(d / kind / "m" / f"t{t}.png", frame(20 + 10 * t, 120 + 10 * t))
            path = d / kind / "m_classes" / f"t{t}.png"
            path.parent.mkdir(exist_ok=True)
            if kind == "palette":
                image = Image.fromarray(halves(), mode="P")
                image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
                image.save(path)
            else:
                png(path, halves(), int(kind[-1]), 0)


def sixteen_bit_crops(d: Path) -> None:
    """Crops of a 12-bit camera in 16 bits: one scale holds for all of them."""
    for i in range(6):
        crop = 300 + 500 * i + textures(1, seed=i)[0].astype(np.uint16)
        path = d / "crops" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(path)


def two_positions(d: Path) -> None:
    """An OME-TIFF of two stage positions of five times."""
    size = {f"PhysicalSize{a}": 1.0 for a in "XY"} | {f"PhysicalSize{a}Unit": "µm" for a in "XY"}
    with tifffile.TiffWriter(d / "two.ome.tif", ome=True) as w:
        for p in range(2):
            more = {"axes": "TYX", "Name": f"Pos{p}", "TimeIncrement": 1, "TimeIncrementUnit": "h"}
            w.write(steps(5, 5 + 100 * p), photometric="minisblack", metadata={**more, **size})
    tiles(d / "ten.csv", range(10), (0, 1, 2))
    tiles(d / "five.csv", range(5), (0, 1, 2))
    model(d / "model")


def decimal_names(d: Path) -> None:
    """Frames named by their hours, with decimals."""
    for i in range(7):
        save(d / "frames" / f"colony_{i / 4:g}h.png", frame(10 * i + 5))
    tiles(d / "tiles.csv", range(7), (0, 1, 2))


def gaps(d: Path) -> None:
    """Numbered frames of which two were deleted; and maps that lack another frame than the movie does."""
    numbers = (0, 1, 2, 5, 6, 7)
    for n in numbers:
        save(d / "frames" / f"img_t{n:03d}.png", frame(10 * n + 5))
    tiles(d / "tiles.csv", numbers, (0, 1, 2))
    for n in range(8):
        if n != 2:
            save(d / "m" / f"t{n:03d}.png", frame(10 * n + 5))
        if n != 6:
            save(d / "m_classes" / f"t{n:03d}.png", frame(1 if n < 4 else 2))


def inches(d: Path) -> None:
    """Stacks with the resolution of a screen."""
    m = steps(4)
    ij: dict = {"photometric": None, "imagej": True}
    stack(d / "inch.tif", m, resolution=(72, 72), metadata={"axes": "TYX", "unit": "inch"}, **ij)
    stack(d / "cm.tif", m, resolution=(28.35,) * 2, metadata={"axes": "TYX", "unit": "cm"}, **ij)
    stack(d / "plain.tif", m, resolution=(72, 72), resolutionunit="INCH")
    tiles(d / "tiles.csv", range(4), (0, 1))


def upper_case(d: Path) -> None:
    """Movies and maps called .TIF."""
    m = np.stack([frame(20 + 10 * t, 120 + 10 * t) for t in range(3)])
    maps = np.stack([halves()] * 3)
    for name in ("one/A{}.TIF", "two/A{}.TIF", "two/b{}.tif"):
        stack(d / name.format(""), m)
        stack(d / name.format("_classes"), maps)


def ome_over_files(d: Path) -> None:
    """An OME-TIFF over two files: whole; one of the files renamed and alone."""
    m, names = steps(6, 5, 20), ("exp_1.ome.tif", "exp_2.ome.tif")
    ids = [f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_DNS, n)}" for n in "ab"]
    data = "".join(
        f'<TiffData FirstT="{t}" FirstC="0" FirstZ="0" IFD="{t % 3}" PlaneCount="1">'
        f'<UUID FileName="{names[t // 3]}">{ids[t // 3]}</UUID></TiffData>'
        for t in range(6)
    )
    for k in range(2):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{ids[k]}"><Image ID="Image:0">'
            f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{SIDE}" SizeY="{SIDE}" SizeZ="1" '
            'SizeC="1" SizeT="6" TimeIncrement="1" TimeIncrementUnit="h">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        for folder, name in (("whole", names[k]), ("alone", ("renamed.ome.tif", None)[k])):
            if name is not None:
                (d / folder).mkdir(exist_ok=True)
                with tifffile.TiffWriter(d / folder / name) as w:
                    for t in range(3):
                        text = xml if t == 0 else None
                        w.write(
                            m[3 * k + t], photometric="minisblack", metadata=None, description=text
                        )
    tiles(d / "six.csv", range(6), (0, 1, 2))
    tiles(d / "three.csv", range(3), (0,))


def page_by_page(d: Path) -> None:
    """Two movies written frame by frame, with maps and with tiles."""
    (d / "maps").mkdir()
    (d / "tiles").mkdir()
    for name, start in (("a", 20), ("b", 140)):
        with tifffile.TiffWriter(d / "maps" / f"{name}.tif") as w:
            for t in range(3):
                w.write(frame(start + 10 * t), photometric="minisblack")
        with tifffile.TiffWriter(d / "maps" / f"{name}_classes.tif") as w:
            for _ in range(3):
                w.write(halves(), photometric="minisblack")
        shutil.copy(d / "maps" / f"{name}.tif", d / "tiles")
    lines = [f"{m},{t},0,{x},16,{m}{x}" for m in "ab" for t in range(3) for x in (0, 48)]
    (d / "tiles.csv").write_text("\n".join(["movie,frame,y,x,size,label", *lines, ""]))


def single_frames(d: Path) -> None:
    """One frame: plain, ImageJ and OME; a map of one frame."""
    f, um = frame(40, 160), 0.65
    stack(d / "plain.tif", f)
    ij: dict = {"photometric": None, "imagej": True, "resolution": (1 / um, 1 / um)}
    stack(d / "ij.tif", f[None], metadata={"axes": "TYX", "unit": "um", "finterval": 600}, **ij)
    size = {f"PhysicalSize{a}": um for a in "XY"} | {f"PhysicalSize{a}Unit": "µm" for a in "XY"}
    stack(d / "o.ome.tif", f[None], metadata={"axes": "TYX", **size})
    for name in ("plain_classes.tif", "ij_classes.tif", "o_classes.ome.tif"):
        stack(d / name, halves())


def tracks_restart(d: Path) -> None:
    """Three movies; the tracker numbers from 1 in each."""
    lines = [
        f"{{}}.png,{'late' if f > 1 else 'early'},{m},{t},{f}"
        for m in "ABC"
        for t in (1, 2)
        for f in range(4)
    ]
    crop_table(
        d / "patches.csv",
        "path,label,movie,track,frame",
        [x.format(i) for i, x in enumerate(lines)],
    )


def trailing_comma(d: Path) -> None:
    """Rows, not the header, end with a comma."""
    crop_table(
        d / "patches.csv", "path,label,time_h", [f"{i}.png,{'ab'[i % 2]},{i}," for i in range(6)]
    )


def blanks(d: Path) -> None:
    """Labels and groups with blanks; a class in another case; a class called Unsure."""
    for name, labels in (
        ("blanks", ("dense", "dense ", "spread", " spread")),
        ("case", ("dense", "Dense", "spread", "spread")),
        ("unsure", ("dense", "Unsure", "spread", "spread")),
    ):
        lines = [f"{i}.png,{labels[i % 4]},{('g1', 'g1 ')[i // 4 % 2]}" for i in range(16)]
        crop_table(d / name / "patches.csv", "path,label,group", lines)
    class_folders(d / "folders", ("dense", "spread", "Unsure"))


def duplicates(d: Path) -> None:
    """Rows twice; rows twice with another label; equal pixels in different files."""
    lines = [f"{i}.png,{'ab'[i % 2]}" for i in range(20)]
    other = [f"{i}.png,{'ba'[i % 2]}" for i in range(4)]
    for name, more in (("twice", lines), ("conflict", other), ("copies", [])):
        crop_table(d / name / "patches.csv", "path,label", lines)
        if name == "copies":
            for i in (0, 1):
                shutil.copy(d / name / f"{i}.png", d / name / f"copy{i}.png")
            more = ["copy0.png,a", "copy1.png,b"]
        (d / name / "patches.csv").write_text("\n".join(["path,label", *lines, *more, ""]))


def spreadsheets(d: Path) -> None:
    """The same table as spreadsheets of several countries write it."""
    rows = [(f"{i}.png", "früh" if i % 2 else "spät", f"{i}.5") for i in range(8)]

    def text(delimiter: str, comma: bool = False, quote: bool = False, blank: str = "") -> str:
        head = (delimiter + blank).join(("path", "label", "time_h"))
        lines = [head]
        for a, b, c in rows:
            c = c.replace(".", ",") if comma else c
            lines.append((delimiter + blank).join((a, b, f'"{c}"' if quote else c)))
        return "\r\n".join([*lines, ""])

    for name, body, encoding in (
        ("semicolon", text(";", comma=True), "utf-8-sig"),
        ("tab_utf16", text("\t"), "utf-16"),
        ("cp1252", text(","), "cp1252"),
        ("quoted_comma", text(",", comma=True, quote=True), "utf-8"),
        ("bom", text(","), "utf-8-sig"),
        ("blanks", text(",", blank=" "), "utf-8"),
    ):
        crop_table(d / name / "patches.csv", "", [""] * 8)
        (d / name / "patches.csv").write_bytes(body.encode(encoding))
    lines = [f'{a},{b},"{i + 1},200"' for i, (a, b, _) in enumerate(rows)]
    crop_table(d / "thousands" / "patches.csv", "path,label,frame", lines)


def units_row(d: Path) -> None:
    """A second line of units in a table of tiles, and of names in one of crops."""
    stack(d / "movie.tif", steps(4))
    lines = [f"{t},0,{x},16,{'ab'[x > 0]}" for t in range(4) for x in (0, 48)]
    head = ["frame,y,x,size,label", "(frames),(px),(px),(px),"]
    (d / "tiles.csv").write_text("\n".join([*head, *lines, ""]))
    lines = [f"{i}.png,{'ab'[i % 2]},{i // 2},{i % 2}" for i in range(8)]
    crop_table(d / "c" / "patches.csv", "path,label,track,frame", lines)
    head = ["path,label,track,frame", "File,Class,Track ID,Frame"]
    (d / "c" / "patches.csv").write_text("\n".join([*head, *lines, ""]))


def odd_classes(d: Path) -> None:
    """Class names with a slash, a comma, a sign and a bracket."""
    crop_table(d / "patches.csv", "", [""] * 32)
    with (d / "patches.csv").open("w", newline="", encoding="utf-8") as s:
        w = csv.writer(s)
        w.writerow(["path", "label", "group", "time_h"])
        for i in range(32):
            w.writerow([f"{i}.png", ODD[i % 4], f"g{i // 8}", i // 8])


ODD = ("dense/packed", "spread, thin", "debris <1 µm", "it's [late]")


def float_frames(d: Path) -> None:
    """Frame numbers such as 3.0 in a table of tiles; 0.7, inf and -3 in tables of crops."""
    stack(d / "movie.tif", steps(4))
    lines = [
        f"{t}.0,0.0,{x}.0,16,{'early' if t < 2 else 'late'}" for t in range(4) for x in (0, 48)
    ]
    (d / "tiles.csv").write_text("\n".join(["frame,y,x,size,label", *lines, ""]))
    for name, column, values in (
        ("whole", "frame", ("0.0", "1.0", "2.0", "3.0")),
        ("part", "frame", ("0", "0.7", "2", "3")),
        ("inf", "frame", ("0", "1", "inf", "3")),
        ("time_inf", "time_h", ("0", "1", "inf", "3")),
        ("negative", "time_h", ("0", "1", "2", "-3")),
    ):
        lines = [f"{i}.png,{'ab'[i % 2]},{v}" for i, v in enumerate(values)]
        crop_table(d / name / "patches.csv", f"path,label,{column}", lines)


def windows_paths(d: Path) -> None:
    """A table written on Windows."""
    for name, line in (
        ("backslash", "crops\\{}.png,{}"),
        ("case", "crops/{}.PNG,{}"),
        ("drive", "D:\\data\\crops\\{}.png,{}"),
    ):
        for i, crop in enumerate(textures(4)):
            save(d / name / "crops" / f"{i}.png", crop)
        lines = [line.format(i, "ab"[i % 2]) for i in range(4)]
        (d / name / "patches.csv").write_text("\n".join(["path,label", *lines, ""]))


def hidden_folder(d: Path) -> None:
    """Jupyter's hidden copies of pictures beside the class folders."""
    class_folders(d / "crops", ("dense", "spread"))
    save(d / "crops" / ".ipynb_checkpoints" / "0-checkpoint.png", textures(1, seed=8)[0])
    save(d / "crops" / "dense" / ".ipynb_checkpoints" / "0-checkpoint.png", textures(1, seed=8)[0])


def mac_files(d: Path) -> None:
    """What a Mac leaves on a USB stick and in an archive."""
    class_folders(d / "crops", ("dense", "spread"))
    for c in ("dense", "spread"):
        (d / "crops" / c / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        for where in (d / "crops" / c, d / "crops" / "__MACOSX" / c):
            where.mkdir(parents=True, exist_ok=True)
            for i in range(4):
                (where / f"._{i}.png").write_bytes(b"\0\x05\x16\x07" + bytes(100))


def nested(d: Path) -> None:
    """Class, movie, pictures; the same on both levels; a folder per movie with its class map."""
    for m in range(2):
        for k, c in enumerate(("dense", "spread")):
            for i, crop in enumerate(textures(5, seed=10 * m + k)):
                save(d / "deep" / c / f"m{m}" / f"{i}.png", crop)
                inner = c == "dense"
                save(d / "mixed" / c / (f"m{m}/{i}.png" if inner else f"m{m}_{i}.png"), crop)
    save(d / "mixed" / "dense" / "first.png", textures(1, seed=99)[0])
    for e, start in (("exp1", 20), ("exp2", 140)):
        stack(d / "movies" / e / "movie.tif", np.stack([frame(start + 10 * t) for t in range(3)]))
        stack(d / "movies" / e / "movie_classes.tif", np.stack([halves()] * 3))


def odd_paths(d: Path) -> None:
    """Folders as labs name them."""
    for name in PATHS:
        class_folders(d / name, ("früh", "spät & reif"), 24)


PATHS = ("Exp 3 (day=2), Zürich µ #1", "epoch=3")


def one_group(d: Path) -> None:
    """Six movies; the class debris is in one of them alone."""
    lines = [
        f"{c},m{m},{f},{f}"
        for m in range(6)
        for c in ("dense", "spread", "debris")
        if c != "debris" or m == 2
        for f in range(8)
    ]
    crop_table(
        d / "patches.csv",
        "path,label,movie,frame,time_h",
        [f"{i}.png,{x}" for i, x in enumerate(lines)],
    )


def few_crops(d: Path) -> None:
    """Nine crops a class."""
    class_folders(d / "crops", ("dense", "spread"), 9)


def yes_no(d: Path) -> None:
    """Classes called yes, no and 1, and a hierarchy that names them unquoted."""
    from stemcell_lit.settings.conf import conf_dir

    class_folders(d / "crops", ("yes", "no", "1"), 24)
    shutil.copytree(conf_dir(), d / "conf")
    text = "name: mine\ntree:\n  1: 1\n  sure: [yes, no]\nmoves:\n  yes: [no]\n  no: []\n  1: any\n"
    (d / "conf" / "hierarchy" / "mine.yaml").write_text(text)


def plenty(d: Path) -> None:
    """Crops enough for a plan."""
    class_folders(d / "crops", ("debris", "dense", "spread", "differentiated"), 24)
