import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stemcell_lit.errors import UserError
from stemcell_lit.gan.config import check_config
from stemcell_lit.gan.families import make_module
from stemcell_lit.gan.module import GANModule
from stemcell_lit.gan.networks import build_pair
from stemcell_lit.gan.style_network import Mapping, StyleGenerator, modulated_conv
from stemcell_lit.gan.trained import load_generator
from tests.gan.helpers import CLASSES, SIDE, family

MODES = [[0.75, 0.25], [1.0], [0.25, 0.25, 0.5]]


def a_generator(**more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StyleGenerator(3, 16, latent=8, channels=[8, 8, 8], embedding=4, **more).eval()


def of_each_image(x: Tensor, weight: Tensor, scale: Tensor, up: bool, gain: float) -> Tensor:
    """`modulated_conv` as it is written in the paper: kernels of each image's own."""
    own = weight[None] * scale[:, None, :, None, None]
    own = own / (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else x
    flat = x.reshape(1, -1, *x.shape[2:])
    made = F.conv2d(flat, own.flatten(0, 1), padding=1, groups=len(scale))
    return gain * made.view(len(scale), -1, *x.shape[2:])


@pytest.mark.parametrize("up", [False, True])
def test_a_modulated_convolution_has_the_numbers_and_gradients_of_kernels_for_each_image(up):
    draw = torch.Generator().manual_seed(0)
    whole = [
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((3, 5, 6, 6), (4, 5, 3, 3), (3, 5))
    ]
    side = 12 if up else 6
    towards = torch.randn((3, 4, side, side), generator=draw, dtype=torch.float64)

    def with_gradients(function, dtype):
        given = [part.to(dtype).requires_grad_(True) for part in whole]
        made = function(*given)
        return [made, *torch.autograd.grad((made * towards.to(dtype)).sum(), given)]

    def ours(x, weight, scale):
        return modulated_conv(x, weight, scale, up=up, gain=1.5)

    expected = with_gradients(lambda x, w, s: of_each_image(x, w, s, up, 1.5), torch.float64)
    for found, wanted in zip(with_gradients(ours, torch.float64), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for found, wanted in zip(with_gradients(ours, torch.float32), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 20), st.integers(0, 2**31 - 1))
def test_demodulation_undoes_how_strong_weights_and_styles_are(factor, seed):
    draw = torch.Generator().manual_seed(seed)
    x, weight = torch.randn((2, 6, 8, 8), generator=draw), torch.randn((3, 6, 3, 3), generator=draw)
    scale = 1 + 0.5 * torch.randn((2, 6), generator=draw)
    plain = modulated_conv(x, weight, scale)
    torch.testing.assert_close(modulated_conv(x, factor * weight, scale), plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(modulated_conv(x, weight, factor * scale), plain, atol=1e-4, rtol=0)


def test_demodulation_keeps_a_variance_of_one():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((4, 16, 32, 32), generator=draw)
    weight, scale = torch.randn((8, 16, 3, 3), generator=draw), torch.randn((4, 16), generator=draw)
    inner = modulated_conv(x, weight, scale)[:, :, 1:-1, 1:-1]
    assert inner.var().item() == pytest.approx(1, abs=0.1)


def test_half_precision_does_not_reach_the_norm_of_the_weights():
    x, weight, scale = torch.randn(2, 6, 8, 8), torch.randn(4, 6, 3, 3), torch.randn(2, 6) * 1e-3
    plain = modulated_conv(x, weight, scale)
    with torch.autocast("cpu", torch.bfloat16):
        made = modulated_conv(x, weight, scale)
    torch.testing.assert_close(made.float(), plain, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("size", [8, 32, 64])
def test_images_fit_the_size_and_the_range_and_every_weight_learns(size):
    generator = StyleGenerator(3, size, latent=8, channels=[8, 8, 8, 8], embedding=4)
    image = generator(torch.randn(6, generator.inputs), torch.arange(6) % 3)
    assert image.shape == (6, 1, size, size) and image.abs().max() <= 1
    image.square().sum().backward()
    for name, weight in generator.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_latent_condition_and_the_noise_of_every_layer_change_the_image():
    generator = a_generator()
    latent, label = torch.randn(1, generator.inputs), torch.tensor([0])
    first = generator(latent, label)
    assert not torch.allclose(first, generator(latent, torch.tensor([1])))
    parts = [8, *(side**2 for side in generator.sides)]
    assert generator.sides == [4, 8, 8, 16, 16] and sum(parts) == generator.inputs
    for i in range(len(parts)):
        split = list(latent.split(parts, dim=1))
        split[i] = torch.randn_like(split[i])
        assert not torch.allclose(first, generator(torch.cat(split, dim=1), label)), i


def test_an_image_depends_on_its_own_input_alone():
    generator = a_generator().train()  # no norm looks at the batch
    latent, label = torch.randn(6, generator.inputs), torch.arange(6) % 3
    torch.testing.assert_close(generator(latent, label)[:2], generator(latent[:2], label[:2]))


def measured(generator):
    generator.mapping.measure(torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.int64))
    return generator


def styles_of(generator, latent, label):
    """What the first layer is given."""
    seen = []
    watched = generator.layers[0].register_forward_hook(
        lambda layer, given, made: seen.append(given[1])
    )
    generator(latent, label)
    watched.remove()
    return seen[0]


def test_truncation_keeps_a_share_of_the_way_from_the_mean_style():
    whole, half = a_generator(), measured(a_generator(truncation=0.5))
    latent, label = torch.randn(6, whole.inputs), torch.arange(6) % 3
    mean, style = half.mapping.mean[label], styles_of(whole, latent, label)
    torch.testing.assert_close(styles_of(half, latent, label), mean + 0.5 * (style - mean))
    half.train()  # the critic judges what the weights draw
    torch.testing.assert_close(styles_of(half, latent, label), style)


def test_a_truncation_of_zero_gives_the_mean_style_of_the_condition():
    generator = measured(a_generator(truncation=0.0))
    latent, label = torch.randn(4, generator.inputs), torch.tensor([0, 0, 2, 2])
    latent[:, 8:] = latent[:1, 8:]  # the same noise
    image = generator(latent, label)
    assert torch.equal(image[0], image[1]) and torch.equal(image[2], image[3])
    assert not torch.allclose(image[0], image[2])
    assert torch.equal(styles_of(generator, latent, label), generator.mapping.mean[label])


def test_the_mean_style_is_the_mean_of_the_styles():
    mapping = Mapping(2, 8, 4)
    mapping.measure(torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.int64))
    for condition in range(2):
        style = mapping(torch.randn(20_000, 8), torch.full((20_000,), condition))
        torch.testing.assert_close(style.mean(0), mapping.mean[condition], atol=0.1, rtol=0)


def test_the_mean_style_is_measured_again_when_the_averaged_weights_have_moved():
    module = GANModule({**family("style"), "truncation": 0.0}, CLASSES, SIDE, modes=MODES).eval()
    label, mapping = torch.arange(6) % 3, module.generator_ema.mapping
    made, before = module.sample(label, 1), mapping.mean.clone()
    assert before.abs().sum(1).min() > 0 and len(before) == 6  # of each mode
    with torch.no_grad():
        module.generator.mapping.layers[2].bias.add_(1)
    module.averaged.follow(module.generator, 12, 12)
    assert (module.sample(label, 1) != made).any()
    assert not torch.allclose(mapping.mean, before)


def test_n_and_n_patches_are_the_2n_bit_for_bit():
    module = GANModule(family("style"), CLASSES, SIDE, modes=MODES).eval()
    label = torch.arange(50) % 3
    whole = module.averaged.sample(label, 7)
    assert whole.shape == (50, SIDE, SIDE)
    parts = [module.averaged.sample(label[:25], 7), module.averaged.sample(label[25:], 7, first=25)]
    assert (whole == [*parts[0], *parts[1]]).all()
    assert (whole == module.sample(label, 7, batch_size=5)).all()
    assert (whole != module.sample(label, 8)).any()
    assert len({patch.tobytes() for patch in whole}) == 50
    assert module.averaged.sample(label[:0], 7, first=5).shape == (0, SIDE, SIDE)


def test_a_pair_for_each_class_may_be_style_based():
    gan = check_config({"network": "style", "condition": "separate", "channels": [8, 8]})
    generator, critic = build_pair(gan, 3, 16)
    latent, label = torch.randn(6, generator.inputs), torch.tensor([2, 0, 1, 1, 0, 2])
    image = generator(latent, label)
    assert image.shape == (6, 1, 16, 16) and critic(image, label).shape == (6,)
    assert not critic.normalised


def test_truncation_is_refused_where_there_are_no_styles():
    for network in ("modulated", "unet"):
        with pytest.raises(UserError, match=r"gan\.truncation=0\.7: .*gan\.network=style"):
            make_module({"network": network, "truncation": 0.7}, CLASSES, SIDE)


def test_a_trained_generator_is_read_back_with_its_mean_styles(tmp_path):
    module = GANModule({**family("style"), "truncation": 0.3}, CLASSES, SIDE, modes=MODES).eval()
    label = torch.arange(6) % 3
    made = module.sample(label, 5)
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "style.ckpt")
    again = load_generator(tmp_path / "style.ckpt")
    assert (again.sample(label, 5) == made).all()
