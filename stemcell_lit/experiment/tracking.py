"""Weights & Biases: a run per cell, offline unless asked otherwise, never a reason to fail.

result.json is the truth: whatever W&B shows is made from it, under names that do not change.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers import WandbLogger

from stemcell_lit.errors import UserError
from stemcell_lit.schema import RunCommand

MODES = ("offline", "online", "disabled")


@contextmanager
def wandb_run(hash: str, name: str, config: RunCommand, first: bool = True) -> Iterator[Any]:
    """Opens the W&B run of a cell, or yields None where W&B is disabled or does not start.

    Only the first rank has one. The run's id comes from the cell's hash, so a resumed cell goes on in its run.

    Raises:
        UserError: an unknown mode.
    """
    mode = config.logger.wandb
    if mode not in MODES:
        raise UserError(f"logger.wandb={mode}: expected one of {', '.join(MODES)}")
    board = None
    if mode != "disabled" and first:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        folder = Path(config.out)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            import wandb

            board = wandb.init(
                project=config.logger.project,
                id=hash,
                name=name,
                group=config.logger.group or folder.name,
                job_type=config.method.name,
                tags=[config.method.name, f"fold-{config.split.fold}", f"seed-{config.seed}"],
                config=asdict(config),
                mode=mode,  # type: ignore[arg-type]
                dir=folder,
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(console="off", x_disable_stats=True, init_timeout=30),
            )
        except Exception as error:  # whatever W&B cannot do, the cell can do without
            warnings.warn(
                f"W&B does not start ({error}); the cell goes on without it", stacklevel=2
            )
    try:
        yield board
    finally:
        if board is not None:
            _try(board.finish)


def lightning_logger(board: Any, title: str) -> Any:
    """A Lightning logger into the cell's run, metrics under the title of what is trained; False for none."""
    if board is None:
        return False
    return WandbLogger(experiment=board, prefix=title.replace(" ", "/"))


def log_result(board: Any, result: dict[str, Any], table: pd.DataFrame) -> None:
    """Puts a finished result into the run: `test/...` in the summary, confusion matrix and predictions as tables."""
    if board is None:
        return

    def put() -> None:
        import wandb

        for name, value in result["metrics"].items():
            board.summary[f"test/{name}"] = value
        classes = result["classes"]
        rows: list[Any] = [
            [c, *counts] for c, counts in zip(classes, result["confusion"], strict=True)
        ]
        board.log(
            {
                "confusion": wandb.Table(columns=["true", *classes], data=rows),
                "predictions": wandb.Table(dataframe=table),
            }
        )

    _try(put)


def _try(action: Any) -> None:
    try:
        action()
    except Exception as error:
        warnings.warn(f"W&B failed ({error}); the result is whole without it", stacklevel=2)
