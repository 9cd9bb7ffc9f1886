"""What the artifact store saves: the same sweep with one store for all trials, and with one for each.

    python benchmarks/store.py [--save] [--repeat 2] [--images 12000] [--full]

20 trials (five methods, three of them with a generator, two folds, two seeds) on two CPU slots. With --full the
trainings are those of `reproduce` without a profile, on its simulated movies, which takes hours. Runs alternate.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from _common import report
from _sweeps import FOLDS, make_store, makings, results, stemcell_lit, sweep, trials

OWN = "artifacts=${out}/own/${method.name}-f${split.fold}-s${seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=2, help="runs of each way")
    parser.add_argument("--images", type=int, default=12_000, help="budget of a generator")
    parser.add_argument("--few", action="store_true", help="4 trials, to try the script")
    parser.add_argument(
        "--full", action="store_true", help="trainings as long as those of reproduce"
    )
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {"shared": [], "own": []}
    trainings: dict[str, list[int]] = {"shared": [], "own": []}
    metrics = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if given.full:
            store = root / "store"
            words = ["simulate", f"out={root / 'movies'}", f"store={store}"]
            subprocess.run(stemcell_lit(*words), check=True)
            settings = []
        else:
            store = make_store(root)
            settings = [f"gan.images={given.images}", f"gan.validate_every_images={given.images}"]
        for turn in range(given.repeat):
            for way in ("shared", "own") if turn % 2 == 0 else ("own", "shared"):
                out = root / f"{way}{turn}"
                own = [OWN] if way == "own" else []
                profile = "null" if given.full else "smoke"
                command = sweep(out, store, *settings, *own, few=given.few, profile=profile)
                start = time.monotonic()
                subprocess.run(command, check=True, capture_output=True)
                seconds[way].append(round(time.monotonic() - start, 1))
                trainings[way].append(sum(makings(out, "generator")))
                metrics.append({name: r["metrics"] for name, (r, _) in results(out).items()})
                print(f"{way}: {seconds[way][-1]} s, {trainings[way][-1]} generators", flush=True)
        if any(m != metrics[0] for m in metrics) or len(metrics[0]) != trials(given.few):
            raise SystemExit("the two ways differ in their results")
        ratios = [a / b for a, b in zip(seconds["own"], seconds["shared"], strict=True)]
        report(
            "store_worth",
            round(statistics.median(ratios), 2),
            "wall time without a shared store over that with it",
            f"> 1, and {len(FOLDS)} generators trained, one a fold",
            [round(min(ratios), 2), round(max(ratios), 2)],
            given.save,
            trials=trials(given.few),
            seconds=seconds,
            generator_trainings=trainings,
            gan_images="the default" if given.full else given.images,
        )


if __name__ == "__main__":
    main()
