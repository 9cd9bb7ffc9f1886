"""A store with unlabelled crops, from the command line: import, a trial whose generator learns from them, report."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemcell_lit import __main__ as cli
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.generators import TrainedGenerator, generator_facts
from stemcell_lit.experiment.trial import Part, prepare
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import RunCommand, typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_patches

NAMES = ["round", "flat"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Crops of eight donors, a third of them without a label, and those of two donors of whom nothing is labelled."""
    root = tmp_path_factory.mktemp("crops")
    label = (np.arange(120) % 3 == 0).astype(int)
    pixels = make_patches(label, 16, np.random.default_rng(0))
    (root / "src" / "c").mkdir(parents=True)
    rows = []
    for i in range(120):
        Image.fromarray(pixels[i]).save(root / "src" / "c" / f"{i}.png")
        donor = i // 12
        bare = donor >= 8 or i % 12 >= 8
        rows.append((f"c/{i}.png", "" if bare else NAMES[label[i]], f"d{donor}"))
    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    table.to_csv(root / "src" / "patches.csv", index=False)
    return root


def words(root, *more, out="out"):
    base = ["profile=smoke", "trainer=cpu", f"data.store={root / 'store'}", f"out={root / out}"]
    return [
        *base,
        "hierarchy=flat",
        "method=flat_gan",
        "gan.images=96",
        "stage.images=64",
        "split.folds=3",
        "quality.encoder_images=64",
        *more,
    ]


@pytest.fixture(scope="module")
def imported(root):
    cli.main(["import", f"source={root / 'src'}", f"store={root / 'store'}"])
    return PatchStore.open(root / "store")


class Watched(np.ndarray):
    """Pixels that remember which rows were read."""

    read: set[int]

    def __getitem__(self, item):
        if isinstance(item, np.ndarray) and item.ndim == 1 and self.ndim == 3:
            rows = np.flatnonzero(item) if item.dtype == bool else item
            getattr(self, "read", set()).update(rows.tolist())
        return np.asarray(super().__getitem__(item))


def test_from_the_command_line_to_a_report_that_counts_them(root, imported, capsys, monkeypatch):
    assert imported.unlabelled == 56 and imported.manifest["group"].nunique() == 10
    read: set[int] = set()
    kept = PatchStore.open

    def watched(path):
        store = kept(path)
        if store.path == root / "store":
            store.pixels = store.pixels.view(Watched)
            store.pixels.read = read
        return store

    monkeypatch.setattr(PatchStore, "open", staticmethod(watched))
    cli.main(["run", *words(root, "gan.unlabelled=true")])
    (folder,) = (root / "out" / "trials").iterdir()
    found = json.loads((folder / "result.json").read_text())
    split = prepare(typed(compose("run", words(root, "gan.unlabelled=true")), RunCommand)).split
    assert found["data"]["unlabelled"] == len(split.unlabelled) > 16
    assert sum(found["data"]["real"].values()) == len(split.train)
    held = set(found["split"]["val"] + found["split"]["test"])
    group, bare = imported.manifest["group"], ~imported.labelled
    taboo = set(np.flatnonzero(bare & group.isin(held).to_numpy()))
    assert taboo and not taboo & read  # generator, encoder, stages, scores: none has looked at one
    assert set(split.unlabelled) <= read
    about = generator_facts(root / "out" / found["generator"]["path"])
    assert {"group-d8", "group-d9"} < set(about["seen_groups"]) and not held & set(
        about["seen_groups"]
    )
    table = pd.read_parquet(folder / "predictions.parquet")
    assert imported.labelled[table["patch"]].all()
    cli.main(["report", f"out={root / 'out'}", "baseline=flat_gan", "resamples=100"])
    page = (root / "out" / "report.html").read_text()
    assert f"{len(split.unlabelled)} without a label" in page


def test_the_import_says_how_many_there_are_and_what_becomes_of_them(root, capsys):
    cli.main(["import", f"source={root / 'src'}", f"store={root / 'again'}"])
    said = " ".join(capsys.readouterr().out.split())
    assert "without a label: 56 patches, 32 of them in groups of labelled ones" in said


def test_a_generator_without_them_is_another_artifact_and_one_with_none_is_refused(root, imported):
    trial = prepare(typed(compose("run", words(root)), RunCommand))
    config = replace(trial.config, gan=replace(trial.config.gan, unlabelled=True))
    without = TrainedGenerator(trial).key()
    with_them = TrainedGenerator(replace(trial, config=config)).key()
    assert "unlabelled" not in without and "unlabelled" not in without["gan"]
    assert with_them["gan"]["unlabelled"] and with_them["unlabelled"]
    rows = np.flatnonzero(imported.labelled)
    part = imported.manifest.iloc[rows]
    PatchStore.write(
        root / "bare", np.asarray(imported.pixels)[rows], part, classes=imported.classes
    )
    config = replace(config, data=replace(config.data, store=str(root / "bare")))
    with pytest.raises(UserError, match="gan.unlabelled=true: .* has no patch without a label"):
        prepare(config)


def test_a_part_with_unlabelled_patches_gives_pixels_but_no_classes(imported):
    part = Part(imported, np.flatnonzero(~imported.labelled))
    assert len(part.pixels) == 56
    for ask in (lambda: part.labels, lambda: part.counts, lambda: part.facts):
        with pytest.raises(ValueError, match="without a label"), warnings.catch_warnings():
            ask()
