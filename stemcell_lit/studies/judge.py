"""`judge`: generators side by side, on the same patches and at the same budget; table and grids.

All numbers by which a generator may be chosen come from training groups: from patches set aside for
validation. The accuracy score on test groups stands apart, for reporting only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stemcell_lit.base.files import check_files, check_target
from stemcell_lit.base.names import safe_name
from stemcell_lit.experiment.training import quiet, use_cpu
from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pool import run_jobs
from stemcell_lit.launch.slots import default_slots
from stemcell_lit.settings.command_keys import JudgeCommand, RunCommand
from stemcell_lit.settings.conf import for_jobs
from stemcell_lit.settings.quoting import override
from stemcell_lit.studies.judge_entries import Entry, _base, entries_of, real_accuracy
from stemcell_lit.studies.judge_table import write


def judge(
    config: JudgeCommand, overrides: list[str], typed_run: Callable[[list[str]], RunCommand]
) -> int:
    """Trains what is not there yet, measures everything, writes table.md, table.csv, judge.json and grids/.

    `typed_run` composes a list of overrides, as the user gave them, into a `RunCommand`.

    Returns:
        0, or 1 where jobs failed: then there is no table, and the same command again makes what is missing.

    Raises:
        UserError: settings that do not fit, found before any job starts.
    """
    quiet()
    use_cpu(config.trainer)
    check_files(config.out, ["table.csv", "table.md", "judge.json"])
    check_target(Path(config.out) / "grids", "grids")
    entries = entries_of(config, overrides, typed_run)
    missing = [e for e in entries if not e.done]
    if len(missing) > 1:
        outcomes = run_jobs(
            _jobs(config, overrides, missing),
            slots=config.slots or default_slots(config.trainer.accelerator),
            title="judge",
        )
        if not all(o.ok for o in outcomes):
            print(
                "no table: some generators could not be judged; fix the cause, then run the same command again",
                file=sys.stderr,
            )
            return 1
    folders = [e.trial.artifacts.get(e) for e in entries]
    floors = {e.fold: real_accuracy(e) for e in entries}
    write(Path(config.out), config, entries, folders, floors)
    return 0


def _jobs(config: JudgeCommand, overrides: list[str], missing: Sequence[Entry]) -> list[Job]:
    """A process for each entry: judge with a table of one row. A generator's second entry waits for its first."""
    base = _base(overrides)
    jobs: list[Job] = []
    leader: dict[tuple[str, int], str] = {}
    for e in missing:
        name = f"{safe_name(e.name)}-f{e.fold}"
        argv = [
            *for_jobs(),
            *base,
            override("gans", [e.gan]),
            override("selects", [e.select]),
            override("folds", [e.fold]),
            override("seeds", list(e.seeds)),
            override("per_class", e.per_class),
            override("images", e.trial.config.gan.images),
            override("out", Path(config.out) / "parts" / name),
            override("artifacts", e.trial.artifacts.root),
        ]
        first = leader.setdefault((e.gan, e.fold), name)
        jobs.append(
            Job(
                name=name,
                argv=[sys.executable, "-m", "stemcell_lit", "judge", *argv],
                out=Path(config.out) / "logs" / name,
                done=lambda e=e: e.done,  # type: ignore[misc]
                after=[] if first == name else [first],
            )
        )
    return jobs
