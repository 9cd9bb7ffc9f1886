"""Inputs of the kinds that the cases stand for, which are not among the cases, with what is right.

Each was written down, with its right values, before the program saw it.
"""

from __future__ import annotations

from tests.cases import new_makers
from tests.cases.harness import (
    Case,
    case,
    counted,
    counts,
    either,
    groups,
    has,
    ordered,
    reads,
    refused,
    together,
    tracked,
    um,
)
from tests.cases.makers import MAPS

IMPORT = "import store=OUT"
TABLE = "table=in/tiles.csv"
TIMED = ("label", "value", "time_h")

NEW: tuple[Case, ...] = (
    case(
        "Leica: channels in the names",
        new_makers.leica,
        (f"{IMPORT} source=in/frames {TABLE}", refused("channel")),
        (
            f"{IMPORT} source=in/frames {TABLE} channel=1",
            reads(has(("early", 110), ("early", 130), ("late", 150), ("late", 170))),
        ),
    ),
    case(
        "MetaMorph: positions in the names",
        new_makers.metamorph,
        (f"{IMPORT} source=in/frames {TABLE}", refused(("position", "s1"))),
        (
            f"{IMPORT} source=in/frames {TABLE} position=1",
            reads(has(*(("early" if t < 6 else "late", 5 * t) for t in range(1, 12)))),
        ),
    ),
    case(
        "Bio-Formats: T=0_C=1_Z=0",
        new_makers.bioformats,
        (f"{IMPORT} source=in/frames {TABLE}", refused("channel")),
        (
            f"{IMPORT} source=in/frames {TABLE} channel=1",
            reads(has(*(("early" if t < 4 else "late", 10 * t + 125) for t in range(11)))),
        ),
    ),
    case(
        "Micro-Manager: a folder per position",
        new_makers.micromanager,
        (
            f"{IMPORT} source=in/run {MAPS}",
            reads(
                has(
                    *(
                        (label, 10 * t + 5 + 60 * p + more)
                        for p in range(2)
                        for t in range(4)
                        for label, more in (("one", 0), ("two", 100))
                    )
                ),
                groups(2),
                together(lambda r: (r["value"] - 100 * (r["label"] == "two")) >= 60),
            ),
        ),
    ),
    case(
        "Incucyte: days, hours, minutes",
        new_makers.incucyte,
        (
            f"{IMPORT} source=in/frames {TABLE}",
            reads(
                has(
                    ("early", 20, 0),
                    ("early", 60, 0.5),
                    ("late", 100, 10),
                    ("late", 140, 26),
                    of=TIMED,
                )
            ),
        ),
    ),
    case(
        "minutes in names",
        new_makers.minutes,
        (
            f"{IMPORT} source=in/frames {TABLE}",
            reads(
                has(
                    ("early", 20, 0),
                    ("early", 60, 1 / 12),
                    ("late", 100, 1 / 6),
                    ("late", 140, 5 / 3),
                    of=TIMED,
                )
            ),
        ),
    ),
    case(
        "negative hours in names",
        new_makers.negative_hours,
        (
            f"{IMPORT} source=in/frames {TABLE}",
            either(
                *(
                    reads(
                        has(
                            *(
                                ("early" if i < 2 else "late", 20 + 40 * i, start + i)
                                for i in range(4)
                            ),
                            of=TIMED,
                        ),
                        text=f"read, hours from {start}",
                    )
                    for start in (-2, 0)
                )
            ),
        ),
    ),
    case(
        "dates in names",
        new_makers.dates,
        (
            f"{IMPORT} source=in/frames {TABLE}",
            either(
                *(
                    reads(
                        has(
                            *(
                                ("early" if i < 2 else "late", 20 + 40 * i, hours[i])
                                for i in range(4)
                            ),
                            of=TIMED,
                        ),
                        text=text,
                    )
                    for hours, text in (
                        ((0, 0.5, 1, 3), "read with hours"),
                        ((None,) * 4, "read in order, hours unknown"),
                    )
                ),
                refused("2024-03"),
            ),
        ),
    ),
    case(
        "a frame twice, PNG and TIFF",
        new_makers.repeated_number,
        (f"{IMPORT} source=in/frames {TABLE}", refused(("t001", "types"))),
    ),
    case(
        "maps counted from 1",
        new_makers.maps_from_1,
        (
            f"{IMPORT} source=in/m {MAPS}",
            refused(("t004", "t000", "frame 4", "frame 0", "number 4", "number 0")),
        ),
    ),
    case(
        "maps of two frames of six",
        new_makers.sparse_maps,
        (
            f"{IMPORT} source=in/01 table=in/01_GT/SEG {MAPS}",
            either(
                reads(has(("one", 25), ("two", 25), ("one", 55), ("two", 55))),
                refused(("man_seg", "SEG")),
            ),
        ),
    ),
    case(
        "OME: times of planes",
        new_makers.ome_delta,
        (
            f"{IMPORT} source=in/movie.ome.tif {TABLE}",
            reads(
                has(
                    ("early", 20, 0),
                    ("early", 60, 1 / 6),
                    ("late", 100, 1 / 3),
                    ("late", 140, 4 / 3),
                    of=TIMED,
                )
            ),
        ),
    ),
    case(
        "OME: a plane is missing",
        new_makers.ome_gap,
        (
            f"{IMPORT} source=in/movie.ome.tif {TABLE}",
            either(
                reads(has(("early", 5, 0), ("early", 15, 1), ("late", 35, 3), of=TIMED)),
                refused("movie.ome.tif", ("missing", "lack", "incomplete", "not there", "frame 2")),
            ),
        ),
        (f"{IMPORT} source=in/movie.ome.tif table=in/all.csv", refused()),
    ),
    case(
        "OME: positions of unequal length",
        new_makers.ome_unequal,
        (
            f"{IMPORT} source=in/movie.ome.tif {TABLE}",
            refused(("position", "Pos0", "scene", "series")),
        ),
        (
            f"{IMPORT} source=in/movie.ome.tif {TABLE} position=1",
            reads(has(("early", 105), ("early", 115), ("late", 125), ("late", 135))),
        ),
    ),
    case(
        "OME: pyramid",
        new_makers.pyramid,
        (
            f"{IMPORT} source=in/movie.ome.tif {TABLE}",
            reads(has(("early", 20), ("late", 60), ("late", 100))),
        ),
    ),
    case(
        "ImageJ: planes over time",
        new_makers.planes_over_time,
        (f"{IMPORT} source=in/movie.tif {TABLE}", refused("plane")),
        (
            f"{IMPORT} source=in/movie.tif {TABLE} plane=1",
            reads(has(("early", 65), ("early", 75), ("late", 85), ("late", 95))),
        ),
    ),
    case(
        "ImageJ: slices that are times",
        new_makers.slices_as_times,
        (
            f"{IMPORT} source=in/movie.tif {TABLE}",
            either(
                reads(has(*(("early" if t < 2 else "late", 20 + 40 * t) for t in range(5)))),
                refused(("plane", "slice")),
            ),
        ),
    ),
    case(
        "ImageJ: nanometres",
        new_makers.nanometres,
        (
            f"{IMPORT} source=in/movie.tif {TABLE}",
            reads(um(0.65), has(("early", 20), ("late", 60), ("late", 100))),
        ),
    ),
    case(
        "pixels not square",
        new_makers.not_square,
        (
            f"{IMPORT} source=in/movie.ome.tif {TABLE}",
            either(reads(um(None), says=("1.3",)), refused("1.3")),
        ),
    ),
    case(
        "two pixel sizes that disagree",
        new_makers.two_sizes,
        (
            f"{IMPORT} source=in/movie.ome.tif {TABLE}",
            either(reads(um(None), says=("0.325",)), refused("0.325")),
        ),
    ),
    case(
        "float crops, big-endian",
        new_makers.big_endian_float,
        (
            f"{IMPORT} source=in/crops",
            reads(counts(a=3, b=3), ordered(*(f"{i}.tif" for i in range(6)))),
        ),
    ),
    case(
        "signed 16-bit movie",
        new_makers.signed_movie,
        (
            f"{IMPORT} source=in/movie.tif {TABLE}",
            either(reads(ordered("0", "1", "2", "3", by="frame")), refused(("int16", "signed"))),
        ),
    ),
    case(
        "RGB PNG of 16 bits",
        new_makers.deep_colour_png,
        (
            f"{IMPORT} source=in/crops",
            either(reads(ordered(*(f"{i}.png" for i in range(6)))), refused((".png", "16"))),
        ),
    ),
    case(
        "white is zero, 16 bit",
        new_makers.deep_white_is_zero,
        (
            f"{IMPORT} source=in/movie.tif {TABLE}",
            either(reads(ordered("0", "1", "2", "3", by="frame", falling=True)), refused("white")),
        ),
        (
            f"{IMPORT} source=in/crops",
            either(reads(ordered(*(f"{t}.tif" for t in range(4)), falling=True)), refused("white")),
        ),
    ),
    case(
        "animated PNG as a crop",
        new_makers.animated_png,
        (f"{IMPORT} source=in/crops", refused("3.png")),
    ),
    case(
        "JPEG turned by EXIF",
        new_makers.turned_jpeg,
        (
            f"{IMPORT} source=in/m {MAPS}",
            either(
                reads(has(("one", 40), ("two", 200), within=3)),
                refused(("orientation", "exif", "rotat", "turn")),
            ),
        ),
    ),
    case(
        "six ways to write a gray",
        new_makers.kinds_of_gray,
        (
            f"{IMPORT} source=in/crops",
            reads(
                has(
                    *(("ab"[k], 40 + 100 * k + 10 * i) for k in range(2) for i in range(6)),
                    within=3,
                )
            ),
        ),
    ),
    case(
        "CMYK JPEG",
        new_makers.cmyk,
        (
            f"{IMPORT} source=in/crops",
            either(
                reads(
                    has(
                        *(("ab"[k], 40 + 100 * k + 20 * i) for k in range(2) for i in range(3)),
                        within=8,
                    )
                ),
                refused("CMYK"),
            ),
        ),
    ),
    case(
        "BMP with an inverted palette",
        new_makers.inverted_bmp,
        (
            f"{IMPORT} source=in/crops",
            either(
                reads(
                    has(*(("ab"[k], 215 - 100 * k - 20 * i) for k in range(2) for i in range(3)))
                ),
                refused(("palette", "colour", "color")),
            ),
        ),
    ),
    case(
        "German Excel with sep=;",
        new_makers.german_excel,
        (
            f"{IMPORT} source=in",
            reads(
                counted({"früh": 4, "spät": 4}),
                tracked(lambda r: int(r["source"][0]) // 2),
                has(
                    *(("früh" if i % 2 else "spät", f"{i}.png", i + 0.5) for i in range(8)),
                    of=("label", "source", "time_h"),
                ),
            ),
        ),
    ),
    case(
        "R: row names, a class NA",
        new_makers.r_table,
        (
            f"{IMPORT} source=in",
            reads(
                counted({"NA": 4, "yes": 4}),
                together(lambda r: int(r["source"][0]) // 2),
                has(
                    *(("yes" if i % 2 else "NA", f"{i}.png", i / 2) for i in range(8)),
                    of=("label", "source", "time_h"),
                ),
            ),
        ),
    ),
    case(
        "TrackMate: four lines of header",
        new_makers.trackmate,
        (
            f"{IMPORT} source=in",
            either(
                reads(counts(a=4, b=4), tracked(lambda r: int(r["source"][0]) // 2)),
                refused("line 2"),
            ),
        ),
    ),
    case(
        "Unicode of a Mac",
        new_makers.other_unicode,
        (f"{IMPORT} source=in", reads(counted({"früh": 4, "spät": 4}))),
    ),
    case(
        "a Cyrillic letter", new_makers.lookalike, (f"{IMPORT} source=in/crops", refused("dense"))
    ),
    case(
        "a crop in two classes",
        new_makers.copied_crop,
        (
            f"{IMPORT} source=in/crops",
            either(
                refused("3.png"),
                reads(
                    groups(8),
                    together(
                        lambda r: (
                            "d3"
                            if "3.png" in r["source"] and r["source"] != "3.png"
                            else r["label"][0] + r["source"][0]
                        )
                    ),
                    says=("3.png",),
                    text="read, both in one group",
                ),
            ),
        ),
    ),
    case(
        "a tile with two labels",
        new_makers.conflicting_tiles,
        (f"{IMPORT} source=in/movie.tif {TABLE}", refused("tiles.csv", "line")),
    ),
    case(
        "hours in the table of tiles",
        new_makers.timed_tiles,
        (
            f"{IMPORT} source=in/movie.tif {TABLE}",
            either(
                reads(
                    has(
                        ("early", 20, 0),
                        ("early", 60, 0.5),
                        ("late", 100, 1),
                        ("late", 140, 26),
                        of=TIMED,
                    )
                ),
                refused("time_h"),
            ),
        ),
    ),
    case(
        "leftovers of Windows and Synology",
        new_makers.leftovers,
        (f"{IMPORT} source=in/crops", reads(counts(dense=4, spread=4))),
    ),
    case(
        "broken links",
        new_makers.broken_links,
        (
            f"{IMPORT} source=in/crops",
            either(refused(("9.png", "up")), reads(counts(dense=4, spread=4), says=("9.png",))),
        ),
    ),
    case(
        "GIFs among the crops",
        new_makers.other_formats,
        (
            f"{IMPORT} source=in/crops",
            either(
                reads(counts(dense=6, spread=4), text="all read"),
                reads(counts(dense=4, spread=4), says=("gif",)),
                refused("gif"),
            ),
        ),
    ),
    case(
        "a table or a link as the store",
        new_makers.targets,
        ("import source=in/crops store=in/numbers.csv", refused("numbers.csv")),
        ("import source=in/crops store=in/link", refused("link")),
    ),
)
