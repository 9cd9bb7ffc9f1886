import pytest
import torch
import torch.nn.functional as F

from stemcell_lit.errors import UserError
from stemcell_lit.gan.networks import (
    NORMS,
    Critic,
    Generator,
    SpectralLinear,
    count_macs,
    upsample_conv,
    widths,
)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_networks_fit_the_image_size(size, norm):
    generator = Generator(3, size, latent=8, channels=[8, 8, 8, 8], embedding=4, norm=norm)
    critic = Critic(3, size, channels=[8, 8, 8, 8], norm=norm)
    latent, label = torch.randn(6, generator.inputs), torch.arange(6) % 3
    image = generator(latent, label)
    assert image.shape == (6, 1, size, size)
    assert image.abs().max() <= 1
    score = critic(image, label)
    assert score.shape == (6,)
    score.sum().backward()
    for name, weight in [*generator.named_parameters(), *critic.named_parameters()]:
        assert weight.grad is not None, name


@pytest.mark.parametrize("size", [0, 4, 24, 33])
def test_sizes_that_do_not_double_are_refused(size):
    with pytest.raises(UserError, match=r"8, 16, 32, 64.*data\.patch_size"):
        Generator(2, size)


def test_widths_are_extended_and_cut():
    assert widths([96, 64, 48, 32], 5) == [96, 64, 48, 32, 16]
    assert widths([96, 64, 48, 32], 3) == [96, 64, 48]


def test_one_step_upsampling_equals_upsampling_then_convolution():
    x, weight, bias = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    two_steps = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(upsample_conv(x, weight, bias), two_steps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_latent_and_class_enter_at_every_resolution(norm):
    generator = Generator(2, 16, latent=4, channels=[8, 8, 8], embedding=4, norm=norm)
    for name, layer in generator.named_modules():
        if name.endswith("modulate"):
            torch.nn.init.normal_(layer.affine.weight)
        if name.endswith("branch"):
            torch.nn.init.normal_(layer.weight)
    torch.nn.init.zeros_(generator.start.weight)  # nothing enters at the start
    torch.nn.init.normal_(generator.start.bias)
    generator.eval()
    latent = torch.randn(1, generator.inputs)
    first = generator(latent, torch.tensor([0]))
    other = torch.cat([torch.randn(1, 4), latent[:, 4:]], dim=1)
    assert not torch.allclose(first, generator(other, torch.tensor([0])))
    other = torch.cat([latent[:, :4], torch.randn(1, 16 * 16)], dim=1)
    assert not torch.allclose(first, generator(other, torch.tensor([0])))
    assert not torch.allclose(first, generator(latent, torch.tensor([1])))


def test_spectral_norm_converges_to_one_in_float32_and_rests_in_evaluation():
    layer = SpectralLinear(20, 10)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(200):
            weight = layer.normal_weight()
    assert weight.dtype == torch.float32
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-3)
    layer.eval()
    before = layer.left.clone()
    layer(torch.randn(2, 20))
    assert torch.equal(layer.left, before)


def test_critic_scores_are_float32_under_autocast():
    critic = Critic(2, 16, channels=[8, 8, 8])
    with torch.autocast("cpu", torch.bfloat16):
        score = critic(torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))
    assert score.dtype == torch.float32


def test_default_size_stays_tiny():
    generator, critic = Generator(8, 32), Critic(8, 32)
    label = torch.zeros(2, dtype=torch.int64)
    macs = count_macs(generator, torch.randn(2, generator.inputs), label)
    macs += count_macs(critic, torch.randn(2, 1, 32, 32), label)
    assert macs < 0.03e9  # per patch, forward: what two CPU cores can train within minutes
