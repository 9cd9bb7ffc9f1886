"""A small folder of results, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stemcell_lit.deliver.command import deliver
from stemcell_lit.experiment.run import run
from stemcell_lit.settings.command_keys import DeliverCommand, typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store

METHODS = ("flat", "stacked_temporal")
WORDS = ("profile=smoke", "trainer=cpu", "hierarchy=colony", "stage.images=96")


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """`out` of two methods on two folds and two seeds, its store beside it; not to be written into."""
    root = tmp_path_factory.mktemp("results")
    make_store(root / "store", movies=6, frames=4)
    for method in METHODS:
        for fold in (0, 1):
            for seed in (0, 1):
                words = [f"data.store={root / 'store'}", f"out={root / 'out'}", f"method={method}"]
                words += [f"split.fold={fold}", f"seed={seed}"]
                run(typed(compose("run", [*WORDS, *words])))
    return root / "out"


@pytest.fixture(scope="session")
def stacked(results, tmp_path_factory) -> Path:
    """Results with a delivered model of networks and SVMs in time; not to be written into."""
    place = Path(shutil.copytree(results, tmp_path_factory.mktemp("stacked") / "out"))
    deliver(DeliverCommand(str(place), method="stacked_temporal", resamples=50))
    return place
