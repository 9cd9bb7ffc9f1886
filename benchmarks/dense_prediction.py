"""How much faster a frame is mapped with shared features than by cutting and classifying each patch.

    python benchmarks/dense_prediction.py [--size 2048] [--threads 1] [--repeats 3] [--save]
        [--network small] [--checkpoint DIR --movie FILE [--classes FILE]]

A frame of `size` px at 1.2 um, windows every 16 px, a model of 32 px at 2.4 um: the embedded
default. Without a checkpoint the weights are random, which changes nothing about the time. Ways of
going from the uint8 frame to the probabilities of all windows, taken in turns in one process:

- `shared`: what `stemcell-lit predict` does;
- `each`: every patch cut out, reduced and classified by itself;
- `batches`: the same, but classified in batches of 64 (fastest here) and of 512 (as for a store).

The figure is that of `each`; `batches` are reported beside it. The reference ways may be timed on
a part of the rows of patches, which are all alike (`--part`).

`not_adjusted` compares the ways on a few rows of the frame of noise, before adjusting; random weights hardly tell
windows apart, so it says something of `--network valid`, which must agree, and of trained checkpoints alone.

With a checkpoint and a movie, also how far the two ways' answers are apart, window by window, and
with the movie's class maps, which way is nearer to the truth, without and
with adjusting the shared features to windows cut out of other frames of the movie. `context` is the check that nothing
but what lies behind a window's border makes the difference: windows cut out with their
surroundings, of whose features only the window's are averaged.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import report
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.data.augment import to_float
from stemcell_lit.movies.frames import open_frames
from stemcell_lit.predict.dense import DenseStage, _leaves
from stemcell_lit.predict.mapper import Mapper
from stemcell_lit.settings.command_keys import PredictCommand
from stemcell_lit.settings.group_keys import HierarchyConfig, StageConfig, TemporalConfig

CLASSES = ["debris", "dense", "spread", "differentiated"]
UM_PER_PX = 1.2  # of the frame
PATCH, STRIDE = 64, 16  # px of the frame
GOAL = 20
COMPARED = (0, 4, 6, 9, 11, 13)  # frames of a movie of 16, none of them adjusted to
ADJUST = PredictCommand().adjust  # windows
PURITY = 0.7  # share of a patch's labelled pixels that its class must hold


def untrained(network: str = "small") -> TrainedHierarchy:
    hierarchy = Hierarchy.build(CLASSES, HierarchyConfig(), TemporalConfig(), flat=True)
    groups = {c: [c] for c in CLASSES}
    stage = StageModule(
        asdict(StageConfig(network=network)), "root", groups, [1] * len(CLASSES), 32
    )
    return TrainedHierarchy(hierarchy, {"root": stage.eval()}, 32, 2 * UM_PER_PX)


def texture(size: int) -> np.ndarray:
    coarse = np.random.default_rng(0).normal(120, 40, (size // 4, size // 4))
    return np.kron(coarse, np.ones((4, 4))).clip(0, 255).astype(np.uint8)


def each(model: TrainedHierarchy, frame: np.ndarray, rows: slice, batch: int) -> np.ndarray:
    """Every patch cut out, reduced and classified; (patches, classes)."""
    windows = sliding_window_view(frame, (PATCH, PATCH))[::STRIDE, ::STRIDE][rows]
    found = []
    for row in windows:
        for i in range(0, len(row), batch):
            patches = np.ascontiguousarray(row[i : i + batch])
            found.append(model.network_probabilities(patches, np.full(len(patches), np.nan)))
    return np.concatenate(found)


def batches(model: TrainedHierarchy, frame: np.ndarray, rows: slice, batch: int) -> np.ndarray:
    """The same; the reduction and the network take a batch at once."""
    windows = sliding_window_view(frame, (PATCH, PATCH))[::STRIDE, ::STRIDE][rows]
    y, x = (i.ravel() for i in np.indices(windows.shape[:2]))
    found = []
    for i in range(0, len(y), batch):
        patches = windows[y[i : i + batch], x[i : i + batch]]
        found.append(model.network_probabilities(patches, np.full(len(patches), np.nan)))
    return np.concatenate(found)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def with_context(stage: StageModule, image: np.ndarray, y: int, x: int, size: int) -> np.ndarray:
    """Probabilities of one window that saw its surroundings; y and x in px, inside by the reach."""
    dense = DenseStage(stage, size, 8)
    around = dense.halo * dense.pool
    layers = _leaves(stage.network)
    at = [isinstance(layer, nn.AdaptiveAvgPool2d) for layer in layers].index(True)
    wide = image[y - around : y + size + around, x - around : x + size + around]
    with torch.inference_mode():
        features = nn.Sequential(*layers[:at])(to_float(torch.from_numpy(wide.copy())[None]))
        part = features[:, :, dense.halo : -dense.halo, dense.halo : -dense.halo]
        return torch.softmax(nn.Sequential(*layers[at + 1 :])(part.mean((2, 3))), 1)[0].numpy()


def context(model: TrainedHierarchy, frame: np.ndarray) -> float:
    """Greatest difference between shared features and windows cut out with their surroundings."""
    mapper = Mapper(model, frame.shape, UM_PER_PX, STRIDE)
    image, worst = mapper.reduce(frame), 0.0
    for stage in model.stages.values():
        shared = DenseStage(stage, mapper.size, mapper.stride).probabilities(
            image, np.ones(mapper.grid, bool)
        )
        inner = [n - 4 for n in mapper.grid]
        for k in range(20):
            row, column = 4 + (7 * k) % (inner[0] - 4), 4 + (11 * k) % (inner[1] - 4)
            y, x = row * mapper.stride, column * mapper.stride
            p = with_context(stage, image, y, x, mapper.size)
            worst = max(worst, float(np.abs(p - shared[row, column]).max()))
    return worst


def truth(class_map: np.ndarray, classes: int) -> np.ndarray:
    """Class of each patch by the class map, -1 where it is not sure or mostly background."""
    windows = sliding_window_view(class_map, (PATCH, PATCH))[::STRIDE, ::STRIDE]
    counts = np.stack([(windows == c + 1).sum((2, 3)) for c in range(classes)], -1)
    total = counts.sum(-1)
    sure = (total >= PATCH**2 / 2) & (counts.max(-1) >= PURITY * total)
    return np.where(sure, counts.argmax(-1), -1)


def answers(model: TrainedHierarchy, movie: Path, maps: Path | None, adjust: int) -> dict[str, Any]:
    """How far apart the answers are over frames spread over a movie, and which are right."""
    differences, same, colony, right = [], [], [], []
    rng = np.random.default_rng(1)
    with open_frames(movie) as frames:
        um, hours = frames.um_per_px, frames.hours_per_frame or np.nan
        classes = open_frames(maps) if maps else None
        dense = Mapper(model, frames.shape[1:], um, STRIDE)
        exact = Mapper(model, frames.shape[1:], um, STRIDE, exact=True)
        if adjust:  # to other frames than those compared
            learned = np.linspace(1, len(frames) - 2, 8).round().astype(int)
            share = adjust / len(learned) / (dense.grid[0] * dense.grid[1])
            dense.adjust(
                (frames.read(i), i * hours, rng.random(dense.grid) < share) for i in learned
            )
        for i in COMPARED:
            a, b = (m.probabilities(frames.read(i), i * hours) for m in (dense, exact))
            differences.append(np.abs(a - b).max(-1).ravel())
            same.append((a.argmax(-1) == b.argmax(-1)).ravel())
            if classes:
                label = truth(classes.read(i), len(model.hierarchy.classes))
                sure = label.ravel() >= 0
                colony.append(sure)
                right.append(np.stack([(m.argmax(-1) == label).ravel()[sure] for m in (a, b)]))
        worst = context(model, frames.read(len(frames) // 2))
    d, s = np.concatenate(differences), np.concatenate(same)

    def figures(which: np.ndarray) -> dict[str, float]:
        return {
            "windows": int(which.sum()),
            "mean_abs": round(float(d[which].mean()), 4),
            "median_abs": round(float(np.median(d[which])), 6),
            "p95_abs": round(float(np.quantile(d[which], 0.95)), 4),
            "max_abs": round(float(d[which].max()), 4),
            "within_1e-3": round(float((d[which] <= 1e-3).mean()), 4),
            "same_class": round(float(s[which].mean()), 4),
        }

    found = {"all": figures(np.ones(len(d), bool)), "context_max_abs": worst}
    if maps:
        found["sure"] = figures(np.concatenate(colony))
        shared, cut = np.concatenate(right, 1).mean(1)
        found["right"] = {"shared": round(float(shared), 4), "cut": round(float(cut), 4)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="px, height and width of the frame")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", type=int, default=1, help="reference on every so-manieth row")
    parser.add_argument(
        "--network", default="small", help="without a checkpoint: small, valid, vgg"
    )
    parser.add_argument("--checkpoint", type=Path, help="the model folder of a finished cell")
    parser.add_argument("--movie", type=Path, help="on which answers are compared")
    parser.add_argument("--classes", type=Path, help="its class maps")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = (
        TrainedHierarchy.load(given.checkpoint) if given.checkpoint else untrained(given.network)
    )
    frame = texture(given.size)
    mapper = Mapper(model, frame.shape, UM_PER_PX, STRIDE)
    rows = slice(None, None, given.part)
    share = len(range(*rows.indices(mapper.grid[0]))) / mapper.grid[0]
    ways: dict[str, tuple[Callable[[], Any], float]] = {
        "shared": (lambda: mapper.probabilities(frame), 1.0),
        "each": (lambda: each(model, frame, rows, 1), share),
        "batches_64": (lambda: batches(model, frame, rows, 64), share),
        "batches_512": (lambda: batches(model, frame, rows, 512), share),
    }
    shared = mapper.probabilities(frame)  # allocations and choices of algorithms are made once
    cut = batches(model, frame, slice(None, None, mapper.grid[0] // 2), 64)
    apart = np.abs(shared[:: mapper.grid[0] // 2].reshape(cut.shape) - cut).max(-1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, (work, part) in ways.items():
            times[name].append(seconds(work) / part)
            print(f"{name}: {times[name][-1]:.2f} s", flush=True)
    ratios = {
        name: [t / s for t, s in zip(times[name], times["shared"], strict=True)]
        for name in ways
        if name != "shared"
    }
    report(
        "dense_prediction_speedup",
        round(float(np.median(ratios["each"])), 1),
        "times faster than each patch by itself",
        f">= {GOAL}",
        [round(min(ratios["each"]), 1), round(max(ratios["each"]), 1)],
        given.save,
        size=given.size,
        stride=STRIDE,
        windows=mapper.grid[0] * mapper.grid[1],
        stages=len(model.stages),
        network=next(iter(model.stages.values())).stage["network"],
        not_adjusted={"max_abs": float(apart.max()), "within_1e-3": float((apart <= 1e-3).mean())},
        threads=given.threads,
        part=given.part,
        seconds={name: round(float(np.median(t)), 3) for name, t in times.items()},
        times_faster={n: [round(min(r), 1), round(max(r), 1)] for n, r in ratios.items()},
        answers=None
        if not (given.checkpoint and given.movie)
        else {f"adjust={n}": answers(model, given.movie, given.classes, n) for n in (0, ADJUST)},
    )


if __name__ == "__main__":
    main()
