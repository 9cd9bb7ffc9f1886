import itertools

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.leaks import check_no_leak
from stemcell_lit.data.splits import Split
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore, reduce_pixels
from stemcell_lit.settings.group_keys import MixConfig
from tests.conftest import CLASSES


def split_of(store, train=(0, 1), val=(2,), test=(3, 4, 5)):
    movie = store.manifest["group"].str[-2:].astype(int).to_numpy()
    return Split(*(np.flatnonzero(np.isin(movie, part)) for part in (train, val, test)))


def test_generated_patches_join_per_class_and_only_in_training(store, generated):
    data = PatchDataModule(
        store,
        split_of(store),
        Scope.of_classes(CLASSES),
        generated=generated,
        mix=MixConfig("balance"),
    )
    totals = {sum(n) for n in data.counts.values()}
    assert len(totals) == 1
    assert data.counts["dense"][1] == 0 and data.counts["debris"][1] > 0
    labels = data.labels["train"].numpy()
    assert np.bincount(labels).tolist() == [sum(n) for n in data.counts.values()]
    assert len(data.bank["val"]) == len(split_of(store).val)
    real = {p.tobytes() for p in store.pixels}
    assert all(p.numpy().tobytes() in real for p in data.bank["val"])
    assert sum(p.numpy().tobytes() not in real for p in data.bank["train"]) == sum(
        n[1] for n in data.counts.values()
    )


def test_modes_stay_with_their_patches(store, generated):
    split, modes = split_of(store), np.arange(len(store)) * 7
    data = PatchDataModule(
        store, split, Scope.of_classes(CLASSES), modes=modes, epoch_images=48, augment="none"
    )
    for loader, rows in (
        (data.train_dataloader(), split.train),
        (data.val_dataloader(), split.val),
    ):
        of = {reduce_pixels(store.pixels[r], None).tobytes(): r for r in rows}
        for batch in loader:
            pixels = ((batch["pixels"] + 1) * 127.5).round().to(torch.uint8).numpy()
            found = [of[p.tobytes()] for p in pixels[:, 0]]
            assert batch["mode"].tolist() == modes[found].tolist()
            assert batch["label"].tolist() == store.labels[found].tolist()
    with pytest.raises(ValueError, match="resident real patches"):
        PatchDataModule(
            store,
            split,
            Scope.of_classes(CLASSES),
            modes=modes,
            generated=generated,
            mix=MixConfig("balance"),
        )


def test_a_stage_mixes_by_its_own_groups_evenly_over_their_classes(store, generated):
    scope = Scope({"debris": ["debris"], "cells": ["dense", "spread", "differentiated"]})
    data = PatchDataModule(
        store, split_of(store), scope, generated=generated, mix=MixConfig("extra_k", 6)
    )
    real = {name: n[0] for name, n in data.counts.items()}
    assert (
        data.counts["cells"][1] == 6
        and data.counts["debris"][1] == real["cells"] - real["debris"] + 6
    )


def test_the_window_hides_patches_of_other_hours(store):
    scope = Scope({"dense": ["dense"], "spread": ["spread"]}, (0.0, 12.0))
    data = PatchDataModule(store, split_of(store), scope)
    assert (store.manifest["time_h"].iloc[data.rows["train"]] <= 12).all()
    assert set(store.manifest["label"].iloc[data.rows["train"]]) == {"dense", "spread"}


@pytest.mark.parametrize("held", ["val", "test"])
def test_patches_of_a_generator_that_saw_a_held_out_group_are_refused(store, generated, held):
    parts = {"train": (0,), "val": (2,), "test": (3, 4, 5)}
    parts[held] = (1,)
    with pytest.raises(UserError, match="has seen 1 validation or test groups.*movie_01"):
        check_no_leak(store, split_of(store, **parts), generated)


def test_patches_of_unknown_provenance_are_refused(store, tmp_path):
    with pytest.raises(UserError, match="does not say which generator"):
        PatchDataModule(store, split_of(store), Scope.of_classes(CLASSES), generated=store)


def test_the_leak_guard_holds_under_the_leaky_split_too(store, generated, tmp_path):
    split = Split(np.arange(0, 40), np.arange(40, 60), np.arange(60, len(store)), "leaky")
    seen = [f"patch-{i}" for i in range(41)]
    other = PatchStore.write(
        tmp_path / "g",
        np.asarray(generated.pixels),
        generated.manifest,
        classes=CLASSES,
        made_by={"generator": "x", "seen_groups": seen},
    )
    with pytest.raises(UserError, match="patch-40"):
        check_no_leak(store, split, other)


def test_too_few_generated_patches_say_so(store, generated):
    with pytest.raises(UserError, match="holds 80 generated patches of debris"):
        PatchDataModule(
            store,
            split_of(store),
            Scope.of_classes(CLASSES),
            generated=generated,
            mix=MixConfig("extra_k", 500),
        )
    with pytest.raises(UserError, match="none were given"):
        PatchDataModule(store, split_of(store), Scope.of_classes(CLASSES), mix=MixConfig("balance"))


def test_a_target_without_patches_says_so(store):
    with pytest.raises(
        UserError, match="no training patches of .'differentiated'.* in hours 0 to 1"
    ):
        PatchDataModule(
            store,
            split_of(store),
            Scope.of_classes(["dense", "differentiated"]).__class__(
                {"dense": ["dense"], "differentiated": ["differentiated"]}, (0.0, 1.0)
            ),
        )


def test_a_rare_class_warns(store):
    with pytest.warns(UserWarning, match="class debris has 8 real training patches"):
        PatchDataModule(store, split_of(store), Scope.of_classes(CLASSES), min_class_patches=10)


@pytest.mark.parametrize("pixels", ["resident", "workers"])
def test_an_epoch_serves_every_patch_once_in_the_stated_range(store, pixels):
    data = PatchDataModule(
        store,
        split_of(store),
        Scope.of_classes(CLASSES),
        batch_size=7,
        pixels=pixels,
        augment="none",
    )
    batches = list(data.train_dataloader())
    served = torch.cat([b["pixels"] for b in batches])
    assert served.shape[1:] == (1, 16, 16) and served.min() >= -1 and served.max() <= 1
    assert sum(b["images"] for b in batches) == len(data.labels["train"])
    back = ((served.squeeze(1) + 1) * 127.5).round().byte().numpy()
    assert sorted(p.tobytes() for p in back) == sorted(
        p.numpy().tobytes() for p in data.bank["train"]
    )


def test_balanced_draws_every_target_equally_often(store):
    data = PatchDataModule(
        store, split_of(store), Scope.of_classes(CLASSES), sampler="balanced", batch_size=7
    )
    labels = torch.cat([b["label"] for b in data.train_dataloader()])
    assert len(set(np.bincount(labels).tolist())) == 1
    data = PatchDataModule(store, split_of(store), Scope.of_classes(CLASSES), epoch_images=200)
    assert (
        np.bincount(torch.cat([b["label"] for b in data.train_dataloader()])).tolist() == [50] * 4
    )


def test_the_same_seed_serves_the_same_batches(store):
    def first(seed):
        data = PatchDataModule(store, split_of(store), Scope.of_classes(CLASSES), seed=seed)
        return next(iter(data.train_dataloader()))["pixels"]

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_patches_are_reduced_by_averaging_whole_blocks():
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    small = reduce_pixels(pixels, 2)
    assert small[0, 0, 0] == round((0 + 1 + 4 + 5) / 4)
    assert small.shape == (2, 2, 2) and reduce_pixels(pixels, None) is not None
    with pytest.raises(UserError, match="data.patch_size=3"):
        reduce_pixels(pixels, 3)


class Watcher(pl.LightningModule):
    """Notes what Lightning feeds it, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_epoch_start(self):
        self.seen.append([])

    def training_step(self, batch, batch_idx):
        self.seen[-1].append(batch["pixels"].clone())
        return self.weight * batch["pixels"].mean()


@pytest.mark.parametrize("pixels", ["resident", "workers"])
@pytest.mark.parametrize("augment", ["none", "turns"])
def test_every_epoch_has_its_own_order_and_its_own_augmentation(store, tmp_path, pixels, augment):
    data = PatchDataModule(
        store,
        split_of(store),
        Scope.of_classes(CLASSES),
        batch_size=16,
        pixels=pixels,
        augment=augment,
    )
    watcher = Watcher()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(watcher, data)
    epochs = [[p.numpy().tobytes() for p in torch.cat(epoch)] for epoch in watcher.seen]
    for first, second in itertools.pairwise(epochs):
        assert sum(a == b for a, b in zip(first, second, strict=True)) < len(first) / 4  # the order
        if augment == "none":
            assert sorted(first) == sorted(second)
        else:
            assert len(set(first) & set(second)) < len(first) / 2


# --- places of generated patches --------------------------------------------------------------------------------------


def share_of(store, *, generated=None, **mix):
    return PatchDataModule(
        store,
        split_of(store),
        Scope.of_classes(CLASSES),
        generated=generated,
        mix=MixConfig("share", **mix),
        images=10_000,
        sampler="balanced",
        augment="none",
        batch_size=8,
    )


def served(data):
    """Pixels (as bytes), labels and weights of an epoch."""
    batches = list(data.train_dataloader())
    pixels = torch.cat([b["pixels"] for b in batches])
    back = ((pixels.squeeze(1) + 1) * 127.5).round().byte().numpy()
    labels = torch.cat([b["label"] for b in batches]).tolist()
    weights = torch.cat([b["weight"] for b in batches]).tolist() if "weight" in batches[0] else None
    return [p.tobytes() for p in back], labels, weights


@pytest.mark.parametrize("pixels", ["resident", "workers"])
def test_generated_patches_fill_places_of_their_class_and_weigh_what_they_are_told(
    store, generated, pixels
):
    data = share_of(store, generated=generated, amount=0.5, weight=0.25)
    data.served = pixels
    found, labels, weights = served(data)
    train = split_of(store).train
    real = {store.pixels[r].tobytes(): store.labels[r] for r in train}
    made = {p.tobytes(): i for p, i in zip(generated.pixels, generated.labels, strict=True)}
    for patch, label, weight in zip(found, labels, weights, strict=True):
        assert (real if patch in real else made)[patch] == label
        assert weight == (1 if patch in real else 0.25)
    assert weights.count(0.25) == pytest.approx(len(weights) / 2, abs=len(CLASSES))
    assert len(set(np.bincount(labels).tolist())) == 1
    assert data.class_counts == [n for n, _ in data.counts.values()]


def test_a_weight_of_one_is_none(store, generated):
    assert served(share_of(store, generated=generated, amount=0.5))[2] is None


def test_repeated_patches_fill_the_very_places_with_training_patches_of_the_class(store, generated):
    one, labels, weights = served(share_of(store, generated=generated, amount=0.5, weight=0.5))
    two, same, alike = served(share_of(store, source="repeated", amount=0.5, weight=0.5))
    assert (labels, weights) == (same, alike)
    real = {store.pixels[r].tobytes(): store.labels[r] for r in split_of(store).train}
    assert all(real[patch] == label for patch, label in zip(two, labels, strict=True))
    assert one != two


def test_what_statistics_are_measured_on_is_real_and_balanced(store, generated):
    data = share_of(store, generated=generated, amount=1.0, finish=0.25)
    pixels = torch.cat(list(data.real_batches(torch.device("cpu"))))
    back = ((pixels.squeeze(1) + 1) * 127.5).round().byte().numpy()
    real = {store.pixels[r].tobytes(): store.labels[r] for r in split_of(store).train}
    labels = [real[p.tobytes()] for p in back]
    assert len(set(np.bincount(labels).tolist())) == 1


def test_places_that_know_no_end_of_the_training_are_refused(store):
    with pytest.raises(ValueError, match="images of the training"):
        PatchDataModule(
            store,
            split_of(store),
            Scope.of_classes(CLASSES),
            mix=MixConfig("share", finish=0.25),
        )
