"""Colonies: where cells are in a frame, and which colony is which over time.

Three maps of the foreground behind one function, chosen by `ColoniesConfig.method`:

- `contrast` (default): brightness relative to its surroundings at the scale of a cell, two
  thresholds;
- `paper`: blur, local entropy, opening, Otsu, filled holes (Witmer and Bhanu 2022);
- `forest`: boosted trees on multi-scale pixel features, trained on a few annotated frames.

Lengths are in micrometres and areas in square micrometres, so settings hold for other
magnifications.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy import ndimage as ndi
from skimage.feature import multiscale_basic_features
from skimage.filters import apply_hysteresis_threshold, threshold_otsu
from skimage.filters.rank import entropy
from skimage.morphology import disk
from skimage.transform import resize
from sklearn.ensemble import HistGradientBoostingClassifier

from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import open_frames
from stemcell_lit.movies.maps import pair
from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.field_types import check

METHODS = ("contrast", "paper", "forest")


EIGHT = np.ones((3, 3), bool)  # pixels that touch at a corner belong together


DARKEST, BRIGHTEST = (
    -0.3,
    1.0,
)  # relative brightness is clipped: a round dying cell outshines ten others


FLOOR = (
    1 / 255
)  # of the surroundings, in units of full scale: dark corners must not be divided by zero


def foreground(
    frame: np.ndarray,
    config: ColoniesConfig,
    um_per_px: float | None,
    classifier: PixelClassifier | None = None,
) -> np.ndarray:
    """Where cells or colonies are.

    Args:
        frame: (height, width), float in [0, 1] or uint8.
        config: method and its settings.
        um_per_px: size of a pixel in micrometres.
        classifier: a fitted one for method `forest`.

    Returns:
        bool (height, width).

    Raises:
        UserError: a setting is out of range, or the pixel size is unknown.
    """
    scale = _checked_scale(config, um_per_px)
    image = _flat(frame)
    if config.method == "paper":
        mask = _entropy_map(image, config, scale)
    elif config.method == "contrast":
        mask = _contrast_map(image, config, scale)
    else:
        if classifier is None:
            raise UserError(
                "colonies.method=forest needs a classifier trained on annotated frames; see classifier_of"
            )
        mask = _at_scale(classifier, image, scale) > config.forest.probability
    return _tidy(mask, config, scale)


def label_colonies(mask: np.ndarray) -> np.ndarray:
    """Numbers the connected parts (8 neighbours) of a mask, bool (height, width), from 1, in reading order; int32."""
    labels = np.empty(mask.shape, np.int32)
    ndi.label(mask, structure=EIGHT, output=labels)
    return labels


def drop_near_border(mask: np.ndarray, margin_px: float) -> np.ndarray:
    """A mask, bool (height, width), without colonies whose centre of mass is nearer than that to the frame's border."""
    labels = label_colonies(mask)
    y, x = _centres(labels, np.bincount(labels.ravel()))
    height, width = mask.shape
    keep = (y >= margin_px) & (y < height - margin_px)
    keep &= (x >= margin_px) & (x < width - margin_px)
    keep[0] = False
    kept: np.ndarray = keep[labels]
    return kept


class PixelClassifier:
    """Gradient-boosted trees on multi-scale features: for labs that can annotate a few frames.

    Features (scikit-image): brightness, edges and Hessian eigenvalues after Gaussian blurs that
    double from `forest.min_um` to `forest.max_um`, of the frame relative to its surroundings.
    """

    def __init__(self, config: ColoniesConfig, um_per_px: float | None):
        self.scale = _checked_scale(config, um_per_px)
        self.config = config
        self._model: HistGradientBoostingClassifier | None = None

    def fit(
        self, examples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    ) -> PixelClassifier:
        """Trains on annotated frames.

        Args:
            examples: (frame, mask, where): frame as for `foreground`; mask bool, the annotation;
                where bool, the pixels that may be learned from, None: all.

        Raises:
            UserError: no pixels, or only foreground or only background in them.
        """
        rng = np.random.default_rng(self.config.forest.seed)
        inputs, targets = [], []
        for frame, mask, where in examples:
            usable = np.flatnonzero(np.ones(mask.shape, bool) if where is None else where)
            count = min(self.config.forest.pixels, len(usable))
            chosen = rng.choice(usable, count, replace=False)
            inputs.append(self._features(_flat(frame)).reshape(mask.size, -1)[chosen])
            targets.append(np.asarray(mask, bool).ravel()[chosen])
        if not targets or np.unique(np.concatenate(targets)).size < 2:
            raise UserError(
                "the annotated frames hold no pixels of one kind; expected foreground and "
                "background; annotate at least one frame with cells"
            )
        self._model = HistGradientBoostingClassifier(
            max_iter=self.config.forest.trees,
            early_stopping=False,
            random_state=self.config.forest.seed,
        ).fit(np.concatenate(inputs), np.concatenate(targets))
        return self

    def probability(self, frame: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """The probability of foreground.

        Args:
            frame: as in `foreground`, with pixels of the size that it was trained at.
            where: bool (height, width), the pixels wanted; None: all.

        Returns:
            float32 (height, width), 0 where not wanted.
        """
        if self._model is None:
            raise UserError("this PixelClassifier was not fitted; call fit with annotated frames")
        wanted = np.ones(frame.shape, bool) if where is None else where
        result = np.zeros(frame.shape, np.float32)
        if wanted.any():
            values = self._features(_flat(frame))[wanted]
            result[wanted] = self._model.predict_proba(values)[:, 1]
        return result

    def _features(self, image: np.ndarray) -> np.ndarray:
        scale = self.scale
        low, high = self.config.forest.min_um / scale, self.config.forest.max_um / scale
        features: np.ndarray = multiscale_basic_features(
            _relative(image, self.config.background_um / scale),
            sigma_min=low,
            sigma_max=high,
            num_sigma=max(1, round(math.log2(high / low)) + 1),
        )
        return features


def _at_scale(classifier: PixelClassifier, image: np.ndarray, scale: float) -> np.ndarray:
    """Probabilities of a frame with pixels of any size: slopes and curvatures need that of the training."""
    ratio = scale / classifier.scale
    if abs(ratio - 1) < 0.01:
        return classifier.probability(image)
    shape = [max(1, round(side * ratio)) for side in image.shape]
    resized = resize(image, shape, order=1, anti_aliasing=ratio < 1).astype(np.float32)
    probability: np.ndarray = resize(classifier.probability(resized), image.shape, order=1)
    return probability


def classifier_of(config: ColoniesConfig) -> PixelClassifier | None:
    """The classifier that method `forest` needs, fitted to the annotated frames that the settings name.

    It is not stored: fitting takes seconds, and the same frames and settings give the same trees. Annotated are the
    frames of `forest.masks` that hold a cell, at most `forest.frames` of them, spread over the movie.

    Returns:
        None for the other methods.

    Raises:
        UserError: no annotated frames are named, or the masks do not fit the movie.
    """
    if config.method != "forest":
        return None
    check(config, "colonies.")
    forest = config.forest
    if forest.movie is None or forest.masks is None:
        raise UserError(
            "colonies=forest needs annotated frames; give colonies.forest.movie=MOVIE and colonies.forest.masks=MASKS "
            "(0 ground, else cell; empty frames are not annotated), or take contrast, colony or paper"
        )
    with (
        open_frames(forest.movie, um_per_px=forest.um_per_px) as frames,
        open_frames(forest.masks, scaling=(0, 1), labels=True) as masks,
    ):
        mask_at = pair(frames, masks)
        annotated = [i for i in range(len(frames)) if masks.raw(mask_at[i]).any()]
        spread = np.linspace(0, len(annotated) - 1, min(forest.frames, len(annotated)))
        chosen = [annotated[i] for i in np.unique(spread.round().astype(int))]
        examples = ((frames.read(i), masks.raw(mask_at[i]) > 0, None) for i in chosen)
        try:
            return PixelClassifier(config, frames.um_per_px).fit(examples)
        except UserError as error:
            raise UserError(f"{masks.path}: {error}") from error


def _checked_scale(config: ColoniesConfig, um_per_px: float | None) -> float:
    if um_per_px is None or not (math.isfinite(um_per_px) and um_per_px > 0):
        raise UserError(
            f"um_per_px={um_per_px}: the movie does not tell the size of a pixel, and colonies are "
            "found in micrometres; give um_per_px (micrometres per pixel)"
        )
    check(config, "colonies.")
    if config.method == "none":
        raise UserError(f"colonies.method=none: expected one of {', '.join(METHODS)}")
    low, high = config.contrast.low, config.contrast.high
    if low > high:
        raise UserError(
            f"colonies.contrast.low={low} is above colonies.contrast.high={high}; a seed must pass both"
        )
    return float(um_per_px)


def _flat(frame: np.ndarray) -> np.ndarray:
    """float32 in units of full scale."""
    if frame.ndim != 2 or frame.size == 0:
        raise UserError(f"found a frame of shape {frame.shape}; expected (height, width)")
    image = frame.astype(np.float32)
    if frame.dtype == np.uint8:
        image /= 255
    return image


def _relative(image: np.ndarray, sigma: float) -> np.ndarray:
    """Brightness against the surroundings: 0 where equal, 1 at twice their brightness."""
    ratio = image / _wide_blur(image, sigma).clip(FLOOR) - 1
    clipped: np.ndarray = np.clip(ratio, DARKEST, BRIGHTEST, out=ratio)
    return clipped


def _wide_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur; a wide one on a reduced image, where it costs little and looks the same."""
    step = max(1, int(sigma / 8))  # 8 px of sigma are left: linear interpolation errs below 1 %
    if step == 1:
        blurred: np.ndarray = ndi.gaussian_filter(image, sigma, mode="nearest")
        return blurred
    height, width = image.shape
    padded = np.pad(image, ((0, -height % step), (0, -width % step)), mode="edge")
    rows, columns = padded.shape[0] // step, padded.shape[1] // step
    small = padded.reshape(rows, step, columns, step).mean((1, 3))
    small = ndi.gaussian_filter(small, sigma / step, mode="nearest")
    wide: np.ndarray = ndi.zoom(small, step, order=1, mode="nearest", grid_mode=True)
    blurred = wide[:height, :width]
    return blurred


def _contrast_map(image: np.ndarray, config: ColoniesConfig, scale: float) -> np.ndarray:
    """Relative brightness less its mean over a cell's surroundings, then two thresholds.

    The second subtraction separates cells that touch: the dim line between two bright bodies lies
    below the mean of both.
    """
    if config.blur_um:
        image = ndi.gaussian_filter(image, config.blur_um / scale, mode="nearest")
    value = _relative(image, config.background_um / scale)
    own, cell = config.contrast, config.contrast.cell_um / scale
    value -= _wide_blur(value, cell)
    if own.polarity == "dark":
        value = -value
    elif own.polarity == "both":  # root mean square over half a cell: texture of either sign
        squared = ndi.gaussian_filter(value * value, cell / 2, mode="nearest")
        value = np.sqrt(squared.clip(0))
    found: np.ndarray = apply_hysteresis_threshold(value, own.low, own.high)
    return found


def _entropy_map(image: np.ndarray, config: ColoniesConfig, scale: float) -> np.ndarray:
    """Local entropy of the blurred frame, opened, above a threshold."""
    blurred = ndi.gaussian_filter(image, config.blur_um / scale, mode="nearest")
    radius = max(1, round(config.paper.entropy_radius_um / scale))
    local = entropy(np.rint(blurred.clip(0, 1) * 255).astype(np.uint8), disk(radius))
    opening = round(config.paper.opening_um / scale)
    if opening:
        local = ndi.grey_opening(local, footprint=disk(opening))
    low, high = float(local.min()), float(local.max())
    if high - low < 1e-9:
        return np.zeros(image.shape, bool)  # a blank frame has no foreground
    local = (local - low) / (high - low)
    threshold = config.paper.threshold
    found: np.ndarray = local > (threshold_otsu(local) if threshold is None else threshold)
    return found


def _tidy(mask: np.ndarray, config: ColoniesConfig, scale: float) -> np.ndarray:
    """Grows, joins, fills and drops what is small or near the border."""
    for _ in range(round(config.grow_um / scale)):
        mask = ndi.binary_dilation(mask, EIGHT)
    if (reach := config.join_um / 2 / scale) >= 0.5:
        # distances, not a large footprint: the cost does not grow with the reach
        wide = ndi.distance_transform_edt(~np.pad(mask, math.ceil(reach))) <= reach
        closed = ndi.distance_transform_edt(wide) > reach
        edge = math.ceil(reach)
        mask = mask | closed[edge:-edge, edge:-edge]
    if config.max_hole_um2 is None:
        mask = ndi.binary_fill_holes(mask)
    elif config.max_hole_um2 > 0:
        holes, count = ndi.label(~mask)
        small = np.bincount(holes.ravel(), minlength=count + 1) * scale**2 <= config.max_hole_um2
        small[0] = False
        mask = mask | small[holes]
    labels = label_colonies(mask)
    area = np.bincount(labels.ravel())
    keep = area * scale**2 >= config.min_area_um2
    keep[0] = False
    mask = keep[labels]
    return drop_near_border(mask, config.margin_um / scale) if config.margin_um else mask


def _centres(labels: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Centres of mass, (2, labels); those of label 0 and of empty labels mean nothing."""
    y, x = np.nonzero(labels)
    owner = labels[y, x]
    sums = [np.bincount(owner, weights=p, minlength=len(area)) for p in (y, x)]
    centres: np.ndarray = np.stack(sums) / np.maximum(area, 1)
    return centres
