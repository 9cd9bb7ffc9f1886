"""What forking a trial's process from one that has imported everything saves, on a trial that trains nothing.

    python benchmarks/warm_start.py [--repeat 5] [--save]

The trial is the time-only classifier on a small store, with its offline W&B run: what is left is the start. Both ways
in turns; the server's own start, paid once a table, is told beside them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import report
from _sweeps import make_store

from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pool import run_jobs
from stemcell_lit.launch.slots import default_slots
from stemcell_lit.launch.warm import PROGRAM

WAYS = {"warm": PROGRAM, "cold": [sys.executable, "-X", "utf8", *PROGRAM[1:]]}  # any other words


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="trials of each way")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    slots = default_slots("cpu", slots=os.cpu_count())[:1]
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(Path(scratch))
        for turn in range(given.repeat + 1):  # the first starts the server
            for way, program in WAYS.items():
                out = Path(scratch) / f"{way}{turn}"
                words = ["run", "method=time_only", f"data.store={store}", f"out={out}"]
                start = time.monotonic()
                (outcome,) = run_jobs([Job("trial", [*program, *words])], slots=slots)
                seconds[way].append(round(time.monotonic() - start, 2))
                if not outcome.ok:
                    raise SystemExit(f"{way}: {outcome.reason}")
    first, warm, cold = seconds["warm"][0], seconds["warm"][1:], seconds["cold"][1:]
    ratios = [round(c / w, 2) for c, w in zip(cold, warm, strict=True)]
    report(
        "warm_start",
        round(statistics.median(ratios), 2),
        "times faster than a process that imports everything itself",
        ">= 2",
        [min(ratios), max(ratios)],
        given.save,
        seconds={"warm": warm, "cold": cold, "first_warm": first},
    )


if __name__ == "__main__":
    main()
