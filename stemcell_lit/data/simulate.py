"""Simulated phase-contrast time-lapses of growing stem-cell colonies, with a class map for every frame.

Everything in a movie is a function of (seed, movie, time): colonies grow around fixed centres, cells ride
outwards with them, each place turns from dense to spread to differentiated at its own two times and never back,
debris comes early and again late. The cells' optical thickness is a phase map (rad), and Zernike's filter in
the Fourier plane turns it into the image, halo and shade-off included.

Layout of the folder::

    movie_00.tif           uint8 frames, zlib-compressed OME-TIFF with pixel size and frame interval
    movie_00_classes.tif   uint8, 0 = background, 1.. = `CLASSES` in order
    movie_00_colonies.tif  uint16, 0 = no colony, 1.. = a colony, the same one in every frame
    manifest.json          classes, scale, config and the condition of every movie

What comes out is *simulated*: its figures are the author's choice, held against published entropy shares, and say
nothing of a real culture.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import tifffile
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.spatial import cKDTree

from stemcell_lit.base.files import whole_or_absent
from stemcell_lit.base.processes import end_with_parent, plain_main
from stemcell_lit.errors import UserError
from stemcell_lit.gan.quality import entropy
from stemcell_lit.schema import SimulationConfig

FORMAT = 1
CLASSES = ("debris", "dense", "spread", "differentiated")  # the paper's
DEBRIS, DENSE, SPREAD, DIFFERENTIATED = 1, 2, 3, 4  # values in a class map

# Published shares of 64 px patches with a Shannon entropy of 5 to 6, 6 to 7 and over 7 bits (see `entropy_shares`).
ENTROPY_SHARES = {
    "debris": (0.27, 0.69, 0.04),
    "dense": (0.25, 0.65, 0.09),
    "spread": (0.64, 0.35, 0.0),
    "differentiated": (0.89, 0.11, 0.0),
}

# A cell's look at the three stages of its life: dense, spread, differentiated. Between them it is interpolated.
# Lengths in um, phases in rad (2 pi x thickness x index difference / wavelength: 5 um x 0.02 is about 1.1 rad).
LOOK = {
    "pitch": (12.5, 22.0, 40.0),  # mean distance to the next cell
    "aspect": (1.1, 1.5, 2.6),  # long to short axis
    "height": (0.142, 0.098, 0.108),  # phase at the centre
    "gap": (1.3, 2.6, 2.0),  # width of the cleft at the border
    "reach": (3.0, 1.25, 1.5),  # how far a body reaches, in radii; beyond it lies bare ground
    "flat": (0.9, 0.45, 0.2),  # phase at the border over that at the centre: the soft gradient
    "nucleus": (3.6, 5.0, 6.5),  # radius
    "nuclear": (-0.03, 0.035, 0.035),  # phase of the nucleus
    "nucleoli": (0.13, 0.10, 0.07),  # phase of a nucleolus
    "grain": (0.018, 0.018, 0.014),  # standard deviation of granules in the cytoplasm
    "swell": (0.0, 0.012, 0.036),  # standard deviation of the thickness of a sheet, over some 10 um
    "vary": (1.5, 1.1, 0.5),  # factor on how much regions differ in thickness: packed cells pile up
    "line": (0.0, -0.03, -0.15),  # phase of the ridge where two cells overlap, on some borders
}
BEFORE_H, AFTER_H = 0.4, 0.3  # how long a mother is round before, and both after a division
NEIGHBOURS = 7  # cells that may own a pixel; with fewer, long cells are cut off where they are thin
WAVELENGTH_UM = 0.55
APERTURE = 0.30  # numerical aperture of a 10x objective
RING = 0.105  # numerical aperture at the middle of the phase ring
RING_WIDTH = 0.030  # the narrower, the wider the halo
RING_AMPLITUDE = 0.5  # the ring lets 25 % of the light through
READ_NOISE = 1.2  # gray levels
SOURCE_POINTS = 13  # of the annular source; odd, or the points pair up into a grating


@dataclass(frozen=True)
class Condition:
    """Culture and imaging of one movie: why movies differ.

    Attributes:
        colonies: how many.
        radius_um: mean radius of a colony at time 0.
        doubling_h: time in which a colony doubles its area.
        pitch: factor on the distance between cells.
        shift_h: how much later than usual everything happens.
        debris: factor on the amount of debris.
        gain: factor on the phase, that is, on the contrast.
        level: gray level of the empty ground at the centre of the field.
        vignetting: share of light lost in the corners.
        light_centre: where it is brightest, (y, x) in half fields off the middle.
        drift: share by which the light changes over the movie.
        focus_um: mean distance from focus.
        focus_drift_um: amplitude of the slow change of focus.
        electrons: photo-electrons a gray level.
    """

    colonies: int
    radius_um: float
    doubling_h: float
    pitch: float
    shift_h: float
    debris: float
    gain: float
    level: float
    vignetting: float
    light_centre: tuple[float, float]
    drift: float
    focus_um: float
    focus_drift_um: float
    electrons: float


def simulate(config: SimulationConfig, out: Path, progress: bool = True) -> None:
    """Writes simulated movies, their class maps and a manifest; the folder is whole or absent.

    The same config gives the same bytes, however many processes make them (`threads` is the number of
    processes; it is not part of what is simulated).

    Args:
        config: how many movies, how large, how long, and the seed.
        out: folder to make; movies that this program made there are replaced.
        progress: whether to show a bar with frames/s and the time left.

    Raises:
        UserError: a number in the config cannot be simulated, or something of the user's is in the way.
    """
    _check(config)
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
        with Progress(*columns, disable=not progress) as bar:
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


def entropy_shares(
    pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    """How each class's entropies are distributed, to be held against `ENTROPY_SHARES`.

    Args:
        pixels: uint8 (patches, height, width).
        labels: (patches,) positions in `classes`.
        classes: names.

    Returns:
        For each class with patches its shares with 5 to 6, 6 to 7 and from 7 bits; what is missing from 1 lies
        below 5 bits.
    """
    bits, found = entropy(pixels), {}
    for k, name in enumerate(classes):
        own = bits[labels == k]
        if len(own):
            counts = np.histogram(own, (0, 5, 6, 7, 9))[0] / len(own)
            found[name] = (float(counts[1]), float(counts[2]), float(counts[3]))
    return found


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


def _check(config: SimulationConfig) -> None:
    bounds: dict[str, tuple[float, float, str]] = {
        "movies": (1, 10_000, "movies"),
        "frames": (1, 100_000, "frames a movie"),
        "size": (64, 8192, "px"),
        "um_per_px": (0.2, 3.0, "um; coarser pixels cannot show a cell"),
        "hours": (1e-6, 1000, "hours"),
        "seed": (0, 2**63, "a whole number that is not negative"),
        "threads": (0, 4096, "processes, 0 for all cores"),
    }
    for key, (low, high, unit) in bounds.items():
        value = getattr(config, key)
        if not low <= value <= high:
            raise UserError(
                f"simulation.{key}: found {value}, expected {low:g} to {high:g} ({unit}); change it"
            )


def _write_movie(
    config: SimulationConfig, index: int, folder: Path, show: Callable[[], None] = lambda: None
) -> Condition:
    """Writes the three stacks of a movie into `folder`, frame by frame, and returns its condition."""
    movie = _Movie(config, index)
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
    return movie.condition


def _write_stack(
    path: Path, frames: Iterator[np.ndarray], shape: tuple, dtype: Any, config: SimulationConfig
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


@dataclass(frozen=True)
class _Cells:
    """Cells at one time, (cells,) each unless given.

    Attributes:
        id: position among the movie's cells, the same one in every frame.
        at: (cells, 2) um.
        state: 0 dense to 2 differentiated.
        pitch: mean distance to the next cell, um.
        age: hours since its birth, as far as the colony's growth tells.
        dividing: whether it is rounded up.
        character: (8, cells), standard normal.
    """

    id: np.ndarray
    at: np.ndarray
    state: np.ndarray
    pitch: np.ndarray
    age: np.ndarray
    dividing: np.ndarray
    character: np.ndarray


class _Movie:
    """One movie: what stays fixed over time, and `frame` for the rest.

    Positions are in um from the top left corner, (y, x), unless they are named px. `shape` is (size, size).
    """

    def __init__(self, config: SimulationConfig, index: int):
        self.config, self.um = config, config.um_per_px
        self.shape = (config.size, config.size)
        self.seed = (config.seed, index)
        rng = np.random.default_rng([*self.seed, 0])
        self.condition = self._draw_condition(rng)
        grid = (np.arange(config.size, dtype=np.float32) + 0.5) * self.um
        self.y, self.x = grid[:, None], grid[None, :]
        self._draw_colonies(rng)
        self._draw_clock(rng)
        self._draw_cells(rng)
        self._draw_debris(rng)
        # Pairs of noise fields; their turning mixture changes slowly and keeps its variance.
        self.ruffle = self._noise_pair(rng, 14.0)
        self.mood = self._noise_pair(rng, 45.0)
        self.vigour = self._noise_pair(rng, 65.0)
        own = np.random.default_rng([*self.seed, 2]).normal(0, 0.14, self.condition.colonies)
        self.thickness = own.astype(np.float32)
        self.grain = self._noise_pair(rng, 1.6)
        self.swell = self._noise_pair(rng, 9.0)
        self.bend = [self._noise_pair(rng, 12.0) for _ in range(2)]
        self.direction = _noise(rng, self.shape, 90.0 / self.um) * 1.2
        self.optics = _Optics(config.size, self.um)

    # --- fixed over time ----------------------------------------------------------------------------------------------

    def _draw_condition(self, rng: np.random.Generator) -> Condition:
        field_mm2 = (self.config.size * self.um / 1000) ** 2
        return Condition(
            colonies=max(1, round(field_mm2 * 7.0 * rng.uniform(0.85, 1.15))),
            radius_um=float(rng.uniform(88, 108)),
            doubling_h=float(rng.uniform(31, 40)),
            pitch=float(np.exp(rng.normal(0, 0.05))),
            shift_h=float(rng.uniform(-5, 5)),
            debris=float(rng.uniform(0.8, 1.25)),
            gain=float(rng.uniform(0.85, 1.15)),
            level=float(rng.uniform(108, 134)),
            vignetting=float(rng.uniform(0.06, 0.16)),
            light_centre=(float(rng.normal(0, 0.25)), float(rng.normal(0, 0.25))),
            drift=float(rng.uniform(-0.08, 0.08)),
            focus_um=float(rng.normal(0, 3)),
            focus_drift_um=float(rng.uniform(1, 6)),
            electrons=float(rng.uniform(5.5, 9.5)),
        )

    def _draw_colonies(self, rng: np.random.Generator) -> None:
        """Centres, growth and outline; `owner` (which colony a place belongs to) and `rho` (um from its centre)."""
        count, side = self.condition.colonies, self.config.size * self.um
        centres: list[np.ndarray] = []
        while len(centres) < count:  # the best of some candidates: colonies keep apart
            candidates = rng.uniform(0.08, 0.92, (12, 2)) * side
            if centres:
                apart = [min(np.hypot(*(c - p)) for p in centres) for c in candidates]
                centres.append(candidates[int(np.argmax(apart))])
            else:
                centres.append(candidates[0])
        self.centres = np.array(centres, np.float32)
        self.radius0 = self.condition.radius_um * np.exp(rng.normal(0, 0.12, count))
        self.doubling = self.condition.doubling_h * np.exp(rng.normal(0, 0.08, count))
        waves = np.arange(2, 7)
        self.outline = (
            rng.normal(0, 0.16, (count, 5)) / waves**0.7,
            rng.uniform(0, 2 * np.pi, (count, 5)),
        )
        end = self._radii(self.config.hours)
        warp = [_noise(rng, self.shape, 30.0 / self.um) * 7.0 for _ in range(2)]
        best = np.full(self.shape, np.inf, np.float32)
        self.owner = np.zeros(self.shape, np.int64)
        self.rho = np.zeros(self.shape, np.float32)
        for j, (cy, cx) in enumerate(self.centres):
            dy, dx = self.y - cy + warp[0], self.x - cx + warp[1]
            rho = np.hypot(dy, dx) / self._outline(np.full(1, j), np.arctan2(dy, dx))
            # Where colonies meet, the seam is as ragged as cells are.
            claim = rho / end[j] + 0.04 * _noise(rng, self.shape, 18.0 / self.um)
            nearer = claim < best
            best[nearer], self.rho[nearer], self.owner[nearer] = claim[nearer], rho[nearer], j

    def _outline(self, colony: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Radius of a colony's outline in a direction, over its mean radius."""
        sizes, phases = self.outline
        total = np.ones(angle.shape, np.float32)
        for m in range(sizes.shape[1]):
            total += sizes[colony, m] * np.cos((m + 2) * angle + phases[colony, m])
        return np.clip(total, 0.55, 1.6).astype(np.float32)

    def _radii(self, hour: float) -> np.ndarray:
        """(colonies,) mean radius in um. Growth of the area slows as the field fills."""
        return self.radius0 * 2.0 ** ((hour - 0.0016 * hour**2) / (2 * self.doubling))

    def _draw_clock(self, rng: np.random.Generator) -> None:
        """`turns`: the hours at which each place becomes spread, then differentiated.

        Fixed for each place, so no place ever goes back. Colonies spread from their edges, and cells only ride
        outwards, where these hours come earlier: no cell goes back either.
        """
        count = self.condition.colonies
        late, fate = rng.normal(0, 8, count), rng.normal(0, 7, count)
        depth = self.rho / self._radii(self.config.hours)[self.owner]  # 0 centre, 1 rim at the end
        patchy = [_noise(rng, self.shape, scale / self.um) for scale in (38.0, 70.0)]
        spread = 84 + self.condition.shift_h + late[self.owner] - 52 * depth + 7 * patchy[0]
        # In patches, a little earlier far out, and never before a place has been spread for a while.
        differentiated = 81.5 + self.condition.shift_h + fate[self.owner] + 13 * patchy[1]
        differentiated -= 10 * (depth - 0.5)
        self.turns = (spread, np.maximum(differentiated, spread + 12))

    def _draw_cells(self, rng: np.random.Generator) -> None:
        """Cells of all colonies: fixed places in their colony's own unit square, and each cell's character.

        The places are an R2 low-discrepancy sequence (M. Roberts 2018): every beginning of it is evenly spread, so
        a colony of N cells shows the first N, and growth adds cells between those that are there: divisions.
        """
        smallest = (0.7 * LOOK["pitch"][0] * self.condition.pitch) ** 2
        end = self._radii(self.config.hours)
        numbers = np.ceil(4 * (1.6 * end) ** 2 / smallest).astype(int)
        colony = np.repeat(np.arange(len(numbers)), numbers)
        rank = np.concatenate([np.arange(n) for n in numbers])
        golden = 1.32471795724474602596  # the plastic number
        steps = np.array([1 / golden, 1 / golden**2])
        start = rng.uniform(0, 1, (len(numbers), 2))
        place = (start[colony] + (rank[:, None] + 1) * steps) % 1 * 2 - 1
        keep = np.hypot(*place.T) < 1.0
        self.colony, self.rank, self.place = colony[keep], rank[keep], place[keep]
        count = len(self.rank)
        self.character = rng.normal(0, 1, (8, count)).astype(np.float32)
        self.rhythm = rng.uniform(0, 2 * np.pi, (3, count)).astype(np.float32)

    def _draw_debris(self, rng: np.random.Generator) -> None:
        """Bodies of debris in clumps: place, radius, thickness and the hours between which each is there."""
        side, shift = self.config.size * self.um, self.condition.shift_h
        field_mm2 = (side / 1000) ** 2
        bodies: list[np.ndarray] = []
        # Early clumps are washed off after a passage, late ones are what dies in crowded colonies.
        for mean, kind in ((44, "early"), (52, "late")):
            # At least two of each kind: no movie lacks a class.
            for _ in range(max(2, rng.poisson(mean * field_mm2 * self.condition.debris))):
                # Early debris collects on bare ground, late debris anywhere.
                for _ in range(8):
                    centre = rng.uniform(0.04, 0.96, 2) * side
                    row, column = (centre / self.um).astype(int)
                    inside = self.rho[row, column] < self._radii(30.0)[self.owner[row, column]]
                    if kind == "late" or not inside:
                        break
                if kind == "early":
                    born = -1.0
                    gone = float(np.clip(8 + rng.exponential(14), 0, 45)) + shift
                else:
                    born = float(rng.uniform(58, 92)) + shift
                    gone = born + float(rng.uniform(8, 40))
                n = int(np.clip(rng.lognormal(2.0 if kind == "early" else 2.4, 0.75), 1, 60))
                width = 3.8 * math.sqrt(n)
                y, x = centre[:, None] + rng.normal(0, width, (2, n))
                radius = np.clip(rng.lognormal(1.3, 0.35, n), 2.4, 7.0)
                # As thick as wide; below that, a body would be dark. Some have lost what made them refract: gray
                # ghosts among the bright ones.
                ghost = rng.random(n) < 0.3
                bright = np.clip(0.62 * radius, 2.0, 3.8) * rng.uniform(0.85, 1.1, n)
                height = np.where(ghost, rng.uniform(0.1, 0.4, n), bright)
                times = np.full(n, born), gone + rng.normal(0, 2, n)
                drift = rng.normal(0, 0.25, (2, 1)) * np.ones((2, n))  # um an hour
                shape = (
                    rng.uniform(1.0, 1.45, n),
                    rng.uniform(0, np.pi, n),
                )  # long to short, direction
                bodies.append(np.stack([y, x, radius, height, *times, *drift, *shape]))
        self.bodies = np.concatenate(bodies, 1).astype(np.float32)

    def _noise_pair(self, rng: np.random.Generator, um: float) -> tuple[np.ndarray, np.ndarray]:
        first = _noise(rng, self.shape, um / self.um)
        return first, _noise(rng, self.shape, um / self.um)

    # --- at one time --------------------------------------------------------------------------------------------------

    def frame(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One frame.

        Args:
            number: 0 to frames - 1.

        Returns:
            uint8 image, uint8 class map and uint16 colony map, (size, size) each.
        """
        hour = number * self.config.hours / self.config.frames
        rng = np.random.default_rng([*self.seed, 1, number])
        ripple = _turned(self.ruffle, hour / 30)
        stage = sum(_step((hour - turn) / 5.0) for turn in self.turns)
        # A ragged rim where cells spread, a smooth one where they are packed.
        inward = self._radii(hour)[self.owner] - self.rho + ripple * (2 + 5 * np.minimum(stage, 1))
        inside = inward > 0
        look = np.clip(stage + 0.28 * _turned(self.mood, hour / 50), 0, 2).astype(np.float32)
        phase = self._cells(hour, look, inward)
        debris, phase = self._add_debris(hour, phase)

        classes = np.zeros(self.shape, np.uint8)
        classes[inside] = DENSE
        for value, turn in zip((SPREAD, DIFFERENTIATED), self.turns, strict=True):
            classes[inside & (hour >= turn)] = value
        classes[debris] = DEBRIS
        colonies = np.where(inside, self.owner + 1, 0).astype(np.uint16)
        return self._expose(phase, hour, rng), classes, colonies

    def living(self, hour: float, look: np.ndarray) -> _Cells:
        """The cells that are there, in what state and where. `look`: 0 dense to 2 differentiated."""
        size = self.config.size
        radii = self._radii(hour)[self.colony]
        angle = np.arctan2(self.place[:, 0], self.place[:, 1])
        scale = (radii * self._outline(self.colony, angle))[:, None]
        at = (self.centres[self.colony] + self.place * scale).astype(np.float32)
        margin = 60.0
        near = ((at > -margin) & (at < size * self.um + margin)).all(1)
        # A bound that no state exceeds: it spares the look-ups of cells that cannot be there yet.
        crowd = 4 * (1.6 * radii) ** 2 / (0.7 * LOOK["pitch"][0] * self.condition.pitch) ** 2
        chosen = np.flatnonzero(near & (self.rank < crowd))
        row, column = np.clip((at[chosen] / self.um).astype(int), 0, size - 1).T
        own = self.owner[row, column] == self.colony[chosen]
        z = self.character[:, chosen]
        state = np.clip(look[row, column] + 0.16 * z[0], 0, 2)
        pitch = _between("pitch", state) * self.condition.pitch
        # Cells keep the mean distance `pitch` in the unit square's 4 scale^2; a hexagon's area is 0.87 pitch^2.
        room = 4 * scale[chosen, 0] ** 2 / (0.87 * pitch**2)
        # The room grows at a known rate, hence the hours since a cell's birth; negative: soon to be born.
        rate = math.log(2) / self.doubling * np.maximum(1 - 0.0032 * hour, 0.1)
        age = (1 - self.rank[chosen] / room) / rate[self.colony[chosen]]
        turn = self.rhythm[:, chosen]
        wander = np.stack([np.cos(hour / 14 + turn[0]), np.sin(hour / 11 + turn[1])], 1)
        at = at[chosen] + 0.24 * pitch[:, None] * (wander + 0.5 * z[1:3].T)

        shown = own & (age > 0)
        soon = own & (age > -BEFORE_H) & (age <= 0)
        dividing = age < AFTER_H
        if shown.sum() >= 2 and (soon | (shown & dividing)).any():
            # Who lies next to a cell being born is its mother: round before it and, with it, after.
            tree, mothers = cKDTree(at[shown]), np.flatnonzero(shown)
            nearest = tree.query(at[soon], k=1)[1] if soon.any() else np.empty(0, int)
            dividing[mothers[nearest]] = True
            born = shown & (age < AFTER_H)
            if born.any():
                dividing[mothers[tree.query(at[born], k=2)[1][:, 1]]] = True
        keep = np.flatnonzero(shown)
        return _Cells(
            chosen[keep],
            at[keep].astype(np.float32),
            state[keep].astype(np.float32),
            pitch[keep],
            age[keep],
            dividing[keep] & (state[keep] < 1.5),
            z[:, keep],
        )

    def _cells(self, hour: float, look: np.ndarray, inward: np.ndarray) -> np.ndarray:
        """Phase (rad) of the cells. `look`: 0 dense to 2 differentiated; `inward`: um from the colony's rim."""
        size = self.config.size
        cells = self.living(hour, look)
        if len(cells.id) < 8:
            return np.zeros(self.shape, np.float32)
        at, state, z = cells.at, cells.state, cells.character
        # Born small, and small again before a crowded one leaves: little changes at a stroke.
        grown = (0.55 + 0.45 * np.clip(cells.age / 3.0, 0, 1)) * np.exp(0.17 * z[3])
        radius = (cells.pitch / 2 * grown).astype(np.float32)
        aspect = _between("aspect", state) * np.exp(0.12 * z[4])
        row, column = np.clip((at / self.um).astype(int), 0, size - 1).T
        tilt = self.direction[row, column] * np.pi + 0.5 * z[5]
        along = np.stack([np.sin(tilt), np.cos(tilt)]).astype(np.float32)
        height = _between("height", state) * np.exp(0.2 * z[6])

        # Each pixel's nearest cells, in every cell's own stretched measure; the bend makes borders wavy.
        bend = [_turned(pair, hour / 25) for pair in self.bend]
        bend_um = 1.0 + 0.9 * look
        inner = inward > -8.0
        qy = (self.y + bend[0] * bend_um)[inner]
        qx = (self.x + bend[1] * bend_um)[inner]
        near_k = min(NEIGHBOURS, len(at))
        _, candidates = cKDTree(at).query(np.stack([qy, qx], 1), k=near_k)
        stretch = np.sqrt(aspect).astype(np.float32)
        longer, shorter = radius * stretch, radius / stretch
        best = [np.full(len(qy), np.inf, np.float32) for _ in range(3)]
        first, second = np.zeros((2, len(qy)), np.int64)
        for k in range(near_k):
            i = candidates[:, k]
            dy, dx = qy - at[i, 0], qx - at[i, 1]
            lengthwise, across = (
                dy * along[0][i] + dx * along[1][i],
                dy * along[1][i] - dx * along[0][i],
            )
            measure = (lengthwise / longer[i]) ** 2 + (across / shorter[i]) ** 2
            one, two = measure < best[0], measure < best[1]
            best[2] = np.minimum(best[2], np.maximum(measure, best[1]))
            best[1] = np.where(one, best[0], np.where(two, measure, best[1]))
            second = np.where(one, first, np.where(two, i, second))
            best[0] = np.where(one, measure, best[0])
            first = np.where(one, i, first)
        best = [np.sqrt(square) for square in best]
        # The same from both sides of a border, or its ridge would be torn.
        mean_radius = (radius[first] + radius[second]) / 2
        centre, to_border = best[0], (best[1] - best[0]) / 2 * mean_radius
        to_corner = (best[2] - best[1]) / 2 * mean_radius
        dy, dx = qy - at[first, 0], qx - at[first, 1]

        def own(key: str) -> np.ndarray:
            """A look of each pixel's cell."""
            return _between(key, state)[first]

        flat = own("flat")
        body = height[first] * (flat + (1 - flat) * np.exp(-1.1 * centre**2))
        body *= 1 - np.exp(-((to_border / own("gap")) ** 2))
        body *= _step((own("reach") - centre) * radius[first] / 1.5)
        # Nucleus with two nucleoli, off centre, in a flat cell.
        nucleus, turn = own("nucleus"), self.rhythm[:, cells.id]
        ny = dy - z[1][first] * 0.12 * radius[first]
        nx = dx - z[2][first] * 0.12 * radius[first]
        body += own("nuclear") * _step((nucleus - np.hypot(ny, nx)) / 0.9)
        for sign, offset in ((1.0, 0.4), (-0.8, 0.35)):
            oy = ny - sign * offset * nucleus * np.sin(turn[0][first])
            ox = nx - sign * offset * nucleus * np.cos(turn[0][first])
            blob = np.exp(-(oy**2 + ox**2) / (2 * (0.95 + 0.15 * state[first]) ** 2))
            body += own("nucleoli") * blob
        # Some borders are ridges, strongest at their middle.
        ridge = np.clip((np.sin(12.9898 * (turn[2][first] + turn[2][second])) - 0.5) * 3, 0, 1)
        ridge *= 1 - np.exp(-((to_corner / 4.0) ** 2))
        ridge *= own("line") * np.exp(-((to_border / 1.4) ** 2))
        body += ridge
        body += own("grain") * _turned(self.grain, hour / 9)[inner] * (body > 0.03)
        body += own("swell") * _turned(self.swell, hour / 20)[inner]

        # Colonies, and regions of one, lie thicker or flatter: the same class at another contrast.
        thick = self.thickness[self.owner] + 0.17 * _turned(self.vigour, hour / 60)
        body *= np.exp(own("vary") * thick[inner])
        # A dividing cell is a ball that has let go of its neighbours.
        round_um = np.minimum(5.8, 0.9 * radius)[first]
        ball = 3.2 * np.clip(1 - (dy**2 + dx**2) / round_um**2, 0, 1)
        body = np.where(cells.dividing[first], ball, body)
        phase = np.zeros(self.shape, np.float32)
        phase[inner] = body
        edge = 1.2 + 2.0 * np.minimum(look, 1)
        return phase * _step(inward / edge)

    def _add_debris(self, hour: float, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where debris lies, a rim of halo included, and the phase with it."""
        where = np.zeros(self.shape, bool)
        phase = phase.copy()
        grain = _turned(self.grain, hour / 9)
        rim = 2.0  # um around a body that only shows its halo
        y, x, radius, height, born, gone, vy, vx, aspect, tilt = self.bodies
        for i in np.flatnonzero((born <= hour) & (hour < gone)):
            since = hour - max(born[i], 0)
            cy, cx = y[i] + vy[i] * since, x[i] + vx[i] * since
            reach = radius[i] + rim
            wide = 2.8 * reach  # where the dust around it ends
            rows = slice(max(0, int((cy - wide) / self.um)), int((cy + wide) / self.um) + 2)
            columns = slice(max(0, int((cx - wide) / self.um)), int((cx + wide) / self.um) + 2)
            if rows.stop <= 0 or columns.stop <= 0:
                continue
            dy, dx = self.y[rows] - cy, self.x[:, columns] - cx
            sine, cosine, squeeze = np.sin(tilt[i]), np.cos(tilt[i]), np.sqrt(aspect[i])
            distance = np.hypot(
                (dy * sine + dx * cosine) / squeeze, (dy * cosine - dx * sine) * squeeze
            )
            # Blebs and fragments around the body.
            dust = np.exp(-((distance / (1.4 * reach)) ** 2)) * 0.18
            phase[rows, columns] += dust * np.abs(grain[rows, columns])
            body = height[i] * np.clip(1 - (distance / radius[i]) ** 2, 0, 1)
            phase[rows, columns] = np.maximum(phase[rows, columns], body)
            where[rows, columns] |= distance < reach
        return where, phase

    def _expose(self, phase: np.ndarray, hour: float, rng: np.random.Generator) -> np.ndarray:
        """The camera's uint8 frame of a phase map (rad)."""
        c, share = self.condition, hour / max(self.config.hours, 1e-9)
        focus = c.focus_um + c.focus_drift_um * math.sin(
            2 * math.pi * (share + self.seed[1] * 0.37)
        )
        light = self.optics.image(c.gain * phase, focus)
        middle = self.config.size * self.um / 2
        cy, cx = ((1 + offset) * middle for offset in c.light_centre)
        corner = ((self.y - cy) ** 2 + (self.x - cx) ** 2) / (2 * middle**2)
        level = c.level * (1 - c.vignetting * corner) * (1 + c.drift * (share - 0.5))
        electrons = rng.poisson(np.clip(light * level, 0, None) * c.electrons)
        gray = electrons / c.electrons + rng.normal(0, READ_NOISE, self.shape)
        return np.clip(np.rint(gray), 0, 255).astype(np.uint8)


class _Optics:
    """Zernike's phase contrast of square frames.

    For each point of the annular source the object's spectrum is seen shifted by that point's direction. Where
    it meets the ring it is attenuated and retarded by a quarter wave: the direct light, and with it the object's
    coarsest detail, which is what makes halo and shade-off (F. Zernike 1942, Physica 9:686).
    """

    def __init__(self, size: int, um_per_px: float):
        self.pad = min(size - 1, math.ceil(48 / um_per_px))  # the halo's reach
        self.padded = scipy.fft.next_fast_len(size + 2 * self.pad)
        self.extra = self.padded - size - self.pad
        frequency = scipy.fft.fftfreq(self.padded, um_per_px).astype(np.float32)
        self.points = []
        for k in range(SOURCE_POINTS):
            angle = 2 * math.pi * (k + 0.25) / SOURCE_POINTS
            ky = frequency[:, None] + RING / WAVELENGTH_UM * math.sin(angle)
            kx = frequency[None, :] + RING / WAVELENGTH_UM * math.cos(angle)
            aperture = np.hypot(ky, kx) * WAVELENGTH_UM
            # Edges of the ring and of the aperture are softened by the size of a source point.
            ring = _step((RING_WIDTH / 2 - np.abs(aperture - RING)) / 0.002)
            opening = _step((APERTURE - aperture) / 0.004)
            pupil = opening * (1 + ring * (-1j * RING_AMPLITUDE - 1))
            self.points.append((pupil.astype(np.complex64), ky, kx))
        # Empty ground: only the direct light.
        self.ground = RING_AMPLITUDE**2

    def image(self, phase: np.ndarray, focus_um: float) -> np.ndarray:
        """Intensity over that of empty ground.

        Args:
            phase: float (size, size), rad.
            focus_um: distance from focus.

        Returns:
            float32 (size, size), 1 on empty ground.
        """
        size = phase.shape[0]
        # Without reflection the frame's border would meet its opposite border and ring.
        padded = np.pad(phase, (self.pad, self.extra), mode="reflect")
        spectrum = scipy.fft.fft2(np.exp(1j * padded).astype(np.complex64))
        total = np.zeros(phase.shape, np.float32)
        window = slice(self.pad, self.pad + size)
        bend = np.complex64(-1j * math.pi * WAVELENGTH_UM * focus_um)  # Fresnel propagation
        for pupil, ky, kx in self.points:
            field = spectrum * pupil
            field *= np.exp(bend * ky**2)
            field *= np.exp(bend * kx**2)
            field = scipy.fft.ifft2(field, overwrite_x=True)[window, window]
            total += field.real**2 + field.imag**2
        return total / (SOURCE_POINTS * self.ground)


def _between(key: str, state: np.ndarray) -> np.ndarray:
    """A value of `LOOK` at states 0 (dense) to 2 (differentiated)."""
    return np.interp(state, (0, 1, 2), LOOK[key]).astype(np.float32)


def _step(value: np.ndarray) -> np.ndarray:
    """A smooth step from 0 to 1 around 0."""
    return (0.5 * (1 + np.tanh(value))).astype(np.float32)


def _turned(pair: tuple[np.ndarray, np.ndarray], angle: float) -> np.ndarray:
    return np.cos(np.float32(angle)) * pair[0] + np.sin(np.float32(angle)) * pair[1]


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> np.ndarray:
    """Gaussian noise blurred to a length in px, float32 with mean 0 and standard deviation 1."""
    # Drawn on a larger square, or scales near the frame's size would repeat at its borders.
    extent = scipy.fft.next_fast_len(shape[0] + math.ceil(3 * scale_px))
    spectrum = scipy.fft.rfft2(rng.standard_normal((extent, extent), dtype=np.float32))
    fy, fx = scipy.fft.fftfreq(extent), scipy.fft.rfftfreq(extent)
    blur = np.exp(-2 * (np.pi * scale_px) ** 2 * (fy[:, None] ** 2 + fx[None, :] ** 2))
    field = scipy.fft.irfft2(spectrum * blur.astype(np.float32), s=(extent, extent))
    expected = np.sqrt((blur[:, 1:] ** 2).sum() * 2 + (blur[:, 0] ** 2).sum()) / extent
    return (field[: shape[0], : shape[1]] / expected).astype(np.float32)
