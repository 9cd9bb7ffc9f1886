import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.errors import UserError
from stemcell_lit.gan.camera import (
    MOST,
    Camera,
    WithCamera,
    estimate,
    fit_strengths,
    missing,
    noise_levels,
    strengths_in,
)
from stemcell_lit.gan.families import make_module
from stemcell_lit.gan.trained import load_generator
from tests.gan.helpers import CLASSES, FLOW, NOISE, SIDE, TINY, family, fit

LEVELS = np.array([0.25, 0.5, 0.75])


def variance_of(strengths, signal):
    read, shot, speckle = strengths
    return read**2 + shot * signal + (speckle * signal) ** 2


def seen_at(strengths, signal, count=40_000):
    """What a camera shows of even images, as signals."""
    noise = torch.randn((1, 1, count, 1), generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(noise, 2 * signal - 1)
    return (Camera(strengths)(flat, noise) + 1) / 2


def smooth(strengths, count=40, side=32, seed=0):
    """uint8 patches of slow gradients under a camera."""
    rng = np.random.default_rng(seed)
    slope, level = rng.uniform(-0.3, 0.3, (2, count, 1, 1)), rng.uniform(0.3, 0.7, (count, 1, 1))
    at = np.linspace(-0.5, 0.5, side)
    signal = level + slope[0] * at[None, :, None] + slope[1] * at[None, None, :]
    seen = signal + np.sqrt(variance_of(strengths, signal)) * rng.normal(size=signal.shape)
    return np.round(np.clip(seen, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    "strengths", [(0.05, 0, 0), (0, 0.004, 0), (0, 0, 0.1), (0.03, 0.002, 0.05)]
)
def test_the_noise_has_the_variance_of_its_formula(strengths):
    for signal in LEVELS:
        seen = seen_at(strengths, signal)
        assert seen.mean().item() == pytest.approx(signal, abs=2e-3)
        assert seen.var().item() == pytest.approx(variance_of(strengths, signal), rel=0.05)


def test_shot_noise_grows_with_the_signal_as_that_of_counted_photons_does():
    rng, gain = np.random.default_rng(0), 0.004
    for signal in LEVELS:
        counted = rng.poisson(signal / gain, 40_000) * gain
        seen = seen_at((0, gain, 0), signal)
        assert seen.var().item() == pytest.approx(counted.var(), rel=0.06)
        assert seen.mean().item() == pytest.approx(counted.mean(), abs=2e-3)
    dark, bright = (seen_at((0, gain, 0), signal).var().item() for signal in (0.2, 0.8))
    assert bright / dark == pytest.approx(4, rel=0.05)


def test_an_image_stays_in_its_range_and_without_noise_what_it_is():
    pixels, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    assert Camera(MOST)(pixels, noise).abs().max() <= 1
    torch.testing.assert_close(Camera([0, 0, 0])(pixels, noise), pixels, atol=1e-3, rtol=0)


def test_gradients_reach_the_signal_and_learned_strengths():
    camera = Camera([0.05, 0.01, 0.1], learned=True).double()
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand((2, 1, 3, 3), generator=draw).double() * 0.4 - 0.2
    noise = torch.randn((2, 1, 3, 3), generator=draw).double()
    pixels.requires_grad_(True)

    def seen(pixels, weight):
        return torch.func.functional_call(camera, {"weight": weight}, (pixels, noise))

    assert torch.autograd.gradcheck(seen, (pixels, camera.weight))
    assert not list(Camera(NOISE).parameters())  # estimated ones are no weights
    torch.testing.assert_close(Camera(NOISE).strengths, torch.tensor(NOISE))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3))
def test_learned_strengths_are_never_below_zero_or_above_their_bound(weights):
    camera = Camera(NOISE, learned=True)
    torch.testing.assert_close(camera.strengths, torch.tensor(NOISE))  # where they begin
    with torch.no_grad():
        camera.weight.copy_(torch.tensor(weights))
    for found, most in zip(camera.strengths.tolist(), MOST, strict=True):
        assert 0 <= found <= most * (1 + 1e-6)
    made = camera(torch.rand(2, 1, 4, 4) * 2 - 1, torch.randn(2, 1, 4, 4))
    made.sum().backward()
    assert torch.isfinite(made).all() and torch.isfinite(camera.weight.grad).all()


def test_strengths_begin_where_a_gradient_reaches_them():
    camera = Camera([0.0, 0.0, 0.9], learned=True)
    assert (camera.strengths > 0).all() and (camera.strengths < torch.tensor(MOST)).all()


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 0.06), st.floats(0, 0.004), st.floats(0, 0.06), st.integers(0, 99))
def test_the_noise_of_smooth_patches_is_found(read, shot, speckle, seed):
    found = estimate(smooth((read, shot, speckle), seed=seed))
    for signal in LEVELS:  # the sum is; which of the three it is shows over a wide range alone
        wanted = variance_of((read, shot, speckle), signal)
        assert variance_of(found, signal) == pytest.approx(wanted, rel=0.3)


def test_edges_and_planes_are_not_taken_for_noise():
    patches = smooth((0.02, 0, 0))
    patches[::2, :, 16:] //= 2  # a step of brightness in half of them
    assert variance_of(estimate(patches), 0.5) ** 0.5 == pytest.approx(0.02, rel=0.25)


def test_the_three_strengths_are_told_apart_where_brightness_varies():
    signal = np.linspace(0.02, 0.9, 16)
    wanted = (0.02, 0.003, 0.08)
    variance, ones = variance_of(wanted, signal), np.ones(16)
    assert fit_strengths(signal, variance, ones, variance) == pytest.approx(wanted, rel=1e-3)
    assert fit_strengths(signal, 9 * ones, ones, ones)[0] == MOST[0]


@pytest.mark.parametrize("value", [0, 255, 128])
def test_patches_that_show_no_noise_have_none(value):
    patches = np.full((3, 16, 16), value, np.uint8)
    assert estimate(patches) == [0, 0, 0]
    assert len(noise_levels(patches)[0]) == (1 if value == 128 else 0)


def test_patches_lack_what_they_have_not():
    own, wanted = (0.02, 0, 0), (0.05, 0, 0)
    for have, lacks in (((0, 0, 0), 0.05), (own, (0.05**2 - 0.02**2) ** 0.5), (wanted, 0.0)):
        found = variance_of(missing(wanted, smooth(have)), 0.5) ** 0.5
        assert found == pytest.approx(lacks, abs=0.01)
    assert missing(own, smooth(wanted)) == [0, 0, 0]


CAMERAS = {
    "tiny": (family("tiny"), "learned"),
    "style": (family("style"), "estimated"),
    "dcgan": (family("dcgan"), "estimated"),
    "flow": (FLOW, "estimated"),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_every_family_draws_through_a_camera_and_n_and_n_patches_are_the_2n(name, tmp_path):
    gan, kind = CAMERAS[name]
    module = make_module({**gan, "camera": kind}, CLASSES, SIDE, camera=NOISE).eval()
    plain = make_module(gan, CLASSES, SIDE)
    assert module.averaged.inputs == plain.averaged.inputs + SIDE**2
    label = torch.full((50,), 1)
    made = module.averaged.sample(label, 7)
    parts = [module.averaged.sample(label[:25], 7), module.averaged.sample(label[25:], 7, first=25)]
    assert np.array_equal(made, np.concatenate(parts))
    assert strengths_in(plain.generator_ema) is None
    # read back, it is the same camera
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "camera.ckpt")
    again = load_generator(tmp_path / "camera.ckpt")
    assert np.array_equal(again.sample(label[:9], 7), made[:9])
    assert strengths_in(again.generator_ema) == strengths_in(module.generator_ema)


def test_a_camera_adds_its_noise_to_what_the_generator_draws():
    clean = make_module(TINY, CLASSES, SIDE).eval().generator_ema
    seen = WithCamera(clean, Camera([0.05, 0, 0]), SIDE)
    latent, label = torch.randn(64, seen.inputs), torch.arange(64) % 3
    with torch.no_grad():
        rest = seen(latent, label) - clean(latent[:, : -(SIDE**2)], label)
    torch.testing.assert_close(
        rest.flatten(), 0.1 * latent[:, -(SIDE**2) :].flatten(), atol=0.01, rtol=0.01
    )


def test_a_critic_moves_learned_strengths_and_leaves_estimated_ones(tmp_path):
    for kind in ("learned", "estimated"):
        module = fit(tmp_path / kind, camera=kind, noise=NOISE, network="style")
        moved = list(strengths_in(module.generator).values()) != pytest.approx(NOISE, rel=1e-4)
        assert moved == (kind == "learned")


def test_a_flow_adds_what_its_patches_lack_and_no_more():
    module = make_module({**FLOW, "camera": "estimated"}, CLASSES, SIDE, camera=[0.05, 0, 0])
    with torch.no_grad():  # a velocity of 0: the patches are noise, far stronger than the camera's
        module.sample(torch.zeros(1, dtype=torch.int64), 0)
        assert strengths_in(module.generator_ema) == {"read": 0, "shot": 0, "speckle": 0}
        # one that leads to even gray patches, which lack all of it
        network = module.generator_ema.network
        network.forward = lambda pixels, time, label: pixels / time[:, None, None, None]
        module.averaged.stale = True
        made = module.sample(torch.zeros(64, dtype=torch.int64), 0) / 255
    assert strengths_in(module.generator_ema)["read"] == pytest.approx(0.05, rel=0.05)
    assert made.std() == pytest.approx(0.05, rel=0.05)


def test_a_flow_refuses_a_camera_that_learns_and_strengths_belong_to_a_camera():
    with pytest.raises(UserError, match=r"gan\.camera=learned: no gradient.*gan\.camera=estimated"):
        make_module({**FLOW, "camera": "learned"}, CLASSES, SIDE, camera=NOISE)
    for gan, strengths in (({**TINY, "camera": "learned"}, None), (TINY, NOISE)):
        with pytest.raises(ValueError, match="camera="):
            make_module(gan, CLASSES, SIDE, camera=strengths)


@pytest.mark.parametrize("strengths", [None, [0.1], [0.1, 0.1, 2.0]])
def test_a_checkpoint_without_its_cameras_strengths_is_refused(strengths, tmp_path):
    module = make_module({**TINY, "camera": "estimated"}, CLASSES, SIDE, camera=NOISE)
    hparams = {**module.hparams, "camera": strengths}
    content = {"hyper_parameters": hparams, "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "camera.ckpt")
    with pytest.raises(UserError, match=r"camera\.ckpt: .*camera"):
        load_generator(tmp_path / "camera.ckpt")
