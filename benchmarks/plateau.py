"""How long a plain network must learn: validation scores over images seen and core-seconds, to a fixed end.

    python benchmarks/plateau.py [--save] [--images 384000] [--seeds 0 1] [--patch-size 64] simulated NAME=STORE ...

Every argument is `simulated` or NAME=STORE. Trains `method=flat` of every fold through all its cycles, whatever
validation says, and tells what the rule of `stage.gain` would have kept after how many images. Test patches are not
looked at.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _common import RESULTS, report

from stemcell_lit.classify.plateau import best, goes_on

GAINS = (0.0, 0.01, 0.02, 0.05)
DEFAULT = 0.02  # of stage.gain
PICTURE = RESULTS.parents[1] / "docs" / "pictures" / "plateau.png"


def trained(
    store: str, out: str, fold: int, seed: int, images: int, size: int
) -> list[dict[str, float]]:
    """The cycles of one fold, each with the core-seconds of its training."""
    from stemcell_lit.experiment import run, stages
    from stemcell_lit.settings.command_keys import TrainCommand, typed
    from stemcell_lit.settings.compose import compose

    seconds: list[float] = []
    fit = stages.fit

    def timed(*rest: Any) -> Any:
        start = time.process_time()
        done = fit(*rest)
        seconds.append(time.process_time() - start)
        return done

    stages.fit, stages.goes_on = timed, lambda *rest: True
    words = [
        "task=stage",
        "hierarchy=flat",
        "method=flat",
        "trainer=cpu",
        "logger=disabled",
        f"stage.images={images}",
        f"data.patch_size={size}",
    ]
    words += [f"split.fold={fold}", f"seed={seed}", f"out={out}"]
    words += [] if store == "simulated" else [f"data.store={store}"]
    file = run.train(typed(compose("train", words), TrainCommand))
    cycles = json.loads((file.parent / "stage.json").read_text())["cycles"]
    return [{**c, "seconds": s} for c, s in zip(cycles, seconds, strict=True)]


def folds_of(store: str, out: str) -> int:
    """Number of folds, after the simulated movies were made where they are needed."""
    from stemcell_lit.data.splits import fold_count
    from stemcell_lit.experiment.trial import artifacts_of, open_store
    from stemcell_lit.settings.command_keys import RunCommand

    config = RunCommand(out=out)
    config.data.store = None if store == "simulated" else store
    return fold_count(open_store(config, artifacts_of(config)), config.split)


def summary(runs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Means over the runs at the end of each cycle, and what the rule would have taken."""
    curve = [
        {k: round(statistics.mean(c[k] for c in at), 4) for k in ("images", "loss", "tpr", "f1")}
        | {
            "seconds": round(
                statistics.mean(sum(c["seconds"] for c in r[: i + 1]) for r in runs), 1
            )
        }
        for i, at in enumerate(zip(*runs, strict=True))
    ]
    rule = []
    for gain in GAINS:
        kept, spent = [], []
        for cycles in runs:
            losses = [c["loss"] for c in cycles]
            end = next(
                (n for n in range(1, len(losses)) if not goes_on(losses[:n], gain)), len(losses)
            )
            kept.append(cycles[best(losses[:end])])
            spent.append(sum(c["seconds"] for c in cycles[:end]))
        told = {k: round(statistics.mean(c[k] for c in kept), 4) for k in ("loss", "tpr", "f1")}
        told |= {"images": [int(c["images"]) for c in kept]}
        rule.append({"gain": gain, **told, "seconds": round(statistics.mean(spent), 1)})
    return {"runs": len(runs), "curve": curve, "rule": rule}


def draw(data: dict[str, Any]) -> None:
    """docs/pictures/plateau.png: validation F1 over core-seconds, with what the rule keeps and spends."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
    for name, told in data.items():
        x, y = ([point[key] for point in told["curve"]] for key in ("seconds", "f1"))
        (line,) = axes.plot(x, [100 * value for value in y], marker="o", ms=4, label=name)
        rule = next(r for r in told["rule"] if r["gain"] == DEFAULT)
        axes.plot(
            rule["seconds"], 100 * rule["f1"], marker="*", ms=14, color=line.get_color(), ls=""
        )
    axes.plot([], [], marker="*", ms=12, color="0.4", ls="", label="kept by the rule, its cost")
    axes.set(xscale="log", xlabel="core-seconds a fold", ylabel="validation macro F1 in %")
    ticks = [10, 20, 50, 100, 200]
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=130, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="simulated, or NAME=STORE")
    parser.add_argument("--images", type=int, default=384_000, help="the end of all trainings")
    parser.add_argument("--patch-size", type=int, default=32, help="px that a network sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    found = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(given.jobs, get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        for word in given.data:
            name, _, store = word.partition("=")
            store = store or name
            out = str(Path(scratch) / name)
            folds = pool.submit(folds_of, store, out).result()
            end = (given.images, given.patch_size)
            runs = [(store, out, f, s, *end) for s in given.seeds for f in range(folds)]
            found[name] = summary(
                [job.result() for job in [pool.submit(trained, *r) for r in runs]]
            )
            print(json.dumps({name: found[name]}), flush=True)
    default = {
        name: next(r for r in told["rule"] if r["gain"] == DEFAULT) for name, told in found.items()
    }
    usual = given.patch_size == 32
    report(
        "plateau" if usual else f"plateau_{given.patch_size}px",
        round(statistics.mean(told["seconds"] for told in default.values()), 1),
        "core-seconds a fold with stage.gain=0.02",
        "scores within one point of the best end of the curve",
        save=given.save,
        data=found,
    )
    if given.save and usual:
        draw(found)


if __name__ == "__main__":
    main()
