"""How sure the delivered model may be, found on validation patches, and how well that holds on test patches.

A validation patch of one fold has trained the networks of the others, so that the mean of all may not be judged by it.
Each fold's own networks, the mean over its seeds, say what they make of the fold's validation patches; all folds
together give the temperature, and then the threshold. How well this works is asked of each fold's test patches, with
the temperature and the threshold of that fold's validation patches alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemcell_lit.classify.features import FeatureTable
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.deliver.chosen import Chosen
from stemcell_lit.deliver.mean import mean_of
from stemcell_lit.evaluate.calibration import (
    Calibration,
    fit_temperature,
    tempered,
    unsure_threshold,
)
from stemcell_lit.experiment.trial import Part


@dataclass(frozen=True)
class Said:
    """What a model says of some patches.

    Attributes:
        p: (patches, classes) at temperature 1.
        y: (patches,) true positions.
        called: (patches,) predicted positions.
    """

    p: np.ndarray
    y: np.ndarray
    called: np.ndarray

    @classmethod
    def by(cls, model: TrainedHierarchy, part: Part) -> Said:
        """Of a part of a store."""
        if not len(part):
            none = np.empty(0, np.int64)
            return cls(np.empty((0, len(model.hierarchy.classes))), none, none)
        p, called = model.predict(part.pixels, part.manifest)
        return cls(p, part.labels, called)

    @classmethod
    def together(cls, parts: Sequence[Said]) -> Said:
        """Of all patches of several."""
        fields = (
            np.concatenate([getattr(s, name) for s in parts]) for name in ("p", "y", "called")
        )
        return cls(*fields)

    def at(self, temperature: float) -> Said:
        """The same at a temperature."""
        return Said(tempered(self.p, temperature), self.y, self.called)

    @property
    def top(self) -> np.ndarray:
        """(patches,) the largest probability of each."""
        found: np.ndarray = np.minimum(self.p.max(1, initial=0.0), 1.0)
        return found

    @property
    def right(self) -> np.ndarray:
        """(patches,) whether the call is right."""
        found: np.ndarray = self.called == self.y
        return found


@dataclass(frozen=True)
class Fold:
    """A fold's networks on its validation and its test patches."""

    number: int
    val: Said
    test: Said


@dataclass(frozen=True)
class Sureness:
    """A temperature and a threshold, see `evaluate.calibration`.

    Attributes:
        temperature: 1 where no patch validates.
        unsure_below: None where no patch validates, or no threshold keeps the error.
        patches: that validated.
    """

    temperature: float
    unsure_below: float | None
    patches: int

    @classmethod
    def fit(cls, said: Said, error: float) -> Sureness:
        """On what was said of validation patches."""
        temperature = fit_temperature(said.p, said.y)
        cooled = said.at(temperature)
        return cls(temperature, unsure_threshold(cooled.top, cooled.right, error), len(said.y))

    @property
    def unattainable(self) -> bool:
        """Whether patches validated and no threshold keeps the error."""
        return bool(self.patches) and self.unsure_below is None


def folds_of(
    chosen: Chosen,
    models: Sequence[TrainedHierarchy],
    table: FeatureTable,
    show: Callable[[int], None],
) -> list[Fold]:
    """Each fold's networks on the patches that they have not learned from.

    Args:
        chosen: the trials.
        models: of each.
        table: of features of the store.
        show: told the number of folds that are done.
    """
    found: list[Fold] = []
    for fold in sorted({trial.fold for trial in chosen.trials}):
        own = [m for t, m in zip(chosen.trials, models, strict=True) if t.fold == fold]
        model, split = mean_of(own, own[0].hierarchy, table), chosen.split(fold)
        said = [Said.by(model, chosen.part(split, name)) for name in ("val", "test")]
        found.append(Fold(fold, *said))
        show(len(found))
    return found


def on_test(folds: Sequence[Fold], error: float) -> tuple[dict[str, Any], Said, Said]:
    """How well temperature and threshold of each fold's validation patches do on its test patches.

    Returns:
        for model.json; and what was said of all test patches, before and after.
    """
    fitted = [Sureness.fit(fold.val, error) for fold in folds]
    before = Said.together([fold.test for fold in folds])
    after = Said.together([f.test.at(s.temperature) for f, s in zip(folds, fitted, strict=True)])
    # where no threshold keeps the error, none is sure; where no patch validates, nothing is known
    least = [
        np.inf if s.unattainable else np.nan if s.unsure_below is None else s.unsure_below
        for s in fitted
    ]
    below = np.concatenate(
        [np.full(len(f.test.y), value) for f, value in zip(folds, least, strict=True)]
    )
    known = ~np.isnan(below)
    told: dict[str, Any] = {
        "folds": [
            {"fold": f.number, "temperature": s.temperature, "unsure_below": s.unsure_below}
            | {"val": s.patches, "test": len(f.test.y)}
            for f, s in zip(folds, fitted, strict=True)
        ],
        "before": Calibration.of(before.p, before.y, before.called).plain(),
        "after": Calibration.of(after.p, after.y, after.called).plain(),
        "error": float(1 - before.right.mean()),
        "unsure": None,
    }
    if known.all():
        sure = after.top >= below
        told["unsure"] = {
            "share": float(1 - sure.mean()),
            "error_of_the_sure": float(1 - after.right[sure].mean()) if sure.any() else None,
            "error_of_the_unsure": float(1 - after.right[~sure].mean()) if (~sure).any() else None,
        }
    return told, before, after


def sentences(told: Mapping[str, Any], sureness: Sureness, error: float) -> list[str]:
    """What was found, in words, for the terminal and the card."""
    if not sureness.patches:
        return ["no patch validates: the model is not calibrated, and calls no patch unsure"]
    said = [f"temperature {sureness.temperature:.3f}, of {sureness.patches} validation patches"]
    if sureness.unsure_below is None:
        said.append(
            f"error={error:g} is not attainable: even the surest calls on validation patches are wrong more often, so "
            "no patch is called unsure; give a larger error="
        )
    elif sureness.unsure_below == 0:
        said.append(
            f"no patch is called unsure: on validation patches no more than {100 * error:g} % of all calls are wrong"
        )
    else:
        said.append(
            f"unsure below {sureness.unsure_below:.3f}: of the other validation patches at most {100 * error:g} % are "
            "wrong"
        )
    before, after = told["before"], told["after"]
    said.append(
        f"on test patches, expected calibration error {before['ece']:.3f} before and {after['ece']:.3f} after, log "
        f"loss {before['log_loss']:.3f} and {after['log_loss']:.3f}"
    )
    unsure = told["unsure"]
    if unsure is not None:
        rest = unsure["error_of_the_sure"]
        of_them = "none is sure" if rest is None else f"{100 * rest:.1f} % of the others are wrong"
        said.append(
            f"on test patches {100 * unsure['share']:.1f} % are unsure and {of_them}, of all "
            f"{100 * told['error']:.1f} %"
        )
        without = [fold["fold"] for fold in told["folds"] if fold["unsure_below"] is None]
        if without:
            said.append(
                f"no threshold of {len(without)} of {len(told['folds'])} folds keeps the error, and all of its test "
                "patches count as unsure"
            )
    return said
