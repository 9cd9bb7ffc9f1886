"""The culture of a movie: its colonies, cells and debris, where each is and in what state at any time.

What is drawn is drawn once, in `Culture.__init__`; all that changes follows from it and the hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from stemcell_lit.settings.group_keys import SimulationConfig
from stemcell_lit.simulate.optics import noise, noise_pair, step, turned

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


@dataclass(frozen=True)
class Condition:
    """Culture and imaging of one movie: why movies differ."""

    colonies: int  # how many
    radius_um: float  # mean radius of a colony at time 0
    doubling_h: float  # time in which a colony doubles its area
    pitch: float  # factor on the distance between cells
    shift_h: float  # how much later than usual everything happens
    debris: float  # factor on the amount of debris
    gain: float  # factor on the phase, that is, on the contrast
    level: float  # gray level of the empty ground at the centre of the field
    vignetting: float  # share of light lost in the corners
    light_centre: tuple[float, float]  # where it is brightest, (y, x) in half fields off the middle
    drift: float  # share by which the light changes over the movie
    focus_um: float  # mean distance from focus
    focus_drift_um: float  # amplitude of the slow change of focus
    electrons: float  # photo-electrons a gray level


@dataclass(frozen=True)
class Cells:
    """Cells at one time, (cells,) each unless given."""

    id: np.ndarray  # position among the movie's cells, the same one in every frame
    at: np.ndarray  # (cells, 2) um
    state: np.ndarray  # 0 dense to 2 differentiated
    pitch: np.ndarray  # mean distance to the next cell, um
    age: np.ndarray  # hours since its birth, as far as the colony's growth tells
    dividing: np.ndarray  # whether it is rounded up
    character: np.ndarray  # (8, cells), standard normal


class Culture:
    """The culture of one movie: what stays fixed over time, and what is there at an hour.

    Positions are in um from the top left corner, (y, x), unless they are named px. `shape` is (size, size).
    """

    def __init__(self, config: SimulationConfig, rng: np.random.Generator):
        self.config, self.um = config, config.um_per_px
        self.shape = (config.size, config.size)
        self.condition = self._draw_condition(rng)
        grid = (np.arange(config.size, dtype=np.float32) + 0.5) * self.um
        self.y, self.x = grid[:, None], grid[None, :]
        self._draw_colonies(rng)
        self._draw_clock(rng)
        self._draw_cells(rng)
        self._draw_debris(rng)
        self.ruffle = noise_pair(rng, self.shape, 14.0 / self.um)
        self.mood = noise_pair(rng, self.shape, 45.0 / self.um)

    # --- fixed over time ---------------------------------------------------------------------------------------------

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
        warp = [noise(rng, self.shape, 30.0 / self.um) * 7.0 for _ in range(2)]
        best = np.full(self.shape, np.inf, np.float32)
        self.owner = np.zeros(self.shape, np.int64)
        self.rho = np.zeros(self.shape, np.float32)
        for j, (cy, cx) in enumerate(self.centres):
            dy, dx = self.y - cy + warp[0], self.x - cx + warp[1]
            rho = np.hypot(dy, dx) / self._outline(np.full(1, j), np.arctan2(dy, dx))
            # Where colonies meet, the seam is as ragged as cells are.
            claim = rho / end[j] + 0.04 * noise(rng, self.shape, 18.0 / self.um)
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
        patchy = [noise(rng, self.shape, scale / self.um) for scale in (38.0, 70.0)]
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

    # --- at one time -------------------------------------------------------------------------------------------------

    def extent(self, hour: float) -> tuple[np.ndarray, np.ndarray]:
        """How far colonies reach, and what stage each place has come to.

        Returns:
            um from the colony's rim, positive inside, and the look of cells, 0 dense to 2 differentiated; (size, size)
            each.
        """
        ripple = turned(self.ruffle, hour / 30)
        stage = sum(step((hour - turn) / 5.0) for turn in self.turns)
        # A ragged rim where cells spread, a smooth one where they are packed.
        inward = self._radii(hour)[self.owner] - self.rho + ripple * (2 + 5 * np.minimum(stage, 1))
        look = np.clip(stage + 0.28 * turned(self.mood, hour / 50), 0, 2).astype(np.float32)
        return inward, look

    def living(self, hour: float, look: np.ndarray) -> Cells:
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
        pitch = between("pitch", state) * self.condition.pitch
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
        return Cells(
            chosen[keep],
            at[keep].astype(np.float32),
            state[keep].astype(np.float32),
            pitch[keep],
            age[keep],
            dividing[keep] & (state[keep] < 1.5),
            z[:, keep],
        )


def between(key: str, state: np.ndarray) -> np.ndarray:
    """A value of `LOOK` at states 0 (dense) to 2 (differentiated)."""
    value: np.ndarray = np.interp(state, (0, 1, 2), LOOK[key]).astype(np.float32)
    return value
