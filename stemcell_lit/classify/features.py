"""Named features of gray patches, as classical cell classifiers use them: no training, no labels.

Every feature is the same for a patch turned by a quarter or flipped (up to rounding, and to ties of local patterns),
so that a classifier needs no turned copies to learn from. Sources: Haralick et al. 1973 (co-occurrence), Ojala et al.
2002 (uniform local binary patterns), Dalal and Triggs 2005 (histograms of gradients, here against the direction to the
centre), Khotanzad and Hong 1990 (Zernike moments), Otsu 1979 (threshold), Hu 1962 (moments).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from scipy import ndimage as ndi
from skimage.feature import graycomatrix, local_binary_pattern
from skimage.measure import regionprops

VERSION = 1  # bump when the same patch would now have other features
CHUNK = 128  # patches at once: their intermediate images fit into a processor's cache
LEVELS = 32  # gray levels of co-occurrence matrices
DISTANCES = (1, 2, 4, 8)  # px
RINGS = 8  # of the profile, from the centre to the border
DEGREE = 8  # of Zernike moments

SHAPES = (
    *("area", "pieces", "largest", "second", "eccentricity", "elongation", "solidity", "extent"),
    *("compactness", "euler", "offset", "hu1", "hu2", "hu3", "hu4", "texture"),
)

Named = dict[str, np.ndarray]


def features(pixels: np.ndarray, shown: Callable[[int], None] | None = None) -> np.ndarray:
    """Features of patches.

    Args:
        pixels: uint8 (patches, [views,] size, size).
        shown: is told now and then how many patches are done.

    Returns:
        float32 (patches, features), finite; the columns are those of `feature_names`.
    """
    views = pixels[:, None] if pixels.ndim == 3 else pixels
    out = np.empty((len(views), len(feature_names(views.shape[1]))), np.float32)
    for start in range(0, len(views), CHUNK):
        chunk = np.ascontiguousarray(views[start : start + CHUNK])
        parts = [np.stack(list(_view(chunk[:, v]).values()), 1) for v in range(chunk.shape[1])]
        out[start : start + CHUNK] = np.nan_to_num(np.concatenate(parts, 1), posinf=0.0, neginf=0.0)
        if shown is not None:
            shown(min(start + CHUNK, len(views)))
    return out


@lru_cache
def feature_names(views: int = 1) -> tuple[str, ...]:
    """Names as `family/feature`, those of a further view with `@2`, `@3` behind them."""
    names = tuple(_view(np.zeros((1, 16, 16), np.uint8)))
    return names + tuple(f"{name}@{v + 1}" for v in range(1, views) for name in names)


def families(names: Sequence[str]) -> dict[str, list[int]]:
    """Family -> positions of its features, in the order of their first."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name.split("/", 1)[0], []).append(i)
    return found


class Extractor(Protocol):
    """What makes features of patches."""

    @property
    def key(self) -> dict[str, Any]:
        """Plain values that determine them: two extractors of one key make the same features."""
        ...

    def names(self, views: int) -> tuple[str, ...]:
        """Those of the columns, `family/feature`."""
        ...

    def __call__(
        self, pixels: np.ndarray, shown: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """float32 (patches, features) of patches, as `features`."""
        ...


class Classical:
    """The features of this file."""

    @property
    def key(self) -> dict[str, Any]:
        """How they are computed."""
        return {"version": VERSION}

    def names(self, views: int) -> tuple[str, ...]:
        """See `feature_names`."""
        return feature_names(views)

    def __call__(
        self, pixels: np.ndarray, shown: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """See `features`."""
        return features(pixels, shown)


class FeatureTable:
    """Features by the content of patches: those known beforehand, and those of the last call, are not computed anew.

    Args:
        known: float32 (patches, features).
        keys: what `digests` says of these patches.
        extractor: what makes them.
    """

    def __init__(
        self,
        known: np.ndarray | None = None,
        keys: Sequence[bytes] = (),
        extractor: Extractor | None = None,
    ):
        self.extractor: Extractor = extractor or Classical()
        self._known = {} if known is None else dict(zip(keys, known, strict=True))
        self._recent: dict[bytes, np.ndarray] = {}

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """Features of patches.

        Args:
            pixels: uint8 (patches, [views,] size, size).

        Returns:
            float32 (patches, features).
        """
        keys = digests(pixels)
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        new = [k for k in first if k not in self._known and k not in self._recent]
        if new:
            made = self.extractor(pixels[sorted(first[k] for k in new)])
            order = sorted(new, key=first.__getitem__)
            kept = {k: v for k, v in self._recent.items() if k in first}
            self._recent = kept | dict(zip(order, made, strict=True))
        views = 1 if pixels.ndim == 3 else pixels.shape[1]
        found = np.empty((len(keys), len(self.extractor.names(views))), np.float32)
        for i, key in enumerate(keys):
            found[i] = self._known[key] if key in self._known else self._recent[key]
        return found


def digests(pixels: np.ndarray) -> list[bytes]:
    """Each patch's content in 16 bytes, by which its features are found again."""
    shape = str(pixels.shape[1:]).encode()
    made = []
    for patch in pixels:
        data = np.ascontiguousarray(patch).tobytes()
        made.append(hashlib.blake2b(data, digest_size=16, key=shape).digest())
    return made


def _view(raw: np.ndarray) -> Named:
    """All features of one view of patches, uint8 (patches, height, width)."""
    x = raw.astype(np.float64)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a blank patch divides 0 by 0; that becomes 0
        threshold = _otsu(raw)
        mask = raw > threshold[:, None, None]
        parts = {
            "intensity": _intensity(x, threshold, mask),
            "haralick": _haralick(raw),
            "patterns": _patterns(raw),
            "gradients": _gradients(x),
            "grains": _grains(x, raw),
            "profile": _profile(x),
            "zernike": _zernike(x),
            "shape": _shape(x, mask),
        }
    return {f"{family}/{n}": v for family, part in parts.items() for n, v in part.items()}


# --- families -------------------------------------------------------------------------------------------------------


def _intensity(x: np.ndarray, threshold: np.ndarray, mask: np.ndarray) -> Named:
    """Moments and quantiles of gray values, and of both sides of Otsu's threshold."""
    flat, inside = x.reshape(len(x), -1), mask.reshape(len(x), -1)
    shares = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    quantiles = np.quantile(flat, shares, axis=1)
    named = _moments(flat, "")
    named |= {f"q{round(100 * s):02d}": q for s, q in zip(shares, quantiles, strict=True)}
    named["spread"] = quantiles[6] - quantiles[2]
    named["entropy"] = _entropy(_histogram(flat / 8, 32))
    named["threshold"] = threshold.astype(np.float64)
    for side, where in (("cell", inside), ("ground", ~inside)):
        count = where.sum(1)
        mean = (flat * where).sum(1) / count
        deviation = (flat - mean[:, None]) * where
        named[f"{side}_mean"] = mean
        named[f"{side}_sd"] = np.sqrt((deviation * deviation).sum(1) / count)
        named[f"{side}_skew"] = np.cbrt((deviation * deviation * deviation).sum(1) / count)
    named["step"] = named["cell_mean"] - named["ground_mean"]
    return named


def _haralick(raw: np.ndarray) -> Named:
    """Of the co-occurrence of gray levels, averaged over four directions, at several distances."""
    size = min(raw.shape[1:])
    angles = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
    near = [d for d in DISTANCES if d < size]
    counts = np.zeros((len(raw), LEVELS, LEVELS, len(DISTANCES), len(angles)))
    for i, patch in enumerate(raw // (256 // LEVELS)):
        counts[i, :, :, : len(near)] = graycomatrix(
            patch, near, angles, levels=LEVELS, symmetric=True, normed=True
        )
    level = np.arange(LEVELS)
    row, column = level[:, None], level[None, :]
    named: Named = {}
    for k, distance in enumerate(DISTANCES):
        p = counts[:, :, :, k].mean(-1)
        each = counts[:, :, :, k]
        apart = np.abs(row - column)
        contrast = np.einsum("nij,ij->n", p, apart**2)
        mean = np.einsum("nij,i->n", p, level)
        centred = row - mean[:, None, None]
        other = column - mean[:, None, None]
        variance = (p * centred**2).sum((1, 2))
        total = centred + other
        squared = total * total
        marginal = _entropy(p.sum(2))
        entropy = _entropy(p.reshape(len(p), -1))
        named |= {
            f"contrast{distance}": np.log1p(contrast),
            f"dissimilarity{distance}": np.einsum("nij,ij->n", p, apart),
            f"homogeneity{distance}": np.einsum("nij,ij->n", p, 1 / (1 + apart**2)),
            f"energy{distance}": np.sqrt((p**2).sum((1, 2))),
            f"entropy{distance}": entropy,
            f"correlation{distance}": (p * centred * other).sum((1, 2)) / variance,
            f"shade{distance}": np.cbrt((p * squared * total).sum((1, 2))),
            f"prominence{distance}": (p * squared * squared).sum((1, 2)) ** 0.25,
            f"information{distance}": (entropy - 2 * marginal) / marginal,
            # how much it depends on the direction
            f"anisotropy{distance}": np.ptp(np.einsum("nija,ij->na", each, apart**2), 1) / contrast,
        }
    return named


def _patterns(raw: np.ndarray) -> Named:
    """Shares of uniform local binary patterns, which do not depend on their turn, on circles of three sizes."""
    named: Named = {}
    for radius in (1, 2, 4):
        codes = np.stack([local_binary_pattern(p, 8, radius, "uniform") for p in raw])
        shares = _histogram(codes.reshape(len(raw), -1), 10)
        named |= {f"circle{radius}_{i}": shares[:, i] for i in range(10)}
    return named


def _gradients(x: np.ndarray) -> Named:
    """Strength of edges, and their directions against the direction to the centre in three rings."""
    n, height, width = x.shape
    radius, ux, uy = _directions(height, width)
    named: Named = {}
    for sigma in (1, 2):
        gy, gx = (ndi.gaussian_filter(x, (0, sigma, sigma), (0, *o)) for o in ((1, 0), (0, 1)))
        strength = np.hypot(gx, gy)
        flat = strength.reshape(n, -1)
        named[f"mean{sigma}"], named[f"sd{sigma}"] = flat.mean(1), flat.std(1)
        q = np.quantile(flat, (0.5, 0.9, 0.99), axis=1)
        named |= {f"q{p}_{sigma}": v for p, v in zip((50, 90, 99), q, strict=True)}
        # 0: to the border, pi: to the centre; flips turn the sign of the angle, which is left out
        along, across = gx * ux + gy * uy, np.abs(gy * ux - gx * uy)
        angle = np.minimum((np.arctan2(across, along) / math.pi * 4).astype(np.int64), 3)
        total = flat.sum(1)
        for ring, (low, high) in enumerate(((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))):
            inside = (radius >= low) & (radius < high)
            for b in range(4):
                mass = (strength * ((angle == b) & inside)).sum((1, 2))
                named[f"ring{ring}_to{b}_{sigma}"] = mass / total
    # of the whole patch: how far its edges have one direction (structure tensor)
    xx, yy, xy = ((a * b).sum((1, 2)) for a, b in ((gx, gx), (gy, gy), (gx, gy)))
    named["coherence"] = np.hypot(xx - yy, 2 * xy) / (xx + yy)
    return named


def _grains(x: np.ndarray, raw: np.ndarray) -> Named:
    """What has which size: bands between two blurs, and what openings and closings take away."""
    n = len(x)
    named: Named = {}
    before = x
    for sigma in (1, 2, 4, 8):
        blurred = ndi.gaussian_filter(x, (0, sigma, sigma))
        band = (before - blurred).reshape(n, -1)
        named |= _moments(band, f"band{sigma}_", mean=False)
        before = blurred
    deviation = x.reshape(n, -1).std(1)
    for side in (3, 5, 9):
        opened = ndi.grey_opening(raw, (1, side, side)).astype(np.float64)
        closed = ndi.grey_closing(raw, (1, side, side)).astype(np.float64)
        named[f"bright{side}"] = (x - opened).mean((1, 2)) / deviation
        named[f"dark{side}"] = (closed - x).mean((1, 2)) / deviation
    turned = x[:, ::-1, ::-1]
    centred, other = (a - x.mean((1, 2), keepdims=True) for a in (x, turned))
    named["symmetry"] = (centred * other).mean((1, 2)) / deviation**2
    return named


def _profile(x: np.ndarray) -> Named:
    """Mean and deviation of gray values in rings around the centre, in units of the patch's deviation."""
    n, height, width = x.shape
    radius, _, _ = _directions(height, width)
    ring = np.minimum((radius * RINGS).astype(np.int64), RINGS)
    centred = x - x.mean((1, 2), keepdims=True)
    centred /= x.std((1, 2), keepdims=True)
    named: Named = {}
    for r in range(RINGS):
        inside = centred[:, ring == r]
        named[f"mean{r}"] = inside.mean(1) if inside.size else np.zeros(n)
        named[f"sd{r}"] = inside.std(1) if inside.size else np.zeros(n)
    return named


def _zernike(x: np.ndarray) -> Named:
    """Magnitudes of Zernike moments of the brightness above the darkest tenth."""
    basis, names = _zernike_basis(*x.shape[1:])
    flat = x.reshape(len(x), -1)
    above = np.maximum(flat - np.quantile(flat, 0.1, axis=1)[:, None], 0)
    magnitudes = np.abs(above @ basis) / above.sum(1, keepdims=True)
    return {name: magnitudes[:, i] for i, name in enumerate(names)}


def _shape(x: np.ndarray, mask: np.ndarray) -> Named:
    """The part brighter than Otsu's threshold: its pieces, and the form of the largest."""
    n, height, width = mask.shape
    apart = np.zeros((3, 3, 3), bool)
    apart[1] = True  # pieces do not reach from patch to patch
    labels, count = ndi.label(mask, apart)
    area = np.bincount(labels.ravel(), minlength=count + 1)
    owner = np.zeros(count + 1, np.int64)
    owner[labels.ravel()] = np.repeat(np.arange(n), height * width)
    names = SHAPES
    out = np.zeros((n, len(names)))
    diagonal = math.hypot(height, width) / 2
    for i in range(n):
        mine = np.flatnonzero(owner[1:] == i) + 1 if count else np.empty(0, np.int64)
        mine = mine[area[mine] > 0]
        if not len(mine):
            continue
        order = mine[np.argsort(area[mine], kind="stable")[::-1]]
        piece = labels[i] == order[0]
        region = regionprops(piece.astype(np.uint8))[0]
        total, a = area[mine].sum(), area[order[0]]
        perimeter = max(float(region.perimeter_crofton), 1.0)
        hu = region.moments_hu
        long, short = float(region.axis_major_length), float(region.axis_minor_length)
        centre = np.array(region.centroid) - [(height - 1) / 2, (width - 1) / 2]
        out[i] = (
            total / mask[i].size,
            math.log1p((area[mine] >= 4).sum()),
            a / mask[i].size,
            area[order[1]] / a if len(order) > 1 else 0.0,
            region.eccentricity,
            short / max(long, 1.0),
            region.solidity,
            region.extent,
            4 * math.pi * a / perimeter**2,
            np.sign(region.euler_number) * math.log1p(abs(region.euler_number)),
            np.hypot(*centre) / diagonal,
            *np.sign(hu[:4]) * np.log1p(1e4 * np.abs(hu[:4])),
            x[i][piece].std() / max(x[i].std(), 1e-9),
        )
    return dict(zip(names, out.T, strict=True))


# --- their parts ----------------------------------------------------------------------------------------------------


def _moments(flat: np.ndarray, prefix: str, *, mean: bool = True) -> Named:
    """Mean, deviation, skewness and excess (tamed by roots) of each row."""
    centre = flat.mean(1, keepdims=True)
    deviation = flat.std(1)
    z = (flat - centre) / deviation[:, None]
    squared = z * z  # a power would take ten times as long
    named = {f"{prefix}mean": centre[:, 0]} if mean else {}
    named[f"{prefix}sd"] = deviation
    named[f"{prefix}skew"] = np.cbrt((squared * z).mean(1))
    named[f"{prefix}excess"] = (squared * squared).mean(1) ** 0.25
    return named


def _histogram(values: np.ndarray, bins: int) -> np.ndarray:
    """(rows, bins) shares of whole parts 0 to bins - 1 in each row."""
    n, length = values.shape
    place = values.astype(np.int64).clip(0, bins - 1) + bins * np.arange(n)[:, None]
    shares: np.ndarray = np.bincount(place.ravel(), minlength=n * bins).reshape(n, bins) / length
    return shares


def _entropy(p: np.ndarray) -> np.ndarray:
    """In nats, of each row of shares."""
    entropy: np.ndarray = -(p * np.log(np.maximum(p, 1e-12))).sum(1)
    return entropy


def _otsu(raw: np.ndarray) -> np.ndarray:
    """(patches,) the gray value up to which a patch is ground; of equals the lowest."""
    p = _histogram(raw.reshape(len(raw), -1), 256)
    below, mass = p.cumsum(1), (p * np.arange(256)).cumsum(1)
    between = (mass[:, -1:] * below - mass) ** 2 / (below * (1 - below))
    threshold: np.ndarray = np.nan_to_num(between, posinf=0.0).argmax(1)
    return threshold


@lru_cache
def _directions(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance of each pixel from the centre (1 at the nearest border), and the direction away from it (x, y)."""
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    distance = np.hypot(x, y)
    safe = np.maximum(distance, 1e-9)
    return distance / (min(height, width) / 2), x / safe, y / safe


@lru_cache
def _zernike_basis(height: int, width: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """(pixels, moments) complex polynomials on the disc that touches the border, and their names."""
    radius, ux, uy = _directions(height, width)
    angle = np.arctan2(uy, ux)
    columns, names = [], []
    for n in range(1, DEGREE + 1):
        for m in range(n % 2, n + 1, 2):
            polynomial = np.zeros_like(radius)
            for k in range((n - m) // 2 + 1):
                bottom = (n + m) // 2 - k, (n - m) // 2 - k
                factor = math.factorial(n - k) / math.factorial(k)
                factor /= math.factorial(bottom[0]) * math.factorial(bottom[1])
                polynomial += (-1) ** k * factor * radius ** (n - 2 * k)
            columns.append((polynomial * np.exp(-1j * m * angle) * (radius <= 1)).ravel())
            names.append(f"z{n}_{m}")
    return (n + 1) / math.pi * np.stack(columns, 1), tuple(names)
