import pytest
import torch
from torch import Tensor, nn

from stemcell_lit.errors import UserError
from stemcell_lit.gan.config import check_config
from stemcell_lit.gan.layers import UpsampleConv, widths
from stemcell_lit.gan.networks import Critic, Generator, build_pair
from stemcell_lit.gan.references import PerClass
from stemcell_lit.gan.style_network import StyleLayer


@pytest.mark.parametrize("size", [16, 32, 64])
def test_networks_fit_the_image_size(size):
    generator = Generator(3, size, latent=8, channels=[8, 8, 8, 8], embedding=4)
    critic = Critic(3, size, channels=[8, 8, 8, 8])
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


def test_latent_and_class_enter_at_every_resolution():
    generator = Generator(2, 16, latent=4, channels=[8, 8, 8], embedding=4)
    for name, layer in generator.named_modules():
        if name.endswith("modulate"):
            torch.nn.init.normal_(layer.affine.weight)
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


def test_critic_scores_are_float32_under_autocast():
    critic = Critic(2, 16, channels=[8, 8, 8])
    with torch.autocast("cpu", torch.bfloat16):
        score = critic(torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))
    assert score.dtype == torch.float32


@pytest.mark.parametrize("condition", ["projection", "auxiliary", "separate"])
@pytest.mark.parametrize("network", ["modulated", "style", "dcgan"])
@pytest.mark.parametrize("size", [8, 32, 128])
def test_every_pair_can_be_trained_at_every_size(size, network, condition):
    gan = check_config(
        {
            "network": network,
            "condition": condition,
            "channels": [8, 8],
            "critic_channels": [8, 8],
        }
    )
    generator, critic = build_pair(gan, 3, size)
    latent, label = torch.randn(6, generator.inputs), torch.tensor([2, 0, 1, 1, 0, 2])
    image = generator(latent, label)
    assert image.shape == (6, 1, size, size)
    made = critic(image, label, True) if condition == "auxiliary" else critic(image, label)
    if condition == "auxiliary":
        assert made[1].shape == (6, 3)
        made = made[0] + made[1].sum(1)
    assert made.shape == (6,)
    made.sum().backward()
    for name, weight in [*generator.named_parameters(), *critic.named_parameters()]:
        assert weight.grad is not None, name


def test_a_pair_per_class_sends_each_image_to_its_own_network_and_back_to_its_place():
    class Times(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, label):
            assert not label.any()  # each knows one class
            return x * self.factor

    label = torch.tensor([2, 0, 1, 0, 2])
    made = PerClass([Times(1), Times(10), Times(100)])(torch.arange(1.0, 6.0), label)
    assert made.tolist() == [100, 2, 30, 4, 500]
    some = PerClass([Times(1), Times(10), Times(100)])(torch.tensor([3.0]), torch.tensor([1]))
    assert some.tolist() == [30]


def test_a_pair_per_class_learns_from_its_class_alone():
    gan = check_config({"network": "dcgan", "condition": "separate"})
    generator, critic = build_pair(gan, 3, 16)
    label = torch.tensor([1, 1, 1])
    critic(generator(torch.randn(3, generator.inputs), label), label).sum().backward()
    for network in (generator, critic):
        learned = [any(p.grad is not None for p in n.parameters()) for n in network.networks]
        assert learned == [False, True, False]


def test_a_critic_with_batch_norm_says_so_and_wgan_gp_has_none():
    for penalty, normalised in ((0.0, True), (10.0, False)):
        gan = check_config({"network": "dcgan", "gp": penalty})
        generator, critic = build_pair(gan, 3, 32)
        found = any(isinstance(m, torch.nn.BatchNorm2d) for m in critic.modules())
        assert critic.normalised == normalised == found
        assert any(isinstance(m, torch.nn.BatchNorm2d) for m in generator.modules())


def count_macs(network: nn.Module, *inputs: Tensor) -> int:
    """Multiplications of the convolutions and linear layers in one forward pass, per image."""
    total = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal total
        if isinstance(layer, UpsampleConv):  # 4 taps of its 4x4 kernel fall on each pixel made
            total += made[0].numel() * 4 * layer.in_channels
        elif isinstance(layer, StyleLayer):
            taps = 4 if layer.up else 9
            total += made[0].numel() * taps * layer.weight.shape[1]
        elif isinstance(layer, nn.ConvTranspose2d):
            total += given[0][0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Conv2d):
            total += made[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()

    handles = [layer.register_forward_hook(count) for layer in network.modules()]
    training = network.training
    network.eval()  # counting must not move running statistics
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return total


# Millions of multiplications of generator and critic, forward, per patch, at 32 and 64 px
MACS = {
    ("tiny", "modulated"): (16, 27),
    ("tiny", "style"): (17, 24),
    ("tiny", "dcgan"): (16, 32),
    ("small", "modulated"): (153, 286),
    ("small", "style"): (173, 249),
    ("small", "dcgan"): (146, 295),
    ("base", "modulated"): (1523, 2869),
    ("base", "style"): (1742, 2574),
    ("base", "dcgan"): (1416, 2762),
}


@pytest.mark.parametrize(("size", "network"), list(MACS), ids=lambda part: part)
def test_sizes_cost_what_the_documentation_says(size, network, monkeypatch):
    # it takes seconds at the size base, and changes no shape
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda weight: weight)
    gan = check_config({"size": size, "network": network})
    label = torch.zeros(1, dtype=torch.int64)
    for px, expected in zip((32, 64), MACS[size, network], strict=True):
        generator, critic = build_pair(gan, 8, px)
        macs = count_macs(generator, torch.randn(1, generator.inputs), label)
        macs += count_macs(critic, torch.randn(1, 1, px, px), label)
        assert macs / 1e6 == pytest.approx(expected, abs=0.6)
