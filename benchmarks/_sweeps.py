"""What the benchmarks of sweeps share: a small store, the command of a sweep, what it left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

METHODS = ("flat", "flat_gan", "temporal", "temporal_gan", "hierarchy_gan")
FOLDS, SEEDS = (0, 1), (0, 1)
FEW = ("flat", "flat_gan")  # with --few, to try a script: these on both folds with one seed

SIMULATION = ("simulation.movies=6", "simulation.frames=4", "simulation.size=256")


def make_store(folder: Path) -> Path:
    """Simulated movies and their patches; made where absent."""
    store = folder / "store"
    if not store.exists():
        words = [f"out={folder / 'movies'}", f"store={store}", "extraction.patches_per_movie=60"]
        subprocess.run(stemcell_lit("simulate", *SIMULATION, *words), check=True)
    return store


def stemcell_lit(*words: str) -> list[str]:
    return [sys.executable, "-m", "stemcell_lit", *words]


def trials(few: bool) -> int:
    """How many a sweep has."""
    return len(FEW) * len(FOLDS) if few else len(METHODS) * len(FOLDS) * len(SEEDS)


def sweep(
    out: Path, store: Path, *settings: str, few: bool = False, profile: str = "smoke"
) -> list[str]:
    """The command: methods x folds x seeds, on the CPU."""
    return stemcell_lit(
        "run",
        "-m",
        "hydra/launcher=local",
        "hydra.launcher.slots=2",
        f"profile={profile}",
        "logger=disabled",
        "trainer=cpu",
        f"data.store={store}",
        f"out={out}",
        f"method={','.join(FEW if few else METHODS)}",
        f"split.fold={','.join(map(str, FOLDS))}",
        f"seed={','.join(map(str, SEEDS[:1] if few else SEEDS))}",
        *settings,
    )


def results(out: Path) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    """Name of a trial -> result.json and predictions."""
    return {
        file.parent.name: (
            json.loads(file.read_text(encoding="utf-8")),
            pd.read_parquet(file.parent / "predictions.parquet"),
        )
        for file in sorted(out.glob("trials/[!.]*/result.json"))
    }


def makings(out: Path, kind: str) -> list[int]:
    """How often each artifact of a kind was made, by the logs of all stores in the folder."""
    made: Counter[tuple[str, str]] = Counter()
    for log in out.rglob("log.jsonl"):
        for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            if line["event"] == "made" and line["kind"] == kind:
                made[str(log), line["hash"]] += 1
    return list(made.values())
