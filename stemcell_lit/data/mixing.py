"""How many patches of which class, real and generated, and the batches they come in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from stemcell_lit.errors import UserError
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import MixConfig


def generated_quota(real: Mapping[str, int], mix: MixConfig) -> dict[str, int]:
    """How many generated patches join each group of a stage.

    Recipes: `real` none; `balance` fills each to the largest; `extra_k` fills, then adds `amount` to each (the
    paper's 1k, 2k and 5k); `ratio` adds `amount` generated per real patch; `target` fills each up to `amount`. With
    `share` none join: they are as many as the largest group has, for `Places` to draw from.

    Args:
        real: group name -> number of real training patches.
        mix: recipe and amount.

    Raises:
        UserError: an unknown recipe, a negative amount, or a share above 1.
    """
    check(mix, "mix.")
    if mix.recipe == "share" and mix.amount > 1:
        raise UserError(
            f"mix.amount={mix.amount:g}: with mix.recipe=share it is a share of places, expected 0 to 1"
        )
    largest = max(real.values(), default=0)
    if mix.recipe == "real":
        return dict.fromkeys(real, 0)
    if mix.recipe == "balance":
        return {name: largest - n for name, n in real.items()}
    if mix.recipe == "extra_k":
        return {name: largest - n + int(mix.amount) for name, n in real.items()}
    if mix.recipe == "ratio":
        return {name: round(mix.amount * n) for name, n in real.items()}
    if mix.recipe == "share":
        return dict.fromkeys(real, largest if mix.amount > 0 else 0)
    return {name: max(0, int(mix.amount) - n) for name, n in real.items()}


def check_places(mix: MixConfig) -> None:
    """Refuses what says where places of generated patches lie, where there are no such places.

    Raises:
        UserError: names the key.
    """
    if mix.recipe == "share":
        return
    for key, value in (("finish", mix.finish), ("order", mix.order)):
        if value != getattr(MixConfig(), key):
            raise UserError(
                f"mix.{key}={value} is of mix.recipe=share, found mix.recipe={mix.recipe}; give that recipe, or "
                f"leave mix.{key} out"
            )


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """Splits `total` into whole parts, as equal as `weights` (capacities) allow, all given out where they suffice.

    A group of several classes ("cells") takes its generated patches evenly from its classes, the rarest included.
    """
    parts = [0] * len(weights)
    left = min(total, sum(weights))
    while left > 0:
        open_ = [i for i, (p, w) in enumerate(zip(parts, weights, strict=True)) if p < w]
        each = max(1, left // len(open_))
        for i in open_:
            take = min(each, weights[i] - parts[i], left)
            parts[i] += take
            left -= take
    return parts


@dataclass(frozen=True)
class Places:
    """Which places of a training go to generated patches; all others stay what they would be without these.

    Mixed, every n-th place of a stratum is given, so that of any places in a row, such as those in a batch, the share
    is met within one place, and over the epochs exactly. Generated first, all places are given up to the moment when
    as many are given as would be, mixed.

    Attributes:
        pools: of each stratum the indices of its generated patches.
        share: of the places, 0 to 1.
        images: of the whole training; infinite where it has no end.
        finish: last share of these that is never given.
        first: generated first.
    """

    pools: Sequence[np.ndarray]
    share: float
    images: float = math.inf
    finish: float = 0.0
    first: bool = False

    def given(self, strata: np.ndarray, quotas: Sequence[int], epoch: int) -> np.ndarray:
        """Which draws of an epoch go to generated patches, (draws,) bool.

        Args:
            strata: (draws,) the stratum of each.
            quotas: draws from each stratum per epoch.
            epoch: counted from 0.
        """
        places = epoch * len(strata) + np.arange(len(strata))
        end = (1 - self.finish) * self.images if math.isfinite(self.images) else math.inf
        if self.first:
            return np.asarray(places < self.share * end)
        found = np.zeros(len(strata), bool)
        for i, quota in enumerate(quotas):
            mine = np.flatnonzero(strata == i)
            # a count that goes on from epoch to epoch; strata begin apart, so that they do not all give at once
            count = epoch * quota + np.arange(len(mine) + 1)
            found[mine] = np.diff(np.floor(count * self.share + i / len(quotas))) > 0
        return found & (places < end)

    def fill(
        self, order: np.ndarray, strata: Sequence[np.ndarray], quotas: Sequence[int], key: list[int]
    ) -> np.ndarray:
        """The draws of an epoch with the given places filled, each pool drawn as evenly as possible.

        Args:
            order: (draws,) indices without generated patches.
            strata: of the sampler.
            quotas: of the sampler.
            key: seed and epoch.
        """
        of = np.zeros(max((int(s.max()) + 1 for s in strata if len(s)), default=0), np.int64)
        for i, indices in enumerate(strata):
            of[indices] = i
        which = of[order]
        given = self.given(which, quotas, key[-1])
        rng, filled = np.random.default_rng([*key, 1]), order.copy()
        for i, pool in enumerate(self.pools):
            mine = np.flatnonzero(given & (which == i)) if len(pool) else np.empty(0, np.int64)
            filled[mine] = np.concatenate(_drawn(pool, len(mine), rng))
        return filled


@dataclass(frozen=True)
class Alternate:
    """Gives every second place of a training to patches without a label: of each batch, half.

    Attributes:
        pool: their indices.
    """

    pool: np.ndarray

    def fill(
        self, order: np.ndarray, strata: Sequence[np.ndarray], quotas: Sequence[int], key: list[int]
    ) -> np.ndarray:
        """The draws of an epoch with these places filled; arguments as of `Places.fill`."""
        filled, rng = order.copy(), np.random.default_rng([*key, 2])
        filled[1::2] = rng.permutation(np.concatenate(_drawn(self.pool, len(order) // 2, rng)))
        return filled


def _drawn(indices: np.ndarray, quota: int, rng: np.random.Generator) -> list[np.ndarray]:
    """So many draws: whole passes in random order, then a random part."""
    passes, rest = divmod(quota, len(indices)) if len(indices) else (0, 0)
    parts = [rng.permutation(indices) for _ in range(passes)]
    return [*parts, rng.permutation(indices)[:rest]]


class QuotaSampler(Sampler[list[int]]):
    """Batches of indices, an exact number of draws per stratum and epoch, shared out over ranks.

    Within an epoch each stratum gives `quota` draws: whole passes over its indices in random order, then a random
    part, so no index is drawn twice before each was drawn once. Quotas equal to the sizes make an ordinary epoch; equal
    quotas make balanced classes. The union over ranks is exactly the epoch, every rank has the same number of
    batches, and no index is repeated to fill up. Seeded by (seed, epoch) alone: an extra random draw elsewhere changes
    nothing (Lightning issue 10946).

    Args:
        strata: arrays of indices.
        quotas: draws from each stratum per epoch.
        batch_size: over all ranks; batches may be one smaller where the epoch does not divide. The draws of a
            batch do not depend on the number of ranks that share it.
        seed: of the order.
        rank: of this process, 0 to world - 1.
        world: number of processes.
        places: that go to generated patches, or to those without a label; None: none do.
    """

    def __init__(
        self,
        strata: Sequence[np.ndarray],
        quotas: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        places: Places | Alternate | None = None,
    ):
        if len(strata) != len(quotas):
            raise ValueError(f"{len(strata)} strata but {len(quotas)} quotas")
        for indices, quota in zip(strata, quotas, strict=True):
            if quota > 0 and len(indices) == 0:
                raise ValueError("a stratum with a quota has no indices")
        self.strata = [np.asarray(s) for s in strata]
        self.quotas, self.places = list(quotas), places
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch = 0
        self.position = 0  # batches of this epoch already given out, set when a run resumes

    def __len__(self) -> int:
        total = sum(self.quotas)
        if total < self.world:
            return 0
        # A batch more would leave a rank without a draw; then batches are a little larger instead.
        return max(1, min(-(-total // self.batch_size), total // self.world))

    @property
    def sampler(self) -> QuotaSampler:
        """Itself: Lightning tells the epoch to a loader's `batch_sampler.sampler`, and to nothing else."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; Lightning calls it before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def images_in(self, batch: int) -> int:
        """Number of draws of a batch over all ranks."""
        each, more = divmod(sum(self.quotas), len(self))
        return each + (batch < more)

    def draws(self) -> np.ndarray:
        """All indices of this epoch over all ranks, in order."""
        rng = np.random.default_rng([self.seed, self.epoch])
        parts = []
        for indices, quota in zip(self.strata, self.quotas, strict=True):
            parts += _drawn(indices, quota, rng)
        order = rng.permutation(np.concatenate(parts) if parts else np.empty(0, np.int64))
        if self.places is None:
            return order
        return self.places.fill(order, self.strata, self.quotas, [self.seed, self.epoch])

    def __iter__(self) -> Iterator[list[int]]:
        order = self.draws()
        start, self.position = self.position, 0
        for i, batch in enumerate(np.array_split(order, len(self)) if len(self) else []):
            if i < start:
                continue
            # Which rank gets the larger share turns with the batch, so that no rank sees more than the others.
            share = np.array_split(batch, self.world)[(self.rank + i) % self.world]
            yield share.tolist()
