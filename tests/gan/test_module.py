import copy

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from stemcell_lit.data.augment import to_uint8
from stemcell_lit.errors import UserError
from stemcell_lit.gan import module as gan_module
from stemcell_lit.gan import objectives
from stemcell_lit.gan.module import (
    GANDiverged,
    GANModule,
    check_config,
    ema_decay,
    mean_distance,
    trainer_settings,
)
from tests.gan.helpers import CLASSES, SIDE, TINY, Batches, batch_of, fit


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order differ in the last bit
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return fit(out), out


def same(first, second):
    """Every tensor and number of two nested states is equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "hinge", "spectral": True, "precision": "float32"},
        {"norm": "none", "r1": 1.0, "r2": 1.0, "penalty_every": 3},
    ],
)
def test_resume_is_bit_exact(tmp_path, settings):
    whole = fit(tmp_path / "whole", images=96, **settings)
    fit(tmp_path / "half", images=48, **settings)
    resumed = fit(
        tmp_path / "resumed", tmp_path / "half" / "last.ckpt", skip=4, images=96, **settings
    )
    assert whole.images_seen == resumed.images_seen == 96
    assert whole.batches_seen == resumed.batches_seen == 8
    assert same(whole.state_dict(), resumed.state_dict())
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)
        for name in ("whole", "resumed")
    ]
    assert same(states[0]["optimizer_states"], states[1]["optimizer_states"])
    assert same(states[0]["gan_state"], states[1]["gan_state"])


def test_another_seed_is_another_training(trained, tmp_path):
    other = fit(tmp_path, seed=1)
    assert not same(trained[0].state_dict(), other.state_dict())


def test_budget_counts_images_not_optimiser_steps(trained):
    module, _ = trained
    assert module.images_seen == 48
    assert module.batches_seen == 4
    assert (
        module.trainer.global_step == 8
    )  # Lightning counts both optimisers: no measure of a budget


def test_budget_is_filled_by_the_last_whole_batch(tmp_path):
    assert fit(tmp_path, images=50).images_seen == 60


def test_grids_are_named_by_images_and_show_every_class(trained):
    _, out = trained
    names = sorted(p.name for p in (out / "grids").iterdir())
    assert names == ["images_000000024.png", "images_000000048.png"]
    with Image.open(out / "grids" / names[0]) as page:
        assert page.height == 64 * len(CLASSES)
        assert page.width > 64 * 16  # the names stand before the patches


def test_grid_is_the_same_at_every_call(trained, tmp_path):
    module, out = trained
    module.save_grid(tmp_path / "again.png")
    first, second = tmp_path / "again.png", out / "grids" / "images_000000048.png"
    assert first.read_bytes() == second.read_bytes()


def test_logged_values(trained):
    logged = trained[0].trainer.callback_metrics
    wanted = {"loss_g", "loss_d", "critic/real", "critic/fake", "critic/held_out", "critic/train"}
    assert wanted | {"diversity", "diversity_least"} <= set(logged)
    assert all(torch.isfinite(v) for v in logged.values())


def test_reload_with_weights_only(trained):
    module, out = trained
    again = GANModule.load_from_checkpoint(out / "last.ckpt", weights_only=True)
    assert same(module.state_dict(), again.state_dict())
    assert again.gan == module.gan
    assert again.classes == CLASSES
    assert again.images_seen == 48
    assert type(again.hparams["gan"]) is dict
    label = torch.arange(9) % 3
    assert np.array_equal(module.sample(label, 5), again.sample(label, 5))


def test_sample_is_deterministic_and_of_its_label(trained):
    module, _ = trained
    label = torch.arange(10) % 3
    first = module.sample(label, seed=1, batch_size=4)
    assert first.shape == (10, SIDE, SIDE)
    assert first.dtype == np.uint8
    assert np.array_equal(first, module.sample(label, seed=1, batch_size=4))
    assert not np.array_equal(first, module.sample(label, seed=2, batch_size=4))
    assert not np.array_equal(first, module.sample((label + 1) % 3, seed=1, batch_size=4))
    assert module.sample(label[:0], seed=1).shape == (0, SIDE, SIDE)


def test_sample_leaves_the_global_random_state_alone(trained):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    trained[0].sample(torch.zeros(2, dtype=torch.int64), seed=1)
    GANModule(TINY, CLASSES, SIDE)
    assert torch.equal(before, torch.get_rng_state())


def test_ema_follows_its_formula():
    module = GANModule({**TINY, "ema_halflife_images": 100, "ema_rampup": 0.5}, CLASSES, SIDE)
    expected = copy.deepcopy(dict(module.generator_ema.named_parameters()))
    for step in range(1, 4):
        with torch.no_grad():
            for weight in module.generator.parameters():
                weight.add_(step)
        module.images_seen = 12 * step
        module._update_ema(12)
        decay = 0.5 ** (12 / min(100, 0.5 * 12 * step))
        for name, weight in module.generator.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach()
    for name, weight in module.generator_ema.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-5)
        assert not weight.requires_grad


def test_statistics_belong_to_the_averaged_weights():
    module = GANModule(TINY, CLASSES, SIDE)
    with torch.no_grad():
        module.generator_ema.start.bias.add_(3)  # moves the input of the first norm
    label = torch.arange(300) % 3
    seen = []
    first = module.generator_ema.blocks[0].norm
    module.sample(label, 0)
    first.register_forward_hook(lambda layer, given, made: seen.append(made))
    made = module.sample(label, 1, batch_size=300)
    assert seen[0].mean(dim=(0, 2, 3)).abs().max() < 0.2
    assert (seen[0].std(dim=(0, 2, 3)) - 1).abs().max() < 0.2
    assert not module.generator_ema.training
    module._stale = True
    assert np.array_equal(made, module.sample(label, 1, batch_size=300))  # measured alike again


def test_halflife_means_what_it_says():
    assert ema_decay(500, 10_000, 500, 0) == pytest.approx(0.5)
    assert ema_decay(48, 48, 17_000, 0.1) < 1e-3  # at first nothing of the start remains


def test_real_and_generated_are_augmented_alike(tmp_path, monkeypatch):
    seen = []
    original = objectives.augment

    def spy(pixels, names, generator):
        seen.append((len(pixels), tuple(names)))
        return original(pixels, names, generator)

    monkeypatch.setattr(objectives, "augment", spy)
    fit(tmp_path, images=12, loss="hinge", augment=["brightness"])
    # the critic's step: real and generated in one call; the generator's: generated
    assert seen == [(24, ("brightness",)), (12, ("brightness",))]


def test_penalty_is_lazy_and_scaled(tmp_path, monkeypatch):
    calls = []
    original = objectives.gradient_penalty

    def spy(critic, pixels, label):
        calls.append(len(pixels))
        return original(critic, pixels, label)

    monkeypatch.setattr(objectives, "gradient_penalty", spy)
    fit(tmp_path, images=12 * 7, r1=1.0, r2=0.0, penalty_every=3)
    assert calls == [12, 12, 12]  # batches 0, 3 and 6


def test_nan_stops_the_training(tmp_path):
    class Broken(Batches):
        def __iter__(self):
            for step, batch in enumerate(super().__iter__()):
                yield {**batch, "pixels": batch["pixels"] * (float("nan") if step > 2 else 1)}

    module = GANModule({**TINY, "images": 100_000}, CLASSES, SIDE)
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        max_epochs=-1,
    )
    with pytest.raises(GANDiverged, match=r"diverged.*gan\.lr"):
        trainer.fit(module, Broken(12))
    assert module.batches_seen <= 32
    assert issubclass(GANDiverged, UserError)


def test_collapse_stops_the_training(tmp_path, monkeypatch):
    original = GANModule._fixed_samples

    def collapsed(self):
        image, label = original(self)
        return torch.where((label == 1)[:, None, None, None], image[:1], image), label

    monkeypatch.setattr(GANModule, "_fixed_samples", collapsed)
    with pytest.raises(GANDiverged, match=r"collapsed: after 72 images.*columns 0\.00"):
        fit(tmp_path, images=10_000, collapse_below=0.001, collapse_checks=3)


def test_distance_within_classes():
    pixels = torch.tensor([0.0, 1.0, 3.0, 5.0, 9.0]).reshape(5, 1, 1, 1)
    label = torch.tensor([0, 0, 0, 1, 2])
    found = mean_distance(pixels, label, 4)
    assert found[0].item() == pytest.approx((1 + 2 + 3) / 3)
    assert found[1:].isnan().all()


def test_uint8_inverts_the_scaling_of_the_data():
    values = torch.arange(256, dtype=torch.float32)
    scaled = (values / 127.5 - 1).reshape(1, 1, 16, 16)
    assert np.array_equal(to_uint8(scaled).ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"los": "hinge"}, "unknown keys"),
        ({"loss": "wasserstein"}, "hinge"),
        ({"norm": "layer"}, "batch"),
        ({"augment": ["cutout"]}, "brightness"),
        ({"images": 0}, "at least 1"),
        ({"channels": []}, "positive"),
        ({"precision": "float16"}, "bfloat16"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(UserError, match=match):
        check_config(settings)


def test_a_batch_is_that_of_all_devices():
    assert (
        trainer_settings({"batch_size": 10, "validate_every_images": 80})["val_check_interval"] == 8
    )
    many = trainer_settings({"batch_size": 10, "validate_every_images": 80}, devices=4)
    assert many["val_check_interval"] == 8
    assert many["strategy"] == "ddp_find_unused_parameters_true"


def test_every_config_in_conf_is_legal():
    from pathlib import Path

    import yaml

    folder = Path(gan_module.__file__).parents[2] / "conf" / "gan"
    files = sorted(folder.glob("*.yaml"))
    assert {"tiny", "tiny_r3", "smoke"} <= {f.stem for f in files}
    for file in files:
        settings = yaml.safe_load(file.read_text())
        assert settings["name"] == file.stem
        GANModule(settings, CLASSES, 32)


def test_batches_of_the_helper_are_what_the_module_expects():
    batch = batch_of(0, 6)
    assert batch["pixels"].shape == (6, 1, SIDE, SIDE)
    assert batch["pixels"].abs().max() <= 1
