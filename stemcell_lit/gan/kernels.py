"""Steps of the networks in fewer multiplications or fewer passes over memory than layer by layer.

The numbers are those of the layers that each function names, up to rounding; the tests compare them. On a CPU the
generator at 64 px otherwise spends half of its time in reading and writing the same large tensors once more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Nearest upsampling by two, then a 3x3 convolution with padding 1, in one step.

    Neighbouring pixels of the upsampled image are equal, so the two together are one transposed convolution whose 4x4
    kernel is the 3x3 kernel summed over a 2x2 window: the same numbers for 4/9 of the multiplications, and no
    upsampled copy in memory (on one CPU core 2 to 4 times as fast).

    Args:
        x: (batch, channels in, height, width).
        weight: (channels out, channels in, 3, 3).
        bias: (channels out,).

    Returns:
        (batch, channels out, 2 height, 2 width).
    """
    kernel = weight.flip(2, 3).transpose(0, 1)
    kernel = F.pad(kernel, (0, 1, 0, 0)) + F.pad(kernel, (1, 0, 0, 0))
    kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


def downsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 4x4 convolution with stride 2 and padding 1, whose result is in channels-last order.

    Of an image with one channel the 2x2 pixels of each cell become four channels, and the kernel a 2x2 kernel over
    them: the same multiplications, but the CPU's convolutions are made for many channels (3 times as fast, forward and
    backward).

    Args:
        x: (batch, channels in, height, width), height and width even.
        weight: (channels out, channels in, 4, 4).
        bias: (channels out,).

    Returns:
        (batch, channels out, height / 2, width / 2).
    """
    if x.shape[1] > 1:
        x = F.conv2d(x, weight, bias, stride=2, padding=1)
    else:
        cells = F.pixel_unshuffle(F.pad(x, (1, 1, 1, 1)), 2)
        kernel = F.pixel_unshuffle(weight, 2)
        x = F.conv2d(cells.contiguous(memory_format=torch.channels_last), kernel, bias)
    return x.contiguous(memory_format=torch.channels_last)


def modulated_norm(x: Tensor, norm: nn.BatchNorm2d, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch norm without weights, then relu(x * (1 + scale) + shift): conditional batch norm and ReLU.

    In training the running statistics move as those of `norm` do when it is called.

    Args:
        x: (batch, channels, height, width).
        norm: of as many channels, `affine=False`.
        scale: (batch, channels, 1, 1).
        shift: the same.

    Returns:
        The shape of `x`. It can be derived once, which is all that a generator needs.
    """
    if not _by_hand(x):
        x = norm(x)
        return F.relu(torch.addcmul(x + shift, x, scale))
    if norm.training:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        # None: a plain mean over all batches
        momentum = (
            1 / int(norm.num_batches_tracked) if norm.momentum is None else float(norm.momentum)
        )
        mean, var = torch.batch_norm_update_stats(
            x.detach(), norm.running_mean, norm.running_var, momentum
        )
    else:
        mean, var = norm.running_mean, norm.running_var  # type: ignore[assignment]
    made: Tensor = _ModulatedNorm.apply(  # type: ignore[no-untyped-call]
        x, scale, shift, mean, (var + norm.eps).rsqrt(), norm.training
    )
    return made


class _ModulatedNorm(torch.autograd.Function):
    """`modulated_norm` given the statistics: one pass forward, four backward, where autograd takes four and ten."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        inverse: Tensor,
        of_batch: bool,
    ) -> Tensor:
        mean, inverse = mean[:, None, None], inverse[:, None, None]
        gain = (1 + scale) * inverse
        made = torch.addcmul(shift - mean * gain, x, gain).relu_()
        ctx.save_for_backward(x, made, scale, mean, inverse)
        ctx.of_batch = of_batch
        return made

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, made, scale, mean, inverse = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradients[0], made, 0)
        to_shift = gradient.sum((2, 3), keepdim=True)
        to_scale = ((gradient * x).sum((2, 3), keepdim=True) - mean * to_shift) * inverse
        gain = (1 + scale) * inverse
        if not ctx.of_batch:
            return gradient * gain, to_scale, to_shift, None, None, None
        # Through the statistics, as batch norm's own: dx = inverse * (g - E g - y * E g y) with y the normed x and g
        # its gradient; y and g are written out, so that only x and `gradient` are read.
        share = (1 + scale) / (len(x) * x.shape[2] * x.shape[3])
        slope = -(inverse**2) * (share * to_scale).sum(0)
        level = -inverse * (share * to_shift).sum(0) - mean * slope
        to_x = torch.addcmul(level, x, slope).addcmul_(gradient, gain)
        return to_x, to_scale, to_shift, None, None, None


def add_noise(x: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Adds strength * noise to `x`; on the CPU in the memory of `x`, which nothing else may need.

    Args:
        x: (batch, channels, height, width).
        strength: (1, channels, 1, 1).
        noise: (batch, 1, height, width), without a gradient.
    """
    if not _by_hand(x):
        return torch.addcmul(x, strength, noise)
    made: Tensor = _AddNoise.apply(x, strength, noise)  # type: ignore[no-untyped-call]
    return made


class _AddNoise(torch.autograd.Function):
    """`add_noise` in place; the strength's gradient is a matrix product, without a tensor of the size of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(noise)
        return x.addcmul_(strength, noise)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (noise,) = ctx.saved_tensors
        rows = (
            gradients[0].permute(0, 2, 3, 1).reshape(noise.numel(), -1)
        )  # a view of channels-last
        to_strength = noise.reshape(1, -1) @ rows
        return gradients[0], to_strength[:, :, None, None], None


def _by_hand(x: Tensor) -> bool:
    """Where the forms above are the quicker ones: a GPU was not measured."""
    whole = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and whole
