"""From the trials' results to a table, pictures and one page that says whether the gain is real.

Everything here is computed from `trials/*/result.json`, their `predictions.parquet` and the patch
stores. Where a store has moved, its pictures are left out and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from stemcell_lit.base.files import check_files, check_target, whole_or_absent, write_whole
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.evaluate.intervals import METRICS
from stemcell_lit.evaluate.results_table import compare, contrasts
from stemcell_lit.experiment.parts import comparisons
from stemcell_lit.experiment.results import Results, collect, comparable
from stemcell_lit.experiment.same import FILE as LEFT_OUT
from stemcell_lit.report.page import BEST, report_page
from stemcell_lit.report.pictures import Pictures
from stemcell_lit.report.print_table import table_markdown


def make_report(
    out: str | Path, baseline: str = "flat", resamples: int = 2000, seed: int = 0
) -> Path:
    """Writes table.csv, table.md, parts.csv, figures/ and report.html into the folder of results.

    `resamples` are those of the bootstrap, and most swaps of the permutation test; `seed` is that of both, and of the
    choice of shown patches.

    Returns:
        report.html, which holds its pictures and needs no network.

    Raises:
        UserError: results are missing, broken or do not belong together, or files of the user's are in the way.
    """
    check_report(out)
    return write_report(comparable(collect(out), baseline), resamples, seed)


def write_report(results: Results, resamples: int = 2000, seed: int = 0) -> Path:
    """The same as `make_report`, of results that were read."""
    baseline = results.baseline
    counts = {method: results.counts(method) for method in results.methods}
    # only the paper's method was asked about beforehand; the last of a list is a choice made later
    table = compare(
        counts,
        baseline,
        results.classes,
        primary=results.claimed,
        subsets=results.subsets,
        resamples=resamples,
        seed=seed,
    )
    parts = _parts(results, counts, resamples, seed)
    pictures = Pictures(results, table, counts, seed)
    figures = pictures.make()
    page = report_page(results, table, parts, counts, figures, pictures.facts, resamples)
    # all is computed before anything is written: a failure leaves the old report as it was
    with whole_or_absent(results.out / "figures", "figures") as folder:
        for name, image in figures.items():
            (folder / f"{name}.png").write_bytes(image)
    write_whole(results.out / "table.csv", to_csv(table, "%.6g"))
    write_whole(results.out / "parts.csv", to_csv(parts, "%.6g"))
    write_whole(results.out / "table.md", table_markdown(results, table, parts))
    write_whole(results.out / "report.html", page)
    return results.out / "report.html"


def check_report(out: str | Path) -> None:
    """Refuses a folder of results whose report would replace something of the user's; to be called before the work.

    Raises:
        UserError: what is in the way.
    """
    check_files(out, ["table.csv", "parts.csv", "table.md", "report.html", LEFT_OUT])
    check_target(Path(out) / "figures", "figures")


def _parts(
    results: Results,
    counts: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """What each part of the method adds: `contrasts` with two more columns in front, `part` and `where`."""
    ranked = sorted(results.methods, key=lambda m: (results.about(m).rank, m))
    told = comparisons({m: results.about(m).parts for m in ranked})
    best = results.best_without_generated
    if results.claimed and best:
        told.append((BEST, "", results.claimed, best))
    found = contrasts(counts, [p[2:] for p in told], resamples=resamples, seed=seed)
    for place, name in enumerate(("part", "where")):
        found.insert(place, name, [p[place] for p in told for _ in METRICS])
    return found
