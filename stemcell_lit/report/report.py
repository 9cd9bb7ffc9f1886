"""From the trials' results to a table, pictures and one page that says whether the gain is real.

Everything here is computed from `trials/*/result.json`, their `predictions.parquet` and the patch
stores. Where a store has moved, its pictures are left out and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stemcell_lit.base.files import check_files, check_target, whole_or_absent, write_whole
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.evaluate.intervals import METRICS, effective_groups
from stemcell_lit.evaluate.results_table import compare, contrasts
from stemcell_lit.experiment.parts import comparisons
from stemcell_lit.experiment.results import Results, collect, comparable
from stemcell_lit.experiment.same import FILE as LEFT_OUT
from stemcell_lit.report.advice import Advice, ClassSize, advise
from stemcell_lit.report.page import BEST, report_page
from stemcell_lit.report.pictures import Pictures
from stemcell_lit.report.print_table import table_markdown
from stemcell_lit.settings.quoting import command_line


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
    write_report(comparable(collect(out), baseline), resamples, seed)
    return Path(out) / "report.html"


def write_report(results: Results, resamples: int = 2000, seed: int = 0) -> Advice:
    """The same as `make_report`, of results that were read.

    Returns:
        What to do with them.
    """
    baseline = results.baseline
    counts = {method: results.counts(method) for method in results.methods}
    table = scores_table(results, counts, resamples, seed)
    parts = _parts(results, counts, resamples, seed)
    advice = advise(
        table,
        parts,
        class_sizes(results.classes, counts[baseline]),
        baseline=baseline,
        claimed=results.claimed,
        validated=results.validated,
        about={method: results.about(method).about for method in results.methods},
        absent=_absent(results),
        command=command_line("deliver", {"out": results.out}),
        leaky=results.leaky,
        simulated=results.simulated,
    )
    pictures = Pictures(results, table, counts, seed)
    figures = pictures.make()
    page = report_page(results, table, parts, counts, advice, figures, pictures.facts, resamples)
    # all is computed before anything is written: a failure leaves the old report as it was
    with whole_or_absent(results.out / "figures", "figures") as folder:
        for name, image in figures.items():
            (folder / f"{name}.png").write_bytes(image)
    write_whole(results.out / "table.csv", to_csv(table, "%.6g"))
    write_whole(results.out / "parts.csv", to_csv(parts, "%.6g"))
    write_whole(results.out / "table.md", table_markdown(results, table, parts, advice))
    write_whole(results.out / "report.html", page)
    return advice


def scores_table(
    results: Results, counts: Mapping[str, np.ndarray], resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """The content of table.csv, see `evaluate.results_table.compare`, of the counts of each method."""
    # only the paper's method was asked about beforehand; the last of a list is a choice made later
    return compare(
        counts,
        results.baseline,
        results.classes,
        primary=results.claimed,
        subsets=results.subsets,
        resamples=resamples,
        seed=seed,
    )


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


def class_sizes(classes: Sequence[str], counts: np.ndarray) -> dict[str, ClassSize]:
    """How much of each class was tested, from a method's counts (seeds, groups, classes, classes)."""
    truth = counts.sum(3)  # (seeds, groups, classes)
    effective = effective_groups(counts)
    return {
        name: ClassSize(
            int(truth[:, :, j].sum(1).max()),
            int((truth[:, :, j].sum(0) > 0).sum()),
            float(effective[1 + j]),
        )
        for j, name in enumerate(classes)
    }


def _absent(results: Results) -> dict[str, str]:
    """Why no method has a part: topic of `advice.ASKED` -> a sentence."""
    info = [trial.info for trial in results.trials]
    there = {
        "Generated patches": (
            any(i.get("generator") for i in info),
            "No method with generated patches was run.",
        ),
        "The tree": (
            any(len(i.get("stages") or []) > 1 for i in info),
            "No method here has a tree of more than one stage (hierarchy=).",
        ),
        "Time": (
            any((i.get("temporal") or {}).get("kind", "none") != "none" for i in info),
            "No method here uses time: the patches have none, or temporal=none.",
        ),
    }
    return {topic: why for topic, (found, why) in there.items() if not found}
