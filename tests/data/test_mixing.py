import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.data.mixing import (
    Places,
    QuotaSampler,
    check_places,
    generated_quota,
    share_out,
)
from stemcell_lit.errors import UserError
from stemcell_lit.settings.group_keys import MixConfig

counts = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1)


@given(counts)
def test_balance_fills_every_class_to_the_largest(real):
    quota = generated_quota(real, MixConfig("balance"))
    assert {real[c] + quota[c] for c in real} == {max(real.values())}


@given(counts, st.integers(0, 300))
def test_extra_k_balances_then_adds_k_to_each(real, k):
    quota = generated_quota(real, MixConfig("extra_k", k))
    assert {real[c] + quota[c] for c in real} == {max(real.values()) + k}


@given(counts, st.floats(0, 2))
def test_ratio_adds_in_proportion(real, amount):
    quota = generated_quota(real, MixConfig("ratio", amount))
    assert all(abs(quota[c] - amount * real[c]) <= 0.5 for c in real)


@given(counts, st.integers(0, 600))
def test_target_never_removes_and_reaches_the_target(real, target):
    quota = generated_quota(real, MixConfig("target", target))
    assert all(real[c] + quota[c] == max(real[c], target) for c in real)


def test_real_adds_nothing_and_unknown_recipes_are_named():
    assert generated_quota({"a": 3}, MixConfig("real")) == {"a": 0}
    with pytest.raises(UserError, match="balanced"):
        generated_quota({"a": 3}, MixConfig("balanced"))
    with pytest.raises(UserError, match="amount"):
        generated_quota({"a": 3}, MixConfig("ratio", -1))


@given(st.integers(0, 500), st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_share_out_is_exact_even_and_within_capacity(total, weights):
    parts = share_out(total, weights)
    assert sum(parts) == min(total, sum(weights))
    assert all(0 <= p <= w for p, w in zip(parts, weights, strict=True))
    unfilled = [p for p, w in zip(parts, weights, strict=True) if p < w]
    assert not unfilled or max(unfilled) - min(unfilled) <= 1
    assert not unfilled or max(parts) <= min(unfilled) + 1


strata_of = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(strata_of, st.integers(1, 4), st.integers(1, 16), st.integers(0, 99), st.integers(0, 3))
def test_the_union_over_ranks_is_exactly_the_epoch(sizes, world, batch, seed, epoch):
    starts = np.cumsum([0, *sizes])
    strata = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    samplers = [
        QuotaSampler(strata, sizes, batch, seed=seed, rank=r, world=world) for r in range(world)
    ]
    for s in samplers:
        s.set_epoch(epoch)
    batches = [list(s) for s in samplers]
    if sum(sizes) < world:
        assert all(b == [] for b in batches)
        return
    assert len({len(b) for b in batches}) == 1  # or ranks would wait for each other for ever
    assert all(len(b) == len(s) for b, s in zip(batches, samplers, strict=True))
    assert all(len(part) >= 1 for rank in batches for part in rank)
    drawn = Counter(i for rank in batches for part in rank for i in part)
    assert drawn == Counter(range(starts[-1]))
    for i in range(len(batches[0])):
        assert sum(len(rank[i]) for rank in batches) == samplers[0].images_in(i)


@settings(max_examples=60, deadline=None)
@given(strata_of, st.data())
def test_every_stratum_gives_exactly_its_quota_as_evenly_as_possible(sizes, data):
    quotas = [data.draw(st.integers(0, 100)) for _ in sizes]
    starts = np.cumsum([0, *sizes])
    strata = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    drawn = Counter(QuotaSampler(strata, quotas, 8).draws().tolist())
    for indices, quota in zip(strata, quotas, strict=True):
        times = [drawn[int(i)] for i in indices]
        assert sum(times) == quota and max(times) - min(times) <= 1


def test_order_depends_on_seed_and_epoch_alone_and_goes_on_mid_epoch():
    def batches(seed=1, epoch=2, skip=0):
        s = QuotaSampler([np.arange(30)], [30], 4, seed=seed)
        s.set_epoch(epoch)
        s.position = skip
        return list(s)

    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    first = batches()
    np.random.seed(1)  # noqa: NPY002
    assert first == batches()
    assert first[3:] == batches(skip=3)
    assert first != batches(seed=2) and first != batches(epoch=3)


# --- places of generated patches --------------------------------------------------------------------------------------


def placed(sizes, share, *, images=np.inf, finish=0.0, first=False, batch=8, epochs=3, **more):
    """Epochs of batches of (class, generated?, index), with places and without."""
    starts = np.cumsum([0, *sizes])
    strata = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    pools = [np.arange(starts[-1] + 50 * i, starts[-1] + 50 * (i + 1)) for i in range(len(sizes))]
    of = np.concatenate(
        [*(np.full(len(s), i) for i, s in enumerate(strata)), np.repeat(range(len(sizes)), 50)]
    )
    quotas = [max(sizes)] * len(sizes)
    places = Places(pools, share, images, finish, first)
    found = []
    for used in (places, None):
        sampler, epochs_of = QuotaSampler(strata, quotas, batch, seed=1, places=used, **more), []
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            epochs_of.append([[(int(of[i]), bool(i >= starts[-1]), i) for i in b] for b in sampler])
        found.append(epochs_of)
    return found


shares = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(strata_of, shares, st.integers(1, 40))
def test_every_class_of_a_batch_has_its_share_of_generated_places_within_one(sizes, share, batch):
    epochs, _ = placed(sizes, share, batch=batch)
    for one in (b for epoch in epochs for b in epoch):
        for c in range(len(sizes)):
            given = [generated for of, generated, _ in one if of == c]
            assert abs(sum(given) - share * len(given)) < 1 + 1e-6


@settings(max_examples=60, deadline=None)
@given(strata_of, shares, st.integers(1, 6))
def test_over_the_epochs_the_share_of_every_class_is_exact(sizes, share, epochs):
    found, _ = placed(sizes, share, epochs=epochs)
    for c in range(len(sizes)):
        given = [generated for e in found for b in e for of, generated, _ in b if of == c]
        assert len(given) == epochs * max(sizes)
        assert abs(sum(given) - share * len(given)) < 1 + 1e-6


@settings(max_examples=30, deadline=None)
@given(strata_of, shares, st.booleans(), st.floats(0, 0.9))
def test_places_that_are_not_given_stay_as_they_were_and_batches_stay_balanced(
    sizes, share, first, finish
):
    with_places, without = placed(sizes, share, images=2.5 * sum(sizes), first=first, finish=finish)
    for mine, plain in zip(with_places, without, strict=True):
        for batch, other in zip(mine, plain, strict=True):
            for (c, generated, i), (real_c, _, real) in zip(batch, other, strict=True):
                assert c == real_c and (generated or i == real)


@settings(max_examples=30, deadline=None)
@given(strata_of, shares, st.booleans(), st.floats(0, 0.9))
def test_both_orders_give_as_many_places_and_none_in_the_finish(sizes, share, first, finish):
    epochs, images = 4, 4 * max(sizes) * len(sizes)
    found, _ = placed(sizes, share, images=images, finish=finish, first=first, epochs=epochs)
    given = [generated for e in found for b in e for _, generated, _ in b]
    end = (1 - finish) * images
    assert not any(given[int(np.ceil(end)) :])
    assert abs(sum(given) - share * end) <= 1 + (0 if first else len(sizes))
    if first:
        assert given == sorted(given, reverse=True)


def test_no_share_draws_what_a_sampler_without_places_draws():
    with_places, without = placed([5, 9, 30], 0.0)
    assert with_places == without


def test_generated_patches_are_drawn_evenly_in_an_order_of_seed_and_epoch_alone():
    (first, second, _), _ = placed([5, 9, 30], 1.0)
    drawn = Counter(i for b in first for _, _, i in b)
    assert set(drawn.values()) == {1}
    assert first != second and placed([5, 9, 30], 1.0)[0][1] == second


def test_ranks_share_the_places_of_a_batch_without_overlap():
    alone, _ = placed([5, 9, 30], 0.5, batch=9)
    ranks = [placed([5, 9, 30], 0.5, batch=9, rank=r, world=2)[0] for r in (0, 1)]
    for epoch, *shared in zip(alone, *ranks, strict=True):
        for batch, first, second in zip(epoch, *shared, strict=True):
            assert Counter(batch) == Counter(first) + Counter(second)


def test_a_share_above_one_and_a_finish_without_places_are_refused():
    with pytest.raises(UserError, match=r"mix.amount=1.5: .*share of places, expected 0 to 1"):
        generated_quota({"a": 3}, MixConfig("share", 1.5))
    for key, value in (("finish", 0.25), ("order", "generated_first")):
        with pytest.raises(UserError, match=rf"mix.{key}={value} is of mix.recipe=share"):
            check_places(MixConfig("balance", **{key: value}))
    check_places(MixConfig("share", 0.5, finish=0.25))


@given(counts, shares)
def test_a_share_asks_for_as_many_generated_patches_as_the_largest_class_has(real, share):
    wanted = generated_quota(real, MixConfig("share", share))
    assert set(wanted.values()) == {max(real.values()) if share else 0}
