"""Intervals that cover, tests that keep their level, words that say what the numbers say."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.intervals import (
    Intervals,
    detectable,
    effective_groups,
    group_counts,
    least_p,
    paired_bootstrap,
    paired_permutation,
    values,
)
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.evaluate.results_table import (
    COLUMNS,
    _levels,
    claim,
    compare,
    contrasts,
    effect_sizes,
    holm,
    points,
    small,
    verdict,
    verdict_of,
)

CLASSES = ["debris", "dense", "spread"]


def simulate(
    rng: np.random.Generator,
    groups: int,
    seeds: int = 1,
    gain: float = 0.5,
    training_noise: float = 0.0,
    patches: int = 60,
) -> dict[str, np.ndarray]:
    """Counts of two methods; groups differ in size, classes, difficulty and gain (in logits)."""
    k = len(CLASSES)
    sizes = rng.lognormal(np.log(patches), 0.5, (groups, 1)) * rng.dirichlet([4, 10, 8], groups)
    number = rng.poisson(sizes)
    ease = np.array([1.5, 1.0, 0.5]) + rng.normal(0, 0.8, (groups, k))
    gains = gain + rng.normal(0, 0.6, (groups, 1)) if gain else np.zeros((groups, 1))
    result = {}
    for name, share in (("flat", 0.0), ("full", 1.0)):
        logit = (ease + share * gains)[None] + rng.normal(0, training_noise, (seeds, 1, k))
        hit = rng.binomial(np.broadcast_to(number, logit.shape), 1 / (1 + np.exp(-logit)))
        one = rng.binomial(number - hit, 0.6)
        counts = np.zeros((seeds, groups, k, k), np.int64)
        for c in range(k):
            counts[:, :, c, c] = hit[:, :, c]
            counts[:, :, c, (c + 1) % k] = one[:, :, c]
            counts[:, :, c, (c + 2) % k] = (number - hit - one)[:, :, c]
        result[name] = counts
    return result


def test_counts_per_group_add_up_to_the_scores():
    rng = np.random.default_rng(0)
    true, predicted = rng.choice(CLASSES, (2, 300))
    group = rng.choice(["m2", "m1", "m3"], 300)
    counts = group_counts(true, predicted, group, classes=CLASSES, groups=["m1", "m2", "m3"])
    part = group == "m1"
    assert counts[0, 1, 2] == ((true == "dense") & (predicted == "spread") & part).sum()
    found = values(counts.sum(0))
    expected = scores(true, predicted, CLASSES)
    each = [expected[f"tpr/{name}"] for name in CLASSES]
    assert found[0] == pytest.approx([expected["macro/tpr"], *each])
    assert found[1, 0] == pytest.approx(expected["macro/f1"])
    with pytest.raises(UserError, match="m3"):
        group_counts(true, predicted, group, classes=CLASSES, groups=["m1", "m2"])


def test_mean_is_over_seeds_of_what_is_pooled_over_groups():
    counts = simulate(np.random.default_rng(1), 12, seeds=3)
    levels, differences = paired_bootstrap(counts, "flat", resamples=50)
    pooled = values(counts["full"].sum(1))
    assert levels["full"].mean == pytest.approx(pooled.mean(0))
    assert set(differences) == {"full"}
    assert differences["full"].mean == pytest.approx(levels["full"].mean - levels["flat"].mean)
    assert differences["full"].per_seed.shape == (3, 2, 4)


def test_bootstrap_is_that_of_resampled_rows():
    # one class pair, groups of one patch each: the bootstrap of a mean, known in closed form
    rng = np.random.default_rng(2)
    hit = rng.random(400) < 0.7
    counts = np.zeros((1, 400, 2, 2), np.int64)
    counts[0, :, 0, 0], counts[0, :, 0, 1] = hit, ~hit
    level = paired_bootstrap({"a": counts}, "a", resamples=4000)[0]["a"]
    half = stats.norm.ppf(0.975) * np.sqrt(hit.mean() * (1 - hit.mean()) / 400)
    assert level.high[0, 1] - level.low[0, 1] == pytest.approx(2 * half, rel=0.05)
    assert level.low[0, 1] < hit.mean() < level.high[0, 1]
    assert np.isnan(level.mean[0, 2]), "the second class never occurs"


def test_pairing_makes_differences_sharper_than_levels():
    counts = simulate(np.random.default_rng(3), 40, gain=0.4)
    levels, differences = paired_bootstrap(counts, "flat", resamples=500)
    width = differences["full"].high - differences["full"].low
    unpaired = np.hypot(*(levels[m].high - levels[m].low for m in ("flat", "full")))
    assert width[0, 0] < 0.9 * unpaired[0, 0], (width[0, 0], unpaired[0, 0])


def test_a_method_against_itself_differs_by_nothing():
    counts = simulate(np.random.default_rng(4), 15)["flat"]
    table = compare({"flat": counts, "same": counts}, "flat", CLASSES, resamples=100)
    same = table[table["method"] == "same"]
    assert (same["delta"] == 0).all() and (same["p"] == 1).all()
    assert same["verdict"].str.endswith(": no difference of 2 points").all()


@pytest.mark.parametrize(
    ("groups", "seeds", "noise"), [(6, 1, 0.0), (9, 1, 0.0), (9, 2, 0.1), (30, 2, 0.1)]
)
def test_intervals_cover_the_truth_even_with_few_groups(groups, seeds, noise):
    rng = np.random.default_rng(5)
    truth = np.mean(
        [
            np.subtract(*(values(big[m].sum(1))[0] for m in ("full", "flat")))
            for big in (simulate(rng, 2000, training_noise=noise) for _ in range(60))
        ],
        axis=0,
    )
    trials = 200
    covered = np.zeros((2, 4))
    for trial in range(trials):
        counts = simulate(rng, groups, seeds, training_noise=noise)
        found = paired_bootstrap(counts, "flat", resamples=250, seed=trial)[1]["full"]
        covered += (found.low <= truth) & (truth <= found.high)
    # 95 % is promised; 200 trials have a standard error of 1.5 %
    assert (covered / trials).min() >= 0.91, covered / trials


def test_permutation_test_keeps_its_level_and_has_power():
    rng = np.random.default_rng(6)
    null = np.array([_p_of_null(simulate(rng, 12, gain=0), i) for i in range(300)])
    assert (null <= 0.05).mean() <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 300)
    strong = simulate(rng, 30, gain=1.0)
    assert paired_permutation(strong["full"], strong["flat"])[0, 0] < 0.01


def _p_of_null(counts: dict[str, np.ndarray], seed: int) -> float:
    return paired_permutation(counts["full"], counts["flat"], resamples=99, seed=seed)[0, 0]


def test_few_groups_are_swapped_exactly():
    # five groups of four patches; the method finds one more in each: 2 of the 32 swaps are as
    # extreme
    worse = np.tile([[2, 2], [0, 4]], (1, 5, 1, 1))
    better = np.tile([[3, 1], [0, 4]], (1, 5, 1, 1))
    p = paired_permutation(better, worse)
    assert p[0, 1] == pytest.approx(2 / 32) and p[0, 0] == pytest.approx(2 / 32)
    assert p[0, 2] == 1.0
    # a group where both agree changes nothing: the test stays exact
    more = np.concatenate([better, np.tile(worse[:, :1], (1, 30, 1, 1))], 1)
    other = np.concatenate([worse, np.tile(worse[:, :1], (1, 30, 1, 1))], 1)
    assert paired_permutation(more, other)[0, 1] == pytest.approx(2 / 32)


def test_a_class_that_is_never_tested_has_no_numbers():
    counts = simulate(np.random.default_rng(7), 10)
    for array in counts.values():
        array[:, :, 0] = 0
    table = compare(counts, "flat", CLASSES, resamples=60).set_index(["method", "metric", "class"])
    row = table.loc[("full", "tpr", "debris")]
    assert row[["mean", "low", "delta", "p"]].isna().all()
    assert row["verdict"].endswith("not shown")
    assert np.isfinite(table.loc[("full", "tpr", ""), "delta_low"])


def test_a_class_in_two_groups_gets_no_interval():
    counts = simulate(np.random.default_rng(8), 10)
    for array in counts.values():
        array[:, 2:, 0] = 0
    table = compare(counts, "flat", CLASSES, resamples=200).set_index(["method", "metric", "class"])
    row = table.loc[("full", "tpr", "debris")]
    assert np.isfinite(row["delta"]) and np.isnan(row["delta_low"])
    assert "too few groups" in row["verdict"]
    assert np.isfinite(table.loc[("full", "tpr", "spread"), "delta_low"])


def test_effective_groups_count_what_is_there():
    counts = np.zeros((1, 4, 2, 2), np.int64)
    counts[0, :, 0, 0] = 10  # alike in four groups
    counts[0, :, 1, 1] = [97, 1, 1, 1]  # nearly all in one
    found = effective_groups(counts)
    assert found[1] == pytest.approx(4)
    assert 1 < found[2] < 1.1 and 1 < found[0] < 4


def test_seeds_that_disagree_widen_the_interval():
    calm = simulate(np.random.default_rng(9), 30, seeds=2)
    wild = {name: array.copy() for name, array in calm.items()}
    for name, sign in (("full", 1), ("flat", -1)):
        # seed 0 finds two in three of what was missed, seed 1 loses as many
        for s, direction in ((0, sign), (1, -sign)):
            moved = (wild[name][s, :, 0, 1 if direction > 0 else 0] * 0.4).astype(int)
            wild[name][s, :, 0, 0] += direction * moved
            wild[name][s, :, 0, 1] -= direction * moved
    width = {
        key: np.ptp([i.low[0, 1], i.high[0, 1]])
        for key, i in (
            ("calm", paired_bootstrap(calm, "flat", resamples=300)[1]["full"]),
            ("wild", paired_bootstrap(wild, "flat", resamples=300)[1]["full"]),
        )
    }
    assert width["wild"] > 2 * width["calm"]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, np.nan]) == pytest.approx([0.02, np.nan], nan_ok=True)
    assert len(holm([])) == 0


def test_verdict_in_words():
    assert verdict(0.031, 0.012, 0.05, 0.01) == "+3.1 points TPR, 95 % interval +1.2 to +5.0: shown"
    assert verdict(0.031, 0.012, 0.05, 0.2).endswith(": not shown")
    assert verdict(0.031, -0.002, 0.05, 0.01).endswith("-0.2 to +5.0: not shown")
    assert verdict(0.031, 0.012, 0.05, 0.01, margin=0.02).endswith(": not shown")
    assert verdict(-0.03, -0.05, -0.01, 0.01, metric="F1").startswith("-3.0 points F1")
    assert verdict_of(-0.05, -0.01, 0.01) == "worse"
    assert "too few groups" in verdict(0.031, np.nan, np.nan, 0.01)
    assert points(-0.0001) == "+0.0"


def test_the_two_point_claim_is_yes_no_or_not_shown():
    assert claim(0.021, 0.05, 0.001) == "yes"
    assert claim(0.01, 0.05, 0.001) == "not shown"
    assert claim(0.001, 0.015, 0.001) == "no"
    assert claim(np.nan, np.nan, np.nan) == "not shown"


def test_table_has_a_row_for_each_method_metric_and_class():
    counts = simulate(np.random.default_rng(10), 20, gain=1.5)
    table = compare(counts, "flat", CLASSES, resamples=300)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * 2 * 4
    flat = table[table["method"] == "flat"]
    assert flat[["delta", "p"]].isna().all().all() and (flat["verdict"] == "baseline").all()
    full = table[(table["method"] == "full") & (table["class"] == "")]
    assert full["verdict"].str.endswith(": shown").all()
    again = compare(counts, "flat", CLASSES, resamples=300)
    assert table.equals(again), "the same seed gives the same table"


def test_the_question_asked_beforehand_is_not_made_harder_by_other_methods():
    rng = np.random.default_rng(13)
    counts = simulate(rng, 9, gain=1.2)
    counts |= {f"other {i}": simulate(rng, 9, gain=0.1)["full"] for i in range(10)}
    alone = compare({m: counts[m] for m in ("flat", "full")}, "flat", CLASSES, primary="full")
    among = compare(counts, "flat", CLASSES, primary="full")
    macro = [t[(t["method"] == "full") & (t["class"] == "")]["p"].to_list() for t in (alone, among)]
    assert macro[0] == macro[1] == pytest.approx([2 * 2 / 2**9] * 2)


def test_subsets_have_rows_of_their_own_that_are_means_of_their_classes():
    counts, classes = simulate(np.random.default_rng(1), 6, seeds=2), CLASSES
    table = compare(counts, "flat", classes, subsets={"some": classes[:2]}, resamples=200)
    plain = compare(counts, "flat", classes, resamples=200)
    rows = table.set_index(["method", "metric", "class"])
    for metric in ("tpr", "f1"):
        for method in counts:
            mean = rows.loc[[(method, metric, c) for c in classes[:2]], "mean"].mean()
            assert rows.loc[(method, metric, "macro/some"), "mean"] == pytest.approx(mean)
    some = rows.loc[("full", "tpr", "macro/some")]
    assert some["delta_low"] <= some["delta"] <= some["delta_high"]
    # what is asked of a subset makes no other answer harder
    pd.testing.assert_frame_equal(
        table[table["class"] != "macro/some"].reset_index(drop=True), plain
    )


def test_effect_size_is_the_gain_over_its_scatter():
    right = np.array([[[9, 1], [1, 9]], [[8, 2], [2, 8]], [[10, 0], [0, 10]]])
    base = np.array([[[8, 2], [2, 8]], [[8, 2], [2, 8]], [[8, 2], [2, 8]]])
    gains = np.array([0.1, 0.0, 0.2])
    sizes = effect_sizes({"flat": base, "b": right, "same": base + 0}, "flat")
    np.testing.assert_allclose(sizes["b"], gains.mean() / gains.std(ddof=1))
    assert np.isnan(sizes["same"]).all() and set(sizes) == {"b", "same"}
    assert np.isnan(effect_sizes({"flat": base[:1], "b": right[:1]}, "flat")["b"]).all()


def test_a_missing_baseline_is_named():
    counts = simulate(np.random.default_rng(11), 5)
    with pytest.raises(UserError, match=r"nothing.*\['flat', 'full'\]"):
        compare(counts, "nothing", CLASSES)


def test_a_table_of_280_groups_takes_less_than_two_seconds():
    rng = np.random.default_rng(12)
    counts = {f"m{i}": rng.integers(0, 3, (2, 280, 8, 8)) for i in range(4)}
    start = time.process_time()
    paired_bootstrap(counts, "m0", resamples=2000)
    assert time.process_time() - start < 2


def test_contrasts_are_the_differences_of_their_pairs_adjusted_together():
    counts = simulate(np.random.default_rng(3), 12, seeds=2, gain=1.0)
    counts["again"] = counts["flat"].copy()
    found = contrasts(
        counts, [("full", "flat"), ("again", "flat"), ("flat", "full")], resamples=500
    )
    alone = compare({m: counts[m] for m in ("flat", "full")}, "flat", CLASSES, resamples=500)
    alone = alone[(alone["class"] == "") & (alone["method"] == "full")].reset_index(drop=True)
    first = found[found["method"] == "full"].reset_index(drop=True)
    for column in ("delta", "delta_low", "delta_high"):
        np.testing.assert_allclose(first[column], alone[column])
    assert (first["p"] >= alone["p"]).all()
    assert (found.loc[found["method"] == "again", "delta"] == 0).all()
    assert (found.loc[found["method"] == "again", "p"] == 1).all()
    turned = found[found["method"] == "flat"].reset_index(drop=True)
    np.testing.assert_allclose(turned["delta"], -first["delta"])
    assert contrasts(counts, []).empty


@pytest.mark.parametrize("level", [0.05, 0.002])
@pytest.mark.parametrize("groups", [6, 25])
def test_a_t_test_shows_the_smallest_detectable_gain_in_four_of_five_cases(groups, level):
    rng, free = np.random.default_rng(5), groups - 1
    sigma = 0.07 * np.sqrt(groups)
    # what a table would estimate of it, where it is neither too small nor too large
    middle = 0.07 * np.sqrt(stats.chi2.ppf(0.5, free) / free)
    flat = np.zeros((2, 1))
    gain = Intervals(flat, flat, flat, flat[None], flat + middle, flat + free)
    smallest = detectable(gain, level)[0, 0]
    x = rng.normal(smallest, sigma, (20_000, groups))
    t = x.mean(1) / (x.std(1, ddof=1) / np.sqrt(groups))
    assert (t > stats.t.ppf(1 - level / 2, free)).mean() == pytest.approx(0.8, abs=0.012)
    assert detectable(gain, level, 0.95)[0, 0] > smallest > detectable(gain, 0.05, 0.5)[0, 0]
    assert np.isnan(detectable(gain, 0.0)).all()


def test_a_table_shows_the_gain_that_it_says_it_would_show_in_about_four_of_five_cases():
    """Twelve groups, one seed, at the gain where the truth is the median of what tables say (benchmarks/power)."""
    rng, gain, trials = np.random.default_rng(17), 0.85, 80
    truth = np.mean(
        [
            values(big["full"].sum(1))[0, 0, 0] - values(big["flat"].sum(1))[0, 0, 0]
            for big in (simulate(rng, 2000, gain=gain) for _ in range(10))
        ]
    )
    said, shown = [], 0
    for trial in range(trials):
        table = compare(simulate(rng, 12, gain=gain), "flat", CLASSES, resamples=200, seed=trial)
        row = table[(table["method"] == "full") & (table["metric"] == "tpr")].iloc[0]
        said.append(row["mde"])
        shown += row["verdict"].endswith(": shown")
    assert np.median(said) == pytest.approx(truth, rel=0.12)
    # 80 trials have a standard error of 4.5 %
    assert 0.68 <= shown / trials <= 0.91


def test_what_no_p_value_can_show_has_no_smallest_gain():
    assert least_p([5, 9, 40], 2000) == pytest.approx([2 / 32, 2 / 512, 1 / 2001])
    few = compare(simulate(np.random.default_rng(2), 5, gain=3.0), "flat", CLASSES, resamples=200)
    assert few["mde"].isna().all()
    enough = compare(simulate(np.random.default_rng(2), 9, gain=3.0), "flat", CLASSES)
    rows = enough[enough["method"] == "full"].set_index(["metric", "class"])
    assert (rows["mde"].loc[("tpr", "")] > 0) and enough[enough["method"] == "flat"][
        "mde"
    ].isna().all()
    parts = contrasts(simulate(np.random.default_rng(2), 9, gain=3.0), [("full", "flat")])
    assert parts["mde"].to_list() == pytest.approx(rows["mde"][[("tpr", ""), ("f1", "")]].to_list())


def test_more_comparisons_need_a_larger_gain():
    rng = np.random.default_rng(13)
    counts = simulate(rng, 14, gain=0.3)
    many = counts | {f"other {i}": simulate(rng, 14, gain=0.05)["full"] for i in range(3)}
    alone, among = (
        compare(c, "flat", CLASSES, resamples=500).set_index(["method", "metric", "class"])
        for c in (counts, many)
    )
    key = ("full", "tpr", "")
    assert among.loc[key, "mde"] > alone.loc[key, "mde"]


def test_what_is_shown_of_other_methods_makes_it_easier_and_of_ones_own_does_not():
    # a and b each with TPR and F1: both of b are shown
    levels = _levels([0.3, 0.01, 0.001, 0.02, np.nan], ["a", "a", "b", "b", "c"])
    assert levels == pytest.approx([0.05 / 2, 0.05 / 2, 0.05 / 3, 0.05 / 3, 0.05 / 1])


def test_not_shown_is_told_apart_from_shown_to_be_small():
    assert small(-0.019, 0.019) == "no difference of 2 points"
    assert small(-0.05, 0.019) == "no gain of 2 points or more"
    assert small(-0.01, 0.021) == small(np.nan, np.nan) == ""
    assert verdict(0.0, -0.01, 0.01, 0.8).endswith("+1.0: no difference of 2 points")
    assert verdict(-0.01, -0.04, 0.015, 0.8).endswith(": no gain of 2 points or more")
    assert verdict(0.0, -0.05, 0.05, 0.8).endswith(": not shown")
    # what is shown stays shown, however small
    assert verdict(0.01, 0.005, 0.015, 0.01).endswith(": shown")
    assert verdict(-0.01, -0.015, -0.005, 0.01).endswith(": worse")


def test_a_gain_in_f1_can_be_shown_by_groups_without_the_class():
    few = np.zeros((2, 12, 2, 2), int)
    few[:, :, 0] = 30, 10
    few[:, :4, 1, 1] = 10  # four groups, too few for TPR
    less = few.copy()
    less[:, :, 0] += np.array([1, -1]) * np.arange(2, 8).repeat(2)[:, None]
    table = compare({"flat": few, "new": less}, "flat", ["a", "b"], resamples=500)
    rows = table[table["method"] == "new"].set_index(["metric", "class"])
    assert rows.loc[("f1", "b"), "verdict"].endswith(": shown")
    assert rows.loc[("f1", "b"), "mde"] > 0 and np.isnan(rows.loc[("tpr", "b"), "mde"])
