"""What cannot work is found before anything runs: every fold of every method is planned first.

A remedy is proposed only after the same plan was made with it and held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stemcell_lit.errors import UserError
from stemcell_lit.experiment.problems import Planner
from stemcell_lit.experiment.remedies import Remedies
from stemcell_lit.experiment.trial import Trial
from stemcell_lit.settings.command_keys import RunCommand, typed
from stemcell_lit.settings.field_types import check

MOST_LINES = 12  # of a message

_NONE = "no other split, method or size of these data was found to work"


def plan(
    configs: Sequence[RunCommand],
    *,
    every_fold: bool = False,
    generator: bool = False,
    baseline: str | None = None,
    here: bool = True,
) -> list[list[Trial]]:
    """Plans trials and trains nothing. Simulated movies are made only once nothing else is in the way.

    Args:
        configs: a trial each, or with `every_fold` one for all its folds.
        every_fold: plan all folds, whatever `split.fold` says.
        generator: each trains a generator, whatever its mix.
        baseline: the method that a table cannot do without; others may be proposed to be left out. None: no table.
        here: they run on this machine, so its devices are known and movies may be simulated.

    Returns:
        for each of `configs` its trials.

    Raises:
        UserError: everything that cannot work, a line each, with what was seen to work.
    """
    for config in configs:
        check(config)
    planner = Planner(generator=generator, here=here)
    _refuse(planner, configs, every_fold, baseline)
    if planner.expected and here:
        planner = Planner(generator=generator, here=here, make=True)
        _refuse(planner, configs, every_fold, baseline)
    return [
        [planner.trial(one) for one in planner.folds(config, every_fold)]
        for config in configs
        if here or config.data.store is not None
    ]


def check_sweep(configs: Sequence[Any], here: bool = True) -> None:
    """Plans the composed configurations of a sweep's jobs; asked by launchers before any of them starts.

    Raises:
        UserError: see `plan`.
    """
    plan([typed(config) for config in configs], here=here)


def _refuse(
    planner: Planner, configs: Sequence[RunCommand], every_fold: bool, baseline: str | None
) -> None:
    """Says all that cannot work, and what would.

    Raises:
        UserError: where there is anything.
    """
    found = list(planner.problems(configs, every_fold))
    if not found:
        return
    methods = {c.method.name for c in configs}
    hit: dict[str, set[str]] = {}
    for problem in found:
        hit.setdefault(problem.what, set()).add(problem.method)
    lines = []
    for what, by in hit.items():
        some = "" in by or by == methods
        lines.append(what if some else f"{what} (method {', '.join(sorted(by))})")
    own = all(p.kind == "settings" for p in found)
    remedy = None if own else Remedies(planner, every_fold, baseline).remedy(configs)
    told = "" if own else f"what works: {remedy}" if remedy else _NONE
    if len(lines) == 1:
        raise UserError(f"{lines[0]}; {told}" if told else lines[0])
    more = len(lines) - MOST_LINES
    if more > 0:
        lines = [*lines[:MOST_LINES], f"and {more} more"]
    head = f"{len(hit)} things cannot work, nothing has run:"
    raise UserError(head, *(f"- {x}" for x in lines), *([told] if told else []))
