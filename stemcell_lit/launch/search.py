"""Search for settings with Optuna, through the same launcher and jobs as any sweep.

The folder of a search::

    journal.log     Optuna's journal of all trials; the same command continues it
    trials.csv      the same to read: number, state, value, settings
    best.yaml       value and settings of the best trial
    <hash>/         of each job: log, and what it returned

The journal is a file that grows by whole lines: no database, and a killed search loses no finished trial. A trial that
was running then is asked for again with the same settings, whose trial resumes or is there.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.base.files import check_files, write_whole
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.base.terminal import printable
from stemcell_lit.base.yamls import read_yaml
from stemcell_lit.errors import UserError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

Launch = Callable[
    ..., Sequence[Any]
]  # (overrides of each job, initial_job_idx=) -> JobReturn of each


def search(
    arguments: Sequence[str],
    launch: Launch,
    folder: Path,
    *,
    trials: int,
    parallel: int = 1,
    seed: int = 0,
    over: Sequence[str] = (),
) -> dict[str, Any]:
    """Maximises what jobs return (a trial of the table returns its macro F1 on validation patches) with Optuna's TPE.

    Args:
        arguments: overrides; those with several values, an interval or a range are searched over.
        launch: a Hydra launcher's.
        folder: of the search; one that is there goes on.
        trials: that shall end with a value, those of earlier calls counted.
        parallel: trials asked for at once and run side by side.
        seed: of the sampler.
        over: overrides with several values, over all of which a trial's value is the mean.

    Returns:
        The content of best.yaml: value, trial, settings.

    Raises:
        UserError: nothing to search over, another search in the folder, no Optuna, a failed job, or one without a
            validation patch.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
        from optuna.trial import TrialState
    except ImportError as error:
        raise UserError(
            f'hydra/sweeper=optuna needs the extra `search` ({error}): pip install "stemcell_lit[search]"'
        ) from error
    if trials < 1 or parallel < 1:
        raise UserError(
            f"hydra.sweeper.trials={trials}, parallel={parallel}: each must be at least 1"
        )
    fixed, space = _read(arguments)
    if not space:
        raise UserError(
            "nothing to search over: give an argument with several values, such as stage.width=8,16 or "
            "'stage.lr=tag(log,interval(1e-4,1e-2))'"
        )
    every = _combinations(over)
    check_files(folder, ["trials.csv", "best.yaml"])
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is searching there") from None
    try:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = JournalFileBackend(str(folder / "journal.log"))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name=folder.name,
            direction="maximize",
            load_if_exists=True,
        )
        _same_search(study, folder, {"arguments": sorted(arguments), "over": list(over)})
        for stale in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(stale.number, state=TrialState.FAIL)
            study.enqueue_trial(stale.params)
        done = len(study.get_trials(states=[TrialState.COMPLETE]))
        # Optuna does not keep the sampler's state; a search that goes on must not draw the same settings again
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(study.trials), constant_liar=parallel > 1
        )
        failed: list[str] = []
        jobs = 0
        for first in range(done, trials, parallel):
            asked = [study.ask(space) for _ in range(min(parallel, trials - first))]
            settings = [[f"{k}={v}" for k, v in t.params.items()] for t in asked]
            overrides = [
                _job([*fixed, *setting, *some], folder.name)
                for setting in settings
                for some in every
            ]
            returns = launch(overrides, initial_job_idx=jobs)
            jobs += len(overrides)
            for i, (trial, setting) in enumerate(zip(asked, settings, strict=True)):
                try:
                    own = returns[i * len(every) : (i + 1) * len(every)]
                    study.tell(trial, _mean([r.return_value for r in own]))
                except Exception as error:  # return_value raises what the job raised
                    study.tell(trial, state=TrialState.FAIL)
                    failed.append(f"{' '.join(setting)} ({error})")
            _write(study, folder)
    finally:
        lock.release()
    if failed:
        raise UserError(
            f"{len(failed)} trials failed, the same command tries others: {'; '.join(failed)}"
        )
    best: dict[str, Any] = read_yaml(folder / "best.yaml", "run again")
    told = " ".join(f"{k}={v}" for k, v in best["settings"].items())
    score = f"{best['value']:.4f}"
    print(printable(f"best of {trials} trials by macro F1 on validation patches, {score}: {told}"))
    return best


def _read(arguments: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Arguments that hold for every trial, and the space of the others."""
    fixed, space = [], {}
    for override in _parsed(arguments):
        if override.is_sweep_override():
            space[override.get_key_element()] = _distribution(override)
        else:
            fixed.append(str(override.input_line))
    return fixed, space


def _distribution(override: Override) -> BaseDistribution:
    """Optuna's word for a sweep in Hydra's grammar."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value: Any = override.value()
    if override.is_interval_sweep():
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(value.start, value.end, log=log)
    if override.is_range_sweep() and not value.shuffle:
        numbers = list(value.range())
        if all(isinstance(n, int) for n in numbers) and len(numbers) > 1:
            step = abs(numbers[1] - numbers[0])
            return IntDistribution(min(numbers), max(numbers), step=step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _combinations(over: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of some overrides; one empty one for none."""
    parts = []
    for override in _parsed(over):
        key = override.get_key_element()
        values = (
            list(override.sweep_string_iterator())
            if override.is_sweep_override()
            else [override.get_value_element_as_str()]
        )
        parts.append([f"{key}={value}" for value in values])
    return [list(some) for some in itertools.product(*parts)]


def _parsed(arguments: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise UserError(str(error)) from error


def _job(overrides: list[str], study: str) -> list[str]:
    """A job's overrides, with a folder of its own that is named by them."""
    return [*overrides, f"hydra.sweep.subdir={study}/{key_hash({'overrides': sorted(overrides)})}"]


def _mean(values: Sequence[Any]) -> float:
    if any(v is None or not math.isfinite(v) for v in values):
        raise UserError(
            "a trial of the table has no macro F1 on validation patches; give a larger split.validation_share, or "
            "remove a result of an earlier version"
        )
    return math.fsum(values) / len(values)


def _same_search(study: Study, folder: Path, what: dict[str, Any]) -> None:
    """Keeps what is searched with the study, so that trials that cannot be compared never meet."""
    known = study.user_attrs.get("search")
    if known is None:
        study.set_user_attr("search", what)
    elif known != what:
        raise UserError(
            f"{folder}: holds another search ({json.dumps(known)}); give hydra.sweeper.study=NAME for this one, or "
            "the same arguments to go on"
        )


def _write(study: Study, folder: Path) -> None:
    from optuna.trial import TrialState

    rows = [
        {"number": t.number, "state": t.state.name.lower(), "value": t.value, **t.params}
        for t in study.trials
    ]
    write_whole(folder / "trials.csv", to_csv(pd.DataFrame(rows)))
    if study.get_trials(states=[TrialState.COMPLETE]):
        best = study.best_trial
        content = {
            "value": float(best.values[0]),
            "trial": best.number,
            "settings": {k: str(v) for k, v in best.params.items()},
        }
        write_whole(folder / "best.yaml", yaml.safe_dump(content, sort_keys=False))
