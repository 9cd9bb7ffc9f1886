"""Is the difference real? Intervals, tests and a verdict in words, by groups and never by patches.

Patches of one movie, field or cell resemble each other, so the unit of chance is the *group* of the
split. Every patch is tested once per seed (folds are pooled), a metric is computed per seed and
averaged over seeds. What goes in is, per method, an array of confusion counts
`(seeds, groups, classes, classes)`, rows true (`group_counts` makes one); a resample of groups is
then one product of matrices.

An interval must cover two kinds of chance:

* which groups were filmed: 2.5 to 97.5 % of a bootstrap over groups, one draw for both methods;
* which random numbers trained the networks: the variance between seeds over their number.

Few groups make the plain percentile bootstrap too narrow, by sqrt((n - 1) / n) and by using the
normal distribution where Student's t is due (Hesterberg 2015, "What teachers should know about the
bootstrap", The American Statistician 69:371). Both are put right here: the distances of the
percentiles from the estimate are stretched by sqrt(n / (n - 1)) and by t / 1.96. n is the effective
number of groups: nine movies, one of which holds half of a class, count as fewer than nine
(`effective_groups`). The degrees of freedom of both kinds of chance are joined after
Satterthwaite (1946). The stretched interval tends to the plain one as groups and seeds grow.

In simulations with 4 to 20 unequal groups and one seed these intervals covered the truth in 92 to
98 % of cases, the plain percentile interval in 70 to 91 %. What varies by seed within a group is in
both parts, which widens intervals by a tenth; taking it off cost coverage where training varies
much. Two seeds are few to learn how much it does: where seeds differ more than groups do, coverage
with two falls to 86 %; one seed knows nothing of it, and with 40 groups its intervals cover 87 %
(`benchmarks/power.py`). The tests repeat a small part of this. Fewer than three groups give no
interval at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import macro, positions, rates

METRICS = ("tpr", "f1")


ALPHA = 0.05  # of an adjusted p value; intervals are at 1 - ALPHA


POWER = 0.8  # of the smallest gain that would have been shown, by convention


_CHUNK = 250  # resamples at a time: a (250, groups) matrix stays small for any store


_LEAST_GROUPS = 3  # with two, Student's t has one degree of freedom: an interval says nothing


@dataclass
class Intervals:
    """An estimate with its interval, for TPR and F1, macro and per class.

    Attributes:
        mean: (2, 1 + classes): rows TPR and F1, columns macro, then the classes; 0 to 1.
        low: lower end, the same shape, NaN where there are too few groups.
        high: upper end.
        per_seed: (seeds, 2, 1 + classes), what `mean` averages.
        error: standard error of the estimate, of groups and seeds, from the same resampling; NaN where `low` is.
        freedom: degrees of freedom of it.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    per_seed: np.ndarray
    error: np.ndarray
    freedom: np.ndarray


def group_counts(
    true: ArrayLike,
    predicted: ArrayLike,
    group: ArrayLike,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
) -> np.ndarray:
    """Confusion counts of every group, from one seed's test patches of all folds.

    Args:
        true: (n,) class names.
        predicted: (n,) class names.
        group: (n,) group names.
        classes: class names in their fixed order.
        groups: all group names in a fixed order.

    Returns:
        int64 (groups, classes, classes), rows true.

    Raises:
        UserError: a class or group that is not listed.
    """
    place = {name: i for i, name in enumerate(groups)}
    names = np.asarray(group).astype(str)
    unknown = sorted(set(names) - set(place))
    if unknown:
        raise UserError(f"groups {unknown[:5]} are not among the {len(place)} groups of the split")
    k = len(classes)
    where = np.array([place[name] for name in names], np.int64).reshape(-1)
    cell = (where * k + positions(true, classes)) * k + positions(predicted, classes)
    return np.bincount(cell, minlength=len(groups) * k * k).reshape(len(groups), k, k)


Subsets = Sequence[Sequence[int]]  # positions of the classes of each


def values(matrix: np.ndarray, subsets: Subsets = ()) -> np.ndarray:
    """TPR and F1, macro, per class, and macro over subsets of the classes.

    A call of a class outside a subset still counts against the classes inside.

    Args:
        matrix: (..., classes, classes) counts, rows true.
        subsets: of the classes.

    Returns:
        (..., 2, 1 + classes + subsets).
    """
    both = np.stack(rates(matrix), axis=-2)
    parts = [macro(both[..., list(inside)])[..., None] for inside in subsets]
    return np.concatenate([macro(both)[..., None], both, *parts], axis=-1)


def effective_groups(counts: np.ndarray, subsets: Subsets = ()) -> np.ndarray:
    """How many equal groups carry as much as these unequal ones (Kish 1965).

    With a the share of a class's patches that a group holds (for the macro mean: its mean share
    over the classes), (sum a)^2 / sum a^2: n where n groups are alike, 1 where one holds all. The
    stricter (sum a^2)^2 / sum a^4 was tried: its intervals covered 97 to 99 % and were up to twice
    as wide.

    Args:
        counts: (seeds, groups, classes, classes).
        subsets: of the classes.

    Returns:
        (1 + classes + subsets,): of the macro mean, of each class, of the macro mean over each subset; 0 for a class
        that never occurs.
    """
    truth = counts.sum((0, 3)).astype(np.float64)  # (groups, classes)
    share = truth / np.maximum(truth.sum(0), 1)
    parts = [share[:, list(inside)].mean(1, keepdims=True) for inside in subsets]
    share = np.concatenate([share.mean(1, keepdims=True), share, *parts], axis=1)
    squares = (share**2).sum(0)
    return np.where(squares > 0, share.sum(0) ** 2 / np.where(squares > 0, squares, 1), 0.0)


def paired_bootstrap(
    counts: Mapping[str, np.ndarray],
    baseline: str,
    *,
    subsets: Subsets = (),
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Intervals], dict[str, Intervals]]:
    """Intervals of every method and of its difference to the baseline, at 95 %.

    Groups are drawn with replacement, the same draw for every method, so that what is hard for all
    cancels in the differences. See the module's text for what is added for few groups and seeds.

    Args:
        counts: per method (seeds, groups, classes, classes); seeds and groups in the same order
            for all.
        baseline: the method to compare with.
        subsets: of the classes.
        resamples: draws of groups.
        seed: of the draws.

    Returns:
        Per method its own values, 0 to 1; and, but for the baseline, the differences, -1 to 1.
    """
    _check(counts, baseline)
    first = counts[baseline]
    seeds, groups, k, _ = first.shape
    rng = np.random.default_rng(seed)
    point = {name: values(array.sum(1), subsets) for name, array in counts.items()}
    flat = {
        name: array.transpose(1, 0, 2, 3).reshape(groups, -1).astype(np.float64)
        for name, array in counts.items()
    }
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in counts}
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size).astype(np.float64)
        for name, array in flat.items():
            resampled = values((weights @ array).reshape(size, seeds, k, k), subsets)
            drawn[name].append(_mean(resampled, 1))
    draws = {name: np.concatenate(parts) for name, parts in drawn.items()}
    effective = effective_groups(first, subsets)
    holds = first.sum((0, 3)) > 0  # (groups, classes)
    within = [holds[:, list(inside)].any(1).sum() for inside in subsets]
    enough = np.concatenate([[groups], holds.sum(0), within]) >= _LEAST_GROUPS
    levels = {
        name: _interval(point[name], draws[name], effective, enough, (0.0, 1.0)) for name in counts
    }
    differences = {
        name: _interval(
            point[name] - point[baseline],
            draws[name] - draws[baseline],
            effective,
            enough,
            (-1.0, 1.0),
        )
        for name in counts
        if name != baseline
    }
    return levels, differences


def _interval(
    per_seed: np.ndarray,
    draws: np.ndarray,
    effective: np.ndarray,
    enough: np.ndarray,
    limits: tuple[float, float],
) -> Intervals:
    seeds = len(per_seed)
    mean = _mean(per_seed, 0)
    known = enough & (effective > 1)
    n = np.where(known, effective, 2.0)
    z = stats.norm.ppf(1 - ALPHA / 2)
    # a resample without a class has no value for it: it is left out
    with np.errstate(invalid="ignore"):
        ends = _nanquantile(draws, (ALPHA / 2, 1 - ALPHA / 2))
    shrunk = np.sqrt(n / (n - 1))
    below = np.maximum(mean - ends[0], 0) * shrunk
    above = np.maximum(ends[1] - mean, 0) * shrunk
    by_group = ((below + above) / (2 * z)) ** 2
    by_seed = _variance(per_seed) / seeds if seeds > 1 else np.zeros_like(mean)
    both = by_group + by_seed
    parts = by_group**2 / (n - 1) + (by_seed**2 / (seeds - 1) if seeds > 1 else 0.0)
    freedom = np.where(both > 0, both**2 / np.where(parts > 0, parts, 1), n - 1)
    freedom = np.maximum(freedom, 1)
    stretch = stats.t.ppf(1 - ALPHA / 2, freedom) / z
    low = mean - stretch * np.sqrt(below**2 + z**2 * by_seed)
    high = mean + stretch * np.sqrt(above**2 + z**2 * by_seed)
    return Intervals(
        mean,
        np.where(known, np.clip(low, *limits), np.nan),
        np.where(known, np.clip(high, *limits), np.nan),
        per_seed,
        np.where(known, np.sqrt(both), np.nan),
        freedom,
    )


def detectable(gain: Intervals, level: ArrayLike, power: float = POWER) -> np.ndarray:
    """The smallest true gain that data like these would have shown, at a power (minimum detectable effect).

    That of a t test with the interval's own standard error and degrees of freedom: the shift of a noncentral t
    distribution that lies above the critical value with that probability (Cohen 1988, Statistical power analysis). The
    standard error is taken median-unbiased: of few groups or seeds it is more often too small than too large, and would
    promise too much. It says what these data can show, and does not depend on the gain that was found.

    Args:
        gain: a difference to the baseline.
        level: (2, 1 + classes) or one number: what the p value must lie below, 0.05 or less.
        power: probability to show it.

    Returns:
        (2, 1 + classes), 0 to 1; NaN without an interval, and where there is no p value that small (level 0).
    """
    share = np.broadcast_to(np.asarray(level, np.float64), gain.mean.shape)
    known = np.isfinite(gain.error) & (share > 0)
    critical = stats.t.ppf(1 - np.where(known, share, ALPHA) / 2, gain.freedom)
    shift = special.nctdtrinc(gain.freedom, 1 - power, critical)
    median = np.sqrt(stats.chi2.ppf(0.5, gain.freedom) / gain.freedom)
    return np.where(known, shift * gain.error / median, np.nan)


def least_p(groups: ArrayLike, resamples: int) -> np.ndarray:
    """The smallest p value that `paired_permutation` can give with so many groups that differ."""
    n = np.asarray(groups, np.float64)
    exact = 2.0**n <= resamples
    found = np.where(exact, 2.0 ** (1 - n), 1 / (1 + resamples))
    least: np.ndarray = np.minimum(found, 1.0)
    return least


def paired_permutation(
    counts: np.ndarray,
    baseline: np.ndarray,
    *,
    subsets: Subsets = (),
    resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Two-sided p values of no difference, by swapping the two methods' predictions per group.

    If the two methods did not differ, each group's predictions could as well have come from the
    other. Groups in which both made the same calls do not matter and are set aside. All swaps are
    tried if they are no more than `resamples` (the test is then exact), else that many are drawn
    and the p value is (1 + as extreme) / (1 + drawn).

    Args:
        counts: (seeds, groups, classes, classes) of the method.
        baseline: the same of the other.
        subsets: of the classes.
        resamples: most swaps to try.
        seed: of the drawn swaps.

    Returns:
        (2, 1 + classes): TPR and F1, macro then classes; NaN where a class never occurs.
    """
    if counts.shape != baseline.shape:
        raise ValueError(f"counts of two shapes, {counts.shape} and {baseline.shape}")
    seeds, _, k, _ = counts.shape
    gap = (counts - baseline).transpose(1, 0, 2, 3).reshape(counts.shape[1], -1)
    gap = gap[(gap != 0).any(1)].astype(np.float64)
    total, other = (array.sum(1).reshape(-1).astype(np.float64) for array in (counts, baseline))

    def difference(swap: np.ndarray) -> np.ndarray:
        moved = swap @ gap
        shape = (len(swap), seeds, k, k)
        a, b = (total - moved).reshape(shape), (other + moved).reshape(shape)
        return _mean(values(a, subsets) - values(b, subsets), 1)

    observed = difference(np.zeros((1, len(gap))))[0]
    exact = len(gap) < 60 and 2 ** len(gap) <= resamples
    tried = 2 ** len(gap) if exact else resamples
    rng = np.random.default_rng(seed)
    extreme = np.zeros_like(observed)
    for start in range(0, tried, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, tried))
        bits = (
            numbers[:, None] >> np.arange(len(gap))
            if exact
            else rng.integers(0, 2, (len(numbers), len(gap)))
        )
        swap = bits & 1
        # sums of different order differ in the last bit: 1e-12 keeps ties ties
        found = np.abs(difference(swap.astype(np.float64)))
        extreme += (found >= np.abs(observed) - 1e-12).sum(0)
    p = extreme / tried if exact else (1 + extreme) / (1 + tried)
    return np.where(np.isnan(observed), np.nan, p)


def _check(counts: Mapping[str, np.ndarray], baseline: str) -> None:
    if baseline not in counts:
        raise UserError(
            f"no results of the baseline {baseline!r}; there are {sorted(counts)}: run it, or name "
            "another with baseline=..."
        )
    shapes = {name: array.shape for name, array in counts.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"counts of several shapes: {shapes}")


def _mean(array: np.ndarray, axis: int) -> np.ndarray:
    """Mean over what is known; NaN (and no warning) where nothing is."""
    return macro(np.moveaxis(array, axis, -1))


def _variance(array: np.ndarray) -> np.ndarray:
    """Unbiased variance along the first axis over what is known; 0 where less than two are."""
    known = (~np.isnan(array)).sum(0)
    squares = np.where(np.isnan(array), 0.0, (array - _mean(array, 0)) ** 2).sum(0)
    return np.where(known > 1, squares / np.maximum(known - 1, 1), 0.0)


def _nanquantile(draws: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
    """Quantiles along the first axis, NaN aside; numpy's own is slow when there are NaN."""
    missing = np.isnan(draws)
    if not missing.any():
        quantiles: np.ndarray = np.quantile(draws, levels, axis=0)
        return quantiles
    flat = draws.reshape(len(draws), -1)
    found = [
        np.quantile(column[~np.isnan(column)], levels)
        if (~np.isnan(column)).any()
        else np.full(len(levels), np.nan)
        for column in flat.T
    ]
    return np.stack(found, axis=1).reshape(len(levels), *draws.shape[1:])
