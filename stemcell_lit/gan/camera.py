"""The camera's noise, as a last layer of a generator, and its strengths as real patches show them.

Of a signal s from 0 to 1 a camera shows y = s + sqrt(read^2 + shot s + (speckle s)^2) n with n a standard normal number
for each pixel: read noise, shot noise (a Poisson number of photons, near a normal one; its variance grows with the
signal) and speckle (grows with its square; as a layer of a generator: SpeckleGAN, Bargsten and Schlaefer 2020, Int J
CARS 15, 1427). The three are independent, so their sum takes one random number a pixel, and a gradient reaches signal
and strengths (the noise is a part of the generator's input).

A clean picture and white noise of a known strength are told apart by what is seen (AmbientGAN, Bora et al. 2018): a
generator whose camera is `estimated` has to draw the rest. Where strengths are `learned`, a critic sees the sum alone:
noise that the layers before draw is as good, so these strengths are no measurement. Nor are the three told apart where
patches have one brightness; their sum at that brightness is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import correlate, uniform_filter
from scipy.optimize import nnls
from torch import Tensor, nn

STRENGTHS = ("read", "shot", "speckle")

# Largest strengths: a standard deviation of a quarter of the range, of a third of it at full signal, of half the signal
MOST = (0.25, 0.1, 0.5)

_LEAST = 0.01  # share of `MOST` from which a learned strength begins: nearer to 0 hardly any gradient reaches it

_SMALL = 1e-8  # variance that is always there: the root's slope at 0 is infinite

_MASK = (
    np.outer([1, -2, 1], [1, -2, 1]) / 6.0
)  # of norm 1; Immerkaer 1996, Comput Vis Image Underst 64, 300

_BINS = 16  # of brightness

_QUANTILE, _NORMAL = 0.25, 0.31864  # of the absolute values; of those of a standard normal number

_PATCHES = 4096  # that are looked at, at most


class Camera(nn.Module):
    """Draws a camera's noise on images.

    Args:
        strengths: of `STRENGTHS`, from 0 to `MOST`.
        learned: whether they are weights, which stay above 0 and below `MOST`.
    """

    most: Tensor
    weight: Tensor

    def __init__(self, strengths: Sequence[float], learned: bool = False):
        super().__init__()
        most = torch.tensor(MOST)
        share = torch.tensor([float(s) for s in strengths]) / most
        self.register_buffer("most", most, persistent=False)
        self.learned = learned
        if learned:
            self.weight = nn.Parameter(torch.logit(share.clamp(_LEAST, 1 - _LEAST)))
        else:
            self.register_buffer("weight", share.clamp(0, 1))

    @property
    def strengths(self) -> Tensor:
        """(3,) of `STRENGTHS`."""
        found: Tensor = self.most * (self.weight.sigmoid() if self.learned else self.weight)
        return found

    def take(self, strengths: Sequence[float]) -> None:
        """Sets strengths that are not learned."""
        self.weight.copy_(self.weight.new_tensor(list(strengths)) / self.most)

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """What the camera shows of clean images.

        Args:
            pixels: (batch, 1, height, width) in [-1, 1].
            noise: of the same shape, standard normal.

        Returns:
            The same shape, in [-1, 1]: what is brighter or darker is clipped, as in a file.
        """
        signal = (pixels + 1) / 2
        read, shot, speckle = self.strengths
        variance = read.square() + shot * signal + (speckle * signal).square() + _SMALL
        seen: Tensor = (2 * (signal + variance.sqrt() * noise) - 1).clamp(-1, 1)
        return seen


class WithCamera(nn.Module):
    """A generator and its camera behind the interface of a generator.

    Attributes:
        inputs: numbers that make an image beside its condition: the generator's, then a noise pixel for each pixel.
    """

    def __init__(self, network: nn.Module, camera: Camera, image_size: int):
        super().__init__()
        self.network, self.camera, self.image_size = network, camera, image_size
        self.inputs = int(network.inputs) + image_size**2  # type: ignore[arg-type]

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """(batch, inputs) standard normal and (batch,) int64 -> (batch, 1, size, size) in [-1, 1]."""
        latent, noise = latent.split([self.inputs - self.image_size**2, self.image_size**2], dim=1)
        clean: Tensor = self.network(latent, label)
        seen: Tensor = self.camera(clean, noise.view(clean.shape))
        return seen


def strengths_in(network: nn.Module) -> dict[str, float] | None:
    """The strengths of a generator's camera by name, None where it has none."""
    for part in network.modules():
        if isinstance(part, Camera):
            return dict(zip(STRENGTHS, part.strengths.tolist(), strict=True))
    return None


def noise_levels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How strong the pixel noise is at which brightness.

    A mask that answers 0 to planes and to edges along rows or columns leaves noise and fine texture. Of its answers at
    like brightness a low quantile is taken, which smooth places decide: textures and other edges are seldom among them.

    Args:
        pixels: uint8 (n, height, width), at least 3 x 3.

    Returns:
        (bins,) each: signal from 0 to 1, variance of the noise, number of places; places with a clipped pixel count
        nowhere, and there may be no bin at all.
    """
    rows = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), _PATCHES)).astype(int))
    signal = np.asarray(pixels[rows], np.float32) / 255
    inner = (slice(None), slice(1, -1), slice(1, -1))
    clipped = ((signal <= 0) | (signal >= 1)).astype(np.float32)
    good = uniform_filter(clipped, (0, 3, 3))[inner] < 0.05
    mean = uniform_filter(signal, (0, 3, 3))[inner][good]
    rest = np.abs(correlate(signal, _MASK[None].astype(np.float32))[inner][good])
    if not len(mean):
        return np.zeros(0), np.zeros(0), np.zeros(0)
    edges = np.unique(np.quantile(mean, np.linspace(0, 1, _BINS + 1)))
    place = np.clip(np.searchsorted(edges, mean, side="right") - 1, 0, max(len(edges) - 2, 0))
    found = [
        (mean[own].mean(), (np.quantile(rest[own], _QUANTILE) / _NORMAL) ** 2, own.sum())
        for own in (place == i for i in range(max(len(edges) - 1, 1)))
        if own.any()
    ]
    at, variance, count = np.array(found, np.float64).T
    return at, variance, count


def fit_strengths(
    signal: np.ndarray, variance: np.ndarray, weight: np.ndarray, error: np.ndarray
) -> list[float]:
    """The strengths whose noise has a variance at each signal, by least squares; none below 0 or above `MOST`.

    Args:
        signal: (bins,) from 0 to 1.
        variance: (bins,) of the noise there.
        weight: (bins,) number of places.
        error: (bins,) how far off a variance may be, up to a common factor, where each counts one.
    """
    if not len(signal):
        return [0.0] * len(STRENGTHS)
    root = np.sqrt(weight) / np.maximum(error, 1e-8)
    terms = np.stack([np.ones_like(signal), signal, signal**2], axis=1)
    read, shot, speckle = nnls(terms * root[:, None], variance * root)[0]
    return [
        float(min(s, most)) for s, most in zip((read**0.5, shot, speckle**0.5), MOST, strict=True)
    ]


def estimate(pixels: np.ndarray) -> list[float]:
    """Strengths of the noise in real patches, of `STRENGTHS`; pixels as for `noise_levels`."""
    signal, variance, count = noise_levels(pixels)
    return fit_strengths(signal, variance, count, variance)


def missing(strengths: Sequence[float], pixels: np.ndarray) -> list[float]:
    """Strengths of the noise that patches lack to have as much as `strengths` give; pixels as for `noise_levels`."""
    signal, own, count = noise_levels(pixels)
    read, shot, speckle = strengths
    wanted = read**2 + shot * signal + (speckle * signal) ** 2
    return fit_strengths(signal, np.maximum(wanted - own, 0), count, wanted)
