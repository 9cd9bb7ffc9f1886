"""Where a trained model lies: its own folder, or that of the trial or the results that hold it."""

from __future__ import annotations

import os
from pathlib import Path

from stemcell_lit.errors import UserError

MODEL = "model.json"  # in the folder of a model
FOLDER = "model"  # of a trial, and of results with a delivered model
_TRIALS = "trials"  # of results


def find_model(checkpoint: str | Path) -> Path:
    """The folder of the model that is meant.

    Args:
        checkpoint: a folder that holds model.json; a trial's, or one of results, that holds such a folder as `model`.

    Raises:
        UserError: there is none, or several may be meant.
    """
    given = Path(checkpoint)
    for folder in (given, given / FOLDER):
        if os.path.lexists(folder / MODEL):
            return folder
    trials = _trials_in(given)
    if trials:
        more = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
        raise UserError(
            f"{given}: holds no model of its own, but trials with theirs ({trials[0].name}{more}); give one of them, "
            f"such as checkpoint={trials[0]}"
        )
    raise UserError(
        f"{given / MODEL}: no such file; expected the `model` folder of a finished trial, such as "
        "results/default/trials/NAME/model, or the folder of that trial"
    )


def _trials_in(folder: Path) -> list[Path]:
    """Trials with a model in a folder of results, or in its `trials`."""
    for place in (folder / _TRIALS, folder):
        if found := sorted(p.parent.parent for p in place.glob(f"*/{FOLDER}/{MODEL}")):
            return found
    return []
