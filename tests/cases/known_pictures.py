"""The cases of pictures and movies: how a user would run each, and what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cases import known_makers as make
from tests.cases.harness import (
    Case,
    Found,
    case,
    counts,
    either,
    groups,
    has,
    one_result,
    ordered,
    reads,
    refused,
    steps,
    um,
)
from tests.cases.makers import MAPS

IMPORT = "import store=OUT"
TABLE = "table=in/tiles.csv"
TIMED = ("label", "value", "time_h")


def frames_of_maps(expected: int, movies: int = 1) -> Callable[[Found], str]:
    """The class maps that `predict` wrote of each movie have so many frames."""

    def check(found: Found) -> str:
        import tifffile

        maps = sorted(found.out.rglob("classes.ome.tif"))
        shapes = [np.shape(tifffile.imread(file)) for file in maps]
        if len(shapes) != movies or any(shape[0] != expected for shape in shapes):
            return f"maps of shapes {shapes}, expected {movies} of {expected} frames"
        return ""

    return check


def as_written(table: str) -> tuple[tuple[str, Any], ...]:
    """Runs of one file of a colour table by all ways: one result, or refused."""
    values = {"green": (0, 1), "inverted": (255, -1)}[table]
    shown = [values[0] + values[1] * (40 + 20 * i) for i in range(6)]
    stored = [40 + 20 * i for i in range(6)]
    luminance = [round(0.587 * v) for v in stored]

    def one_of(found: Found) -> str:
        got = sorted({round(r["value"]) for r in found.rows})
        for want in (shown, stored, luminance) if table == "green" else (shown,):
            if (
                all(abs(a - b) <= 1 for a, b in zip(got, sorted(want), strict=False))
                and len(got) == 6
            ):
                return ""
        return f"gray values {got}, expected {sorted(shown)}"

    right = one_result(reads(one_of), refused(("palette", "colour", "color", "lookup")))
    movie = f"source=in/{table}/movie.tif table=in/{table}/tiles.csv"
    return tuple(
        (f"{IMPORT} {words}", right)
        for words in (f"source=in/{table}/tif", movie, f"source=in/{table}/png")
    )


PICTURES: tuple[Case, ...] = (
    case(
        "01 white is zero",
        make.white_is_zero,
        *(
            (
                f"{IMPORT} {words}",
                reads(
                    has(
                        *(
                            (label, 255 - v - 10 * t)
                            for t in range(4)
                            for label, v in (("a", 15), ("b", 111))
                        )
                    )
                ),
            )
            for words in ("source=in/crops", f"source=in/movie.tif {TABLE} um_per_px=1")
        ),
    ),
    case("07 colour table, green", make.colour_tables, *as_written("green")),
    case("07 colour table, inverted", make.colour_tables, *as_written("inverted")),
    case(
        "11 stacks as crops",
        make.stacks_as_crops,
        (f"{IMPORT} source=in/planes", refused("plane")),
        (
            f"{IMPORT} source=in/planes plane=1",
            reads(
                counts(a=2, b=2),
                lambda f: "" if all(100 <= r["value"] < 132 for r in f.rows) else "another plane",
            ),
        ),
        (f"{IMPORT} source=in/channels", refused("channel")),
        (
            f"{IMPORT} source=in/channels channel=1",
            reads(
                counts(a=2, b=2),
                lambda f: "" if all(100 <= r["value"] < 132 for r in f.rows) else "another channel",
            ),
        ),
        (f"{IMPORT} source=in/times", refused(".tif", ("time", "frame", "picture", "page"))),
    ),
    case(
        "02 two positions",
        make.two_positions,
        (f"{IMPORT} source=in/two.ome.tif table=in/ten.csv", refused(("position", "Pos0"))),
        (f"{IMPORT} source=in/two.ome.tif table=in/five.csv", refused(("position", "Pos0"))),
        (
            f"{IMPORT} source=in/two.ome.tif table=in/five.csv position=Pos1",
            reads(has(*steps(*range(5), early=3, start=105, hour=1), of=TIMED)),
        ),
        (
            "predict movie=in/two.ome.tif checkpoint=in/model out=OUT colonies=none",
            reads(frames_of_maps(5, movies=2)),  # a folder for each position
        ),
        (
            "predict movie=in/two.ome.tif checkpoint=in/model out=OUT colonies=none position=0",
            reads(frames_of_maps(5)),
        ),
    ),
    case(
        "04 decimal names",
        make.decimal_names,
        (
            f"{IMPORT} source=in/frames {TABLE}",
            reads(has(*steps(*range(7), early=3, hour=0.25), of=TIMED)),
        ),
    ),
    case(
        "05 gaps, tiles",
        make.gaps,
        (
            f"{IMPORT} source=in/frames {TABLE} hours_per_frame=1",
            reads(has(*steps(0, 1, 2, 5, 6, 7, early=3, hour=1), of=TIMED)),
        ),
    ),
    case(
        "05 gaps, maps",
        make.gaps,
        (
            f"{IMPORT} source=in/m {MAPS}",
            either(refused(("t002", "t006", "frame 2", "frame 6", "number 2", "number 6"))),
        ),
    ),
    case(
        "06 pixel size",
        make.inches,
        *(
            (
                f"{IMPORT} source=in/{name}.tif {TABLE}",
                reads(
                    um(None),
                    has(*steps(*range(4), early=2)),
                    says=() if name == "plain" else (("um", "pixel"),),
                ),
            )
            for name in ("inch", "cm", "plain")
        ),
    ),
    case(
        "14 upper case",
        make.upper_case,
        *(
            (
                f"{IMPORT} source=in/{source} {MAPS}",
                reads(
                    has(
                        *((c, v + 10 * t) for c, v in (("one", 20), ("two", 120)) for t in range(3))
                    ),
                    groups(n),
                ),
            )
            for source, n in (("one/A.TIF", 1), ("two", 2))
        ),
    ),
    case(
        "23 low bit maps",
        make.low_bit_maps,
        *(
            (
                f"{IMPORT} source=in/{kind}/m {MAPS}",
                reads(
                    has(
                        *((c, v + 10 * t) for c, v in (("one", 20), ("two", 120)) for t in range(3))
                    )
                ),
            )
            for kind in ("bits2", "bits4", "palette")
        ),
    ),
    case(
        "31 page by page",
        make.page_by_page,
        (
            f"{IMPORT} source=in/maps {MAPS}",
            reads(
                groups(2),
                has(
                    *((c, v + 10 * t) for c in ("one", "two") for v in (20, 140) for t in range(3))
                ),
            ),
        ),
        (
            f"{IMPORT} source=in/tiles {TABLE}",
            reads(
                groups(2),
                has(
                    *(
                        (f"{m}{x}", v + 10 * t)
                        for m, v in (("a", 20), ("b", 140))
                        for t in range(3)
                        for x in (0, 48)
                    )
                ),
            ),
        ),
    ),
    case(
        "21 three frames",
        make.three_frames,
        (
            f"{IMPORT} source=in/movie.tif {TABLE}",
            either(reads(says=(("gray", "colour", "RGB"),)), refused(("RGB", "colour", "three"))),
        ),
    ),
    case(
        "42 single frames",
        make.single_frames,
        *(
            (f"{IMPORT} source=in/{name} {MAPS}", reads(has(("one", 40), ("two", 160)), um(size)))
            for name, size in (("plain.tif", None), ("ij.tif", 0.65), ("o.ome.tif", 0.65))
        ),
    ),
    case(
        "15 OME over files",
        make.ome_over_files,
        (
            f"{IMPORT} source=in/whole/exp_1.ome.tif table=in/six.csv",
            reads(has(*steps(*range(6), early=3, step=20, hour=1), of=TIMED)),
        ),
        (
            f"{IMPORT} source=in/alone/renamed.ome.tif table=in/three.csv",
            either(reads(has(*steps(*range(3), early=1, step=20))), refused("renamed.ome.tif")),
        ),
    ),
    case(
        "16-bit crops",
        make.sixteen_bit_crops,
        (
            f"{IMPORT} source=in/crops",
            reads(counts(a=3, b=3), ordered(*(f"{i}.png" for i in range(6)))),
        ),
    ),
)
