import itertools
import math

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.errors import UserError
from stemcell_lit.gan import flow as flow_file
from stemcell_lit.gan.alarms import GANDiverged
from stemcell_lit.gan.averaged import ema_decay
from stemcell_lit.gan.config import check_config
from stemcell_lit.gan.families import FAMILIES, make_module
from stemcell_lit.gan.flow import FlowModule, on_the_way, random_times, velocity_loss
from stemcell_lit.gan.flow_network import FlowGenerator, UNet, build_flow, follow, shifted
from stemcell_lit.gan.layers import CHUNK
from stemcell_lit.gan.module import GANModule
from stemcell_lit.gan.synthesis import synthesize
from stemcell_lit.gan.trained import load_generator
from stemcell_lit.settings.field_types import bound_of
from stemcell_lit.settings.gan_keys import GANConfig
from tests.gan.helpers import CLASSES, CONF, FLOW, SIDE, TINY, fit
from tests.gan.test_networks import count_macs

MODES = [[0.75, 0.25], [1.0], [0.25, 0.25, 0.5]]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order differ in the last bit
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("flow")
    return fit(out, shares=MODES, **FLOW), out


def noisy(network):
    """Weights of a network whose answers are not 0, as they are at its start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return network


def a_module(**more):
    module = FlowModule({**FLOW, **more}, CLASSES, SIDE, modes=MODES).eval()
    noisy(module.generator_ema)
    return module


def test_the_loss_of_a_perfect_velocity_is_zero_and_hidden_pixels_count_nothing():
    pixels, noise = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    shown = torch.ones_like(pixels)
    assert torch.equal(velocity_loss(noise - pixels, pixels, noise, shown), torch.zeros(4))
    off = noise - pixels + 2
    torch.testing.assert_close(velocity_loss(off, pixels, noise, shown), torch.full((4,), 4.0))
    shown[:, :, :4] = 0
    off[:, :, :4] = 1e6
    torch.testing.assert_close(velocity_loss(off, pixels, noise, shown), torch.full((4,), 4.0))


def test_the_velocity_is_the_slope_of_the_way():
    pixels, noise = torch.rand(3, 1, 8, 8).double(), torch.randn(3, 1, 8, 8).double()
    time = torch.tensor([0.0, 0.4, 0.9]).double()
    assert torch.equal(on_the_way(pixels, noise, time)[0], pixels[0])
    slope = (on_the_way(pixels, noise, time + 1e-3) - on_the_way(pixels, noise, time)) / 1e-3
    torch.testing.assert_close(slope, noise - pixels)


def test_the_answer_depends_on_time_class_mode_and_whether_these_are_known():
    network = noisy(UNet([0, 0, 1, 2], SIDE, channels=[8, 8, 8], embedding=4))
    pixels = torch.randn(1, 1, SIDE, SIDE).expand(6, -1, -1, -1)
    time = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.6])
    condition = torch.tensor([0, 1, 2, 3, network.null, 0])  # 0 and 1 are modes of one class
    made = network(pixels, time, condition)
    assert made.shape == (6, 1, SIDE, SIDE)
    for one, other in itertools.combinations(made.detach(), 2):
        assert (one - other).abs().max() > 1e-3


def test_without_modes_the_network_has_a_condition_for_each_class_and_one_for_none():
    network = UNet([0, 1, 2], SIDE, channels=[8, 8, 8], embedding=4)
    assert network.modes is None and network.classes.num_embeddings == 4 and network.null == 3


@settings(max_examples=12, deadline=None)
@given(
    st.floats(-1, 1),
    st.floats(0.2, 2),
    st.floats(0.3, 3),
)
def test_eulers_way_along_the_true_velocity_of_a_gaussian_ends_at_the_data(mean, std, shift):
    def velocity(x, t):
        # E [n - x | x_t] of normal x and n, whose joint distribution with x_t is normal
        t = t[:, None, None, None]
        variance = (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean

    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    exact = mean + std * noise  # the way keeps each place's rank
    most = float(noise.abs().max())
    for steps, error in ((200, 0.04), (800, 0.01)):  # of first order
        found = follow(velocity, noise, steps, shift)
        assert (found - exact).abs().max() < error * most


def test_times_are_a_normals_logistic_and_a_shift_moves_them_and_keeps_the_ends():
    draw = torch.Generator().manual_seed(0)
    time = random_times(20_000, 1.0, draw)
    logit = torch.logit(time)
    assert abs(float(logit.mean())) < 0.03 and abs(float(logit.std()) - 1) < 0.03
    moved = torch.logit(random_times(20_000, 0.5, draw))
    assert float(moved.mean()) == pytest.approx(math.log(0.5), abs=0.03)
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(shifted(ends, 0.3), ends)


def test_guidance_of_one_is_no_guidance_and_more_acts_inside_its_interval_alone():
    network = noisy(UNet([0, 1], SIDE, channels=[8, 8, 8], embedding=4)).requires_grad_(False)
    latent, label = torch.randn(CHUNK, SIDE**2), torch.arange(CHUNK) % 2

    def made(**how):
        generator = FlowGenerator(network, SIDE, steps=4, **how)
        return generator(latent, label)

    asked = []
    watched = network.register_forward_hook(lambda layer, given, out: asked.append(given[2]))
    one = made(guidance=1.0)
    assert len(asked) == 4 and all(torch.equal(y, label) for y in asked)
    asked.clear()
    guided = made(guidance=1.5, interval=(0.4, 0.8))  # of the times 1, .75, .5 and .25
    nulls = [bool((y == network.null).all()) for y in asked]
    watched.remove()
    assert nulls == [False, False, True, False, True, False]
    plain = follow(lambda x, t: network(x, t, label), latent.view(-1, 1, SIDE, SIDE), 4)
    assert torch.equal(one, plain.clamp(-1, 1))
    assert not torch.equal(guided, one)
    assert torch.equal(made(guidance=1.5, interval=(0.8, 0.9)), one)  # no step lies in it


def test_n_and_n_patches_are_the_2n_bit_for_bit():
    module = a_module()
    label = torch.arange(50) % 3
    whole = module.averaged.sample(label, 7)
    assert whole.shape == (50, SIDE, SIDE) and whole.dtype == np.uint8
    parts = [module.averaged.sample(label[:25], 7), module.averaged.sample(label[25:], 7, first=25)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(whole[:9], module.sample(label[:9], 7))
    assert np.array_equal(whole, module.sample(label, 7, batch_size=5))
    assert len({patch.tobytes() for patch in whole}) == 50
    assert not np.array_equal(whole, module.sample(label, 8))
    assert not np.array_equal(whole, module.sample((label + 1) % 3, 7))
    assert module.sample(label[:0], 7).shape == (0, SIDE, SIDE)


def test_a_patch_does_not_depend_on_the_classes_of_those_beside_it():
    module, label = a_module(), torch.arange(20) % 3
    other = label.clone()
    other[1::2] = 0
    both = [module.sample(y, 3) for y in (label, other)]
    assert np.array_equal(both[0][::2], both[1][::2])


def test_a_store_of_more_patches_begins_with_those_of_a_smaller_one(tmp_path):
    module, given = a_module(), {"seed": 3, "generator_hash": "abc", "seen_groups": ["a"]}
    few, many = (
        synthesize(module, {"rows": n}, tmp_path / str(n), batch_size=8, **given) for n in (10, 20)
    )
    assert np.array_equal(few.pixels[:], many.pixels[:10])


def test_a_class_is_drawn_from_its_modes_by_their_shares():
    module, asked = a_module(steps=1), []
    module.generator_ema.register_forward_hook(lambda layer, given, made: asked.append(given[1]))
    module.sample(torch.arange(3).repeat(400), seed=1)
    share = torch.cat(asked).bincount(minlength=6) / 400
    wanted = torch.tensor([0.75, 0.25, 1.0, 0.25, 0.25, 0.5])
    torch.testing.assert_close(share, wanted, atol=0.08, rtol=0)


def test_a_training_fills_its_budget_and_logs_what_it_says(trained):
    module, out = trained
    assert (module.images_seen, module.batches_seen) == (48, 4)
    logged = module.trainer.callback_metrics
    wanted = {"loss", "velocity/held_out", "velocity/train", "diversity", "diversity_least"}
    assert wanted <= set(logged) and all(torch.isfinite(v) for v in logged.values())
    assert len(list((out / "grids").iterdir())) == 2


def test_the_average_follows_the_weights_and_makes_the_patches(tmp_path):
    module = a_module(ema_halflife_images=100, ema_rampup=0.5)
    before = [w.clone() for w in module.generator_ema.parameters()]
    module.averaged.follow(module.generator, 12, 48)
    decay = ema_decay(12, 48, 100, 0.5)
    for old, new, now in zip(
        before, module.generator_ema.parameters(), module.generator.parameters(), strict=True
    ):
        torch.testing.assert_close(new, decay * old + (1 - decay) * now)
    label = torch.arange(6) % 3
    made = module.sample(label, 1)
    noisy(module.generator)
    assert np.array_equal(made, module.sample(label, 1))
    assert not module.generator_ema.training


def test_a_trained_flow_is_read_back_and_makes_the_same_patches(trained):
    module, out = trained
    module.trainer.save_checkpoint(out / "generator.ckpt", weights_only=True)
    again = load_generator(out / "generator.ckpt")
    assert isinstance(again, FlowModule) and again.images_seen == 48
    label = torch.arange(6) % 3
    assert np.array_equal(module.sample(label, 5), again.sample(label, 5))


def test_a_checkpoint_of_the_other_family_is_refused_with_a_sentence(trained, tmp_path):
    module, _ = trained
    gan = GANModule(TINY, CLASSES, SIDE)
    for one, other in ((module, gan), (gan, module)):
        content = {"hyper_parameters": dict(one.hparams), "state_dict": other.state_dict()}
        one.on_save_checkpoint(content)
        torch.save(content, tmp_path / "mixed.ckpt")
        with pytest.raises(UserError, match=r"mixed\.ckpt: not a readable generator: state_dict"):
            load_generator(tmp_path / "mixed.ckpt")
    with pytest.raises(
        UserError, match=r"gan\.network=unet makes a rectified flow, expected a GAN"
    ):
        GANModule(dict(module.hparams["gan"]), CLASSES, SIDE)
    with pytest.raises(
        UserError, match=r"gan\.network=modulated makes a GAN, expected a rect.*unet"
    ):
        FlowModule(dict(gan.hparams["gan"]), CLASSES, SIDE)


def test_a_training_of_a_flow_does_not_go_on_from_a_gans_checkpoint(tmp_path, capsys):
    fit(tmp_path, images=24)
    fit(tmp_path, images=24, **{k: v for k, v in FLOW.items() if k != "images"})
    assert "broken checkpoint" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_training(tmp_path, monkeypatch):
    original, count = flow_file.velocity_loss, itertools.count()

    def broken(*given):
        return original(*given) * (float("nan") if next(count) > 2 else 1)

    monkeypatch.setattr(flow_file, "velocity_loss", broken)
    with pytest.raises(GANDiverged, match=r"the flow diverged: after \d+ images .*nan.*gan\.lr"):
        fit(tmp_path, **{**FLOW, "images": 100_000, "validate_every_images": 50_000})
    assert next(count) <= 32


def test_a_patch_without_a_label_is_learned_under_the_null_condition():
    module = a_module()
    batch = {"label": torch.tensor([0, -1, 2]), "mode": torch.tensor([1, -1, 5])}
    assert module.conditions.of(batch).tolist() == [1, module.generator.network.null, 5]
    plain = FlowModule(FLOW, CLASSES, SIDE)
    assert plain.conditions.of({"label": torch.tensor([2, -1])}).tolist() == [2, 3]


def test_what_a_turned_patch_does_not_show_is_not_learned(tmp_path, monkeypatch):
    seen, original = [], flow_file.velocity_loss

    def spy(velocity, pixels, noise, shown):
        seen.append((shown == 0).flatten(1).any(1).tolist())
        return original(velocity, pixels, noise, shown)

    monkeypatch.setattr(flow_file, "velocity_loss", spy)
    fit(tmp_path, **{**FLOW, "images": 12, "turns": "any"})
    assert sorted(seen[0]) == [False] * 6 + [True] * 6


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (
            {"network": "unet", "r1": 0.5},
            r"gan\.r1=0\.5: a setting of a GAN.*makes a rectified flow",
        ),
        ({"network": "unet", "translate": False}, r"gan\.translate=False"),
        ({"steps": 12}, r"gan\.steps=12: a setting of a rectified flow.*makes a GAN"),
        ({"network": "unet", "guidance": 0.5}, "1"),
        ({"network": "unet", "guidance_from": 0.9}, r"guidance_from=0\.9 is above"),
    ],
)
def test_settings_of_the_other_family_are_refused(more, match):
    with pytest.raises(UserError, match=match):
        make_module(more, CLASSES, SIDE)


def test_every_network_has_its_family():
    networks = bound_of(GANConfig.__dataclass_fields__["network"]).choices
    assert set(FAMILIES) == set(networks)
    flow = yaml.safe_load((CONF / "flow.yaml").read_text(encoding="utf-8"))
    assert isinstance(make_module(flow, CLASSES, SIDE), FlowModule)
    assert isinstance(make_module({}, CLASSES, SIDE), GANModule)


def test_the_first_weights_depend_on_the_seed_alone():
    first, second = (make_module(FLOW, CLASSES, SIDE) for _ in range(2))
    other = make_module(FLOW, CLASSES, SIDE, seed=1)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    weight = "generator.network.start.weight"
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


# Millions of multiplications of one pass per patch, at 32 and 64 px
MACS = {"tiny": (71, 85), "small": (664, 887), "base": (5700, 8428)}


def test_sizes_cost_what_the_documentation_says():
    with torch.device("meta"):  # shapes alone
        for size, expected in MACS.items():
            gan = check_config({"network": "unet", "size": size})
            for px, most in zip((32, 64), expected, strict=True):
                network = build_flow(gan, range(8), px).network
                given = torch.ones(1, 1, px, px), torch.ones(1), torch.ones(1, dtype=torch.int64)
                assert count_macs(network, *given) / 1e6 == pytest.approx(most, abs=0.6)
