"""Do intervals cover the truth, and is the smallest gain that would have been shown what it is called?

    python benchmarks/power.py [--trials 300] [--save]

Two methods are simulated on groups of unequal size, difficulty and gain, with seeds whose training differs. Of very
many groups the true difference of their macro scores is known. For each number of groups and of seeds the gain is set
where the truth is the median `mde` of the table. Then it is counted how often the 95 % interval of the difference holds
the truth, and how often the table says `shown`: that should be 95 and 80 %. (An `mde` is itself an estimate: its spread
is reported, too.) The table has two comparisons, macro TPR and F1 of one method, adjusted after Holm.
"""

from __future__ import annotations

import argparse

import numpy as np
from _common import report

from stemcell_lit.evaluate.intervals import METRICS, values
from stemcell_lit.evaluate.results_table import compare

CLASSES = ["debris", "dense", "spread"]
NOISE = 0.1  # of the training, in logits
CASES = ((8, 1), (12, 1), (40, 1), (8, 2), (12, 2), (40, 2), (12, 5), (40, 5))  # groups, seeds
GRID = np.linspace(0.05, 4.0, 28)  # gains in logits


def simulate(
    rng: np.random.Generator, groups: int, gain: float, seeds: int
) -> dict[str, np.ndarray]:
    """Confusion counts (seeds, groups, classes, classes) of two methods."""
    k = len(CLASSES)
    sizes = rng.lognormal(np.log(60), 0.5, (groups, 1)) * rng.dirichlet([4, 10, 8], groups)
    number = rng.poisson(sizes)
    ease = np.array([1.5, 1.0, 0.5]) + rng.normal(0, 0.8, (groups, k))
    gains = gain + rng.normal(0, 0.4, (groups, 1))
    made = {}
    for name, share in (("flat", 0.0), ("full", 1.0)):
        logit = (ease + share * gains)[None] + rng.normal(0, NOISE, (seeds, 1, k))
        hit = rng.binomial(np.broadcast_to(number, logit.shape), 1 / (1 + np.exp(-logit)))
        one = rng.binomial(number - hit, 0.6)
        counts = np.zeros((seeds, groups, k, k), np.int64)
        for c in range(k):
            counts[:, :, c, c] = hit[:, :, c]
            counts[:, :, c, (c + 1) % k] = one[:, :, c]
            counts[:, :, c, (c + 2) % k] = (number - hit - one)[:, :, c]
        made[name] = counts
    return made


def truths() -> np.ndarray:
    """(gains, metrics) true differences of the macro scores, of 40,000 groups and 40 trainings."""
    rng = np.random.default_rng(1)
    found = []
    for gain in GRID:
        parts = [simulate(rng, 1000, gain, 1) for _ in range(40)]
        score = {
            m: np.mean([values(p[m].sum(1))[:, :, 0].mean(0) for p in parts], 0)
            for m in ("flat", "full")
        }
        found.append(score["full"] - score["flat"])
    return np.array(found)


def tables(groups: int, seeds: int, gain: float, trials: int, seed: int) -> np.ndarray:
    """(trials, metrics, 4) of mde, delta_low, delta_high, shown."""
    rng, rows = np.random.default_rng([seed, groups, seeds]), []
    for trial in range(trials):
        counts = simulate(rng, groups, gain, seeds)
        table = compare(counts, "flat", CLASSES, primary="full", resamples=600, seed=trial)
        table = table[(table["class"] == "") & (table["method"] == "full")].set_index("metric")
        shown = table["verdict"].str.endswith(": shown")
        columns = [table[c] for c in ("mde", "delta_low", "delta_high")] + [shown]
        rows.append([[float(c[m]) for c in columns] for m in METRICS])
    return np.array(rows)


def measure(groups: int, seeds: int, trials: int, truth: np.ndarray) -> list[dict[str, object]]:
    """Coverage and power at the median mde for one number of groups and seeds, of TPR and F1."""
    found = []
    for i, metric in enumerate(METRICS):
        gain = 0.8
        for trial in range(3):  # an mde depends a little on the gain
            some = tables(groups, seeds, gain, trials // 2, 10 + trial)[:, i, 0]
            mde = float(np.nanmedian(some))
            gain = float(np.interp(mde, truth[:, i], GRID))
        rows = tables(groups, seeds, gain, trials, 3)[:, i]
        real = float(np.interp(gain, GRID, truth[:, i]))
        covered = (rows[:, 1] <= real) & (real <= rows[:, 2])
        low, high = np.nanquantile(rows[:, 0], (0.1, 0.9))
        found.append(
            {
                "groups": groups,
                "seeds": seeds,
                "metric": metric,
                "truth": round(100 * real, 2),
                "median_mde": round(100 * float(np.nanmedian(rows[:, 0])), 2),
                "mde_10_90": [round(100 * float(low), 2), round(100 * float(high), 2)],
                "power": round(float(rows[:, 3].mean()), 3),
                "coverage": round(float(covered.mean()), 3),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    truth = truths()
    rows = [row for case in CASES for row in measure(*case, given.trials, truth)]
    powers = [row["power"] for row in rows]
    report(
        "interval_power",
        float(np.mean(powers)),
        "share shown at the smallest gain that would have been shown",
        "0.8, and intervals that hold the truth in 0.95",
        [min(powers), max(powers)],
        given.save,
        trials=given.trials,
        rows=rows,
    )


if __name__ == "__main__":
    main()
