"""Writes simulated movies: frames, class maps, colony maps and what is known of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stemcell_lit.base.files import whole_or_absent
from stemcell_lit.base.processes import end_with_parent, plain_main
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import SimulationConfig
from stemcell_lit.simulate.culture import Condition
from stemcell_lit.simulate.movie import CLASSES, Movie

FORMAT = 1


def simulate(config: SimulationConfig, out: Path) -> None:
    """Writes simulated movies, their class maps and a manifest; the folder is whole or absent.

    The same config gives the same bytes, however many processes make them (`threads` is the number of
    processes; it is not part of what is simulated).

    Movies that this program made there are replaced.

    Raises:
        UserError: a number in the config cannot be simulated, or something of the user's is in the way.
    """
    check(config, "simulation.")
    out = Path(out)
    processes = min(config.threads or os.cpu_count() or 1, config.movies)
    with whole_or_absent(out, "movies") as folder:
        done = folder / "frames.done"  # a byte a finished frame: progress across processes
        done.touch()
        columns = (
            TextColumn("simulating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames, {task.fields[rate]:.1f} frames/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as bar:
            task = bar.add_task("", total=config.movies * config.frames, rate=0.0)
            start = time.monotonic()

            def show() -> None:
                count = done.stat().st_size
                bar.update(task, completed=count, rate=count / (time.monotonic() - start + 1e-9))

            if processes == 1:
                conditions = [_write_movie(config, i, folder, show) for i in range(config.movies)]
            else:
                conditions = _write_in_processes(config, folder, processes, show)
        done.unlink()
        settings = {k: v for k, v in asdict(config).items() if k != "threads"}
        manifest = {
            "format": FORMAT,
            "origin": "simulated",
            "classes": list(CLASSES),
            "um_per_px": config.um_per_px,
            "hours_per_frame": config.hours / config.frames,
            "config": settings,
            "movies": [
                {
                    "name": f"movie_{i:02d}",
                    "frames": f"movie_{i:02d}.tif",
                    "classes": f"movie_{i:02d}_classes.tif",
                    "colonies": f"movie_{i:02d}_colonies.tif",
                    "shape": [config.frames, config.size, config.size],
                    "seed": [config.seed, i],
                    "condition": asdict(condition),
                }
                for i, condition in enumerate(conditions)
            ],
        }
        text = json.dumps(manifest, indent=1) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")


def _write_in_processes(
    config: SimulationConfig, folder: Path, processes: int, show: Callable[[], None]
) -> list[Condition]:
    # Spawned, not forked: a forked child of a program that has started torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    tied: dict[str, Any] = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(processes, mp_context=context, **tied) as pool:
        with plain_main():
            jobs = [pool.submit(_write_movie, config, i, folder) for i in range(config.movies)]
        try:
            while wait(jobs, timeout=0.2, return_when=FIRST_EXCEPTION).not_done:
                show()
                if any(job.done() and job.exception() for job in jobs):
                    break
            show()
            return [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_movie(
    config: SimulationConfig, index: int, folder: Path, show: Callable[[], None] = lambda: None
) -> Condition:
    """Writes the three stacks of a movie into `folder`, frame by frame, and returns its condition."""
    movie = Movie(config, index)
    shape = (config.frames, config.size, config.size)
    classes = np.empty(shape, np.uint8)
    colonies = np.empty(shape, np.uint16)

    def frames() -> Iterator[np.ndarray]:
        for f in range(config.frames):
            image, classes[f], colonies[f] = movie.frame(f)
            with (folder / "frames.done").open("ab") as stream:
                stream.write(b".")
            show()
            yield image

    stem = folder / f"movie_{index:02d}"
    _write_stack(Path(f"{stem}.tif"), frames(), shape, np.uint8, config)
    _write_stack(Path(f"{stem}_classes.tif"), iter(classes), shape, np.uint8, config)
    _write_stack(Path(f"{stem}_colonies.tif"), iter(colonies), shape, np.uint16, config)
    return movie.culture.condition


def _write_stack(
    path: Path,
    frames: Iterator[np.ndarray],
    shape: tuple[int, ...],
    dtype: Any,
    config: SimulationConfig,
) -> None:
    metadata = {
        "axes": "TYX",
        "PhysicalSizeX": config.um_per_px,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": config.um_per_px,
        "PhysicalSizeYUnit": "µm",
        "TimeIncrement": config.hours / config.frames,
        "TimeIncrementUnit": "h",
        # tifffile would draw one; the same config shall give the same bytes.
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{config.seed}/{path.name}')}",
    }
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(
            frames,
            shape=shape,
            dtype=dtype,
            photometric="minisblack",
            compression="zlib",
            resolution=(1e4 / config.um_per_px, 1e4 / config.um_per_px),
            resolutionunit="CENTIMETER",
            metadata=metadata,
        )
