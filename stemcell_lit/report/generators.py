"""The report's section on generators."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from stemcell_lit.base import formats as form
from stemcell_lit.experiment.generator_quality import (
    GRID_BYTES,
    METRICS,
    cell_text,
    find,
    grid_file,
)
from stemcell_lit.experiment.results import Results


def generator_section(results: Results) -> dict[str, Any] | None:
    """What the report's section on generators shows; None where none was used. The page escapes it."""
    used: dict[str, tuple[int, dict[str, Any]]] = {}  # a generator serves many trials
    for trial in results.trials:
        if trial.info.get("generator") and trial.info.get("generator_quality"):
            path = trial.info["generator"]["path"]
            used.setdefault(path, (trial.fold, trial.info["generator_quality"]))
    if not used:
        return None
    in_order = sorted(used.values(), key=lambda u: u[0])
    path, (fold, _) = min(used.items(), key=lambda u: u[1][0])
    return {
        "titles": [title for title, _, _ in METRICS.values()],
        "rows": [
            {
                "fold": of,
                "images": about.get("images"),
                "scores": [
                    cell_text(find(about["quality"], metric), digits)
                    for metric, (_, _, digits) in METRICS.items()
                ],
                "alarm": about.get("alarm"),
                "missing": about.get("missing") or {},
                "filters": about.get("filters") or [],
                "kept": {
                    c: rates.get("all", 0.0) for c, rates in (about.get("acceptance") or {}).items()
                },
            }
            for of, about in in_order
        ],
        "grids_fold": fold,
        "grids": [
            {
                "name": name,
                "data": base64.b64encode(
                    form.read_bytes(file, GRID_BYTES, "make the generator again")
                ).decode("ascii"),
            }
            for name in results.classes
            if (file := Path(results.out) / path / "grids" / grid_file(name)).is_file()
        ],
    }
