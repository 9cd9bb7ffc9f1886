"""PatchDataModule: the one way from stores to batches, for the generator and for every stage."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from stemcell_lit.base.processes import end_with_parent
from stemcell_lit.data.augment import POLICIES, albumentations_policy, augment_batch, to_float
from stemcell_lit.data.leaks import check_labelled, check_no_leak
from stemcell_lit.data.mixing import (
    Alternate,
    Places,
    QuotaSampler,
    generated_quota,
    share_out,
)
from stemcell_lit.data.splits import Split
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore, reduce_pixels
from stemcell_lit.settings.group_keys import MixConfig

ALWAYS = (-np.inf, np.inf)
_MEASURED = 100  # batches at most that statistics are measured on


@dataclass(frozen=True)
class Scope:
    """Which patches one module learns from, and what it tells apart.

    Attributes:
        groups: target name -> the classes it holds. Patches of other classes are not seen.
        window: hours (first, last) in which it learns; patches of unknown time are always seen.
    """

    groups: Mapping[str, Sequence[str]]
    window: tuple[float, float] = ALWAYS

    @classmethod
    def of_classes(cls, classes: Sequence[str]) -> Scope:
        """Each class is a target: as for the generator and the flat classifier."""
        return cls({name: (name,) for name in classes})

    def learns_at(self, times: np.ndarray) -> np.ndarray:
        """(patches,) bool: inside the window, or of unknown time."""
        inside: np.ndarray = np.isnan(times) | (
            (times >= self.window[0]) & (times <= self.window[1])
        )
        return inside


class PatchDataModule(pl.LightningDataModule):
    """Serves real training patches with generated ones mixed in; validation and test patches are always real.

    A batch is a dict: `pixels` float (batch, scales, size, size) in -1 to 1, with one scale or the store's several,
    `label` int64 (batch,) positions in `targets`, `images` the number of patches in this batch over all ranks,
    `mode` int64 (batch,) where modes were given, and `weight` float (batch,) where generated patches weigh less.

    Args:
        store: real patches.
        split: rows of `store`.
        scope: targets, their classes, the time window.
        generated: a store of generated patches; needed where the recipe asks for any.
        pseudo: rows of `split.unlabelled` and the targets that a network gave them; they join the training patches.
        unlabelled: the rows of `split.unlabelled` take every second place, with the label -1; with resident real
            patches alone.
        modes: (patches of the store,) int64, what each batch says of its patches beside their labels; with resident
            real patches alone.
        mix: recipe, applied to the targets of this scope.
        images: of the training, by which `mix.finish` and `mix.order` know its end.
        sampler: `shuffle` (each patch once per epoch) or `balanced` (each target as often as the largest).
        epoch_images: makes an epoch of about so many draws, equal per target (the generator's way); None: see sampler.
        batch_size: over all ranks.
        augment: name of a policy in `augment.POLICIES`, applied to training patches.
        pixels: `resident` (all patches on the device) or `workers` (albumentations on the CPU).
        workers: loader processes of `workers`.
        patch_size: px, see `reduce_pixels`.
        seed: of order, augmentation and of which generated patches are taken.
        min_class_patches: fewer real training patches of a class give a warning.

    Raises:
        UserError: the generator of `generated` has seen a validation or test group; too few generated patches; a
            target without training patches.
    """

    def __init__(
        self,
        store: PatchStore,
        split: Split,
        scope: Scope,
        *,
        generated: PatchStore | None = None,
        pseudo: tuple[np.ndarray, np.ndarray] | None = None,
        unlabelled: bool = False,
        modes: np.ndarray | None = None,
        mix: MixConfig | None = None,
        images: int | None = None,
        sampler: str = "shuffle",
        epoch_images: int | None = None,
        batch_size: int = 64,
        augment: str = "turns",
        pixels: str = "resident",
        workers: int = 0,
        patch_size: int | None = None,
        seed: int = 0,
        min_class_patches: int = 0,
    ):
        super().__init__()
        mix = mix or MixConfig()
        check_ways(augment, sampler, pixels)
        self.targets = list(scope.groups)
        self.batch_size, self.seed, self.sampler = batch_size, seed, sampler
        self.policy = POLICIES[augment]
        self.served, self.workers, self.epoch_images = pixels, workers, epoch_images
        self.mix, self.images = mix, images
        if images is None and (mix.finish or mix.order != "mixed"):
            raise ValueError("mix.finish and mix.order need the images of the training")
        target_of = {c: i for i, name in enumerate(self.targets) for c in scope.groups[name]}
        check_labelled(store, split)
        class_of = store.manifest["label"].to_numpy()
        times = store.manifest["time_h"].to_numpy()
        position = np.array([target_of.get(c, -1) for c in class_of])
        seen = (position >= 0) & scope.learns_at(times)

        rows = {"train": split.train[seen[split.train]], "val": split.val[seen[split.val]]}
        real = {
            name: int((position[rows["train"]] == i).sum()) for i, name in enumerate(self.targets)
        }
        empty = [name for name, n in real.items() if n == 0]
        if empty:
            raise UserError(
                f"{store.path}: no training patches of {empty} in hours {scope.window[0]:g} to {scope.window[1]:g}; "
                "give fewer split.folds, a larger split.labelled_fraction or a smaller split.validation_share"
            )
        for name in scope.groups:
            for member in scope.groups[name]:
                n = int((class_of[rows["train"]] == member).sum())
                if 0 < n < min_class_patches:
                    warnings.warn(
                        f"class {member} has {n} real training patches, fewer than {min_class_patches}: a network "
                        "learns little from so few, and generated data can hurt below 20 to 50 real images a class",
                        stacklevel=2,
                    )
        self._bare = np.empty(0, np.int64)  # places in the bank of patches without a label
        if unlabelled:
            if pixels != "resident" or mix.recipe != "real" or pseudo is not None:
                raise ValueError("patches without a label go with resident real patches alone")
            position = position.copy()
            position[split.unlabelled] = -1  # their labels may only be hidden
            self._bare = len(rows["train"]) + np.arange(len(split.unlabelled))
            rows["train"] = np.concatenate([rows["train"], split.unlabelled])
        wanted = generated_quota(real, mix)
        extra_rows, extra_labels = np.empty(0, np.int64), np.empty(0, np.int64)
        if generated is not None:
            check_no_leak(store, split, generated)
            if store.pixels.shape[1:-2] != generated.pixels.shape[1:-2]:
                raise UserError(
                    f"{generated.path}: has scales {generated.scales}, {store.path} {store.scales}; expected the same"
                )
        repeated = mix.source == "repeated"
        if sum(wanted.values()) > 0 and repeated:
            extra_rows, extra_labels = _repeat(class_of, rows["train"], scope, wanted, seed)
        elif sum(wanted.values()) > 0:
            if generated is None:
                raise UserError(
                    f"mix.recipe={mix.recipe} needs generated patches, and none were given"
                )
            extra_rows, extra_labels = _choose(generated, scope, wanted, seed)
        self.counts = {
            name: (real[name], int((extra_labels == i).sum()))
            for i, name in enumerate(self.targets)
        }
        if pseudo is not None:
            if not np.isin(pseudo[0], split.unlabelled).all():
                raise ValueError(
                    "pseudo-labels for patches that are not unlabelled training patches"
                )
            extra_labels = np.concatenate([extra_labels, pseudo[1]])
        parts = [reduce_pixels(store.pixels[rows["train"]], patch_size)]
        if len(extra_rows) and repeated:
            parts.append(reduce_pixels(store.pixels[extra_rows], patch_size))
        elif len(extra_rows):
            assert generated is not None
            parts.append(reduce_pixels(generated.pixels[extra_rows], parts[0].shape[-1]))
        if pseudo is not None:
            parts.append(reduce_pixels(store.pixels[pseudo[0]], patch_size))
        self.bank = {
            "train": torch.from_numpy(np.concatenate(parts)),
            "val": torch.from_numpy(reduce_pixels(store.pixels[rows["val"]], patch_size)),
        }
        self.labels = {
            "train": torch.from_numpy(
                np.concatenate([position[rows["train"]], extra_labels]).astype(np.int64)
            ),
            "val": torch.from_numpy(position[rows["val"]].astype(np.int64)),
        }
        self.rows = rows
        test = split.test[seen[split.test]]
        # read when they are asked for: a training never is
        self._test = store, test, torch.from_numpy(position[test].astype(np.int64)), patch_size
        place = np.arange(len(self.labels["train"])) - len(rows["train"])
        extra = (place >= 0) & (place < len(extra_rows))  # generated, or real ones again
        self._pool = extra & (mix.recipe == "share")  # no draws of their own: they fill places
        self._weights = None
        if mix.weight != 1 and extra.any():
            self._weights = torch.from_numpy(np.where(extra, mix.weight, 1.0).astype(np.float32))
        self.modes: dict[str, torch.Tensor | None] = dict.fromkeys(rows)
        if modes is not None:
            if len(parts) > 1 or pixels != "resident":
                raise ValueError("modes are those of resident real patches, and of nothing else")
            self.modes = {name: torch.from_numpy(modes[rows[name]]) for name in rows}

    @property
    def size(self) -> int:
        """Height and width of the served patches, px."""
        return int(self.bank["train"].shape[-1])

    @property
    def channels(self) -> int:
        """Views of a patch: the scales of the store."""
        bank = self.bank["train"]
        return 1 if bank.ndim == 3 else int(bank.shape[1])

    @property
    def class_counts(self) -> list[int]:
        """Training patches of each target; those that only fill places of others do not count."""
        labels = self.labels["train"].numpy()[~self._pool]
        labels = labels[labels >= 0]
        return [int(n) for n in np.bincount(labels, minlength=len(self.targets))]

    def batches(self, rank: int = 0, world: int = 1) -> QuotaSampler:
        """The training sampler of one rank."""
        return self._sampler(self.seed, rank, world, self._places())

    def _places(self) -> Places | Alternate | None:
        """The places that go to generated patches, or to those without a label; None where none do."""
        if len(self._bare):
            return Alternate(self._bare)
        if not self._pool.any():
            return None
        labels, mix = self.labels["train"].numpy(), self.mix
        pools = [np.flatnonzero((labels == i) & self._pool) for i in range(len(self.targets))]
        first = mix.order == "generated_first"
        return Places(pools, mix.amount, self.images or math.inf, mix.finish, first)

    def _sampler(
        self, seed: int, rank: int, world: int, places: Places | Alternate | None
    ) -> QuotaSampler:
        labels = np.where(self._pool, -1, self.labels["train"].numpy())
        strata = [np.flatnonzero(labels == i) for i in range(len(self.targets))]
        sizes = [len(s) for s in strata]
        if self.epoch_images is not None:
            quotas = [max(1, round(self.epoch_images / len(strata)))] * len(strata)
        else:
            quotas = [max(sizes)] * len(sizes) if self.sampler == "balanced" else sizes
        return QuotaSampler(
            strata, quotas, self.batch_size, seed=seed, rank=rank, world=world, places=places
        )

    def real_batches(self, device: torch.device) -> Iterator[torch.Tensor]:
        """Pixels of batches without generated patches, an epoch at most, the same on every rank."""
        sampler = self._sampler(self.seed + 50_021, 0, 1, None)  # in an order of their own
        bank, labels = self.bank["train"], self.labels["train"]
        loader = ResidentLoader(bank, labels, sampler, self.policy, device)
        return (batch["pixels"] for batch in itertools.islice(loader, _MEASURED))

    def train_dataloader(self) -> Any:
        """Training batches of this rank."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        sampler = self.batches(rank, world)
        if trainer:
            sampler.set_epoch(
                trainer.current_epoch
            )  # loader processes draw before Lightning says so
        if self.served == "resident":
            return ResidentLoader(
                self.bank["train"],
                self.labels["train"],
                sampler,
                self.policy,
                device,
                self.modes["train"],
                self._weights,
            )
        seed = self.seed * 1009 + rank
        return DataLoader(
            _Patches(self.bank["train"], self.labels["train"], self.policy, seed, self._weights),
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=_Collate(world),
            worker_init_fn=partial(_tie, os.getpid()),
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> Any:
        """Validation batches, in order, all of them on every rank, never augmented."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        count = len(self.bank["val"])
        if count == 0:
            return []
        chunks = [list(range(i, min(i + 256, count))) for i in range(0, count, 256)]
        return ResidentLoader(
            self.bank["val"],
            self.labels["val"],
            chunks,
            POLICIES["none"],
            device,
            self.modes["val"],
        )

    def test_dataloader(self) -> Any:
        """Test batches, as those of validation; nothing that trains or chooses may ask for them."""
        store, rows, labels, size = self._test
        if not len(rows):
            return []
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        chunks = [list(range(i, min(i + 256, len(rows)))) for i in range(0, len(rows), 256)]
        pixels = torch.from_numpy(reduce_pixels(store.pixels[rows], size))
        return ResidentLoader(pixels, labels, chunks, POLICIES["none"], device)


def _tie(parent: int, worker: int) -> None:
    """A loader process ends with the one that it loads for, in whatever way that ends."""
    end_with_parent(parent)


class ResidentLoader:
    """Batches cut from patches that lie on the device as a whole, augmented there.

    Draws of the augmentation depend on (seed, epoch, batch, rank) alone, so a resumed run repeats them, from the
    middle of an epoch too: Lightning keeps `state_dict` in its checkpoints.
    """

    def __init__(
        self,
        bank: torch.Tensor,
        labels: torch.Tensor,
        batches: Any,
        policy: Any,
        device: Any,
        modes: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ):
        self.bank, self.labels = bank.to(device), labels.to(device)
        self.modes = None if modes is None else modes.to(device)
        self.weights = None if weights is None else weights.to(device)
        self.batch_sampler, self.policy, self.device = batches, policy, device
        self.given = 0  # batches of this epoch so far

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def state_dict(self) -> dict[str, int]:
        """Where in the epoch it stands; the same on every rank."""
        return {"epoch": getattr(self.batch_sampler, "epoch", 0), "position": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there."""
        if isinstance(self.batch_sampler, QuotaSampler):
            self.batch_sampler.set_epoch(state["epoch"])
            self.batch_sampler.position = state["position"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sampler = self.batch_sampler
        drawn = isinstance(sampler, QuotaSampler)
        first = sampler.position if drawn else 0
        for i, indices in enumerate(sampler, start=first):
            index = torch.as_tensor(indices, device=self.device)
            pixels = to_float(self.bank[index])
            self.given = i + 1
            if drawn:
                key = np.random.SeedSequence([sampler.seed, sampler.epoch, i, sampler.rank, 1])
                random = torch.Generator().manual_seed(int(key.generate_state(1)[0]))
                pixels = augment_batch(pixels, self.policy, random)
            yield {
                "pixels": pixels,
                "label": self.labels[index],
                "images": sampler.images_in(i) if drawn else len(indices),
                **({} if self.modes is None else {"mode": self.modes[index]}),
                **({} if self.weights is None else {"weight": self.weights[index]}),
            }


class _Patches(Dataset[tuple[torch.Tensor, ...]]):
    """Single patches through albumentations, for loader processes."""

    def __init__(
        self,
        bank: torch.Tensor,
        labels: torch.Tensor,
        policy: Any,
        seed: int,
        weights: torch.Tensor | None = None,
    ):
        self.bank, self.labels, self.policy, self.seed = bank.numpy(), labels, policy, seed
        self.weights = weights
        self.pipeline: Any = None

    def __len__(self) -> int:
        return len(self.bank)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        if self.pipeline is None:
            info = get_worker_info()  # each process its own random state
            seed = self.seed + (info.seed % 100_003 if info else 0)
            self.pipeline = albumentations_policy(self.policy, self.bank.shape[-1], seed)
        patch = self.bank[index].reshape(-1, *self.bank.shape[-2:])  # scales first
        image = self.pipeline(image=np.ascontiguousarray(np.moveaxis(patch, 0, -1)))["image"]
        views = np.ascontiguousarray(np.moveaxis(image, -1, 0))
        item = (to_float(torch.from_numpy(views)[None])[0], self.labels[index])
        return item if self.weights is None else (*item, self.weights[index])


@dataclass
class _Collate:
    world: int

    def __call__(self, items: list[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        parts = [torch.stack(part) for part in zip(*items, strict=True)]
        named = dict(zip(("pixels", "label", "weight"), parts, strict=False))
        return {**named, "images": len(items) * self.world}


def check_ways(augment: str, sampler: str, pixels: str) -> None:
    """Refuses names that stand for no way to serve patches.

    Raises:
        UserError: one of them.
    """
    if augment not in POLICIES:
        raise UserError(f"data.augment={augment}: expected one of {', '.join(POLICIES)}")
    if sampler not in ("shuffle", "balanced"):
        raise UserError(f"stage.sampler={sampler}: expected shuffle or balanced")
    if pixels not in ("resident", "workers"):
        raise UserError(f"data.pixels={pixels}: expected resident or workers")


def _choose(
    generated: PatchStore, scope: Scope, wanted: Mapping[str, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of generated patches and their targets; a target's share comes evenly from its classes."""
    label = generated.manifest["label"].to_numpy()
    rng = np.random.default_rng([seed, 11])
    rows, targets = [], []
    for i, (name, members) in enumerate(scope.groups.items()):
        pools = [rng.permutation(np.flatnonzero(label == member)) for member in members]
        parts = share_out(wanted[name], [len(pool) for pool in pools])
        # What a filter kept too few of was told when it was drawn; the class goes on with what there is.
        known = sum(generated.info["made_by"].get("missing", {}).get(m, 0) for m in members)
        if sum(parts) + known < wanted[name]:
            raise UserError(
                f"{generated.path}: holds {sum(len(p) for p in pools)} generated patches of {name}, the recipe asks "
                f"for {wanted[name]}; generate more, or give a smaller mix.amount"
            )
        for pool, n in zip(pools, parts, strict=True):
            rows.append(pool[:n])
            targets.append(np.full(n, i))
    return np.concatenate(rows).astype(np.int64), np.concatenate(targets).astype(np.int64)


def _repeat(
    class_of: np.ndarray, train: np.ndarray, scope: Scope, wanted: Mapping[str, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of real training patches in the stead of generated ones, as often as needed, and their targets."""
    rng = np.random.default_rng([seed, 13])
    rows, targets = [], []
    for i, (name, members) in enumerate(scope.groups.items()):
        pools = [rng.permutation(train[class_of[train] == member]) for member in members]
        parts = share_out(wanted[name], [wanted[name] if len(pool) else 0 for pool in pools])
        rows += [np.resize(pool, n) for pool, n in zip(pools, parts, strict=True)]
        targets.append(np.full(sum(parts), i))
    return np.concatenate(rows), np.concatenate(targets)
