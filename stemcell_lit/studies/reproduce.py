"""`reproduce`: methods x folds x seeds as jobs side by side, then the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.base.terminal import printable
from stemcell_lit.data.splits import fold_count, fold_note
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.costs import costs
from stemcell_lit.experiment.generators import TrainedGenerator
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.problems import Planner, check_folders
from stemcell_lit.experiment.results import Result, comparable, read_result, together
from stemcell_lit.experiment.same import left_out, write_left_out
from stemcell_lit.experiment.training import quiet
from stemcell_lit.experiment.trial import RESULT, Trial, needs_generator
from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pool import run_jobs
from stemcell_lit.launch.slots import default_slots
from stemcell_lit.report.sweep import Table, check_reports, make_reports, tables_of, write_sweep
from stemcell_lit.settings.command_keys import ReproduceCommand, RunCommand
from stemcell_lit.settings.conf import file_of, for_jobs, groups, is_path, refuse_choice
from stemcell_lit.settings.keys import keys_of, own_keys
from stemcell_lit.settings.own import as_words, check_chosen, name_of
from stemcell_lit.settings.quoting import override, split
from stemcell_lit.settings.roles import determining
from stemcell_lit.settings.words import nearest, text_of


def for_trials(overrides: list[str]) -> list[str]:
    """The overrides that every trial gets: the user's, after the settings of the experiments among them.

    A group chosen on the command line, such as gan=tiny_long, replaces the experiment's values for that group entirely.

    Raises:
        UserError: an experiment that does not exist.
    """
    own, settings, rest = own_keys("reproduce"), [], []
    chosen = {k for k in (key for key, _ in split(overrides)) if k in groups()}
    for word, (key, value) in zip(overrides, split(overrides), strict=True):
        if key == "experiment" and value not in ("", "null"):
            name = text_of(value)
            refuse_choice("experiment", name, printable(word))
            check_chosen([override("experiment", name)])
            file = file_of("experiment", name)
            assert file is not None  # it would have been refused
            plain: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
            plain.pop("defaults", None)
            told = [*as_words(file), *_settings(plain)]
            settings += [
                override(k, v)
                for k, v in told
                if not _is_own(k, own) and k.split(".")[0] not in chosen
            ]
        elif not _is_own(key, own):
            rest.append(word)
    return settings + rest


def _settings(plain: dict[str, Any]) -> list[tuple[str, Any]]:
    """The keys of a trial in a file and their values; a mapping such as a tree is one value."""
    keys = keys_of("run")
    flat = {k: v for name, v in plain.items() for k, v in _flat(name, v, keys)}
    return list(flat.items())


def _flat(name: str, value: Any, keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and name not in keys:
        for key, below in value.items():
            yield from _flat(f"{name}.{key}", below, keys)
    else:
        yield name, value


def _is_own(key: str, own: set[str]) -> bool:
    return key in own or key.split(".")[0] in own - {"method"}


# Settings that make a method what it is -> the methods that have them. Given for all of a table, they would make its
# baseline another one in silence.
_OF_METHODS = {
    "stage.loss": "flat_weighted, flat_focal or flat_logit",
    "stage.sampler": "flat_sampler",
    "stage.mixup": "flat_mixup",
    "stage.retrain_head": "flat_crt",
    "stage.refit_head": "flat_refit or flat_features",
    "stage.feature_dose": "flat_features",
    "stage.pseudo_rounds": "flat_pseudo",
    "hierarchy.hard": "temporal_hard or temporal_gan_hard",
}


def check_baseline(words: Sequence[str], baseline: str) -> None:
    """Refuses settings that would change what the baseline is, and with it what every gain is measured against.

    Raises:
        UserError: names the key that is meant.
    """
    for key, value in split(list(words)):
        said = f"{key}={value} would change what {baseline}, the baseline, is"
        if key in ("temporal", "temporal.kind"):
            raise UserError(
                f"{said}, for it sets the constraint in time of every method; give hierarchy.temporal={value}, which "
                "only those take that have one"
            )
        if key in _OF_METHODS:
            raise UserError(f"{said}; it is what makes {_OF_METHODS[key]}: name that in methods=")
        if key == "method" or (key.startswith("method.") and key != "method.choices"):
            raise UserError(
                f"{said}; a method is what its file in conf/method says: name those to compare in methods="
            )


def _by_name(methods: Sequence[str]) -> dict[str, str]:
    """Name of each method in the table -> how it is chosen, by that name or by the absolute path of its file."""
    found: dict[str, str] = {}
    for method in methods:
        choice = str(Path(method).absolute()) if is_path(method) else method
        name = name_of("method", choice)
        if found.setdefault(name, choice) != choice:
            raise UserError(
                f"methods={methods}: two of them are called {name}, and a table has a row a name; give one another "
                "name in its file"
            )
    return found


def _is_mix(word: str) -> bool:
    return word == "mix" or word.startswith(("mix=", "mix."))


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
    chosen = _by_name(config.methods)
    (baseline,) = _by_name([config.baseline])
    config = replace(config, methods=list(chosen), baseline=baseline)
    if config.baseline not in config.methods:
        near = nearest(config.baseline, config.methods, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"baseline={config.baseline}: expected one of methods=[{','.join(config.methods)}]{hint}"
        )
    check_folders(config)
    base = for_trials(overrides)
    named = [w for w, (key, _) in zip(overrides, split(overrides), strict=True) if key == "method"]
    swept = [
        word for table in tables_of(Path(config.out), config.sweep) for word in table.overrides
    ]
    check_baseline([*base, *named, *swept], config.baseline)
    if config.artifacts is None:
        base.append(override("artifacts", Path(config.out) / "artifacts"))
    slots = config.slots or default_slots(config.trainer.accelerator, config.trainer.devices)
    # a dose of generated patches is none to a method that has none
    mixed = [word for word, (key, _) in zip(base, split(base), strict=True) if _is_mix(key)]
    base = [word for word in base if word not in mixed]
    methods = list(config.methods)
    named_so = {m: override("method", chosen[m]) for m in methods}
    words = {m: [*base, override("out", config.out), named_so[m]] for m in methods}
    asked = {m: typed_run(words[m]) for m in methods}
    # nor to one that chooses its own
    generated = {m for m in methods if needs_generator(asked[m]) and not asked[m].method.always}
    plain = {m: typed_run([*words[m], *(mixed if m in generated else [])]) for m in methods}
    tables = tables_of(Path(config.out), config.sweep)
    settings: list[dict[str, list[str]]] = []
    for table in tables:
        own = {
            m: [o for o in (*mixed, *table.overrides) if m in generated or not _is_mix(o)]
            for m in methods
        }
        where = override("out", table.out)
        settings.append({m: [*base, where, named_so[m], *own[m]] for m in methods})
    configs = [
        {m: typed_run(words) if config.sweep.key else plain[m] for m, words in of_table.items()}
        for of_table in settings
    ]
    planner = Planner()
    _check_simulation(tables, plain[config.baseline])
    store = planner.store(plain[config.baseline])
    left = left_out(
        {m: [of_table[m] for of_table in configs] for m in methods},
        config.baseline,
        store,
        known=not planner.expected,
    )
    methods = [m for m in methods if m not in left]
    # Everything is planned before anything runs: nothing is worse than 40 jobs that fail for one reason.
    keys = [(t, m) for t in range(len(tables)) for m in methods]
    planned = plan([configs[t][m] for t, m in keys], every_fold=True, baseline=config.baseline)
    by_fold = dict(zip(keys, planned, strict=True))
    store = planned[0][0].store
    for reason in left.values():
        print(printable(reason))
    other = fold_note(store, planned[0][0].config.split)
    thinned = [s for t in range(len(tables)) for s in _thinned(by_fold[t, config.baseline])]
    few = _few(by_fold[0, config.baseline])
    for sentence in [*few, *thinned, *([other] if other else [])]:
        print(f"note: {printable(sentence)}", file=sys.stderr)
    check_reports(Path(config.out), config.sweep)
    jobs: list[Job] = []
    trials: list[Trial] = []
    for t, table in enumerate(tables):
        of_table: list[Trial] = []
        for seed in config.seeds:
            for fold in range(len(by_fold[t, config.baseline])):
                for method in methods:
                    argv = [*settings[t][method], f"split.fold={fold}", f"seed={seed}", *for_jobs()]
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
    for table in tables:
        write_left_out(table.out, left.values())
    print(f"{store}\n{' x '.join(factors)} = {len(jobs)} trials", flush=True)
    outcomes = run_jobs(
        _weighed(
            _generators_first(jobs, trials),
            {job.name: t for job, t in zip(jobs, trials, strict=True)},
        ),
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


def _few(trials: list[Trial]) -> list[str]:
    """A sentence for each class that some fold has few training patches of: the logs of jobs are rarely read."""
    said, least = [], trials[0].config.data.min_class_patches
    for name in trials[0].store.classes:
        counts = [trial.train.counts[name] for trial in trials]
        if min(counts) < least:
            said.append(
                f"class {name} has {min(counts)} to {max(counts)} training patches a fold, fewer than "
                f"data.min_class_patches={least}: a network learns little from so few; label more"
            )
    return said


def _thinned(trials: list[Trial]) -> list[str]:
    """What thinning reached, a sentence for each class: whole tracks seldom make the very ratio."""
    said = []
    for name in dict.fromkeys(name for trial in trials for name in trial.split.thinned):
        found = [t.split.thinned[name] for t in trials if name in t.split.thinned]
        ends = [
            [f"{end([getattr(one, key) for one in found]):.3g}" for end in (min, max)]
            for key in ("patches", "patches_before", "tracks", "ratio")
        ]
        now, before, tracks, ratio = (a if a == b else f"{a} to {b}" for a, b in ends)
        text = (
            f"split.thin_ratio={trials[0].config.split.thin_ratio:g}: {name} has {now} of {before} training patches a "
            f"fold, of {tracks} tracks, 1 for {ratio} of the largest class"
        )
        if all(one.patches == one.patches_before for one in found):
            text += "; it is as rare of its own"
        elif any(one.tracks == 1 for one in found):
            text += "; no class loses its last track"
        said.append(text)
    return said


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


def _check_simulation(tables: Sequence[Table], config: RunCommand) -> None:
    """Refuses a folder with results of other simulated movies, before these are made."""
    for out in [table.out for table in tables] if config.data.store is None else []:
        for file in sorted((out / "trials").glob(f"[!.]*/{RESULT}")):
            told = read_result(file)["config"].get("data", {})
            for group in ("simulation", "extraction"):
                before, now = told.get(group, {}), determining(getattr(config.data, group))
                other = [k for k, v in now.items() if told.get("store") or before.get(k, v) != v]
                if other:
                    raise UserError(
                        f"{out}: its results are of other patches than those to come (data.{group}.{other[0]}), and "
                        f"one table cannot hold both; give out={_free(out)}"
                    )


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


def _weighed(jobs: list[Job], trials: Mapping[str, Trial]) -> list[Job]:
    """With the cost of each, given what those before it make."""
    known = costs([trials[job.name] for job in jobs])
    return [replace(job, cost=cost) for job, cost in zip(jobs, known, strict=True)]


def _generators_first(jobs: list[Job], trials: list[Trial]) -> list[Job]:
    """Orders jobs so that one trial per generator trains it first and the others that need it come after that one."""
    ordered: list[Job] = []
    later: list[Job] = []
    leader: dict[str, str] = {}
    for job, trial in zip(jobs, trials, strict=True):
        if not needs_generator(trial.config):
            later.append(job)
            continue
        shuffled = trial.config.mix.source == "shuffled"
        generator = key_hash(TrainedGenerator(trial, shuffled).key())
        if generator not in leader:
            leader[generator] = job.name
            ordered.append(job)
        else:
            later.append(replace(job, after=[leader[generator]]))
    return ordered + later
