"""The pictures of a report that show patches: samples beside their nearest, entropy, the surest mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stemcell_lit.base.drawing import GREY, LINE_COLOURS, blank_figure, mosaic, panels
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.entropy import entropy, entropy_intersection
from stemcell_lit.experiment.results import Result, Results
from stemcell_lit.gan.distances import nearest, turned
from stemcell_lit.patches.store import PatchStore, reduce_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PatchPictures:
    """Draws what needs the patch stores; where these have moved, a note in `facts` says so."""

    def __init__(self, results: Results, seed: int, facts: dict[str, Any]):
        self.results, self.seed, self.facts = results, seed, facts
        facts |= {"notes": [], "generator": None, "nearest": None}

    @cached_property
    def _store(self) -> PatchStore | None:
        """The real patches; None (and a note) where they have moved or changed."""
        try:
            return self.results.real()
        except UserError as error:
            self.facts["notes"].append(f"Pictures of patches are left out: {error}.")
            return None

    @cached_property
    def _generator(self) -> tuple[Result, PatchStore] | None:
        """A trial with generated patches and these; None where there are none or they have moved."""
        try:
            found = self.results.generated()
        except UserError as error:
            self.facts["notes"].append(f"Generated patches are left out: {error}.")
            return None
        if found is not None:
            trial = found[0]
            self.facts["generator"] = {
                "method": trial.method,
                "fold": trial.fold,
                "seed": trial.seed,
            }
        return found

    def _training(self, trial: Result, store: PatchStore) -> np.ndarray:
        """Rows of the training patches: of the training groups, and never a test patch."""
        inside = store.manifest["group"].isin(trial.info["split"]["train"]).to_numpy(copy=True)
        inside[trial.predictions["patch"].to_numpy()] = False
        return np.flatnonzero(inside)

    def _sides(
        self, train: np.ndarray, store: PatchStore, fake: PatchStore
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Rows of training and of generated patches of each class that has both."""
        labels, made = (s.manifest["label"].to_numpy() for s in (store, fake))
        for name in self.results.classes:
            real, mine = train[labels[train] == name], np.flatnonzero(made == name)
            if len(real) and len(mine):
                yield name, real, mine

    def samples(self) -> Figure | None:
        """Per class: real training patches, generated ones, and what in training is nearest."""
        if self._store is None or self._generator is None:
            return self._real_only()
        (trial, fake), store, shown = self._generator, self._store, 10
        size = fake.pixels.shape[1]
        if store.size % size:
            self.facts["notes"].append(
                "Generated patches are of a size that real ones cannot take."
            )
            return None
        random = np.random.default_rng(self.seed)
        train = self._training(trial, store)
        real_rows: dict[str, np.ndarray] = {}
        rows: dict[str, np.ndarray] = {}
        for name, real, mine in self._sides(train, store, fake):
            rows[name] = random.permutation(mine)[:shown]
            real_rows[name] = random.permutation(real)[:shown]
        if not rows:
            return self._real_only()
        queries = np.concatenate([fake.pixels[rows[name]] for name in rows])
        near, distance = nearest_stored(queries, store.pixels, train, size)
        held = random.permutation(trial.predictions["patch"].to_numpy())[: len(queries)]
        _, floor = nearest_stored(
            reduce_pixels(store.pixels[np.sort(held)], size), store.pixels, train, size
        )
        self.facts["nearest"] = {
            "generated": float(np.median(distance)),
            "held_out": float(np.median(floor)),
        }
        figure, axes = panels(5.2, 1.75, len(rows), 2)
        start = 0
        for axis, name in zip(axes.flat, rows, strict=False):
            stop = start + len(rows[name])
            real = reduce_pixels(store.pixels[np.sort(real_rows[name])], size)
            found = reduce_pixels(store.pixels[near[start:stop]], size)
            mosaic(axis, [real, queries[start:stop], found], shown)
            axis.set_yticks(
                (np.arange(3) + 0.5) * (size + 2) - 1, ["real", "generated", "nearest real"]
            )
            axis.set_title(name, loc="left")
            start = stop
        return figure

    def _real_only(self) -> Figure | None:
        """Real test patches per class, where nothing was generated."""
        store, classes = self._store, self.results.classes
        if store is None:
            return None
        random, shown = np.random.default_rng(self.seed), 12
        labels = store.manifest["label"].to_numpy()
        figure, axes = blank_figure(9, 0.85 * len(classes), len(classes), 1)
        for axis, name in zip(axes.flat, classes, strict=True):
            rows = np.sort(random.permutation(np.flatnonzero(labels == name))[:shown])
            mosaic(axis, [store.finest[rows]], shown)
            axis.set_yticks([store.size / 2], [name])
        return figure

    def entropy(self) -> Figure | None:
        """Entropy histograms of real training and generated patches, per class."""
        if self._store is None or self._generator is None:
            return None
        (trial, fake), store, most = self._generator, self._store, 2000
        size = fake.pixels.shape[1]
        if store.size % size:
            return None
        random = np.random.default_rng(self.seed)
        sides = {}
        for name, *parts in self._sides(self._training(trial, store), store, fake):
            pick = [np.sort(random.permutation(part)[:most]) for part in parts]
            sides[name] = (reduce_pixels(store.pixels[pick[0]], size), fake.pixels[pick[1]])
        if not sides:
            return None
        figure, axes = panels(2.7, 2.1, len(sides), 4)
        for axis, (name, (real, generated)) in zip(axes.flat, sides.items(), strict=False):
            bits = [entropy(real), entropy(generated)]
            edges = np.linspace(min(map(np.min, bits)), max(map(np.max, bits)) + 1e-6, 26)
            for side, colour, label in zip(
                bits, (GREY, LINE_COLOURS[1]), ("real", "generated"), strict=True
            ):
                axis.hist(side, edges, density=True, color=colour, alpha=0.55, label=label)
            overlap, _ = entropy_intersection(real, generated, seed=self.seed)
            axis.set_title(f"{name}: overlap {overlap:.2f}")
            axis.set_xlabel("entropy, bits")
            axis.set_yticks([])
        handles = axes.flat[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
        return figure

    def hardest(self, shown: int = 16) -> Figure | None:
        """Test patches that the full method calls wrong and is surest of, over all seeds."""
        store, method = self._store, self.results.full or self.results.baseline
        if store is None:
            return None
        tested = self.results.tested(method)
        tested["sure"] = confidence(tested, self.results.classes)
        wrong = tested[tested["label"] != tested["predicted"]]
        if wrong.empty:
            return None
        calls = wrong.groupby(["patch", "predicted"])["sure"].agg(["sum", "count"]).reset_index()
        calls["score"] = calls["sum"] / len(self.results.seeds)
        calls = calls.sort_values(["score", "patch"], ascending=[False, True])
        calls = calls.drop_duplicates("patch").head(shown)
        figure, axes = panels(1.55, 2.25, len(calls), 8)
        for axis, call in zip(axes.flat, calls.to_dict("records"), strict=False):
            fact = store.manifest.iloc[int(call["patch"])]
            axis.imshow(store.finest[int(call["patch"])], cmap="gray", vmin=0, vmax=255)
            when = f", {fact['time_h']:.0f} h" if math.isfinite(fact["time_h"]) else ""
            axis.set_title(
                f"{fact['label']}\n→ {call['predicted']} {call['sum'] / call['count']:.2f}",
                fontsize=8,
                fontweight="normal",
                loc="left",
            )
            axis.set_xlabel(f"{str(fact['group'])[-18:]}{when}", fontsize=6.5, loc="left")
            axis.set(xticks=[], yticks=[])
        self.facts["hardest"] = {
            "method": method,
            "wrong": len(wrong),
            "tested": len(tested),
        }
        return figure


def nearest_stored(
    queries: np.ndarray, pixels: np.ndarray, rows: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of some stored patches to each query, over its eight turns and flips.

    Args:
        queries: uint8 (n, size, size).
        pixels: uint8 (patches, height, width), perhaps memory-mapped; reduced to `size` here.
        rows: (m,) which of them to look at, in chunks.
        size: px.

    Returns:
        (n,) rows of the nearest, and (n,) root mean square distances in gray levels.
    """
    every = turned(queries).reshape(8 * len(queries), -1)
    best, found = np.full(len(every), np.inf), np.zeros(len(every), np.int64)
    for start in range(0, len(rows), 2048):
        part = rows[start : start + 2048]
        far, place = nearest(every, reduce_pixels(pixels[part], size).reshape(len(part), -1))
        better = far < best
        best[better], found[better] = far[better], part[place[better]]
    turn = best.reshape(8, -1).argmin(0)
    pick = turn, np.arange(len(queries))
    return found.reshape(8, -1)[pick], best.reshape(8, -1)[pick] / size


def confidence(tested: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(n,) probability of the predicted class."""
    p = tested[[f"p/{name}" for name in classes]].to_numpy(np.float64)
    place = pd.Index(classes).get_indexer(pd.Index(tested["predicted"]))
    return p[np.arange(len(p)), place]
