"""A stage's network over whole frames: windows share what they have in common."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stemcell_lit.classify.networks import Residual
from stemcell_lit.classify.stacked import Stacked, Stage
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.data.augment import to_float
from stemcell_lit.errors import UserError

TILE_PX = 512  # of a tile's windows, model px: its features fit into a processor's cache


ADJUST_LEAST = 100  # windows; fewer cannot tell hundreds of features apart


WINDOWS_PER_S = 200  # whose classical features a core measures


RIDGE = 0.01  # of the features' mean square; ten times more or less changes little


HEAD_LAYERS = (nn.Flatten, nn.Dropout, nn.Linear, nn.ReLU)  # they do the same to a row of features


class DenseStage:
    """A stage's network on whole frames, all windows sharing their features.

    `size` of a window and `stride` between windows are in px, see `usable_stride`.

    Raises:
        UserError: the network is not one whose windows can share features.
    """

    def __init__(self, stage: StageModule, size: int, stride: int):
        reason = why_not(stage)
        if reason:
            raise UserError(f"{reason}; give exact=true")
        body, head = _halves(copy.deepcopy(stage.network).eval())
        self.size, self.stride, self.groups = size, stride, len(stage.groups)
        self.turns = bool(stage.stage["turns"])
        self.pool = total_pool(stage)
        # Without padding nothing behind a window's border plays a part, and sharing is exact
        self.exact = not any(_padded(body))
        # Features that a tile needs around it
        self.halo = 0 if self.exact else math.ceil(_reach(body) / self.pool)
        self.device = next(stage.network.parameters()).device
        self.body = nn.Sequential(*_fused(body))
        with torch.inference_mode():  # features that a window averages, per side
            nothing = torch.zeros(1, 1, size, size, device=self.device)
            self.span = int(self.body(nothing).shape[-1])
        self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster here
        self.head = nn.Sequential(*head)
        self._term: tuple[torch.Tensor, torch.Tensor] | None = None  # weights, offset

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Softmax probabilities of the windows.

        Args:
            image: uint8 (height, width).
            wanted: bool (rows, columns) of windows; tiles in which none is wanted are left out.

        Returns:
            float32 (rows, columns, groups), 0 where left out.
        """
        if not self.turns:
            return self._passes(image, wanted, raw=False)
        # The whole frame is turned in place of its windows, cut so that their places stay theirs
        rows, columns = ((n - 1) * self.stride + self.size for n in wanted.shape)
        image = image[:rows, :columns]
        total = np.zeros((*wanted.shape, self.groups), np.float32)
        for side in range(8):
            p = self._passes(_turn(image, side), _turn(wanted, side), raw=False)
            total += _turn_back(p, side)
        return total / 8

    def raw(self, image: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Logits and pooled features of the wanted windows as they lie, (windows, groups + features)."""
        values: np.ndarray = self._passes(image, wanted, raw=True)[wanted]
        return values

    def adjust(self, raw: np.ndarray, cut: np.ndarray) -> None:
        """Adds to the logits the linear term of the features that brings them to windows cut out.

        Fitted by ridge regression on three of four windows, and kept only if it brings the others nearer
        too. Beside the mean over a window the term sees that over its middle, without the outermost
        features: the two differ where a window's border matters.

        Args:
            raw: (windows, groups + features), from `raw`.
            cut: (windows, groups) probabilities of the same windows cut out, without turns.
        """
        if len(raw) < ADJUST_LEAST:
            return
        logits, x = np.split(raw.astype(np.float64), [self.groups], axis=1)
        target = np.log(np.maximum(cut.astype(np.float64), 1e-12))
        y = (target - target.mean(1, keepdims=True)) - (logits - logits.mean(1, keepdims=True))
        held = np.arange(len(x)) % 4 == 3
        mean, offset = x[~held].mean(0), y[~held].mean(0)
        centred = x[~held] - mean
        square = centred.T @ centred
        square += max(RIDGE * np.trace(square) / len(square), 1e-12) * np.eye(len(square))
        weights = np.linalg.solve(square, centred.T @ (y[~held] - offset))
        parts = weights, offset - mean @ weights
        first, second = (torch.from_numpy(part).float().to(self.device) for part in parts)
        errors = []
        for self._term in (None, (first, second)):
            p = self._answer(torch.from_numpy(raw[held]).to(self.device)).cpu().numpy()
            errors.append(np.abs(p - cut[held]).mean())
        if errors[1] >= errors[0]:
            self._term = None

    @torch.inference_mode()
    def _passes(self, image: np.ndarray, wanted: np.ndarray, *, raw: bool) -> np.ndarray:
        out: np.ndarray | None = None
        # Windows nearer to each other than the pools' step: one pass for each of their offsets
        passes = max(1, self.pool // self.stride)
        for a in range(passes):
            for b in range(passes):
                shifted = image[a * self.stride :, b * self.stride :]
                part = np.s_[a::passes, b::passes]
                for tile, values in self._tiles(shifted, wanted[part]):
                    found = values if raw else self._answer(values)
                    if out is None:
                        out = np.zeros((*wanted.shape, found.shape[1]), np.float32)
                    rows, columns = wanted[part][tile].shape
                    out[part][tile] = found.cpu().numpy().reshape(rows, columns, -1)
        return np.zeros((*wanted.shape, self.groups), np.float32) if out is None else out

    def _answer(self, values: torch.Tensor) -> torch.Tensor:
        """Probabilities from logits and features."""
        logits, features = values[:, : self.groups], values[:, self.groups :]
        if self._term is not None:
            logits = logits + features @ self._term[0] + self._term[1]
        return F.softmax(logits, 1)

    def _tiles(self, image: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[Any, torch.Tensor]]:
        """Tiles in which a window is wanted, with logits and features of all their windows."""
        step = max(1, self.stride // self.pool)  # features between windows
        count = max(1, TILE_PX // (step * self.pool))  # windows of a tile, per side
        for y in range(0, wanted.shape[0], count):
            for x in range(0, wanted.shape[1], count):
                tile = np.s_[y : y + count, x : x + count]
                if not wanted[tile].any():
                    continue
                rows, columns = wanted[tile].shape
                top, left = y * step, x * step
                bottom = top + (rows - 1) * step + self.span
                right = left + (columns - 1) * step + self.span
                up, before = max(0, top - self.halo), max(0, left - self.halo)
                around = self.size + self.halo * self.pool
                pixels = image[
                    up * self.pool : (top + (rows - 1) * step) * self.pool + around,
                    before * self.pool : (left + (columns - 1) * step) * self.pool + around,
                ]
                features = self.body(
                    to_float(torch.from_numpy(pixels.copy())[None].to(self.device))
                )
                features = features[:, :, top - up : bottom - up, left - before : right - before]
                means = F.avg_pool2d(features, self.span, stride=step)[0].flatten(1).T
                parts = [self.head(means).float(), means]
                if self.span > 2:
                    inner = features[:, :, 1:-1, 1:-1]
                    parts.append(F.avg_pool2d(inner, self.span - 2, stride=step)[0].flatten(1).T)
                yield tile, torch.cat(parts, 1)


class DenseMean:
    """The weighted mean of several stages' networks on whole frames, each with its own `DenseStage`.

    Args:
        stage: of networks alone, whose windows can share features, see `why_not`.
        size: of a window, px.
        stride: between windows, px.
    """

    def __init__(self, stage: Stage, size: int, stride: int):
        parts, weights = [stage], [1.0]
        if isinstance(stage, Stacked):
            parts, weights = stage.parts, stage.weights
        self.parts = [part for part in parts if isinstance(part, StageModule)]
        self.dense = [DenseStage(part, size, stride) for part in self.parts]
        self.weights = weights

    def probabilities(self, image: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """As `DenseStage.probabilities`."""
        found = (
            w * d.probabilities(image, wanted)
            for w, d in zip(self.weights, self.dense, strict=True)
        )
        total: np.ndarray = sum(found, np.zeros((), np.float32))
        return total


def _turn(values: np.ndarray, side: int) -> np.ndarray:
    """One of the eight symmetries of the first two axes, as `data.augment.turn_square`."""
    if side & 4:
        values = values.swapaxes(0, 1)
    if side & 2:
        values = values[::-1]
    return np.ascontiguousarray(values[:, ::-1] if side & 1 else values)


def _turn_back(values: np.ndarray, side: int) -> np.ndarray:
    if side & 1:
        values = values[:, ::-1]
    if side & 2:
        values = values[::-1]
    return values.swapaxes(0, 1) if side & 4 else values


def why_not(stage: Stage) -> str:
    """Why the windows of a stage cannot share features, in words; empty where they can."""
    if isinstance(stage, Stacked):
        if any(part.image_size != stage.image_size for part in stage.parts):
            return "its networks look at patches of several sizes"
        return next(filter(None, map(why_not, stage.parts)), "")
    if not isinstance(stage, StageModule):
        return (
            f"classical features are measured window by window, about {WINDOWS_PER_S} windows a second and core, and a "
            "larger stride is faster"
        )
    if stage.stage["members"] > 1:
        return "stage.members: windows of averaged answers cannot share features"
    body, head = _halves(stage.network)
    simple = all(isinstance(layer, HEAD_LAYERS) for layer in head)
    if len(set(_padded(body))) != 1 or not all(_shareable(la) for la in body) or not simple:
        return (
            f"stage.network={stage.stage['network']}: its windows cannot share features; that takes a chain of 3x3 "
            "convolutions, all padded or none, residual blocks of this project and 2x2 pools before one average, and "
            "linear layers behind it"
        )
    return ""


def _halves(network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers before and behind the average over a window; none before where there is no such average."""
    layers = _leaves(network)
    average = [
        isinstance(la, nn.AdaptiveAvgPool2d) and la.output_size in (1, (1, 1)) for la in layers
    ]
    cut = average.index(True) if any(average) else 0
    return layers[:cut], layers[cut + 1 :]


def _padded(body: list[nn.Module]) -> list[bool]:
    """Whether each convolution is padded; of a residual block the shortcut's needs none, for it is 1x1."""
    found = []
    for layer in body:
        if isinstance(layer, Residual):
            found += _padded(_leaves(layer.body))
        elif isinstance(layer, nn.Conv2d):
            found.append(layer.padding != (0, 0))
    return found


def total_pool(stage: Stage) -> int:
    """Pixels per feature of a stage's network, per side; the most of several."""
    if isinstance(stage, Stacked):
        return max(map(total_pool, stage.parts))
    assert isinstance(stage, StageModule)
    pools = sum(isinstance(layer, nn.MaxPool2d) for layer in _leaves(stage.network))
    return 1 << (pools // int(stage.stage["members"]))


def usable_stride(stride: float, pool: int) -> int:
    """The stride nearest to the wanted one that divides the pools' step or is a multiple of it.

    Args:
        stride: wanted, in model px.
        pool: px per feature, a power of two.
    """
    if stride >= pool:
        return max(1, round(stride / pool)) * pool
    return min((1 << k for k in range(pool.bit_length())), key=lambda s: abs(s - stride))


def _leaves(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in _leaves(child)]
    return [module]


def _shareable(layer: nn.Module) -> bool:
    if isinstance(layer, Residual):
        return all(_shareable(la) for la in (*_leaves(layer.body), *_leaves(layer.shortcut)))
    if isinstance(layer, nn.Conv2d):
        same = tuple(2 * p + 1 for p in layer.padding) == layer.kernel_size  # type: ignore[operator]
        return (
            (same or layer.padding == (0, 0))
            and layer.stride == (1, 1)
            and layer.dilation == (1, 1)
        )
    if isinstance(layer, nn.MaxPool2d):
        return layer.kernel_size == layer.stride == 2 and layer.padding == 0
    return isinstance(layer, nn.BatchNorm2d | nn.ReLU)


def _reach(body: list[nn.Module]) -> int:
    """Pixels beyond a feature's own square that it depends on."""
    step, reach = 1, 0
    for layer in body:
        convs = _leaves(layer.body) if isinstance(layer, Residual) else [layer]
        reach += sum(c.kernel_size[0] // 2 * step for c in convs if isinstance(c, nn.Conv2d))
        if isinstance(layer, nn.MaxPool2d):
            step *= 2
    return reach


def _fused(body: list[nn.Module]) -> list[nn.Module]:
    """Normalisation folded into the convolution before it; pools before ReLU, which has less to do.

    Both leave the function as it is, up to rounding.
    """
    done: list[nn.Module] = []
    for layer in body:
        if isinstance(layer, Residual):
            layer.body = nn.Sequential(*_fused(_leaves(layer.body)))
            layer.shortcut = nn.Sequential(*_fused(_leaves(layer.shortcut)))
        if isinstance(layer, nn.BatchNorm2d) and done and isinstance(done[-1], nn.Conv2d):
            done[-1] = fuse_conv_bn_eval(done[-1], layer)
        elif isinstance(layer, nn.MaxPool2d) and done and isinstance(done[-1], nn.ReLU):
            done.insert(-1, layer)
        else:
            done.append(layer)
    return done
