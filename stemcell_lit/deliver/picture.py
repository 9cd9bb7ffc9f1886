"""The picture of a delivered model: what is taken for what, and how sure it may be."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from stemcell_lit.base.drawing import GREY, LINE_COLOURS, STYLE, blank_figure, png
from stemcell_lit.deliver.sureness import Said
from stemcell_lit.evaluate.metrics import calibration_error, reliability

FEW = 10  # patches in a bin say nothing of a share


def draw(matrix: np.ndarray, classes: list[str], before: Said, after: Said) -> bytes:
    """A PNG: the confusion matrix of the table's trials, and a reliability diagram of test patches.

    Args:
        matrix: (classes, classes) counts of test patches, rows true.
        classes: their names.
        before: what was said of test patches, at temperature 1.
        after: at the temperature of each fold.
    """
    with mpl.rc_context(STYLE):
        side = max(3.4, 0.5 * len(classes) + 1.5)
        figure, ((left, right),) = blank_figure(side + 4.2, side, 1, 2)
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        left.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if share[i, j] > 0.5 else "#333"
                left.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", color=colour)
        left.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        left.set_yticks(range(len(classes)), classes)
        left.tick_params(length=0)
        left.spines[:].set_visible(False)
        left.set(xlabel="predicted", ylabel="true", title="Test patches, % of each true class")
        for said, name, colour in (
            (before, "before", GREY),
            (after, "after", LINE_COLOURS[0]),
        ):
            mean, share, number = reliability(said.top, said.right)
            enough = number >= FEW
            label = f"{name}, error {calibration_error(said.top, said.right):.3f}"
            right.plot(mean[enough], share[enough], "o-", color=colour, ms=4, label=label)
        right.plot([0, 1], [0, 1], color="#aaa", lw=0.8, ls=":")
        right.set(
            xlabel="top probability", ylabel="share right", title="Sure and right, test patches"
        )
        right.legend(loc="upper left")
        return png(figure)
