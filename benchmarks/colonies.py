"""How well the maps of the foreground agree with a reference annotation, over all frames.

    python benchmarks/colonies.py --movie DIR [--save] [--overlays DIR]

DIR holds frames.tif and foreground.tif (0 and 255). IoU and F1 are those of all pixels of all
frames together. Settings are those of conf/colonies, chosen on every 15th frame of phc-c2dl-psc;
`unseen` leaves these frames out.

That reference leaves out cells near the border of the frame (hardly any annotated pixel of the
whole movie lies within 20 px of it), so each method is scored three times: `margin`, the figure
reported, without objects whose centre lies in that strip, every pixel counted; `whole`, every
object and pixel; `interior`, pixels at least 25 px inside. The forest is trained on one half of the
columns and scored on the other, both ways, on frames that it has not seen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import report
from omegaconf import OmegaConf
from PIL import Image
from skimage.segmentation import find_boundaries

from stemcell_lit.movies.colonies import PixelClassifier, drop_near_border, foreground
from stemcell_lit.movies.frames import Frames, open_frames
from stemcell_lit.settings.colony_keys import ColoniesConfig

CONF = Path(__file__).parent.parent / "conf" / "colonies"
LEARNED_FROM = 30  # the forest learns frames 0, 30, 60, ...
LOOKED_AT = 15  # settings were chosen on frames 0, 15, 30, ...
MARGIN_PX = 20  # strip in which the reference has next to no cells
INTERIOR_PX = 25
GAP_PX = 32  # between the columns learned from and those predicted: more than a cell
BLOCKS = 10  # consecutive parts of the movie; frames are correlated, so no interval over frames
GOAL = 0.85


def load(name: str) -> ColoniesConfig:
    merged = OmegaConf.merge(OmegaConf.structured(ColoniesConfig), OmegaConf.load(CONF / name))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, ColoniesConfig)
    return config


def counts(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Three ways of scoring x (true positives, found, expected)."""
    inside = np.s_[INTERIOR_PX:-INTERIOR_PX, INTERIOR_PX:-INTERIOR_PX]
    kept = drop_near_border(mask, MARGIN_PX)
    pairs = ((kept, truth), (mask, truth), (mask[inside], truth[inside]))
    return np.array([[(m & t).sum(), m.sum(), t.sum()] for m, t in pairs], np.int64)


def f1(c: np.ndarray) -> float:
    return float(2 * c[0] / max(c[1] + c[2], 1))


def score(
    frames: Frames, truth: Frames, which: range, method: Callable[[int, np.ndarray], np.ndarray]
) -> tuple[dict[str, float], np.ndarray]:
    """Figures over the frames, and their counts frame by frame."""
    parts, seconds = [], 0.0
    for i in which:
        image = frames.read(i)
        start = time.perf_counter()
        mask = method(i, image)
        seconds += time.perf_counter() - start
        parts.append(counts(mask, truth.read(i) > 127))
    total = np.sum(parts, axis=0)
    unseen = np.sum([p for i, p in zip(which, parts, strict=True) if i % LOOKED_AT], axis=0)
    figures = {"frames": len(parts), "seconds_per_frame": round(seconds / len(parts), 4)}
    if unseen.ndim:
        figures["f1_margin_unseen"] = round(f1(unseen[0]), 4)
    for row, name in zip(total, ("margin", "whole", "interior"), strict=True):
        figures[f"f1_{name}"] = round(f1(row), 4)
        figures[f"iou_{name}"] = round(float(row[0] / max(row[1] + row[2] - row[0], 1)), 4)
        figures[f"precision_{name}"] = round(float(row[0] / max(row[1], 1)), 4)
        figures[f"recall_{name}"] = round(float(row[0] / max(row[2], 1)), 4)
    return figures, np.stack(parts)


def forest(
    frames: Frames, truth: Frames, config: ColoniesConfig, um: float
) -> Callable[[int, np.ndarray], np.ndarray]:
    """A map in which each half of the columns is predicted by a forest that learned the other."""
    _, height, width = frames.shape
    halves = np.broadcast_to(np.arange(width) < width // 2, (height, width))
    near = abs(np.arange(width) - width / 2) < GAP_PX
    inside = np.zeros((height, width), bool)
    inside[INTERIOR_PX:-INTERIOR_PX, INTERIOR_PX:-INTERIOR_PX] = True
    chosen = range(0, len(frames), LEARNED_FROM)
    models = []
    for half in (halves, ~halves):
        where = half & ~near & inside  # cells of the strip are not annotated: nothing to learn
        examples = ((frames.read(i), truth.read(i) > 127, where) for i in chosen)
        models.append(PixelClassifier(config, um).fit(examples))

    class Halves(PixelClassifier):
        def probability(self, frame: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
            return models[1].probability(frame, halves) + models[0].probability(frame, ~halves)

    both = Halves(config, um)
    return lambda _i, image: foreground(image, config, um, classifier=both)


def overlay(image: np.ndarray, mask: np.ndarray, truth: np.ndarray, file: Path) -> None:
    """Green: the reference's outline; red: the map's; yellow: both."""
    low, high = np.percentile(image, (0.5, 99.8))
    gray = np.clip((image.astype(float) - low) / max(high - low, 1) * 255, 0, 255)
    color = np.repeat(np.repeat(np.stack([gray] * 3, -1), 2, 0), 2, 1).astype(np.uint8)
    edges = [
        find_boundaries(np.repeat(np.repeat(m, 2, 0), 2, 1), mode="inner") for m in (mask, truth)
    ]
    color[edges[0] | edges[1]] = 0
    color[edges[0], 0] = 255
    color[edges[1], 1] = 255
    Image.fromarray(color).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--movie", type=Path, required=True, help="frames.tif and foreground.tif")
    parser.add_argument(
        "--um-per-px",
        type=float,
        default=1.6,
        help="default: 1.6, that of phc-c2dl-psc as far as known; settings scale with it",
    )
    parser.add_argument("--methods", default="paper,contrast,forest")
    parser.add_argument("--overlays", type=Path, help="write PNGs of five frames here")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    with (
        open_frames(given.movie / "frames.tif", um_per_px=given.um_per_px) as frames,
        open_frames(given.movie / "foreground.tif") as truth,
    ):
        if frames.shape != truth.shape:
            raise SystemExit(f"{given.movie}: frames {frames.shape}, foreground {truth.shape}")
        um, results, spreads = given.um_per_px, {}, {}
        for name in given.methods.split(","):
            config, which = load(f"{name}.yaml"), range(len(frames))
            if config.method == "forest":
                which = range(5, len(frames), 10)  # slow; none of them is learned from
                method = forest(frames, truth, config, um)
            else:

                def method(
                    _i: int, image: np.ndarray, config: ColoniesConfig = config
                ) -> np.ndarray:
                    return foreground(image, config, um)

            results[name], parts = score(frames, truth, which, method)
            blocks = [f1(b[:, 0].sum(0)) for b in np.array_split(parts, min(BLOCKS, len(parts)))]
            spreads[name] = [round(min(blocks), 4), round(max(blocks), 4)]
            print(f"{name}: {results[name]}, F1 of {BLOCKS} parts {spreads[name]}", flush=True)
            if given.overlays:
                given.overlays.mkdir(parents=True, exist_ok=True)
                for i in np.linspace(0, len(frames) - 1, 5).astype(int):
                    image = frames.read(int(i))
                    found = drop_near_border(method(int(i), image), MARGIN_PX)
                    overlay(
                        image,
                        found,
                        truth.read(int(i)) > 127,
                        given.overlays / f"{name}_{i:04d}.png",
                    )
        complete = [n for n in results if results[n]["frames"] == len(frames)]
        best = max(complete or results, key=lambda n: results[n]["f1_margin"])
        report(
            "colonies_f1",
            results[best]["f1_margin"],
            "F1 of pixels",
            GOAL,
            spreads[best],
            given.save,
            method=best,
            movie=given.movie.resolve().name,
            um_per_px=um,
            margin_px=MARGIN_PX,
            tuned_on=f"every {LOOKED_AT}th frame; the margin on the reference of all frames",
            methods=results,
            spreads=spreads,
        )


if __name__ == "__main__":
    main()
