"""`reproduce`: methods x folds x seeds as jobs side by side, then the report."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from stemcell_lit.data.splits import fold_count
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.launch import Job, default_slots, run_jobs
from stemcell_lit.experiment.report import make_report, print_table
from stemcell_lit.experiment.run import Cell, prepare, quiet
from stemcell_lit.schema import ReproduceCommand, RunCommand


def own_keys() -> set[str]:
    """Keys that a single cell does not know, or that reproduce sets for each."""
    shared = {f.name for f in fields(RunCommand)}
    return {f.name for f in fields(ReproduceCommand)} - shared | {
        "method",
        "seed",
        "split.fold",
        "out",
    }


def reproduce(config: ReproduceCommand, overrides: list[str], typed_run: Any) -> int:
    """Makes every cell that is not there yet, then the table and report.html.

    Args:
        config: resolved settings.
        overrides: the same as the user gave them; each job gets them with its own method, fold and seed.
        typed_run: composes a list of overrides into a `RunCommand`.

    Returns:
        0, or 1 where jobs failed: then there is no report, and the same command goes on.

    Raises:
        UserError: settings that do not fit, found before any job starts.
    """
    quiet()
    if config.baseline not in config.methods:
        raise UserError(f"baseline={config.baseline}: expected one of methods={config.methods}")
    own = own_keys()
    base = [o for o in overrides if o.split("=")[0].lstrip("+~") not in own] + [f"out={config.out}"]
    if config.artifacts is None:
        base.append(f"artifacts={Path(config.out) / 'artifacts'}")
    # The data first: it is the same for all cells, and nothing is worse than 40 jobs that fail for one reason.
    configs = {method: typed_run([*base, f"method={method}"]) for method in config.methods}
    first = prepare(configs[config.methods[0]])
    folds = fold_count(first.store, config.split)
    jobs: list[Job] = []
    cells: list[Cell] = []
    for seed in config.seeds:
        for fold in range(folds):
            for method in config.methods:
                argv = [*base, f"method={method}", f"split.fold={fold}", f"seed={seed}"]
                of_method = configs[method]
                split = replace(of_method.split, fold=fold)
                cell = prepare(replace(of_method, split=split, seed=seed))
                cells.append(cell)
                jobs.append(
                    Job(
                        name=cell.name,
                        argv=[sys.executable, "-m", "stemcell_lit", "run", *argv],
                        out=Path(config.out) / "logs" / cell.name,
                        done=partial(_finished, cell),
                    )
                )
    print(
        f"{first.store}\n{len(config.methods)} methods x {folds} folds x {len(config.seeds)} seeds = {len(jobs)} cells",
        flush=True,
    )
    outcomes = run_jobs(
        _generators_first(jobs, cells),
        slots=config.slots or default_slots(config.trainer.accelerator, config.trainer.devices),
        devices_per_job=config.trainer.devices,
        fail_fast=config.fail_fast,
        title="reproduce",
    )
    if not all(o.ok for o in outcomes):
        print(
            "no report: some cells failed; mend the cause, then the same command goes on",
            file=sys.stderr,
        )
        return 1
    make_report(Path(config.out), baseline=config.baseline, resamples=config.resamples)
    print_table(Path(config.out))
    return 0


def _finished(cell: Cell) -> bool:
    return cell.finished


def _generators_first(jobs: list[Job], cells: list[Cell]) -> list[Job]:
    """Orders jobs so that one cell per fold trains the generator first and the others that need it come after it."""
    ordered: list[Job] = []
    later: list[Job] = []
    leader: dict[int, str] = {}
    for job, cell in zip(jobs, cells, strict=True):
        if cell.config.mix.recipe == "real" or not cell.config.method.network:
            later.append(job)
        elif cell.config.split.fold not in leader:
            leader[cell.config.split.fold] = job.name
            ordered.append(job)
        else:
            later.append(replace(job, after=[leader[cell.config.split.fold]]))
    return ordered + later
