"""The quicker forms make the numbers of the layers they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stemcell_lit.gan import kernels


def test_one_step_upsampling_equals_upsampling_then_convolution():
    x, weight, bias = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    two_steps = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    made = kernels.upsample_conv(x, weight, bias)
    torch.testing.assert_close(made, two_steps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_downsampling_equals_a_strided_convolution_up_to_second_derivatives(channels):
    like = {"dtype": torch.float64, "requires_grad": True}
    x, weight = torch.randn(2, channels, 6, 8, **like), torch.randn(4, channels, 4, 4, **like)
    bias = torch.randn(4, **like)
    strided = F.conv2d(x, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(kernels.downsample_conv(x, weight, bias), strided)

    def penalty(conv):  # as the critic's: a derivative is squared, and derived again
        (slope,) = torch.autograd.grad(conv().square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, weight, bias])

    torch.testing.assert_close(
        penalty(lambda: kernels.downsample_conv(x, weight, bias)),
        penalty(lambda: F.conv2d(x, weight, bias, stride=2, padding=1)),
    )


def layers(x, norm, scale, shift):
    x = norm(x)
    return F.relu(x * (1 + scale) + shift)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("training", [True, False])
def test_modulated_norm_equals_its_layers(training, memory, momentum):
    norms = [nn.BatchNorm2d(3, affine=False, momentum=momentum).double() for _ in range(2)]
    gradients = []
    for form, norm in zip((kernels.modulated_norm, layers), norms, strict=True):
        draw = torch.Generator().manual_seed(0)

        def normal(*shape, draw=draw):
            return torch.randn(*shape, dtype=torch.float64, generator=draw)

        for _ in range(3):  # running statistics of several batches, far from 0 and 1
            form(5 + 2 * normal(4, 3, 4, 5), norm, normal(4, 3, 1, 1), normal(4, 3, 1, 1))
        norm.train(training)
        x = (5 + 2 * normal(4, 3, 4, 5)).contiguous(memory_format=memory).requires_grad_()
        scale, shift = (normal(4, 3, 1, 1).requires_grad_() for _ in range(2))
        made = form(x, norm, scale, shift)
        weight = normal(4, 3, 4, 5)
        gradients.append([made, *torch.autograd.grad((made * weight).sum(), [x, scale, shift])])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*(dict(n.state_dict()) for n in norms))


def test_modulated_norm_in_float32_does_not_suffer_from_a_mean_far_from_zero():
    draw = torch.Generator().manual_seed(0)
    x = 20 + torch.randn(48, 16, 32, 32, generator=draw)
    scale, shift = torch.randn(2, 48, 16, 1, 1, generator=draw)
    weight = torch.randn(x.shape, generator=draw)
    found = []
    for dtype in (torch.float32, torch.float64):
        norm = nn.BatchNorm2d(16, affine=False).to(dtype)
        given = [v.to(dtype).requires_grad_() for v in (x, scale, shift)]
        made = kernels.modulated_norm(given[0], norm, *given[1:])
        found.append([made, *torch.autograd.grad((made * weight.to(dtype)).sum(), given)])
    for ours, exact in zip(*found, strict=True):
        # about three of 800,000 values lie so near to zero that ReLU takes them otherwise: sqrt(3 / 400,000) = .003
        assert (ours - exact).norm() < 5e-3 * exact.norm()


def test_noise_in_place_equals_a_sum():
    made = []
    for form in (kernels.add_noise, lambda x, strength, noise: x + strength * noise):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=draw).requires_grad_()
        strength = torch.randn(1, 3, 1, 1, dtype=torch.float64, generator=draw).requires_grad_()
        noise = torch.randn(2, 1, 4, 5, dtype=torch.float64, generator=draw)
        y = form(x * 2, strength, noise)
        made.append([y, *torch.autograd.grad(y.square().sum(), [x, strength])])
    torch.testing.assert_close(*made)


def test_a_compiled_generator_and_one_in_bfloat16_take_the_layers():
    assert not kernels._by_hand(torch.zeros(1, dtype=torch.bfloat16))
    norm = nn.BatchNorm2d(3, affine=False)
    x, scale = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
    half = kernels.modulated_norm(x.bfloat16(), norm, scale.bfloat16(), scale.bfloat16())
    assert half.dtype == torch.bfloat16
    whole = kernels.modulated_norm(x, norm, scale, scale)
    assert (half - whole).abs().max() < 0.1
