"""The pictures of a report: differences, confusion, stages, curves, reliability."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stemcell_lit.base.drawing import STYLE, blank_figure, colours, panels, png
from stemcell_lit.evaluate.intervals import METRICS
from stemcell_lit.evaluate.metrics import calibration_error, reliability
from stemcell_lit.evaluate.results_table import points, verdict_of
from stemcell_lit.experiment.results import CLAIM, TITLES, Results, Row, rows_of
from stemcell_lit.report.patch_pictures import PatchPictures, confidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Pictures:
    """Makes the figures as PNG; what they show in numbers is left in `facts`."""

    def __init__(
        self, results: Results, table: pd.DataFrame, counts: Mapping[str, np.ndarray], seed: int
    ):
        self.results, self.counts = results, counts
        self.rows = rows_of(table)
        self.facts: dict[str, Any] = {"stages": None, "average_precision": {}}
        self.patches = PatchPictures(results, seed, self.facts)
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
                ("samples", self.patches.samples),
                ("entropy", self.patches.entropy),
                ("curves", self.curves),
                ("features", self.features),
                ("hardest", self.patches.hardest),
                ("reliability", self.reliability),
            ):
                figure = draw()
                if figure is not None:
                    made[name] = png(figure)
        return made

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
        self._legend(figure, axes, others, "o")
        return figure

    def _legend(
        self,
        figure: Figure,
        axes: np.ndarray,
        methods: Sequence[str],
        style: str = "-",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """A legend below, in as many columns as its longest name leaves room for."""
        names = [(labels or {}).get(m, m) for m in methods]
        wrapped = ["\n".join(textwrap.wrap(n, int(11 * figure.get_figwidth()))) for n in names]
        first = axes.flat[0]
        handles = [
            first.plot([], [], style, color=self.colour[m], label=n)[0]
            for m, n in zip(methods, wrapped, strict=True)
        ]
        longest = max((len(n) for n in names), default=1)
        columns = int(12 * figure.get_figwidth() // (longest + 8))
        columns = max(1, min(4, len(methods), columns))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)

    def _row(self, method: str, metric: str, name: str = "") -> Row:
        return self.rows[method, metric, name]

    @staticmethod
    def _dot(axis: Axes, row: Row, y: float, colour: str) -> None:
        if not math.isfinite(row["delta"]):
            return
        if math.isfinite(row["delta_low"]):
            ends = [100 * row["delta_low"], 100 * row["delta_high"]]
            axis.plot(ends, [y, y], color=colour, lw=1.8, solid_capstyle="butt")
            sure = verdict_of(row["delta_low"], row["delta_high"], row["p"]) != "not shown"
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
        figure, axes = panels(side, side + 0.2, len(methods), columns, sharey=True)
        for axis, method in zip(axes.flat, methods, strict=False):
            self._matrix(axis, self.counts[method].sum((0, 1)), classes, method)
        for axis in axes[:, 0]:
            axis.set_ylabel("true")
        return figure

    def stages(self) -> Figure | None:
        """Confusion of each stage of the full method on the test patches that belong to it."""
        method = self.results.full or self.results.baseline
        found: dict[str, tuple[list[str], np.ndarray]] = {}
        for trial in self.results.of(method):
            for stage in trial.info.get("stages", []):
                if "confusion" in stage and "groups" in stage:
                    matrix = np.array(stage["confusion"], np.int64)
                    names, total = found.get(stage["node"], (stage["groups"], 0 * matrix))
                    found[stage["node"]] = (names, total + matrix)
        if len(found) < 2:
            return None  # one stage is what the matrix of the whole shows
        self.facts["stages"] = method
        side = max(2.8, 0.5 * max(len(names) for names, _ in found.values()) + 1.1)
        figure, axes = panels(side, side + 0.2, len(found), max(1, int(11 // side)))
        for axis, (node, (names, matrix)) in zip(axes.flat, found.items(), strict=False):
            self._matrix(axis, matrix, names, f"stage {node}")
        return figure

    def precision_recall(self, most: int = 5) -> Figure:
        """Each class against the rest, test patches of all folds and seeds pooled; the table's last methods."""
        from sklearn.metrics import average_precision_score, precision_recall_curve

        results = self.results
        methods = [results.baseline, *results.methods[1:][-most:]]
        figure, axes = panels(2.7, 2.5, len(results.classes), 4)
        columns = axes.shape[1]
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
        self._legend(figure, axes, methods)
        self.facts["average_precision"] = area
        return figure

    def curves(self) -> Figure | None:
        """Loss and validation macro F1 of every stage that was trained; of methods that share it, by the first."""
        lines: dict[tuple[str, str], tuple[str, list[dict[str, Any]]]] = {}
        shares: dict[str, dict[str, None]] = {}
        for method in self.results.methods:
            for trial in self.results.of(method):
                for stage in trial.info.get("stages") or []:
                    curve = stage.get("curve") or []
                    if curve:
                        key = (stage["node"], json.dumps(curve, sort_keys=True))
                        owner, _ = lines.setdefault(key, (method, curve))
                        shares.setdefault(owner, {})[method] = None
        data = pd.DataFrame([point for _, curve in lines.values() for point in curve])
        shown = [k for k in ("loss", "val/macro/f1") if k in data and data[k].notna().any()]
        if not shown:
            return None
        nodes = list(dict.fromkeys(node for node, _ in lines))
        wide = min(4.0, max(2.2, 11 / len(nodes)))
        labels = {m: " = ".join(shares[m]) for m in self.results.methods if m in shares}
        height = 2.4 * len(shown) + 0.16 * len(labels)
        figure, axes = blank_figure(wide * len(nodes), height, len(shown), len(nodes))
        for row, score in zip(axes, shown, strict=True):
            for axis, node in zip(row, nodes, strict=True):
                for (of, _), (method, curve) in lines.items():
                    points = [
                        (p["images"] / 1000, p[score]) for p in curve if p.get(score) is not None
                    ]
                    if of != node or not points:
                        continue
                    axis.plot(
                        *zip(*points, strict=True),
                        color=self.colour[method],
                        lw=1,
                        alpha=0.7,
                        # a stage that was validated once has a dot and no line
                        marker="o" if len(points) == 1 else "",
                        ms=4,
                    )
                axis.set_title(f"stage {node}" if score == shown[0] else "")
                if score == shown[-1]:
                    axis.set_xlabel("thousand images")
            row[0].set_ylabel("training loss" if score == "loss" else "validation macro F1")
        self._legend(figure, axes, list(labels), labels=labels)
        return figure

    def features(self) -> Figure | None:
        """Macro TPR lost where a family of features is permuted, per method that has features; mean and spread."""
        found: dict[str, dict[str, list[float]]] = {}
        for trial in self.results.trials:
            families = (trial.info.get("importance") or {}).get("families", {})
            for family, told in families.items():
                drops = found.setdefault(trial.method, {}).setdefault(family, [])
                drops.append(100 * told["drop"])
        if not found:
            return None
        first = next(iter(found.values()))
        names = sorted(first, key=lambda name: float(np.mean(first[name])))
        figure, axes = blank_figure(7, 0.8 + 0.32 * len(names), 1, 1)
        axis = axes.flat[0]
        for i, (method, families) in enumerate(found.items()):
            shift = (i - (len(found) - 1) / 2) * 0.5 / len(found)
            places = [y + shift for y, name in enumerate(names) if name in families]
            lost = [np.array(families[name]) for name in names if name in families]
            axis.errorbar(
                [float(each.mean()) for each in lost],
                places,
                xerr=[float(each.std()) for each in lost],
                fmt="o",
                color=self.colour[method],
                label=method,
            )
        axis.axvline(0, color="#444", lw=0.8, zorder=0)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("macro TPR lost on validation patches, points")
        if len(found) > 1:
            figure.legend(loc="outside lower center", ncols=min(4, len(found)))
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
        labels = {}
        figure, axes = blank_figure(9.5, 3.3 + 0.2 * math.ceil(len(methods) / 3), 1, 2)
        for method in methods:
            tested = self.results.tested(method)
            sure = confidence(tested, self.results.classes)
            right = (tested["label"] == tested["predicted"]).to_numpy()
            mean, share, number = reliability(sure, right)
            enough = number >= 10 * len(self.results.seeds)  # fewer say nothing of a share
            axes.flat[0].plot(
                *(mean[enough], share[enough], "o-"), color=self.colour[method], ms=3.5, lw=1.2
            )
            labels[method] = f"{method}, error {calibration_error(sure, right):.3f}"
            axes.flat[1].hist(
                sure, np.linspace(0, 1, 21), histtype="step", color=self.colour[method]
            )
        axes.flat[0].plot([0, 1], [0, 1], color="#aaa", lw=0.8, ls=":")
        axes.flat[0].set(xlabel="how sure (probability of the call)", ylabel="share right")
        axes.flat[0].set_title("Sure and right")
        axes.flat[1].set(xlabel="how sure (probability of the call)", ylabel="patches, all seeds")
        axes.flat[1].set_title("How often so sure")
        self._legend(figure, axes, methods, "o-", labels)  # not on the curves
        return figure
