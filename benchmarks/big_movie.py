"""Peak memory while a movie larger than memory is read, its colonies are mapped, and it is predicted.

    python benchmarks/big_movie.py [--gib 10] [--folder DIR] [--save]

Makes a 16-bit BigTIFF, sparse on disk: a few frames hold an image, the rest are holes that read as
zeros. Two processes, so that each peak is of its own work:

- `read`: every frame is read and scaled to 8 bit; every 50th is mapped and its colonies are tracked;
- `predict`: `stemcell-lit predict ... every=50` with a network of random weights, from the movie to
  the folder of maps, plots and tables. What a frame leaves behind in memory (its compressed mask,
  the classes of its windows, its colonies) is reported as MiB a frame, from two lengths.

The figure is the greater of the two peaks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from _common import report
from scipy import ndimage as ndi

from stemcell_lit.base.processes import end_with_parent
from stemcell_lit.movies.colonies import foreground
from stemcell_lit.movies.frames import Frames, open_frames
from stemcell_lit.movies.tracks import track
from stemcell_lit.settings.colony_keys import ColoniesConfig

SIZE = 2048  # px, a common camera
UM_PER_PX = 1.6
MAPPED = 50  # every so many frames
GOAL_GIB = 2.0


def make(file: Path, gib: float) -> int:
    """Writes the movie; returns its number of frames."""
    count = max(2, round(gib * 2**30 / (SIZE * SIZE * 2)))
    # Contiguous and without data: the file's end is set and nothing is written between
    movie = tifffile.memmap(
        file, shape=(count, SIZE, SIZE), dtype=np.uint16, bigtiff=True, photometric="minisblack"
    )
    rng = np.random.default_rng(0)
    spots = ndi.gaussian_filter(rng.random((SIZE, SIZE), np.float32), 6)
    cells = np.clip((spots - spots.mean()) / spots.std(), 0, 3)
    image = (1000 + 800 * cells).astype(np.uint16)
    for i in range(0, count, max(1, count // 25)):
        movie[i] = image
    movie.flush()
    return count


def peak_gib() -> float:
    """Of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def masks(frames: Frames, config: ColoniesConfig) -> Iterator[np.ndarray]:
    for i in range(len(frames)):
        image = frames.read(i)
        if i % MAPPED == 0:
            yield foreground(image, config, frames.um_per_px)


def read(file: Path) -> dict[str, float]:
    """Reads every frame; peak in GiB, seconds, colonies."""
    before, start = peak_gib(), time.perf_counter()
    with open_frames(file, um_per_px=UM_PER_PX, hours_per_frame=1 / 6) as frames:
        tracks = track(masks(frames, ColoniesConfig()), um_per_px=UM_PER_PX)
    seconds = time.perf_counter() - start
    return {"peak": peak_gib(), "before": before, "seconds": seconds, "rows": len(tracks.table)}


def mapped(file: Path, out: Path, every: int) -> dict[str, float]:
    """Predicts each n-th frame; peak in GiB, seconds, frames."""
    from dense_prediction import untrained

    from stemcell_lit.predict.command import predict
    from stemcell_lit.settings.command_keys import PredictCommand

    model = untrained()
    model.um_per_px = 2 * UM_PER_PX
    (out / "model").mkdir(parents=True)
    model.save(out / "model")
    before, start = peak_gib(), time.perf_counter()
    command = PredictCommand(
        movie=str(file),
        checkpoint=str(out / "model"),
        out=str(out / "maps"),
        um_per_px=UM_PER_PX,
        hours_per_frame=1 / 6,
        every=every,
        threads=1,
    )
    predict(command)
    seconds = time.perf_counter() - start
    with open_frames(out / "maps" / "classes.ome.tif") as maps:
        count = len(maps)
    return {"peak": peak_gib(), "before": before, "seconds": seconds, "frames": count}


def alone(work: Callable[..., Any], *args: Any) -> Any:
    """In a process of its own: the peak must be that of this work."""
    with multiprocessing.get_context("spawn").Pool(1, end_with_parent, (os.getpid(),)) as pool:
        return pool.apply(work, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gib", type=float, default=10.0, help="size of the movie (10)")
    parser.add_argument("--folder", type=Path, help="where to make it; default: temporary files")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        file = folder / "big.tif"
        count = alone(make, file, given.gib)
        size, on_disk = file.stat().st_size / 2**30, file.stat().st_blocks * 512 / 2**30
        print(f"{count} frames, {size:.2f} GiB, {on_disk:.2f} GiB on disk", flush=True)
        reading = alone(read, file)
        print(f"read: {reading}", flush=True)
        every = min(MAPPED, max(1, count // 4))
        most = alone(mapped, file, folder / "most", every)
        print(f"predict: {most}", flush=True)
        half = alone(mapped, file, folder / "half", 2 * every)
        print(f"predict: {half}", flush=True)
        kept = (most["peak"] - half["peak"]) / (most["frames"] - half["frames"]) * 1024
        report(
            "big_movie_peak_memory",
            round(max(reading["peak"], most["peak"]), 3),
            "GiB",
            f"< {GOAL_GIB:g}",
            None,
            given.save,
            movie_gib=round(size, 2),
            frames=count,
            read={
                "peak_gib": round(reading["peak"], 3),
                "before_gib": round(reading["before"], 3),
                "frames_per_second": round(count / reading["seconds"], 1),
            },
            predict={
                "peak_gib": round(most["peak"], 3),
                "before_gib": round(most["before"], 3),
                "every": every,
                "frames": most["frames"],
                "seconds_per_frame": round(most["seconds"] / most["frames"], 2),
                "mib_kept_per_frame": round(kept, 2),
            },
        )


if __name__ == "__main__":
    main()
