"""The pictures of a report: differences, confusion, stages, curves, samples, the hardest patches."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import calibration_error, reliability
from stemcell_lit.evaluate.statistics import METRICS, judge, points
from stemcell_lit.experiment.results import CLAIM, TITLES, Result, Results, Row, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, then Tol's muted one: told apart under every common colour blindness.
GREY = "#8a8f98"  # the baseline
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#332288", "#882255", "#999933", "#117733", "#aa4499", "#111111"),
)

# of all pictures
STYLE: Any = {
    "font.size": 10,
    "text.parse_math": False,  # a class may be called $x
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#9aa0a6",
    "xtick.color": "#444",
    "ytick.color": "#444",
    "legend.frameon": False,
}

DPI = 150  # of the pictures


class Pictures:
    """Makes the figures as PNG; what they show in numbers is left in `facts`."""

    def __init__(
        self, results: Results, table: pd.DataFrame, counts: Mapping[str, np.ndarray], seed: int
    ):
        self.results, self.counts, self.seed = results, counts, seed
        self.rows = rows_of(table)
        self.facts: dict[str, Any] = {
            "notes": [],
            "generator": None,
            "nearest": None,
            "stages": None,
            "average_precision": {},
        }
        self.colour = colours(results.methods, results.baseline)

    def make(self) -> dict[str, bytes]:
        """Every picture that these results allow: name -> PNG."""
        import matplotlib

        made: dict[str, bytes] = {}
        with matplotlib.rc_context(STYLE):
            for name, draw in (
                ("macro_difference", self.macro_difference),
                ("class_difference", self.class_difference),
                ("confusion", self.confusion),
                ("stages", self.stages),
                ("precision_recall", self.precision_recall),
                ("samples", self.samples),
                ("entropy", self.entropy),
                ("curves", self.curves),
                ("hardest", self.hardest),
                ("reliability", self.reliability),
            ):
                figure = draw()
                if figure is not None:
                    made[name] = png(figure)
        return made

    # -- numbers

    def macro_difference(self) -> Figure | None:
        """Macro TPR and F1 of each method against the baseline, with intervals."""
        others = self.results.methods[1:]
        if not others:
            return None
        figure, axes = blank_figure(9, 1.1 + 0.36 * len(others), 1, 2, sharey=True)
        for axis, metric in zip(axes.flat, METRICS, strict=True):
            for i, method in enumerate(others):
                row = self._row(method, metric)
                self._dot(axis, row, i, self.colour[method])
            self._spare(axis, [self._row(m, metric) for m in others])
            axis.set_yticks(range(len(others)), others)
            axis.set_ylim(len(others) - 0.4, -0.6)
            axis.axvline(100 * CLAIM, color="#999", lw=0.8, ls=":")
            axis.set_title(f"macro {TITLES[metric]}, points against {self.results.baseline}")
        return figure

    @staticmethod
    def _spare(axis: Axes, rows: Sequence[Row]) -> None:
        """Cuts the axis where a method far behind (the clock alone) would squeeze all others; its number stays."""
        deltas = 100 * np.array([row["delta"] for row in rows])
        worst = int(deltas.argmin())
        others = [row for i, row in enumerate(rows) if i != worst]
        usual = np.abs(np.delete(deltas, worst)).max(initial=0)
        if not others or not deltas[worst] < -4 * max(5.0, usual):  # a difference may be no number
            return
        ends = [row[c] for row in others for c in ("delta", "delta_low", "delta_high")]
        low, high = (100 * end([0.0, CLAIM, *ends]) for end in (np.nanmin, np.nanmax))
        axis.set_xlim(low - 0.3 * (high - low), high + 0.08 * (high - low))
        text = f"\N{BLACK LEFT-POINTING TRIANGLE} {points(deltas[worst] / 100)}"
        axis.text(0.01, worst, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)

    def class_difference(self, most: int = 5) -> Figure | None:
        """The last methods of the table, which are the most complete: more would not be legible."""
        others, classes = self.results.methods[1:][-most:], self.results.classes
        if not others:
            return None
        height = 1.2 + len(classes) * (0.24 + 0.14 * len(others))
        figure, axes = blank_figure(9, height, 1, 2, sharey=True)
        for axis, metric in zip(axes.flat, METRICS, strict=True):
            for j, name in enumerate(classes):
                for i, method in enumerate(others):
                    shift = (i - (len(others) - 1) / 2) * 0.7 / max(len(others), 1)
                    self._dot(axis, self._row(method, metric, name), j + shift, self.colour[method])
            axis.set_yticks(range(len(classes)), classes)
            axis.set_ylim(len(classes) - 0.45, -0.55)
            for j in range(1, len(classes)):
                axis.axhline(j - 0.5, color="#eee", lw=0.8)
            axis.set_title(f"{TITLES[metric]}, points against {self.results.baseline}")
        handles = [axes.flat[0].plot([], [], "o", color=self.colour[m], label=m)[0] for m in others]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(others)))
        return figure

    def _row(self, method: str, metric: str, name: str = "") -> Row:
        return self.rows[method, metric, name]

    @staticmethod
    def _dot(axis: Axes, row: Row, y: float, colour: str) -> None:
        if not math.isfinite(row["delta"]):
            return
        if math.isfinite(row["delta_low"]):
            ends = [100 * row["delta_low"], 100 * row["delta_high"]]
            axis.plot(ends, [y, y], color=colour, lw=1.8, solid_capstyle="butt")
            sure = judge(row["delta_low"], row["delta_high"], row["p"]) != "not shown"
        else:
            sure = False
        face = colour if sure else "white"
        axis.plot([100 * row["delta"]], [y], "o", ms=5.5, mec=colour, mfc=face, zorder=3)
        axis.axvline(0, color="#444", lw=0.8, zorder=0)

    def confusion(self) -> Figure:
        """A confusion matrix a method, over all folds and seeds."""
        classes, methods = self.results.classes, self.results.methods
        side = max(2.8, 0.5 * len(classes) + 1.1)
        rows = math.ceil(len(methods) / max(1, min(4, int(11 // side))))
        columns = math.ceil(len(methods) / rows)  # four methods stand two by two, not three and one
        figure, axes = blank_figure(side * columns, (side + 0.2) * rows, rows, columns, sharey=True)
        for axis, method in zip(axes.flat, methods, strict=False):
            self._matrix(axis, self.counts[method].sum((0, 1)), classes, method)
        for axis in axes[:, 0]:
            axis.set_ylabel("true")
        for axis in axes.flat[len(methods) :]:
            axis.remove()
        return figure

    def stages(self) -> Figure | None:
        """Confusion of each stage of the full method on the test patches that belong to it."""
        method = self.results.full or self.results.baseline
        found: dict[str, tuple[list[str], np.ndarray]] = {}
        for cell in self.results.of(method):
            for stage in cell.info.get("stages", []):
                if "confusion" in stage and "groups" in stage:
                    matrix = np.array(stage["confusion"], np.int64)
                    names, total = found.get(stage["node"], (stage["groups"], 0 * matrix))
                    found[stage["node"]] = (names, total + matrix)
        if len(found) < 2:
            return None  # one stage is what the matrix of the whole shows
        self.facts["stages"] = method
        side = max(2.8, 0.5 * max(len(names) for names, _ in found.values()) + 1.1)
        columns = min(len(found), max(1, int(11 // side)))
        rows = math.ceil(len(found) / columns)
        figure, axes = blank_figure(side * columns, (side + 0.2) * rows, rows, columns)
        for axis, (node, (names, matrix)) in zip(axes.flat, found.items(), strict=False):
            self._matrix(axis, matrix, names, f"stage {node}")
        for axis in axes.flat[len(found) :]:
            axis.remove()
        return figure

    def precision_recall(self, most: int = 5) -> Figure:
        """Each class against the rest, test patches of all folds and seeds pooled; the table's last methods."""
        from sklearn.metrics import average_precision_score, precision_recall_curve

        results = self.results
        methods = [results.baseline, *results.methods[1:][-most:]]
        columns = min(4, len(results.classes))
        rows = math.ceil(len(results.classes) / columns)
        figure, axes = blank_figure(2.7 * columns, 2.5 * rows, rows, columns)
        area: dict[str, dict[str, float]] = {m: {} for m in methods}
        for method in methods:
            tested = results.tested(method)
            for axis, name in zip(axes.flat, results.classes, strict=False):
                truth = (tested["label"] == name).to_numpy()
                if not truth.any():
                    continue
                p = tested[f"p/{name}"].to_numpy()
                precision, recall, _ = precision_recall_curve(truth, p)
                each = [
                    average_precision_score(part["label"] == name, part[f"p/{name}"])
                    for _, part in tested.groupby("seed")
                ]
                area[method][name] = float(np.mean(each))
                axis.plot(recall, precision, color=self.colour[method], lw=1.2)
        for i, (axis, name) in enumerate(zip(axes.flat, results.classes, strict=False)):
            axis.set(xlim=(0, 1.02), ylim=(0, 1.02), title=name)
            axis.set_xlabel("recall (TPR)" if i >= len(results.classes) - columns else "")
            axis.set_ylabel("precision" if i % columns == 0 else "")
        for axis in axes.flat[len(results.classes) :]:
            axis.remove()
        handles = [axes.flat[0].plot([], [], color=self.colour[m], label=m)[0] for m in methods]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(methods)))
        self.facts["average_precision"] = area
        return figure

    def curves(self) -> Figure | None:
        """Loss and validation macro F1 of every stage; methods that share a stage share a line."""
        rows = [
            {"node": stage["node"], "method": cell.method, "cell": cell.folder.name, **point}
            for cell in self.results.cells
            for stage in cell.info.get("stages", [])
            for point in stage.get("curve", [])
        ]
        if not rows:
            return None
        data = pd.DataFrame(rows)
        nodes = list(dict.fromkeys(data["node"]))
        shown = [k for k in ("loss", "val/macro/f1") if k in data]
        if not shown:
            return None
        wide = min(4.0, max(2.2, 11 / len(nodes)))
        figure, axes = blank_figure(wide * len(nodes), 2.4 * len(shown), len(shown), len(nodes))
        for row, key in zip(axes, shown, strict=True):
            for axis, node in zip(row, nodes, strict=True):
                part = data[data["node"] == node].dropna(subset=[key])
                for (method, _), line in part.groupby(["method", "cell"], sort=False):
                    axis.plot(
                        line["images"] / 1000, line[key], color=self.colour[method], lw=1, alpha=0.7
                    )
                axis.set_title(f"stage {node}" if key == shown[0] else "")
                if key == shown[-1]:
                    axis.set_xlabel("thousand images")
            row[0].set_ylabel("training loss" if key == "loss" else "validation macro F1")
        used = [m for m in self.results.methods if m in set(data["method"])]
        handles = [axes.flat[0].plot([], [], color=self.colour[m], label=m)[0] for m in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(used)))
        return figure

    @staticmethod
    def _matrix(axis: Axes, matrix: np.ndarray, names: Sequence[str], title: str) -> None:
        """Draws a confusion matrix, rows true, in % of each row."""
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*matrix.shape):
            axis.text(
                *(j, i, f"{100 * share[i, j]:.0f}\n({matrix[i, j]})"),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share[i, j] > 0.5 else "#333",
            )
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(title)
        axis.set_xlabel("predicted")

    def reliability(self) -> Figure:
        """Share of right answers over their confidence, and how often each is given."""
        methods = self.results.methods
        figure, axes = blank_figure(9.5, 3.4, 1, 2)
        errors = {}
        for method in methods:
            tested = self.results.tested(method)
            sure = _confidence(tested, self.results.classes)
            right = (tested["label"] == tested["predicted"]).to_numpy()
            mean, share, number = reliability(sure, right)
            enough = number >= 10 * len(self.results.seeds)  # fewer say nothing of a share
            errors[method] = calibration_error(sure, right)
            axes.flat[0].plot(
                *(mean[enough], share[enough], "o-"),
                color=self.colour[method],
                ms=3.5,
                lw=1.2,
                label=f"{method}, error {errors[method]:.3f}",
            )
            axes.flat[1].hist(
                sure, np.linspace(0, 1, 21), histtype="step", color=self.colour[method]
            )
        axes.flat[0].plot([0, 1], [0, 1], color="#aaa", lw=0.8, ls=":")
        axes.flat[0].set(xlabel="how sure (probability of the call)", ylabel="share right")
        axes.flat[0].set_title("Sure and right")
        axes.flat[0].legend(fontsize=8, loc="best")
        axes.flat[1].set(xlabel="how sure (probability of the call)", ylabel="patches, all seeds")
        axes.flat[1].set_title("How often so sure")
        self.facts["calibration"] = errors
        return figure

    # -- patches

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
        """A cell with generated patches and these; None where there are none or they have moved."""
        try:
            found = self.results.generated()
        except UserError as error:
            self.facts["notes"].append(f"Generated patches are left out: {error}.")
            return None
        if found is not None:
            cell = found[0]
            self.facts["generator"] = {"method": cell.method, "fold": cell.fold, "seed": cell.seed}
        return found

    def _training(self, cell: Result, store: PatchStore) -> np.ndarray:
        """Rows of the training patches: of the training groups, and never a test patch."""
        inside = store.manifest["group"].isin(cell.info["split"]["train"]).to_numpy(copy=True)
        inside[cell.predictions["patch"].to_numpy()] = False
        return np.flatnonzero(inside)

    def samples(self) -> Figure | None:
        """Per class: real training patches, generated ones, and what in training is nearest."""
        if self._store is None or self._generator is None:
            return self._real_only()
        from stemcell_lit.data.patches import reduce_pixels

        (cell, fake), store, shown = self._generator, self._store, 10
        size = fake.pixels.shape[1]
        if store.size % size:
            self.facts["notes"].append(
                "Generated patches are of a size that real ones cannot take."
            )
            return None
        random = np.random.default_rng(self.seed)
        train = self._training(cell, store)
        labels = store.manifest["label"].to_numpy()
        panels: dict[str, np.ndarray] = {}
        rows: dict[str, np.ndarray] = {}
        for name in self.results.classes:
            mine = np.flatnonzero(fake.manifest["label"].to_numpy() == name)
            real = train[labels[train] == name]
            if len(mine) == 0 or len(real) == 0:
                continue
            rows[name] = random.permutation(mine)[:shown]
            panels[name] = random.permutation(real)[:shown]
        if not rows:
            return self._real_only()
        queries = np.concatenate([fake.pixels[rows[name]] for name in rows])
        near, distance = nearest(queries, store.pixels, train, size)
        held = random.permutation(cell.predictions["patch"].to_numpy())[: len(queries)]
        _, floor = nearest(
            reduce_pixels(store.pixels[np.sort(held)], size), store.pixels, train, size
        )
        self.facts["nearest"] = {
            "generated": float(np.median(distance)),
            "held_out": float(np.median(floor)),
        }
        columns = 2 if len(rows) > 1 else 1
        lines = math.ceil(len(rows) / columns)
        figure, axes = blank_figure(5.2 * columns, 1.75 * lines, lines, columns)
        start = 0
        for axis, name in zip(axes.flat, rows, strict=False):
            stop = start + len(rows[name])
            real = reduce_pixels(store.pixels[np.sort(panels[name])], size)
            found = reduce_pixels(store.pixels[near[start:stop]], size)
            _mosaic(axis, [real, queries[start:stop], found], shown)
            axis.set_yticks(
                (np.arange(3) + 0.5) * (size + 2) - 1, ["real", "generated", "nearest real"]
            )
            axis.set_title(name, loc="left")
            start = stop
        for axis in axes.flat[len(rows) :]:
            axis.remove()
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
            _mosaic(axis, [store.finest[rows]], shown)
            axis.set_yticks([store.size / 2], [name])
        return figure

    def entropy(self) -> Figure | None:
        """Entropy histograms of real training and generated patches, per class."""
        if self._store is None or self._generator is None:
            return None
        try:
            from stemcell_lit.gan.quality import entropy, entropy_intersection
        except ImportError:
            return None
        from stemcell_lit.data.patches import reduce_pixels

        (cell, fake), store, most = self._generator, self._store, 2000
        size = fake.pixels.shape[1]
        if store.size % size:
            return None
        random = np.random.default_rng(self.seed)
        train, labels = self._training(cell, store), store.manifest["label"].to_numpy()
        sides = {}
        for name in self.results.classes:
            mine = np.flatnonzero(fake.manifest["label"].to_numpy() == name)
            real = train[labels[train] == name]
            if len(mine) and len(real):
                pick = [np.sort(random.permutation(part)[:most]) for part in (real, mine)]
                sides[name] = (reduce_pixels(store.pixels[pick[0]], size), fake.pixels[pick[1]])
        if not sides:
            return None
        columns = min(4, len(sides))
        lines = math.ceil(len(sides) / columns)
        figure, axes = blank_figure(2.7 * columns, 2.1 * lines, lines, columns)
        overlap = {}
        for axis, (name, (real, generated)) in zip(axes.flat, sides.items(), strict=False):
            bits = [entropy(real), entropy(generated)]
            edges = np.linspace(min(map(np.min, bits)), max(map(np.max, bits)) + 1e-6, 26)
            for side, colour, label in zip(
                bits, (GREY, PALETTE[1]), ("real", "generated"), strict=True
            ):
                axis.hist(side, edges, density=True, color=colour, alpha=0.55, label=label)
            overlap[name] = entropy_intersection(real, generated, seed=self.seed)
            axis.set_title(f"{name}: overlap {overlap[name][0]:.2f}")
            axis.set_xlabel("entropy, bits")
            axis.set_yticks([])
        for axis in axes.flat[len(sides) :]:
            axis.remove()
        handles = axes.flat[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
        self.facts["entropy"] = overlap
        return figure

    def hardest(self, shown: int = 16) -> Figure | None:
        """Test patches that the full method calls wrong and is surest of, over all seeds."""
        store, method = self._store, self.results.full or self.results.baseline
        if store is None:
            return None
        tested = self.results.tested(method)
        tested["sure"] = _confidence(tested, self.results.classes)
        wrong = tested[tested["label"] != tested["predicted"]]
        if wrong.empty:
            return None
        calls = wrong.groupby(["patch", "predicted"])["sure"].agg(["sum", "count"]).reset_index()
        calls["score"] = calls["sum"] / len(self.results.seeds)
        calls = calls.sort_values(["score", "patch"], ascending=[False, True])
        calls = calls.drop_duplicates("patch").head(shown)
        columns = min(8, len(calls))
        lines = math.ceil(len(calls) / columns)
        figure, axes = blank_figure(1.55 * columns, 2.25 * lines, lines, columns)
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
        for axis in axes.flat[len(calls) :]:
            axis.remove()
        self.facts["hardest"] = {
            "method": method,
            "wrong": len(wrong),
            "tested": len(tested),
        }
        return figure


def nearest(
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
    from stemcell_lit.data.patches import reduce_pixels

    n = len(queries)
    turned = [np.rot90(q, k, (1, 2)) for q in (queries, queries[:, :, ::-1]) for k in range(4)]
    a = np.stack(turned).reshape(8 * n, -1).astype(np.float32)
    best, found = np.full(n, np.inf), np.zeros(n, np.int64)
    for start in range(0, len(rows), 2048):
        part = rows[start : start + 2048]
        b = reduce_pixels(pixels[part], size).reshape(len(part), -1).astype(np.float32)
        squares = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
        squares = squares.reshape(8, n, -1).min(0)
        place = squares.argmin(1)
        least = squares[np.arange(n), place]
        better = least < best
        best[better], found[better] = least[better], part[place[better]]
    return found, np.sqrt(np.maximum(best, 0) / size**2)


def _confidence(tested: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(n,) probability of the predicted class."""
    p = tested[[f"p/{name}" for name in classes]].to_numpy(np.float64)
    place = pd.Index(classes).get_indexer(pd.Index(tested["predicted"]))
    return p[np.arange(len(p)), place]


def colours(methods: Sequence[str], baseline: str) -> dict[str, str]:
    """A colour for each method, grey for the baseline."""
    others = [m for m in methods if m != baseline]
    return {baseline: GREY} | {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(others)}


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=DPI, format="png")
    return stream.getvalue()


def blank_figure(
    width: float, height: float, rows: int, columns: int, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of its own: pyplot would keep a list of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _mosaic(axis: Axes, lines: Sequence[np.ndarray], columns: int) -> None:
    """Rows of patches side by side, two white pixels between them."""
    size = lines[0].shape[1]
    canvas = np.full((len(lines) * (size + 2) - 2, columns * (size + 2) - 2), 255, np.uint8)
    for i, line in enumerate(lines):
        for j, patch in enumerate(line[:columns]):
            y, x = i * (size + 2), j * (size + 2)
            canvas[y : y + size, x : x + size] = patch
    axis.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
