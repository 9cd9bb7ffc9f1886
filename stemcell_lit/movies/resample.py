"""Frames with pixels of another size."""

from __future__ import annotations

import numpy as np
from PIL import Image

# A reduction this near to a whole factor averages whole blocks
WHOLE_FACTOR = 0.005


def scale_between(um_per_px: float | None, wanted: float | None) -> float:
    """Wanted pixels per pixel: 1 where either size is unknown, 1/n where they are nearly n to 1.

    Args:
        um_per_px: size of the pixels that are there, micrometres.
        wanted: size of the pixels to make.
    """
    if um_per_px is None or wanted is None:
        return 1.0
    ratio = wanted / um_per_px
    if abs(ratio - round(ratio)) <= WHOLE_FACTOR * ratio:
        ratio = float(round(ratio))
    return 1 / ratio


def scaled_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of a frame after `resample`; a rest of less than a pixel is cut off."""
    return int(shape[0] * scale + 1e-6), int(shape[1] * scale + 1e-6)


def resample(image: np.ndarray, scale: float) -> np.ndarray:
    """A frame with pixels of another size.

    Whole factors average blocks, so that no interpolation blurs the texture; others average areas,
    and enlarging is bicubic.

    Args:
        image: uint8 (height, width).
        scale: new pixels per pixel, as `scale_between` gives it.

    Returns:
        uint8, of `scaled_shape`.
    """
    height, width = scaled_shape((image.shape[0], image.shape[1]), scale)
    factor = round(1 / scale)
    if scale * factor == 1:
        if factor == 1:
            return image
        blocks = image[: height * factor, : width * factor]
        blocks = blocks.reshape(height, factor, width, factor)
        reduced: np.ndarray = np.rint(blocks.mean((1, 3), dtype=np.float32)).astype(np.uint8)
        return reduced
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    box = (0.0, 0.0, width / scale, height / scale)
    return np.asarray(Image.fromarray(image).resize((width, height), how, box=box))


def resample_labels(labels: np.ndarray, scale: float) -> np.ndarray:
    """A label image with pixels of another size: each takes the label at its centre."""
    if scale == 1:
        return labels
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) / scale).astype(int), side - 1)
        for n, side in zip(
            scaled_shape((labels.shape[0], labels.shape[1]), scale), labels.shape, strict=True
        )
    )
    resampled: np.ndarray = labels[rows[:, None], columns[None, :]]
    return resampled
