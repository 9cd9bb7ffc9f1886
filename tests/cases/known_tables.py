"""The cases of tables, folders and words: how a user would run each, and what is right."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cases import known_makers as make
from tests.cases.harness import (
    Case,
    Found,
    case,
    counted,
    counts,
    either,
    groups,
    has,
    planned,
    reads,
    refused,
    steps,
    together,
    tracked,
)
from tests.cases.makers import MAPS

IMPORT = "import store=OUT"
TABLE = "table=in/tiles.csv"
PLAN = "reproduce data.store=out0 profile=smoke seeds=[0]"
EQUAL = ("twice", "duplicate", "repeat", "equal", "same", "once", "identical", "copies")


def number(row: dict[str, Any]) -> int:
    """The number in a crop's name."""
    return int(Path(row["source"]).stem)


def next_line(command: str, *keys: str) -> Callable[[Found], str]:
    """The printed `next:` line can be pasted: through the shell and the parser it names the store."""

    def check(found: Found) -> str:
        from stemcell_lit.settings.compose import compose

        lines = [line for line in found.said.splitlines() if line.startswith("next:")]
        if not lines:
            return "no next: line"
        words = shlex.split(lines[0].removeprefix("next:"))
        store = Path(compose(command, words[2:]).data.store).name
        return "" if store == found.out.name else f"next: names the store {store!r}"

    return check


def pasted_jobs(jobs: list[Any], out: Path) -> str:
    """What is wrong with the words of planned jobs: each must be parsed to the folder that the user gave."""
    from stemcell_lit.settings.compose import compose

    for job in jobs:
        words = job.argv[job.argv.index("run") + 1 :]
        try:
            got = compose("run", words).out
        except Exception as error:
            return f"a job's words are refused: {error}"
        if Path(got).name != out.name and "epoch=3" not in str(got):
            return f"a job's out is {got!r}"
    return ""


def sheet(name: str, refusable: tuple[str, ...] = ()) -> tuple[str, Any]:
    """A run of a spreadsheet: read, or refused for one of these reasons."""
    right = reads(
        counted({"früh": 4, "spät": 4}),
        has(
            *(("früh" if i % 2 else "spät", f"{i}.png", i + 0.5) for i in range(8)),
            of=("label", "source", "time_h"),
        ),
    )
    return f"{IMPORT} source=in/{name}", either(right, refused(refusable)) if refusable else right


TABLES: tuple[Case, ...] = (
    case(
        "38 store over data",
        make.targets,
        ("import source=in/crops store=in/crops", refused("crops")),
        ("import source=in/crops store=in", refused()),
        ("import source=in/crops store=.", refused()),
        ("import source=in/crops store=in/other", refused("other")),
        ("import source=in/crops store=in/thesis.txt", refused("thesis.txt")),
        ("import source=in/crops store=OUT", reads(counts(dark=4, bright=4))),
        (
            "simulate out=in/other simulation.movies=1 simulation.frames=2 simulation.size=64",
            refused("other"),
        ),
        ("evaluate checkpoint=in/model store=out5 out=in/other", refused("other")),
        (
            "generate checkpoint=in/generator/generator.ckpt store=in/other per_class=2",
            refused("other"),
        ),
        (
            "predict movie=in/movies/movie.tif checkpoint=in/model out=in/movies colonies=none",
            refused("movies"),
        ),
        (
            "generate checkpoint=in/generator/generator.ckpt store=OUT per_class=2",
            reads(counts(dark=2, bright=2)),
        ),
    ),
    case(
        "09 tracks restart",
        make.tracks_restart,
        (
            f"{IMPORT} source=in",
            reads(
                tracked(lambda r: number(r) // 4),
                lambda f: (
                    together(lambda r: number(r) // 8)(f) and together(lambda r: number(r) // 4)(f)
                ),
            ),
        ),
        (
            f"{IMPORT} source=in group=track",
            reads(tracked(lambda r: number(r) // 4), together(lambda r: number(r) // 4)),
        ),
        (
            f"{IMPORT} source=in group=movie",
            reads(tracked(lambda r: number(r) // 4), together(lambda r: number(r) // 8)),
        ),
    ),
    case(
        "19 duplicates",
        make.duplicates,
        (
            f"{IMPORT} source=in/twice",
            reads(
                counts(a=10, b=10),
                groups(20),
                says=(EQUAL,),
            ),
        ),
        (f"{IMPORT} source=in/conflict", refused("0.png", ("line", "label"))),
        (
            f"{IMPORT} source=in/copies",
            reads(counts(a=11, b=11), groups(20), says=(EQUAL,)),
        ),
    ),
    case(
        "16 blanks and case",
        make.blanks,
        (f"{IMPORT} source=in/blanks", reads(counts(dense=8, spread=8), groups(1))),
        (f"{IMPORT} source=in/case", refused("Dense")),
        (f"{IMPORT} source=in/unsure", reads(counts(dense=4, spread=8), says=("unsure",))),
        (f"{IMPORT} source=in/folders", reads(counts(dense=4, spread=4), says=("unsure",))),
    ),
    case(
        "03 hidden folder",
        make.hidden_folder,
        (f"{IMPORT} source=in/crops", reads(counts(dense=4, spread=4))),
    ),
    case(
        "26 files of a Mac",
        make.mac_files,
        (f"{IMPORT} source=in/crops", reads(counts(dense=4, spread=4))),
    ),
    case(
        "28 nested",
        make.nested,
        (
            f"{IMPORT} source=in/deep",
            either(
                reads(
                    counts(dense=10, spread=10), groups(2), together(lambda r: "m1" in r["path"])
                ),
                refused("m0"),
            ),
        ),
        (
            f"{IMPORT} source=in/mixed",
            either(reads(counts(dense=11, spread=10)), reads(says=("left out",)), refused("dense")),
        ),
        (
            f"{IMPORT} source=in/movies {MAPS}",
            either(
                reads(
                    groups(2),
                    has(
                        *(
                            (c, v + 10 * t)
                            for c in ("one", "two")
                            for v in (20, 140)
                            for t in range(3)
                        )
                    ),
                ),
                refused("exp1"),
            ),
        ),
    ),
    case(
        "10 trailing comma",
        make.trailing_comma,
        (
            f"{IMPORT} source=in",
            either(
                reads(
                    counts(a=3, b=3),
                    has(
                        *(("ab"[i % 2], f"{i}.png", i) for i in range(6)),
                        of=("label", "source", "time_h"),
                    ),
                ),
                refused("patches.csv", ("comma", "field", "column", "value"), "line"),
            ),
        ),
    ),
    case(
        "24 spreadsheets",
        make.spreadsheets,
        sheet("semicolon"),
        sheet("tab_utf16"),
        sheet("cp1252", ("encoding", "UTF-8", "encoded")),
        sheet("quoted_comma", ("line 2", "decimal")),
        sheet("bom"),
        sheet("blanks"),
        (
            f"{IMPORT} source=in/thousands",
            either(
                refused(("line 2", "thousand")),
                reads(has(*((1200 + 1000 * i,) for i in range(8)), of=("frame",))),
            ),
        ),
    ),
    case(
        "25 units row",
        make.units_row,
        (
            f"{IMPORT} source=in/movie.tif {TABLE}",
            either(reads(counts(a=4, b=4)), refused("line 2")),
        ),
        (
            f"{IMPORT} source=in/c",
            either(reads(counts(a=4, b=4), tracked(lambda r: number(r) // 2)), refused("line 2")),
        ),
    ),
    case(
        "36 paths of Windows",
        make.windows_paths,
        (f"{IMPORT} source=in/backslash", reads(counts(a=2, b=2))),
        (f"{IMPORT} source=in/case", either(reads(counts(a=2, b=2)), refused("0.PNG"))),
        (f"{IMPORT} source=in/drive", refused("D:")),
    ),
    case(
        "33 numbers",
        make.float_frames,
        (f"{IMPORT} source=in/movie.tif {TABLE}", reads(has(*steps(*range(4), early=2)))),
        (f"{IMPORT} source=in/whole", reads(has(*((i,) for i in range(4)), of=("frame",)))),
        (f"{IMPORT} source=in/part", refused("line 3", "0.7")),
        (f"{IMPORT} source=in/inf", refused("line 4", "inf")),
        (f"{IMPORT} source=in/time_inf", refused("line 4", "inf")),
        (f"{IMPORT} source=in/negative", refused("line 5", "-3")),
    ),
    case(
        "29 yes, no",
        make.yes_no,
        (f"{IMPORT} source=in/crops", reads(counted({"1": 24, "no": 24, "yes": 24}))),
        (
            f"{PLAN} hierarchy=mine methods=[flat,hierarchy] out=OUT",
            either(planned(), refused("quote")),
        ),
    ),
    case(
        "17 a class in one group",
        make.one_group,
        (f"{IMPORT} source=in", reads(counts(dense=48, spread=48, debris=8), groups(6))),
        (f"{PLAN} hierarchy=flat methods=[flat] out=OUT", refused("debris")),
    ),
    case(
        "37 few crops",
        make.few_crops,
        (f"{IMPORT} source=in/crops", reads(counts(dense=9, spread=9))),
        (
            f"{PLAN} hierarchy=flat methods=[flat,flat_gan] out=OUT",
            either(refused(("crops", "patches")), planned()),
        ),
    ),
    case(
        "18 paths",
        make.odd_paths,
        *(
            (
                f"{IMPORT} source=in/{name}".replace(" ", "\t").replace("\t", " ", 2),
                reads(counted({"früh": 24, "spät & reif": 24}), next_line("reproduce")),
            )
            for name in make.PATHS
        ),
        (
            f"{IMPORT} source='in/{make.PATHS[0]}'".replace(" ", "\t").replace("\t", " ", 2),
            reads(counted({"früh": 24, "spät & reif": 24})),
        ),
        (
            "import source=in/epoch=3 store=OUT=(1),\t#2",
            reads(counted({"früh": 24, "spät & reif": 24}), next_line("reproduce")),
        ),
        (
            f"{PLAN} hierarchy=flat methods=[flat] out='OUT/epoch=3'",
            planned(pasted_jobs),
        ),
        (
            f"{PLAN} hierarchy=flat methods=[flat] out=OUT/epoch=3",
            planned(pasted_jobs),
        ),
    ),
    case(
        "32 odd class names",
        make.odd_classes,
        (f"{IMPORT} source=in", reads(counted(dict.fromkeys(make.ODD, 8)), groups(4))),
    ),
    case(
        "words that are wrong",
        make.plenty,
        (f"{IMPORT} source=in/crops", reads(groups(96))),
        (
            "reproduce data.store=out0 profile=smoke methods=[flat] seeds=[0,0] out=OUT",
            refused("seeds"),
        ),
        (
            "run data.store=out0 profile=smoke method=flat hierarchy.moves={dense:3} out=OUT",
            refused("moves"),
        ),
        (f"{IMPORT} source=in/crops um_per_px=0,65", refused("um_per_px", "0.65")),
        (
            f"{IMPORT} source=in/crops classes=[debris, dense]",
            refused("classes", ("blank", "space", "quot")),
        ),
    ),
)
