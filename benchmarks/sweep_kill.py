"""A sweep whose workers and launcher are SIGKILLed ends, run again, with the undisturbed results.

    python benchmarks/sweep_kill.py [--save] [--seed 0] [--keep DIR]

20 trials (five methods, two folds, two seeds) on two CPU slots, trainings of seconds. First the sweep runs undisturbed.
Then the same command runs in another folder, while at random moments within the time that the undisturbed one took five
workers and once the launcher get SIGKILL; whenever the launcher has gone or has ended with failures, the same command
runs again. Counted are trials whose metrics and predictions, every probability of every patch, equal the undisturbed
ones, and how often the generator of each fold was trained, by the store's log.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import report
from _sweeps import FOLDS, make_store, makings, results, sweep, trials

WORKERS = 5  # SIGKILLs of workers, and one of the launcher
POLL_S = 0.02


def children(pid: int) -> list[int]:
    try:
        found = [p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children")]
    except FileNotFoundError:
        return []
    return [int(p) for p in " ".join(found).split()]


def workers(launcher: int) -> list[int]:
    """Processes that work on a trial: children of the one that the launcher forks its jobs from."""
    return [worker for child in children(launcher) for worker in children(child)]


def disturb(command: list[str], log: Path, span: float, rng: random.Random) -> dict[str, object]:
    """Runs the command until it ends well, and kills in the meantime."""
    moments = sorted(rng.uniform(0.03, 0.9) * span for _ in range(WORKERS + 1))
    launcher_at = rng.randrange(1, WORKERS + 1)  # neither first: a sweep that has begun
    kills: list[dict[str, Any]] = []
    runs, begun = 0, time.monotonic()
    while True:
        runs += 1
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            time.sleep(POLL_S)
            if len(kills) == len(moments) or time.monotonic() - begun < moments[len(kills)]:
                continue
            apart = time.monotonic() - begun - float(kills[-1]["s"]) if kills else span
            found = workers(process.pid) if apart > 0.03 * span else []
            if not found:
                continue
            what = "launcher" if len(kills) == launcher_at else "worker"
            os.kill(process.pid if what == "launcher" else rng.choice(found), signal.SIGKILL)
            kills.append({"s": round(time.monotonic() - begun, 1), "what": what})
            print(f"killed {what} after {kills[-1]['s']} s", flush=True)
        if process.returncode == 0:
            break
        if runs > 20:
            raise SystemExit(f"the sweep does not end, see {log}")
    if len(kills) < len(moments):
        raise SystemExit(f"only {len(kills)} kills before the sweep had ended; give --images more")
    return {"kills": kills, "runs": runs, "seconds": round(time.monotonic() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--images", type=int, default=6000, help="budget of a generator")
    parser.add_argument("--few", action="store_true", help="4 trials, to try the script")
    parser.add_argument("--keep", type=Path, help="work here and leave all as it is")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (given.keep or Path(scratch)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        store = make_store(root)
        settings = [f"gan.images={given.images}", f"gan.validate_every_images={given.images // 10}"]
        settings += ["stage.images=1600", "stage.validate_every_images=200"]
        start = time.monotonic()
        log = root / "whole.log"
        with log.open("ab") as out:
            subprocess.run(
                sweep(root / "whole", store, *settings, few=given.few),
                check=True,
                stdout=out,
                stderr=out,
            )
        span = time.monotonic() - start
        print(f"undisturbed: {span:.0f} s", flush=True)
        story = disturb(
            sweep(root / "cut", store, *settings, few=given.few),
            root / "cut.log",
            span,
            random.Random(given.seed),
        )
        whole, cut = results(root / "whole"), results(root / "cut")
        same = [
            name
            for name in whole
            if name in cut
            and whole[name][0]["metrics"] == cut[name][0]["metrics"]
            and whole[name][1].equals(cut[name][1])
        ]
        count, trained = trials(given.few), makings(root / "cut", "generator")
        report(
            "sweep_kill",
            len(same),
            "trials of an interrupted sweep identical to the undisturbed one",
            f"{count} of {count}, each generator trained once",
            None,
            given.save,
            trials=count,
            results=len(cut),
            slots=2,
            folds=len(FOLDS),
            generator_trainings=trained,
            undisturbed_seconds=round(span, 1),
            seed=given.seed,
            **story,
        )
        if len(same) != count or len(cut) != count or trained != [1] * len(FOLDS):
            raise SystemExit("the promise does not hold")


if __name__ == "__main__":
    main()
