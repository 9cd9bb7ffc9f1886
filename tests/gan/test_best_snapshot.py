from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from stemcell_lit.base.checkpoints import WholeCheckpoints, check_resumable
from stemcell_lit.errors import UserError
from stemcell_lit.gan import best_snapshot as watching
from stemcell_lit.gan.alarms import GANDiverged
from stemcell_lit.gan.best_snapshot import QualityWatch, distance_to, keep_best, root_kid, samples
from stemcell_lit.gan.distances import frechet, kid
from stemcell_lit.gan.module import GANModule
from stemcell_lit.gan.quality import Reference
from stemcell_lit.gan.trained import load_generator
from stemcell_lit.settings.gan_keys import QualityConfig
from tests.gan.helpers import CLASSES, SIDE, TINY, Batches, batch_of


def to_pixels(batch):
    pixels = ((batch["pixels"][:, 0].numpy() + 1) * 127.5).round().astype(np.uint8)
    return pixels, batch["label"].numpy()


class Blocks:
    """Stands for an encoder: means over 4 x 4 blocks."""

    name = "abc123"

    def features(self, pixels):
        n, side = len(pixels), SIDE // 4
        return (
            pixels.reshape(n, side, 4, side, 4).mean((2, 4)).reshape(n, -1).astype(np.float32) / 64
        )


@pytest.fixture
def reference():
    return Reference(CLASSES, *to_pixels(batch_of(1, 60)), *to_pixels(batch_of(2, 36)), Blocks())


class Scripted(GANModule):
    """Shows given patches instead of its own, by the number of the validation."""

    plan: ClassVar[list] = []

    def sample(self, labels, seed, batch_size=256):
        kind, pixels = self.plan[min(self.batches_seen // 2 - 1, len(self.plan) - 1)]
        random = np.random.default_rng(seed)
        pool = pixels[int(labels[0])]
        made = pool[random.integers(0, len(pool), len(labels))].astype(np.int64)
        made += random.integers(-3, 4, made.shape)
        if kind != "copy":
            made = made // 2 + {"bright": 100, "glaring": 127}[kind]
        return np.clip(made, 0, 255).astype(np.uint8)


def pools(seed, n=90):
    pixels, label = to_pixels(batch_of(seed, n))
    return [pixels[label == i] for i in range(len(CLASSES))]


def fit(out, reference, module, resume=None, skip=0, loaders=None, **quality):
    config = QualityConfig(**{"samples": 24, "memorised_below": 0.3, **quality})
    watch = QualityWatch(reference, config, out)
    gan = dict(module.gan)
    trainer = pl.Trainer(
        plugins=[WholeCheckpoints()],
        accelerator="cpu",
        devices=1,
        default_root_dir=out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            watch,
            ModelCheckpoint(
                out, filename="last", save_on_train_epoch_end=False, enable_version_counter=False
            ),
        ],
        max_epochs=-1,
        log_every_n_steps=1,
        val_check_interval=gan["validate_every_images"] // gan["batch_size"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    error = None
    try:
        trainer.fit(
            module,
            *(
                loaders
                or (Batches(gan["batch_size"], skip=skip), Batches(12, count=2, skip=10_000))
            ),
            ckpt_path=resume,
            weights_only=True,
        )
        trainer.save_checkpoint(out / "generator.ckpt", weights_only=True)
    except GANDiverged as raised:
        error = raised
    return watch, error


def scripted(plan, images):
    module = Scripted({**TINY, "images": images}, CLASSES, SIDE)
    module.plan = plan
    return module


def test_the_best_snapshot_is_kept_not_the_last(tmp_path, reference):
    plan = [("bright", pools(5)), ("copy", pools(6)), ("glaring", pools(7))]  # of new patches
    watch, error = fit(tmp_path, reference, scripted(plan, 72))
    assert error is None
    assert [c["images"] for c in watch.checks] == [24, 48, 72]
    values = [c["value"] for c in watch.checks]
    assert values[1] == min(values) and watch.best == watch.checks[1]
    assert watch.metric == "frechet_train/encoder=abc123"
    told = keep_best(watch, tmp_path, None)
    assert told["chosen"]["images"] == 48 and told["alarm"] is None
    assert load_generator(tmp_path / "generator.ckpt").images_seen == 48


def test_the_score_is_the_mean_over_classes_of_root_kid_to_training_patches(tmp_path, reference):
    module = GANModule(TINY, CLASSES, SIDE).eval()
    config = QualityConfig(samples=24, choose="kid")
    check = QualityWatch(reference, config, tmp_path).score(module)
    made = samples(module, 24, CLASSES)
    real = [reference.train[reference.train_label == i] for i in range(3)]
    each = [
        kid(Blocks().features(r), Blocks().features(m)) for r, m in zip(real, made, strict=True)
    ]
    assert check["value"] == pytest.approx(np.mean(np.sqrt(np.maximum(each, 0))))
    assert check == QualityWatch(reference, config, tmp_path).score(module)


def test_held_out_groups_unlike_the_training_groups_do_not_choose(tmp_path, reference):
    """They are brighter, as of another dish: patches like them are worse than ones like those learned from."""
    odd = (reference.held_out.astype(np.int64) // 2 + 100).astype(np.uint8)
    reference = Reference(
        CLASSES,
        reference.train,
        reference.train_label,
        odd,
        reference.held_label,
        Blocks(),
    )
    plan = [("bright", pools(5)), ("copy", pools(6))]
    watch, _ = fit(tmp_path, reference, scripted(plan, 48))
    assert watch.best["images"] == 48
    other, _ = fit(tmp_path / "other", reference, scripted(plan, 48), against="held_out")
    assert other.best["images"] == 24 and other.metric == "frechet_held_out/encoder=abc123"


def test_one_odd_class_does_not_decide_alone():
    """Held-out patches of a class unlike all training: its change must not outweigh the others."""
    random = np.random.default_rng(0)
    held = [random.normal(shift, 1, (40, 8)) for shift in (0, 0, 0, 3)]
    early = [random.normal(0.9, 1, (40, 8)) for _ in range(4)]  # all blurred alike, between them
    late = [random.normal(0, 1, (40, 8)) for _ in range(4)]  # three classes right
    assert distance_to(kid, held, early, 5) < distance_to(kid, held, late, 5)
    assert distance_to(root_kid, held, late, 5) < distance_to(root_kid, held, early, 5)


@pytest.mark.parametrize("seed", range(3))
def test_a_few_patches_with_large_features_do_not_choose_the_worse_snapshot(seed):
    """One patch in ten has large features, slightly too large in the later, better snapshot.

    KID's cubic kernel then prefers one of a fifth of the spread; the Frechet distance does not.
    """
    random = np.random.default_rng(seed)

    def draw(n, tail, spread=1.0):
        x = random.normal(0, spread, (n, 8))
        x[: n // 10, :4] += tail
        return x

    held, early, late = [draw(60, 4)], [draw(64, 3, 0.2)], [draw(64, 5.5)]
    assert distance_to(root_kid, held, early, 5) < distance_to(root_kid, held, late, 5)
    assert distance_to(frechet, held, late, 5) < distance_to(frechet, held, early, 5)


def test_classes_with_too_few_real_patches_do_not_count():
    random = np.random.default_rng(0)
    held = [random.normal(size=(n, 4)) for n in (20, 3)]
    made = [random.normal(size=(20, 4)), random.normal(size=(20, 4)) + 50]
    assert distance_to(kid, held, made, 5) == kid(held[0], made[0])
    assert distance_to(kid, held, made, 50) == kid(np.concatenate(held), np.concatenate(made))
    assert distance_to(kid, [held[0][:1]], made[:1], 5) is None


def test_choosing_the_last_is_possible(tmp_path, reference):
    watch, _ = fit(
        tmp_path, reference, GANModule({**TINY, "images": 48}, CLASSES, SIDE), choose="last"
    )
    assert keep_best(watch, tmp_path, None)["chosen"]["images"] == 48
    with pytest.raises(UserError, match="quality.choose=beauty"):
        QualityWatch(reference, QualityConfig(choose="beauty"), tmp_path)
    with pytest.raises(UserError, match="quality.against=test"):
        QualityWatch(reference, QualityConfig(against="test"), tmp_path)


def test_resume_keeps_the_best_so_far_and_goes_on_exactly(tmp_path, reference):
    plan = [("copy", pools(6)), ("bright", pools(5)), ("bright", pools(7)), ("bright", pools(8))]
    whole, _ = fit(tmp_path / "whole", reference, scripted(plan, 96))
    fit(tmp_path / "half", reference, scripted(plan, 48))
    (tmp_path / "half" / "best-000099999.ckpt").write_bytes(b"of a run that was killed")
    resumed, _ = fit(
        tmp_path / "half",
        reference,
        scripted(plan, 96),
        resume=tmp_path / "half" / "last.ckpt",
        skip=4,
    )
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.best["images"] == 24
    assert [p.name for p in (tmp_path / "half").glob("best-*")] == ["best-000000024.ckpt"]
    for folder, watch in (("whole", whole), ("half", resumed)):
        keep_best(watch, tmp_path / folder, None)
    first, second = (
        load_generator(tmp_path / f / "generator.ckpt").state_dict() for f in ("whole", "half")
    )
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_snapshot_is_whole_or_absent(tmp_path, reference, monkeypatch):
    plan = [("bright", pools(5)), ("copy", pools(6))]
    original = Path.replace

    def cut_off(self, target):
        if "best-000000048" in str(target):
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", cut_off)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, reference, scripted(plan, 48))
    assert [p.name for p in tmp_path.glob("best-*.ckpt")] == ["best-000000024.ckpt"]
    monkeypatch.undo()
    watch, _ = fit(tmp_path, reference, scripted(plan, 48), resume=tmp_path / "last.ckpt", skip=2)
    assert watch.best["images"] == 48
    assert keep_best(watch, tmp_path, None)["chosen"]["images"] == 48
    left = {p.name for p in tmp_path.glob("best-*")}  # the last checkpoint may still name the other
    assert left == {"best-000000024.ckpt", "best-000000048.ckpt"}


@pytest.mark.parametrize("how", ["absent", "empty", "cut"])
def test_a_training_does_not_go_on_from_a_best_snapshot_that_is_broken(tmp_path, reference, how):
    watch, _ = fit(tmp_path, reference, scripted([("bright", pools(5))], 48))
    module, again = (
        scripted([("bright", pools(5))], 48),
        QualityWatch(reference, watch.config, tmp_path),
    )
    last, best = tmp_path / "last.ckpt", watch.snapshot
    check_resumable(last, module, [again])
    content = best.read_bytes()
    best.unlink()
    if how != "absent":
        best.write_bytes(b"" if how == "empty" else content[: len(content) // 2])
    with pytest.raises(ValueError, match=best.name):
        check_resumable(last, module, [again])


def test_a_generator_of_training_patches_is_caught(tmp_path, reference):
    """Training patches with slight noise: KID loves them, the alarm does not."""
    train = [reference.train[reference.train_label == i] for i in range(len(CLASSES))]
    plan = [("copy", pools(6)), ("copy", train)]
    watch, error = fit(tmp_path, reference, scripted(plan, 10_000))
    assert "memorised: after 72 images" in str(error)
    assert "quality.memorised_below" in str(error)
    assert [c["memorised"] for c in watch.checks] == [False, True, True]
    assert watch.best["images"] == 24
    assert watch.checks[1]["value"] < watch.checks[0]["value"] + 0.5  # KID sees no harm in copies
    told = keep_best(watch, tmp_path, error)
    assert told["alarm"] == str(error) and told["chosen"]["images"] == 24
    assert load_generator(tmp_path / "generator.ckpt").images_seen == 24


def test_without_a_good_snapshot_an_alarm_is_an_error(tmp_path, reference):
    train = [reference.train[reference.train_label == i] for i in range(len(CLASSES))]
    watch, error = fit(
        tmp_path, reference, scripted([("copy", train)], 10_000), memorised_below=0.5
    )
    with pytest.raises(UserError, match=r"memorised.*No good snapshot"):
        keep_best(watch, tmp_path, error)


def test_snapshots_that_all_repeat_patches_are_told_where_no_alarm_rang(tmp_path, reference):
    train = [reference.train[reference.train_label == i] for i in range(len(CLASSES))]
    watch, error = fit(
        tmp_path,
        reference,
        scripted([("copy", train)], 48),
        memorised_checks=0,
    )
    assert error is None
    assert "repeated training patches" in keep_best(watch, tmp_path, None)["alarm"]
    assert load_generator(tmp_path / "generator.ckpt").images_seen == 48


def test_runaway_losses_stop_the_training(tmp_path, reference):
    watch = QualityWatch(reference, QualityConfig(runaway_above=100), tmp_path)
    for i in range(40):
        watch.look(2.0 + i % 3, i, GANModule.words)
    watch.look(1e6, 41, GANModule.words)
    watch.look(3.0, 42, GANModule.words)  # one bad batch stops nothing
    watch.look(1e6, 43, GANModule.words)
    watch.look(float("inf"), 44, GANModule.words)
    with pytest.raises(GANDiverged, match=r"diverged: after 45 images.*gan\.lr"):
        watch.look(1e5, 45, GANModule.words)


def test_losses_of_any_usual_size_are_fine(tmp_path, reference):
    watch = QualityWatch(reference, QualityConfig(runaway_above=100), tmp_path)
    for i in range(100):
        watch.look(5_000.0 * (1 + i % 5), i, GANModule.words)  # a Wasserstein loss has no scale


def test_the_losses_of_a_training_are_looked_at(tmp_path, reference, monkeypatch):
    monkeypatch.setattr(watching, "_LOOK_EVERY", 2)
    module = GANModule({**TINY, "images": 72}, CLASSES, SIDE)
    watch, _ = fit(tmp_path, reference, module)
    assert len(watch.state_dict()["looks"]) == 3
    assert all(np.isfinite(watch.state_dict()["looks"]))
