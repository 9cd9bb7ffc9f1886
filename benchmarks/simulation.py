"""How near the entropies of simulated patches are to the published ones, and how fast movies are made.

    python benchmarks/simulation.py [--seeds 100 101 102] [--save] [--pictures DIR]

For each seed the default movies are made and the default patches cut from them, and each class's
shares of entropy (5 to 6, 6 to 7, over 7 bits) compared with the published ones. The figure is the
largest deviation of a share averaged over the seeds. The constants were chosen on other seeds:
those from 0 to 20.

With --pictures only pictures are made: a strip of frames for each of two movies of the default
seed, and a gallery of patches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from _common import report
from PIL import Image, ImageDraw

from stemcell_lit.evaluate.entropy import ENTROPY_SHARES, entropy_shares
from stemcell_lit.patches.extraction import extract
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import ExtractionConfig, SimulationConfig
from stemcell_lit.simulate.write import simulate

GOAL = 0.10
SHOWN = (0, 1)  # movies of the strips: late and bright, early and dark
FRAME_PX = 250  # of a strip's frame
PANEL_PX = 190  # of the text beside it
COLUMNS = 14  # patches of a class in the gallery


def make(config: SimulationConfig, folder: Path) -> tuple[PatchStore, float]:
    """The patches of a set of movies, and the frames made a second."""
    start = time.perf_counter()
    simulate(config, folder / "movies")
    seconds = time.perf_counter() - start
    store = extract(folder / "movies", folder / "store", ExtractionConfig())
    return store, config.movies * config.frames / seconds


def strip(folder: Path, number: int) -> Image.Image:
    """Six frames of a movie beside its condition."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    movie = manifest["movies"][number]
    stack = tifffile.imread(folder / movie["frames"])
    chosen = np.linspace(0, len(stack) - 1, 6).astype(int)
    wide, high = FRAME_PX + 4, FRAME_PX + 18
    picture = Image.new("L", (PANEL_PX + 3 * wide, 2 * high), 255)  # two rows fit on a page
    draw = ImageDraw.Draw(picture)
    lines = [f"{movie['name']}, seed {manifest['config']['seed']} (simulated)", ""]
    for key, value in movie["condition"].items():
        several = value if isinstance(value, list) else [value]
        shown = ", ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in several)
        lines.append(f"{key}: {shown}")
    draw.multiline_text((4, 18), "\n".join(lines), fill=0, spacing=3)
    for place, frame in enumerate(chosen):
        left, top = PANEL_PX + place % 3 * wide, place // 3 * high
        small = Image.fromarray(stack[frame]).resize((FRAME_PX, FRAME_PX), Image.Resampling.LANCZOS)
        picture.paste(small, (left, top + 18))
        draw.text((left + 2, top + 3), f"{frame * manifest['hours_per_frame']:.0f} h", fill=0)
    return picture


def gallery(store: PatchStore) -> Image.Image:
    """Patches of each class, drawn at random, a row or two of each."""
    rng, side = np.random.default_rng(0), store.pixels.shape[1]
    width = COLUMNS * (side + 2)
    picture = Image.new("L", (width, len(store.classes) * (2 * side + 22)), 255)
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(store.classes):
        top = row * (2 * side + 22)
        draw.text((2, top + 3), f"{name} (simulated)", fill=0)
        own = rng.permutation(np.flatnonzero(store.labels == row))[: 2 * COLUMNS]
        for place, patch in enumerate(own):
            at = place % COLUMNS * (side + 2), top + 16 + place // COLUMNS * (side + 2)
            picture.paste(Image.fromarray(store.pixels[patch]), at)
    return picture


def pictures(config: SimulationConfig, out: Path, scratch: Path) -> None:
    # Of the default set only as many movies as are shown: each is made for itself.
    store, _ = make(replace(config, movies=max(SHOWN) + 1), scratch)
    out.mkdir(parents=True, exist_ok=True)
    for number in SHOWN:
        strip(scratch / "movies", number).save(out / f"simulated_{number}.png", optimize=True)
    gallery(store).save(out / "simulated_patches.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--movies", type=int, default=SimulationConfig.movies)
    parser.add_argument("--frames", type=int, default=SimulationConfig.frames)
    parser.add_argument("--threads", type=int, default=0, help="processes; 0: all cores")
    parser.add_argument("--pictures", type=Path, help="make pictures into this folder, no figures")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    config = SimulationConfig(movies=given.movies, frames=given.frames, threads=given.threads)
    if given.pictures:
        with tempfile.TemporaryDirectory() as scratch:
            pictures(config, given.pictures, Path(scratch))
        return
    by_seed: dict[str, dict[str, tuple[float, float, float]]] = {}
    rates, counts = [], {}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            store, rate = make(replace(config, seed=seed), Path(scratch))
            by_seed[str(seed)] = entropy_shares(store.pixels, store.labels, store.classes)
            found = np.bincount(store.labels, minlength=len(store.classes))
            counts[str(seed)] = dict(zip(store.classes, map(int, found), strict=True))
        rates.append(rate)
        print(f"seed {seed}: {by_seed[str(seed)]}, {rate:.2f} frames/s", flush=True)
    # A class that a seed's patches lack (a tiny trial) is left out of that seed's mean.
    mean = {
        name: np.mean([found[name] for found in by_seed.values() if name in found], axis=0)
        for name in ENTROPY_SHARES
    }
    off = {name: np.abs(mean[name] - target).max() for name, target in ENTROPY_SHARES.items()}
    each = [
        max(np.abs(np.subtract(found[name], ENTROPY_SHARES[name])).max() for name in found)
        for found in by_seed.values()
    ]
    report(
        "simulation_entropy",
        round(float(max(off.values())), 4),
        "largest deviation of a share of entropy, mean over seeds",
        f"<= {GOAL:.2f}",
        [round(float(min(each)), 4), round(float(max(each)), 4)],
        given.save,
        spread_of="the same of single seeds",
        shares={name: np.round(value, 4).tolist() for name, value in mean.items()},
        targets=ENTROPY_SHARES,
        deviation={name: round(float(value), 4) for name, value in off.items()},
        by_seed={
            seed: {name: np.round(value, 4).tolist() for name, value in found.items()}
            for seed, found in by_seed.items()
        },
        patches=counts,
        frames_per_second=round(float(np.median(rates)), 3),
        movies=given.movies,
        frames=given.frames,
        size_px=config.size,
        processes=given.threads or "all cores",
    )


if __name__ == "__main__":
    main()
