"""W&B runs made again from finished trials."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

from stemcell_lit.errors import UserError
from stemcell_lit.experiment.results import Results, collect
from stemcell_lit.experiment.tracking import log_result, staging, wandb_run
from stemcell_lit.settings.group_keys import LoggerConfig


def rebuild(out: str | Path, logger: LoggerConfig) -> int:
    """Makes the run of every finished trial again, from result.json and predictions.parquet alone; how many.

    A run that was there under the same id is replaced, so a second call changes nothing. Pictures need the patch
    store and the artifacts; where these have moved, the runs lack them and a warning says so.

    Raises:
        UserError: no results, broken ones, or `logger=disabled`.
    """
    if logger.wandb == "disabled":
        raise UserError(
            "logger=disabled: there is nothing to rebuild; give logger=offline or online"
        )
    out = Path(out)
    trials = collect(out)
    store = None
    try:
        store = Results(out, "", [], trials).real()
    except UserError as error:
        warnings.warn(f"{error}; the runs have no pictures of patches", stacklevel=2)
    for trial in trials:
        _forget(out, str(trial.info["hash"]))
        with wandb_run(trial.info, logger, out, anew=True) as run:
            log_result(run, trial.info, trial.predictions, out, store)
    return len(trials)


def _forget(out: Path, hash: str) -> None:
    """Deletes what W&B keeps of a run.

    Raises:
        UserError: a hash that is none, or something else lies there.
    """
    if not re.fullmatch(
        r"[0-9A-Za-z]{1,64}", hash
    ):  # it comes from a file, and is part of a path here
        raise UserError(
            f"{out}: a result has the hash {hash!r}; expected hex digits; run its trial again"
        )
    for old in (out / "wandb").glob(f"offline-run-*-{hash}"):
        files = {f"run-{hash}.wandb", f"run-{hash}.wandb.synced"}
        strange = [p for p in old.iterdir() if p.name not in files | {"files", "logs", "tmp"}]
        if old.is_symlink() or strange:
            found = strange[0].name if strange else "a link"
            raise UserError(
                f"{old}: holds {found}, which is not W&B's and would be lost; move it away"
            )
        shutil.rmtree(old)
    shutil.rmtree(staging(out, hash), ignore_errors=True)
