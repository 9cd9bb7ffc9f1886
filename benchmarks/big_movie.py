"""Peak memory while a movie larger than memory is read frame by frame and its colonies are mapped.

    python benchmarks/big_movie.py [--gib 10] [--folder DIR] [--save]

Makes a 16-bit BigTIFF, sparse on disk: a few frames hold an image, the rest are holes that read as
zeros. Every frame is read and scaled to 8 bit; every 50th is mapped and its colonies are tracked.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from _common import report
from scipy import ndimage as ndi

from stemcell_lit.data.colonies import foreground, track
from stemcell_lit.data.frames import Frames, open_frames
from stemcell_lit.schema import ColoniesConfig

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=10.0, help="size of the movie (10)")
    parser.add_argument("--folder", type=Path, help="where to make it; default: temporary files")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        file = Path(folder) / "big.tif"
        # In a process of its own: the peak must be that of reading alone
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            count = pool.apply(make, (file, given.gib))
        size, on_disk = file.stat().st_size / 2**30, file.stat().st_blocks * 512 / 2**30
        print(f"{count} frames, {size:.2f} GiB, {on_disk:.2f} GiB on disk", flush=True)
        before, start = peak_gib(), time.perf_counter()
        with open_frames(file, um_per_px=UM_PER_PX, hours_per_frame=1 / 6) as frames:
            opened = time.perf_counter() - start
            tracks = track(masks(frames, ColoniesConfig()), um_per_px=UM_PER_PX)
        seconds = time.perf_counter() - start
        print(f"opened in {opened:.1f} s, done in {seconds:.1f} s, {len(tracks.table)} rows")
        report(
            "big_movie_peak_memory",
            round(peak_gib(), 3),
            "GiB",
            f"< {GOAL_GIB:g}",
            None,
            given.save,
            before_reading_gib=round(before, 3),
            movie_gib=round(size, 2),
            frames=count,
            frames_per_second=round(count / seconds, 1),
        )


if __name__ == "__main__":
    main()
