"""The phase-contrast microscope of the simulation, from a phase map to light, and noise to draw with."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft

WAVELENGTH_UM = 0.55


APERTURE = 0.30  # numerical aperture of a 10x objective


RING = 0.105  # numerical aperture at the middle of the phase ring


RING_WIDTH = 0.030  # the narrower, the wider the halo


RING_AMPLITUDE = 0.5  # the ring lets 25 % of the light through


READ_NOISE = 1.2  # gray levels


SOURCE_POINTS = 13  # of the annular source; odd, or the points pair up into a grating


class Optics:
    """Zernike's phase contrast of square frames.

    For each point of the annular source the object's spectrum is seen shifted by that point's direction. Where
    it meets the ring it is attenuated and retarded by a quarter wave: the direct light, and with it the object's
    coarsest detail, which is what makes halo and shade-off (F. Zernike 1942, Physica 9:686).
    """

    def __init__(self, size: int, um_per_px: float):
        self.pad = min(size - 1, math.ceil(48 / um_per_px))  # the halo's reach
        self.padded = scipy.fft.next_fast_len(size + 2 * self.pad)
        self.extra = self.padded - size - self.pad
        frequency = scipy.fft.fftfreq(self.padded, um_per_px).astype(np.float32)
        self.points = []
        for k in range(SOURCE_POINTS):
            angle = 2 * math.pi * (k + 0.25) / SOURCE_POINTS
            ky = frequency[:, None] + RING / WAVELENGTH_UM * math.sin(angle)
            kx = frequency[None, :] + RING / WAVELENGTH_UM * math.cos(angle)
            aperture = np.hypot(ky, kx) * WAVELENGTH_UM
            # Edges of the ring and of the aperture are softened by the size of a source point.
            ring = step((RING_WIDTH / 2 - np.abs(aperture - RING)) / 0.002)
            opening = step((APERTURE - aperture) / 0.004)
            pupil = opening * (1 + ring * (-1j * RING_AMPLITUDE - 1))
            self.points.append((pupil.astype(np.complex64), ky, kx))
        # Empty ground: only the direct light.
        self.ground = RING_AMPLITUDE**2

    def image(self, phase: np.ndarray, focus_um: float) -> np.ndarray:
        """Intensity over that of empty ground.

        Args:
            phase: float (size, size), rad.
            focus_um: distance from focus.

        Returns:
            float32 (size, size), 1 on empty ground.
        """
        size = phase.shape[0]
        # Without reflection the frame's border would meet its opposite border and ring.
        padded = np.pad(phase, (self.pad, self.extra), mode="reflect")
        spectrum = scipy.fft.fft2(np.exp(1j * padded).astype(np.complex64))
        total = np.zeros(phase.shape, np.float32)
        window = slice(self.pad, self.pad + size)
        bend = np.complex64(-1j * math.pi * WAVELENGTH_UM * focus_um)  # Fresnel propagation
        for pupil, ky, kx in self.points:
            field = spectrum * pupil
            field *= np.exp(bend * ky**2)
            field *= np.exp(bend * kx**2)
            field = scipy.fft.ifft2(field, overwrite_x=True)[window, window]
            total += field.real**2 + field.imag**2
        return total / (SOURCE_POINTS * self.ground)


def step(value: np.ndarray) -> np.ndarray:
    """A smooth step from 0 to 1 around 0."""
    share: np.ndarray = (0.5 * (1 + np.tanh(value))).astype(np.float32)
    return share


def turned(pair: tuple[np.ndarray, np.ndarray], angle: float) -> np.ndarray:
    """A mixture of two fields that changes with the angle (rad) and keeps its variance."""
    mixed: np.ndarray = np.cos(np.float32(angle)) * pair[0] + np.sin(np.float32(angle)) * pair[1]
    return mixed


def noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> np.ndarray:
    """Gaussian noise blurred to a length in px, float32 with mean 0 and standard deviation 1."""
    # Drawn on a larger square, or scales near the frame's size would repeat at its borders.
    extent = scipy.fft.next_fast_len(shape[0] + math.ceil(3 * scale_px))
    spectrum = scipy.fft.rfft2(rng.standard_normal((extent, extent), dtype=np.float32))
    fy, fx = scipy.fft.fftfreq(extent), scipy.fft.rfftfreq(extent)
    blur = np.exp(-2 * (np.pi * scale_px) ** 2 * (fy[:, None] ** 2 + fx[None, :] ** 2))
    field = scipy.fft.irfft2(spectrum * blur.astype(np.float32), s=(extent, extent))
    expected = np.sqrt((blur[:, 1:] ** 2).sum() * 2 + (blur[:, 0] ** 2).sum()) / extent
    made: np.ndarray = (field[: shape[0], : shape[1]] / expected).astype(np.float32)
    return made


def noise_pair(
    rng: np.random.Generator, shape: tuple[int, int], scale_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two fields of `noise`, which `turned` mixes."""
    first = noise(rng, shape, scale_px)
    return first, noise(rng, shape, scale_px)
