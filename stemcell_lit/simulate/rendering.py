"""Rendering of a frame: the phase map of cells and debris, and the camera's picture of it."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from stemcell_lit.simulate.culture import Culture, between
from stemcell_lit.simulate.optics import READ_NOISE, Optics, noise, noise_pair, step, turned

NEIGHBOURS = 7  # cells that may own a pixel; with fewer, long cells are cut off where they are thin


class Renderer:
    """The looks of one culture: textures that stay its own, and the microscope."""

    def __init__(self, culture: Culture, index: int, rng: np.random.Generator):
        self.culture, self.index = culture, index
        um, shape = culture.um, culture.shape
        # Pairs of noise fields; their turning mixture changes slowly and keeps its variance.
        self.vigour = noise_pair(rng, shape, 65.0 / um)
        own = np.random.default_rng([culture.config.seed, index, 2])
        self.thickness = own.normal(0, 0.14, culture.condition.colonies).astype(np.float32)
        self.grain = noise_pair(rng, shape, 1.6 / um)
        self.swell = noise_pair(rng, shape, 9.0 / um)
        self.bend = [noise_pair(rng, shape, 12.0 / um) for _ in range(2)]
        self.direction = noise(rng, shape, 90.0 / um) * 1.2
        self.optics = Optics(culture.config.size, um)

    def cells_phase(self, hour: float, look: np.ndarray, inward: np.ndarray) -> np.ndarray:
        """Phase (rad) of the cells. `look`: 0 dense to 2 differentiated; `inward`: um from the colony's rim."""
        size = self.culture.config.size
        cells = self.culture.living(hour, look)
        if len(cells.id) < 8:
            return np.zeros(self.culture.shape, np.float32)
        at, state, z = cells.at, cells.state, cells.character
        # Born small, and small again before a crowded one leaves: little changes at a stroke.
        grown = (0.55 + 0.45 * np.clip(cells.age / 3.0, 0, 1)) * np.exp(0.17 * z[3])
        radius = (cells.pitch / 2 * grown).astype(np.float32)
        aspect = between("aspect", state) * np.exp(0.12 * z[4])
        row, column = np.clip((at / self.culture.um).astype(int), 0, size - 1).T
        tilt = self.direction[row, column] * np.pi + 0.5 * z[5]
        along = np.stack([np.sin(tilt), np.cos(tilt)]).astype(np.float32)
        height = between("height", state) * np.exp(0.2 * z[6])

        # Each pixel's nearest cells, in every cell's own stretched measure; the bend makes borders wavy.
        bend = [turned(pair, hour / 25) for pair in self.bend]
        bend_um = 1.0 + 0.9 * look
        inner = inward > -8.0
        qy = (self.culture.y + bend[0] * bend_um)[inner]
        qx = (self.culture.x + bend[1] * bend_um)[inner]
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
            return between(key, state)[first]

        flat = own("flat")
        body = height[first] * (flat + (1 - flat) * np.exp(-1.1 * centre**2))
        body *= 1 - np.exp(-((to_border / own("gap")) ** 2))
        body *= step((own("reach") - centre) * radius[first] / 1.5)
        # Nucleus with two nucleoli, off centre, in a flat cell.
        nucleus, turn = own("nucleus"), self.culture.rhythm[:, cells.id]
        ny = dy - z[1][first] * 0.12 * radius[first]
        nx = dx - z[2][first] * 0.12 * radius[first]
        body += own("nuclear") * step((nucleus - np.hypot(ny, nx)) / 0.9)
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
        body += own("grain") * turned(self.grain, hour / 9)[inner] * (body > 0.03)
        body += own("swell") * turned(self.swell, hour / 20)[inner]

        # Colonies, and regions of one, lie thicker or flatter: the same class at another contrast.
        thick = self.thickness[self.culture.owner] + 0.17 * turned(self.vigour, hour / 60)
        body *= np.exp(own("vary") * thick[inner])
        # A dividing cell is a ball that has let go of its neighbours.
        round_um = np.minimum(5.8, 0.9 * radius)[first]
        ball = 3.2 * np.clip(1 - (dy**2 + dx**2) / round_um**2, 0, 1)
        body = np.where(cells.dividing[first], ball, body)
        phase = np.zeros(self.culture.shape, np.float32)
        phase[inner] = body
        edge = 1.2 + 2.0 * np.minimum(look, 1)
        shown: np.ndarray = phase * step(inward / edge)
        return shown

    def with_debris(self, phase: np.ndarray, hour: float) -> tuple[np.ndarray, np.ndarray]:
        """Where debris lies, a rim of halo included, and the phase with it."""
        where = np.zeros(self.culture.shape, bool)
        phase = phase.copy()
        grain = turned(self.grain, hour / 9)
        um, rim = self.culture.um, 2.0  # um around a body that only shows its halo
        y, x, radius, height, born, gone, vy, vx, aspect, tilt = self.culture.bodies
        for i in np.flatnonzero((born <= hour) & (hour < gone)):
            since = hour - max(born[i], 0)
            cy, cx = y[i] + vy[i] * since, x[i] + vx[i] * since
            reach = radius[i] + rim
            wide = 2.8 * reach  # where the dust around it ends
            rows = slice(max(0, int((cy - wide) / um)), int((cy + wide) / um) + 2)
            columns = slice(max(0, int((cx - wide) / um)), int((cx + wide) / um) + 2)
            if rows.stop <= 0 or columns.stop <= 0:
                continue
            dy, dx = self.culture.y[rows] - cy, self.culture.x[:, columns] - cx
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

    def expose(self, phase: np.ndarray, hour: float, rng: np.random.Generator) -> np.ndarray:
        """The camera's uint8 frame of a phase map (rad)."""
        c, share = self.culture.condition, hour / max(self.culture.config.hours, 1e-9)
        focus = c.focus_um + c.focus_drift_um * math.sin(2 * math.pi * (share + self.index * 0.37))
        light = self.optics.image(c.gain * phase, focus)
        middle = self.culture.config.size * self.culture.um / 2
        cy, cx = ((1 + offset) * middle for offset in c.light_centre)
        corner = ((self.culture.y - cy) ** 2 + (self.culture.x - cx) ** 2) / (2 * middle**2)
        level = c.level * (1 - c.vignetting * corner) * (1 + c.drift * (share - 0.5))
        electrons = rng.poisson(np.clip(light * level, 0, None) * c.electrons)
        gray = electrons / c.electrons + rng.normal(0, READ_NOISE, self.culture.shape)
        return np.clip(np.rint(gray), 0, 255).astype(np.uint8)
