import copy
import itertools
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stemcell_lit.data.augment import to_uint8
from stemcell_lit.errors import UserError
from stemcell_lit.gan import objectives
from stemcell_lit.gan.alarms import GANDiverged
from stemcell_lit.gan.averaged import Averaged, ema_decay, mean_distance
from stemcell_lit.gan.config import check_config
from stemcell_lit.gan.module import GANModule
from tests.gan.helpers import (
    CLASSES,
    CONF,
    FAMILIES,
    FLOW,
    NOISE,
    SIDE,
    TINY,
    Killed,
    family,
    fit,
    make_data,
)


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


MODES = [[0.75, 0.25], [1.0], [0.25, 0.25, 0.5]]  # shares of the classes' modes
RESUMED = {name: family(name) for name in FAMILIES} | {
    "options": {
        "turns": "any",
        "burn_in": 0.8,
        "lr_end": 0.1,
        "penalty_every": 3,
        "channels_last": True,
    },
    "modes": {"shares": MODES},
    "flow": {**FLOW, "turns": "any", "burn_in": 0.8, "shares": MODES},
    "camera": {**family("style"), "truncation": 0.5, "camera": "learned", "noise": NOISE},
    "flow's camera": {**FLOW, "camera": "estimated", "noise": NOISE},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_resume_after_a_kill_is_bit_exact(tmp_path, settings):
    settings = {**settings, "images": 96}
    whole = fit(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", dies_at=60, **settings)  # 12 images behind the second checkpoint
    half = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert half["gan_state"]["images_seen"] == 48
    resumed = fit(tmp_path / "cut", **settings)
    assert whole.images_seen == resumed.images_seen == 96
    assert whole.batches_seen == resumed.batches_seen == 8
    assert same(whole.state_dict(), resumed.state_dict())
    assert not same(half["state_dict"], dict(whole.state_dict()))
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut")
    ]
    for key in ("state_dict", "optimizer_states", "gan_state"):
        assert same(states[0][key], states[1][key])


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
    module.averaged.save_grid(tmp_path / "again.png")
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


def test_a_class_is_drawn_from_its_modes_by_their_shares():
    module = GANModule(TINY, CLASSES, SIDE, modes=MODES).eval()
    asked = []
    module.generator_ema.register_forward_hook(lambda layer, given, made: asked.append(given[1]))
    module.averaged.refresh()
    asked.clear()
    module.sample(torch.arange(3).repeat(2000), seed=1)
    share = torch.cat(asked).bincount(minlength=6) / 2000
    torch.testing.assert_close(
        share, torch.tensor([0.75, 0.25, 1.0, 0.25, 0.25, 0.5]), atol=0.04, rtol=0
    )
    asked.clear()
    module.averaged.fixed_samples()  # the grid: few, and yet every mode at its share
    counts = torch.cat(asked).bincount(minlength=6).tolist()
    assert [abs(a - b) <= 1 for a, b in zip(counts, [24, 8, 32, 8, 8, 16], strict=True)] == [
        True
    ] * 6


def test_a_batch_reaches_the_networks_by_its_modes(tmp_path):
    module = fit(tmp_path, shares=MODES)
    assert module.generator.embedding.num_embeddings == 6
    moved = (
        module.generator.embedding.weight
        - GANModule(TINY, CLASSES, SIDE, modes=MODES).generator.embedding.weight
    )
    assert (moved.abs().sum(1) > 0).all()
    loaded = GANModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    label = torch.arange(6) % 3
    assert np.array_equal(module.sample(label, 1), loaded.sample(label, 1))


def test_without_modes_a_class_is_its_own_condition():
    one, none = (GANModule(TINY, CLASSES, SIDE, modes=m).eval() for m in ([[1.0]] * 3, None))
    assert none.conditions.class_of.tolist() == [0, 1, 2]
    assert np.array_equal(one.sample(torch.arange(3), 1), none.sample(torch.arange(3), 1))


def test_pairs_of_networks_per_class_have_no_modes():
    with pytest.raises(UserError, match="gan.modes=1"):
        GANModule({**TINY, **family("dcgan"), "modes": 8}, CLASSES, SIDE, modes=MODES)


def test_ema_follows_its_formula():
    module = GANModule({**TINY, "ema_halflife_images": 100, "ema_rampup": 0.5}, CLASSES, SIDE)
    expected = copy.deepcopy(dict(module.generator_ema.named_parameters()))
    for step in range(1, 4):
        with torch.no_grad():
            for weight in module.generator.parameters():
                weight.add_(step)
        module.averaged.follow(module.generator, 12, 12 * step)
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
    block = module.generator_ema.blocks[0]
    module.sample(label, 0)
    watched = block.register_forward_hook(
        lambda layer, given, made: seen.append(block.norm(given[0]))
    )
    made = module.sample(label, 1, batch_size=300)
    watched.remove()  # a second pass in training mode would move the statistics twice
    assert seen[0].mean(dim=(0, 2, 3)).abs().max() < 0.2
    assert (seen[0].std(dim=(0, 2, 3)) - 1).abs().max() < 0.2
    assert not module.generator_ema.training
    module.averaged.stale = True
    assert np.array_equal(made, module.sample(label, 1, batch_size=300))  # measured alike again


def test_halflife_means_what_it_says():
    assert ema_decay(500, 10_000, 500, 0) == pytest.approx(0.5)
    assert ema_decay(48, 48, 17_000, 0.1) < 1e-3  # at first nothing of the start remains


def test_real_and_generated_are_shifted_alike(tmp_path, monkeypatch):
    seen = []
    original = objectives.translate

    def spy(pixels, draw):
        seen.append(len(pixels))
        return original(pixels, draw)

    monkeypatch.setattr(objectives, "translate", spy)
    fit(tmp_path, images=12, loss="non_saturating")
    # the critic's step: real and generated in one call; the generator's: generated
    assert seen == [24, 12]


def test_what_a_turned_real_patch_does_not_show_is_hidden_in_the_generated_one(
    tmp_path, monkeypatch
):
    seen = []

    def spy(pixels, draw):
        seen.append(pixels.detach().clone())
        return pixels

    monkeypatch.setattr(objectives, "translate", spy)
    fit(tmp_path, images=12, turns="any")
    assert len(seen) == 2  # the critic's step and the generator's
    for pixels in seen:
        first, second = ((part == 0) for part in pixels.chunk(2))
        assert torch.equal(first, second)
        assert sorted(first.flatten(1).any(1).tolist()) == [False] * 6 + [True] * 6


def test_penalty_is_lazy_and_scaled(tmp_path, monkeypatch):
    calls = []
    original = objectives.gradient_penalty

    def spy(critic, pixels, label):
        calls.append(len(pixels))
        return original(critic, pixels, label)

    monkeypatch.setattr(objectives, "gradient_penalty", spy)
    fit(tmp_path, images=12 * 7, r1=1.0, r2=0.0, penalty_every=3)
    assert calls == [12, 12, 12]  # batches 0, 3 and 6


def test_nan_stops_the_training(tmp_path, monkeypatch):
    original = objectives.random_turn

    def broken(*given):
        pixels, shown = original(*given)
        return pixels * (float("nan") if next(count) > 2 else 1), shown

    count = itertools.count()
    monkeypatch.setattr(objectives, "random_turn", broken)
    with pytest.raises(GANDiverged, match=r"diverged.*gan\.lr"):
        fit(tmp_path, images=100_000)
    assert next(count) <= 32
    assert issubclass(GANDiverged, UserError)


def test_collapse_stops_the_training(tmp_path, monkeypatch):
    original = Averaged.fixed_samples

    def collapsed(self):
        image, label = original(self)
        return torch.where((label == 1)[:, None, None, None], image[:1], image), label

    monkeypatch.setattr(Averaged, "fixed_samples", collapsed)
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
        ({"los": "wasserstein"}, "unknown keys"),
        ({"loss": "kl"}, "relativistic"),
        ({"network": "gan"}, "modulated"),
        ({"camera": "film"}, "estimated"),
        ({"condition": "auxilary"}, "auxiliary"),
        ({"size": "huge"}, "base"),
        ({"burn_in": 2}, "0 to 1"),
        ({"critic_steps": 0}, "1 or more"),
        ({"turns": "all"}, "square"),
        ({"images": 0}, "1 or more"),
        ({"channels": [0]}, "1 to 65,536"),
        ({"precision": "float16"}, "bfloat16"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(UserError, match=match):
        check_config(settings)


def test_every_config_in_conf_is_legal():
    files = sorted(CONF.glob("*.yaml"))
    assert {*FAMILIES, "small", "base", "smoke"} <= {f.stem for f in files}
    for file in files:
        settings = yaml.safe_load(file.read_text())
        assert settings["name"] == file.stem
        check_config(settings)


def test_batches_of_the_product_are_what_the_module_expects(tmp_path):
    batch = next(iter(make_data(tmp_path, TINY).train_dataloader()))
    assert batch["pixels"].shape == (12, 1, SIDE, SIDE)
    assert batch["pixels"].abs().max() <= 1
    assert batch["images"] == 12


def test_generator_steps_at_every_nth_batch_of_the_critic(tmp_path):
    start = GANModule(family("wgan_gp"), CLASSES, SIDE)
    first = fit(tmp_path / "four", **{**family("wgan_gp"), "images": 48})
    fifth = fit(tmp_path / "five", **{**family("wgan_gp"), "images": 60})
    assert same(dict(start.generator.named_parameters()), dict(first.generator.named_parameters()))
    assert not same(dict(first.critic.named_parameters()), dict(start.critic.named_parameters()))
    assert not same(
        dict(first.generator.named_parameters()), dict(fifth.generator.named_parameters())
    )


def test_schedule_falls_by_half_a_cosine_of_the_images(tmp_path, monkeypatch):
    rates, original = [], objectives.gradient_penalty

    def spy(critic, pixels, label):
        rates.append([o.param_groups[0]["lr"] for o in made[0].trainer.optimizers])
        return original(critic, pixels, label)

    made, init = [], GANModule.setup
    monkeypatch.setattr(
        GANModule, "setup", lambda self, stage: made.append(self) or init(self, stage)
    )
    monkeypatch.setattr(objectives, "gradient_penalty", spy)
    settings = {"images": 96, "burn_in": 0.5, "lr_end": 0.2, "lr": 1e-3, "critic_lr": 2e-3}
    fit(tmp_path, **settings, r2=0.0, penalty_every=1)
    share = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * min(1, i / 4))) for i in range(8)]
    assert rates == pytest.approx(np.array([[1e-3 * s, 2e-3 * s] for s in share]))
