import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.gan import objectives

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25, 1.5])


def softplus(x):
    return math.log1p(math.exp(x))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("name", "critic", "generator"),
    [
        (
            "non_saturating",
            mean(softplus(-r) for r in REAL.tolist()) + mean(softplus(f) for f in FAKE.tolist()),
            mean(softplus(-f) for f in FAKE.tolist()),
        ),
        (
            "relativistic",
            mean(softplus(f - r) for r, f in zip(REAL.tolist(), FAKE.tolist(), strict=True)),
            mean(softplus(r - f) for r, f in zip(REAL.tolist(), FAKE.tolist(), strict=True)),
        ),
        ("wasserstein", mean(FAKE.tolist()) - mean(REAL.tolist()), -mean(FAKE.tolist())),
    ],
)
def test_losses_equal_their_formulas(name, critic, generator):
    assert objectives.critic_loss(name, REAL, FAKE).item() == pytest.approx(critic, rel=1e-6)
    assert objectives.generator_loss(name, FAKE, REAL).item() == pytest.approx(generator, rel=1e-6)


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="kl"):
        objectives.critic_loss("kl", REAL, FAKE)
    with pytest.raises(ValueError, match="real"):
        objectives.generator_loss("relativistic", FAKE)


def test_penalty_of_a_known_function():
    # f(x) = sum a x^2 has the gradient 2 a x, so the penalty is the mean of sum (2 a x)^2 / 2
    weight = torch.rand(1, 4, 4, requires_grad=True)
    pixels = torch.randn(3, 1, 4, 4)
    label = torch.tensor([0, 1, 2])
    penalty = objectives.gradient_penalty(
        lambda x, y: (weight * x**2).sum(dim=(1, 2, 3)), pixels, label
    )
    expected = ((2 * weight * pixels) ** 2).sum(dim=(1, 2, 3)).mean() / 2
    torch.testing.assert_close(penalty, expected)
    (found,) = torch.autograd.grad(penalty, weight)
    (wanted,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(
        found, wanted
    )  # it can be trained on: the second derivative is there


def test_penalty_is_float32_under_autocast():
    conv = torch.nn.Conv2d(1, 1, 3)
    pixels, label = torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)

    def critic(x, y):
        return conv(x).sum(dim=(1, 2, 3))

    plain = objectives.gradient_penalty(critic, pixels, label)
    with torch.autocast("cpu", torch.bfloat16):
        cast = objectives.gradient_penalty(critic, pixels, label)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_translation_is_seeded_differs_between_images_and_passes_gradients():
    image = torch.randn(1, 1, 16, 16).expand(8, -1, -1, -1).clone().requires_grad_()
    made = [objectives.translate(image, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(made[0], made[1])
    assert made[0].shape == image.shape
    assert len(made[0].flatten(1).unique(dim=0)) > 1
    made[0].square().sum().backward()
    assert image.grad.abs().sum(dim=(1, 2, 3)).min() > 0


def test_translation_moves_at_most_an_eighth_and_repeats_the_border():
    ramp = torch.arange(16.0).expand(500, 1, 16, 16)
    moved = objectives.translate(ramp, torch.Generator().manual_seed(0))
    shift = ramp[:, 0, 0, 8] - moved[:, 0, 0, 8]
    assert set(shift.tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert torch.equal(moved, (ramp - shift[:, None, None, None]).clamp(0, 15))


def test_turns_are_the_eight_of_the_square():
    image = torch.arange(9.0).reshape(1, 1, 3, 3).expand(400, -1, -1, -1)
    turned, shown = objectives.random_turn(image, torch.Generator().manual_seed(0))
    assert torch.equal(shown, torch.ones_like(image))
    found = {tuple(x) for x in turned.flatten(1).tolist()}
    base = image[0, 0]
    wanted = {
        tuple(torch.rot90(side, k).flatten().tolist())
        for side in (base, base.flip(1))
        for k in range(4)
    }
    assert found == wanted


def spot(side, angle, radius=0.3):
    """A smooth spot off the centre, at an angle counted as `rotate` counts."""
    y, x = torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * 2, indexing="ij")
    x0, y0 = radius * side * math.cos(angle), radius * side * math.sin(angle)
    return torch.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 8)[None, None]


@given(st.floats(-math.pi / 4, math.pi / 4), st.sampled_from([32, 64]))
@settings(max_examples=30, deadline=None)
def test_a_turn_of_any_angle_moves_what_is_there_by_this_angle(angle, side):
    found = objectives.rotate(spot(side, 0.3), torch.tensor([angle]))
    place = torch.arange(side) - (side - 1) / 2
    inside = place.square() + place[:, None].square() < (0.48 * side) ** 2  # beyond are reflections
    assert float((found - spot(side, 0.3 + angle))[0, 0][inside].abs().max()) < 0.03


def test_a_turn_of_any_angle_keeps_the_texture():
    noise = torch.randn((400, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    angle = torch.linspace(-math.pi / 4, math.pi / 4, 400)
    turned = objectives.rotate(noise, angle)
    assert float(turned.std()) == pytest.approx(1, abs=0.03)
    power = [torch.fft.rfft2(x[:, 0]).abs().square().mean(0) for x in (noise, turned)]
    # of the highest frequencies an interpolation loses most
    fine = [float(p[12:21, 6:].mean() / p.mean()) for p in power]
    assert fine[1] > 0.85 * fine[0]
    still = objectives.rotate(noise, torch.zeros(400))
    torch.testing.assert_close(still, noise, atol=1e-5, rtol=0)


def test_half_of_the_turns_are_of_any_angle_and_flipped_and_stay_in_range():
    image = spot(32, 0.3).expand(8000, -1, -1, -1) * 2 - 1
    turned, shown = objectives.random_turn(image, torch.Generator().manual_seed(0), "any")
    assert turned.min() >= -1 and turned.max() <= 1
    whole = (shown == 1).flatten(1).all(1)
    assert 4000 <= whole.sum() < 4100  # a hundredth of a turn hides no pixel
    eight, _ = objectives.random_turn(image[:400], torch.Generator().manual_seed(1))
    assert {tuple(x) for x in turned[whole].flatten(1).tolist()} >= {
        tuple(x) for x in eight.flatten(1).tolist()
    }
    weight = (turned[~whole, 0] + 1).clamp_min(0) * shown[~whole, 0]
    place = torch.arange(32) - 15.5
    x, y = ((weight * p).sum((1, 2)) for p in (place, place[:, None]))
    counts = torch.histc(torch.atan2(y, x), 12, -math.pi, math.pi)
    assert counts.min() > 250 and counts.max() < 420  # 333 each


@given(st.floats(-math.pi / 4, math.pi / 4))
@settings(max_examples=30, deadline=None)
def test_what_a_turn_shows_is_where_the_image_went(angle):
    square = torch.zeros((1, 1, 64, 64))
    square[:, :, 16:48, 16:48] = 1
    turned = objectives.rotate(square, torch.tensor([angle]))
    found = objectives.inside(torch.tensor([angle]), 32)
    # the shears keep the sharp edge sharp, so it rings; turned the wrong way it differs by up to 0.14
    assert float((turned[:, :, 16:48, 16:48] - found).abs().mean()) < 0.05
    assert float(found.mean()) > 0.82  # an octagon at 45 degrees


def test_what_a_turn_does_not_show_is_0():
    bright = torch.full((40, 1, 32, 32), 0.7)
    turned, shown = objectives.random_turn(bright, torch.Generator().manual_seed(0), "any")
    torch.testing.assert_close(turned, 0.7 * shown)
    assert (shown == 0).any()


def test_interpolated_penalty_of_a_known_function():
    # f(x) = w . x has the gradient w everywhere: the penalty is (|w| - 1)^2
    weight = torch.full((1, 4, 4), 0.75, requires_grad=True)  # of length 3
    real, fake = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
    seen = []

    def critic(x, y):
        seen.append(x)
        return (weight * x).sum(dim=(1, 2, 3))

    draw = torch.Generator().manual_seed(0)
    penalty = objectives.interpolated_penalty(critic, real, fake, torch.zeros(5), draw)
    assert penalty.item() == pytest.approx((3 - 1) ** 2, rel=1e-5)
    (found,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(found, torch.full((1, 4, 4), 2 * (3 - 1) * 0.75 / 3))
    share = (seen[0] - real) / (fake - real)
    assert share.flatten(1).std(dim=1).max() < 1e-3  # one point on the line for each image
    assert 0 <= share.min() <= share.max() <= 1
    assert share.mean(dim=(1, 2, 3)).unique().numel() == 5


def test_schedule_is_half_a_cosine_then_flat():
    found = [objectives.scheduled(0.5, p) for p in (0, 0.25, 0.5, 1, 3)]
    assert found == pytest.approx([1, 0.75 + 0.25 * math.sqrt(0.5), 0.75, 0.5, 0.5])
    assert objectives.scheduled(1.0, 0.123) == 1.0
