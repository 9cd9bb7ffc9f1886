"""`reproduce`: methods x folds x seeds as jobs side by side, then the report."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.base.terminal import printable
from stemcell_lit.base.yamls import check_chosen
from stemcell_lit.data.splits import fold_count
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.generators import TrainedGenerator
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.problems import check_folders
from stemcell_lit.experiment.results import Result, comparable, flatten, read_result, together
from stemcell_lit.experiment.training import quiet
from stemcell_lit.experiment.trial import RESULT, Trial, needs_generator
from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pool import run_jobs
from stemcell_lit.launch.slots import default_slots
from stemcell_lit.report.sweep import check_reports, make_reports, tables_of, write_sweep
from stemcell_lit.settings.command_keys import ReproduceCommand
from stemcell_lit.settings.conf import choices_of, conf_dir
from stemcell_lit.settings.keys import own_keys
from stemcell_lit.settings.quoting import override, split


def for_trials(overrides: list[str]) -> list[str]:
    """The overrides that every trial gets: the user's, after the settings of the experiments among them.

    A group chosen on the command line, such as gan=tiny_long, replaces the experiment's values for that group entirely.

    Raises:
        UserError: an experiment that does not exist.
    """
    own, settings, rest = own_keys("reproduce"), [], []
    groups = {k for k in (key for key, _ in split(overrides)) if (conf_dir() / k).is_dir()}
    for word, (key, value) in zip(overrides, split(overrides), strict=True):
        if key == "experiment" and value not in ("", "null"):
            name = value.strip("'\"")
            if name not in choices_of("experiment"):
                raise UserError(
                    f"experiment={value}: no such choice; expected one of {', '.join(choices_of('experiment'))}"
                )
            file = conf_dir() / "experiment" / f"{name}.yaml"
            check_chosen(conf_dir(), [f"experiment={name}"])
            flat = flatten(OmegaConf.to_container(OmegaConf.load(file)))  # type: ignore[arg-type]
            settings += [
                override(k, v)
                for k, v in flat.items()
                if not _is_own(k, own) and k.split(".")[0] not in groups
            ]
        elif not _is_own(key, own):
            rest.append(word)
    return settings + rest


def _is_own(key: str, own: set[str]) -> bool:
    return key in own or key.split(".")[0] in own - {"method"}


def reproduce(config: ReproduceCommand, overrides: list[str], typed_run: Any) -> int:
    """Makes every trial that is not there yet, then the table and report.html.

    `typed_run` composes a list of overrides into a `RunCommand`; each job gets the user's, with its own method, fold
    and seed.

    Returns:
        0, or 1 where jobs failed: then there is no report, and the same command again makes what is missing.

    Raises:
        UserError: settings that do not fit, found before any job starts.
    """
    quiet()
    if config.baseline not in config.methods:
        raise UserError(f"baseline={config.baseline}: expected one of methods={config.methods}")
    check_folders(config)
    base = for_trials(overrides)
    if config.artifacts is None:
        base.append(override("artifacts", Path(config.out) / "artifacts"))
    slots = config.slots or default_slots(config.trainer.accelerator, config.trainer.devices)
    methods = list(config.methods)
    plain = {
        m: typed_run([*base, override("out", config.out), override("method", m)]) for m in methods
    }
    tables = tables_of(Path(config.out), config.sweep)
    settings: list[dict[str, list[str]]] = []
    for table in tables:
        # a dose of generated patches is none to a method that has none
        own = {
            m: [o for o in table.overrides if needs_generator(plain[m]) or not o.startswith("mix.")]
            for m in methods
        }
        where = override("out", table.out)
        settings.append({m: [*base, where, override("method", m), *own[m]] for m in methods})
    configs = [
        {m: typed_run(words) if config.sweep.key else plain[m] for m, words in of_table.items()}
        for of_table in settings
    ]
    # Everything is planned before anything runs: nothing is worse than 40 jobs that fail for one reason.
    keys = [(t, m) for t in range(len(tables)) for m in methods]
    planned = plan([configs[t][m] for t, m in keys], every_fold=True, baseline=config.baseline)
    by_fold = dict(zip(keys, planned, strict=True))
    store = planned[0][0].store
    if "time_only" in methods and not np.isfinite(store.manifest["time_h"]).any():
        methods.remove("time_only")
        print("time_only is left out: no patch has a time")
    check_reports(Path(config.out), config.sweep)
    jobs: list[Job] = []
    trials: list[Trial] = []
    for t, table in enumerate(tables):
        of_table: list[Trial] = []
        for seed in config.seeds:
            for fold in range(len(by_fold[t, config.baseline])):
                for method in methods:
                    argv = [*settings[t][method], f"split.fold={fold}", f"seed={seed}"]
                    alike = by_fold[t, method][fold]
                    trial = replace(alike, config=replace(alike.config, seed=seed))
                    of_table.append(trial)
                    name = f"{table.name}/{trial.name}" if table.name else trial.name
                    jobs.append(
                        Job(
                            name=name,
                            argv=[sys.executable, "-m", "stemcell_lit", "run", *argv],
                            out=Path(config.out) / "logs" / name,
                            done=lambda trial=trial: trial.finished,  # type: ignore[misc]
                        )
                    )
        _check_results(table.out, of_table, config.baseline)
        trials += of_table
    _check_kind(Path(config.out), config.sweep.key)
    folds = fold_count(store, config.split)
    factors = [f"{len(methods)} methods", f"{folds} folds", f"{len(config.seeds)} seeds"]
    if config.sweep.key:
        factors.append(f"{len(tables)} values of {printable(config.sweep.key)}")
    print(f"{store}\n{' x '.join(factors)} = {len(jobs)} trials", flush=True)
    outcomes = run_jobs(
        _generators_first(jobs, trials),
        slots=slots,
        devices_per_job=config.trainer.devices,
        fail_fast=config.fail_fast,
        title="reproduce",
    )
    if not all(o.ok for o in outcomes):
        print(
            "no report: some trials failed; fix the cause, then run the same command again",
            file=sys.stderr,
        )
        return 1
    if config.sweep.key:
        write_sweep(Path(config.out), config.sweep)
    make_reports(Path(config.out), baseline=config.baseline, resamples=config.resamples)
    return 0


def _check_results(out: Path, trials: list[Trial], baseline: str) -> None:
    """Refuses a folder whose results cannot stand in one table with those to come, before any of these is made."""
    there = [
        Result(p, read_result(p / RESULT), "")
        for p in sorted((out / "trials").glob("*"))
        if p.is_dir() and p.name[0] != "."
    ]
    to_come = [
        Result(
            trial.folder,
            {
                "method": trial.config.method.name,
                "fold": trial.config.split.fold,
                "seed": trial.config.seed,
                "classes": trial.store.classes,
                "data": {"content_hash": trial.store.content_hash},
                "split": {"kind": trial.split.kind},
                "config": asdict(trial.config),
            },
            "",
        )
        for trial in trials
        if not trial.finished
    ]
    if not there or not to_come:
        return
    try:
        comparable(together([*there, *to_come]), baseline)
    except UserError as error:
        raise UserError(
            f"{out}: its results are of other settings or data than those to come, and one table cannot hold both "
            f"({error}); give out={_free(out)}"
        ) from error


def _check_kind(out: Path, key: str | None) -> None:
    """Refuses a table in the folder of a sweep, or the other way round: one report would hide the other."""
    file = out / "sweep.json"
    if file.is_file() and key is None:
        raise UserError(f"{out}: holds a sweep, see {file}; give out={_free(out)} for a table")
    if key is not None and not file.is_file() and any((out / "trials").glob("[!.]*")):
        raise UserError(
            f"{out}: holds a table without a sweep; give out={_free(out)} for the sweep over {key}"
        )


def _free(out: Path) -> Path:
    number = 2
    while (place := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    return place


def _generators_first(jobs: list[Job], trials: list[Trial]) -> list[Job]:
    """Orders jobs so that one trial per generator trains it first and the others that need it come after that one."""
    ordered: list[Job] = []
    later: list[Job] = []
    leader: dict[str, str] = {}
    for job, trial in zip(jobs, trials, strict=True):
        if not needs_generator(trial.config):
            later.append(job)
            continue
        generator = key_hash(TrainedGenerator(trial).key())
        if generator not in leader:
            leader[generator] = job.name
            ordered.append(job)
        else:
            later.append(replace(job, after=[leader[generator]]))
    return ordered + later
