"""What a setting makes anew: each field of a run is declared, and each declaration is tried out."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.base.artifacts import ArtifactStore
from stemcell_lit.experiment.generators import make_generated
from stemcell_lit.experiment.stages import TrainedStage
from stemcell_lit.experiment.trial import open_store, prepare, relevant
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import RunCommand, typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store

ALL = {"generator", "generated", "stage", "trial"}
SHOWN = {"stage", "trial"}

# Field, or group with all of its fields -> what a change of it makes anew. The longest name counts; a field without
# one fails the test. Through `generator` and `generated` a change reaches what is made of them.
DECLARED: dict[str, set[str]] = {
    "data.store": set(),  # its content counts, wherever it lies
    "data.simulation": set(),  # of a given store; they count where it is simulated, see below
    "data.extraction": set(),
    "data.patch_size": ALL,
    "data.pixels": SHOWN,
    "data.augment": SHOWN,
    "data.workers": set(),
    "data.min_class_patches": set(),
    "split": ALL,
    "split.thin_classes": set(),  # while nothing is thinned
    "mix": {"generated", "stage", "trial"},
    "mix.weight": SHOWN,
    "mix.finish": SHOWN,
    "mix.order": SHOWN,
    "mix.source": ALL,
    "gan": ALL,
    "quality": ALL,  # by it the snapshot is chosen
    "select": {"trial"},  # its thresholds, while nothing is filtered
    "select.filters": {"generated", "stage", "trial"},
    "stage": SHOWN,
    "stage.refit_head": {"trial"},  # what comes after the stage
    "stage.feature_dose": {"trial"},
    "tune": {"trial"},
    "tune_seed": set(),  # while nothing is tuned
    "classic": set(),  # of a network
    "hierarchy": {"trial"},  # of a flat method, whose stage is the same under any tree
    "hierarchy.subsets": set(),  # rows of the report
    "temporal": {"trial"},  # of a method whose stages have no window
    "method": {"trial"},
    "method.choices": set(),  # while nothing is tuned
    "method.by": set(),
    "method.about": set(),  # what the report says of it, here and below
    "method.rank": set(),
    "method.parts": set(),
    "method.claimed": set(),
    "method.tree": {"generated", "stage", "trial"},
    "trainer.accelerator": set(),
    "trainer": ALL,  # precision, ranks and threads change the last digits
    "logger": set(),
    "seed": SHOWN,
    "generator_seed": ALL,
    "out": set(),
    "artifacts": set(),
}

# Another legal value, where adding one or turning it round makes none.
OTHER = {
    "data.patch_size": 8,
    "data.augment": "strong",
    "data.pixels": "workers",
    "split.kind": "leaky",
    "split.folds": 3,
    "split.fold": 1,
    "split.validation_share": 0.3,
    "split.labelled_fraction": 1.0,
    "split.thin_ratio": 30.0,
    "split.thin_classes": ["debris"],
    "mix.recipe": "balance",
    "classic.model": "trees",
    "classic.class_weight": "balanced",
    "classic.blend": "fitted",
    "classic.max_features": 0.5,
    "mix.amount": 20.0,
    "mix.weight": 0.5,
    "mix.order": "generated_first",
    "mix.source": "shuffled",
    "method.by": "loss",
    "temporal.kind": "prior",
    "temporal.quantile": 0.1,
    "hierarchy.temporal": "window",
    "hierarchy.moves": {"debris": ["debris"]},
    "hierarchy.subsets": {"some": ["debris", "dense"]},
    "hierarchy.tree": {"left": ["debris", "dense"], "right": ["spread", "differentiated"]},
    "method.about": "other",
    "method.parts": ["other"],
    "method.learner": None,  # another kind of method, without stages to compare
    "trainer.devices": 2,
    "data.extraction.um_per_px": 2.0,
    "data.extraction.stride": 32,
    "logger.group": "other",
    "logger.entity": "other",
    "artifacts": "elsewhere",
}


def leaves(config, prefix=""):
    for f in fields(config):
        value, name = getattr(config, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name


LEAVES = list(leaves(RunCommand()))


def declared(name):
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in DECLARED:
            return DECLARED[".".join(parts[:n])]
    raise AssertionError(f"{name}: new; say in DECLARED what a change of it makes anew")


def other(name, value):
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.125
    if isinstance(value, str):
        return f"{value}_other"
    if isinstance(value, list):
        return [*value, value[0]] if value else ["other"]
    if isinstance(value, dict):
        return {**value, "other": 1}
    raise AssertionError(f"{name}={value!r}: give another legal value in OTHER")


def changed(config, name, part=None):
    head, _, rest = (part or name).partition(".")
    value = getattr(config, head)
    return replace(config, **{head: changed(value, name, rest) if rest else other(name, value)})


class Recorder(ArtifactStore):
    """Makes nothing; notes what would be made."""

    class Stop(Exception):
        pass

    def __init__(self, root):
        super().__init__(root)
        self.hashes = {}

    def get(self, recipe):
        kind, folder = recipe.kind, self.locate(recipe)
        self.hashes[kind] = folder.name
        if kind == "generator":
            folder.mkdir(parents=True, exist_ok=True)
            about = {"format": 1, "hash": folder.name, "classes": ["a", "b"], "seen_groups": []}
            about |= {"um_per_px": None, "images": 1, "images_trained": 1, "curve": []}
            (folder / "generator.json").write_text(json.dumps(about))
        if kind in ("stage", "simulation"):
            raise self.Stop
        return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("relevance")
    make_store(root / "store", movies=8)
    shutil.copytree(root / "store", root / "copy")
    OTHER["data.store"] = str(root / "copy")
    torch.save({"0.0.weight": torch.zeros(4, 1, 3, 3)}, root / "weights.pt")
    OTHER["stage.weights"] = OTHER["classic.weights"] = str(root / "weights.pt")
    return root


@pytest.fixture(scope="module")
def base(folder):
    words = ["profile=smoke", "trainer=cpu", "method=flat_gan", f"data.store={folder / 'store'}"]
    words += ["mix.recipe=extra_k", "mix.amount=10", f"out={folder / 'out'}"]
    words += ["split.labelled_fraction=0.4"]  # leaves groups for pseudo-labels
    return typed(compose("run", words))


@pytest.fixture(scope="module")
def hashes(folder):
    """Name of each artifact that a trial asks for, and its own."""

    def of(config):
        recorder = Recorder(folder / "recorded")
        trial = replace(prepare(config), artifacts=recorder)
        hierarchy = trial.hierarchy.fit(**trial.train.facts)
        made = make_generated(trial, hierarchy)
        store = SimpleNamespace(content_hash=made["generated"].parent.name)
        with pytest.raises(Recorder.Stop):
            recorder.get(TrainedStage(trial, hierarchy.nodes[0], store))  # type: ignore[arg-type]
        return {**recorder.hashes, "trial": trial.hash}

    return of


@pytest.mark.parametrize("name", LEAVES)
def test_each_setting_makes_anew_what_it_changes_and_nothing_else(base, hashes, name):
    wanted = declared(name)
    if OTHER.get(name, ...) is None:
        assert relevant(base) != relevant(
            replace(base, method=replace(base.method, learner="clock"))
        )
        return
    before, after = hashes(base), hashes(changed(base, name))
    assert {kind for kind in before if before[kind] != after[kind]} == wanted


IRRELEVANT = [name for name in LEAVES if not declared(name)]
RELEVANT = [name for name in LEAVES if declared(name) == ALL and name != "split.kind"]


@settings(max_examples=25, deadline=None)
@given(st.sets(st.sampled_from(IRRELEVANT)), st.sampled_from(RELEVANT))
def test_no_set_of_irrelevant_settings_hides_or_fakes_a_change(base, hashes, names, name):
    config = base
    for irrelevant in sorted(names):
        config = changed(config, irrelevant)
    same = hashes(config)
    assert same == hashes(base)
    anew = hashes(changed(config, name))
    assert all(anew[kind] != same[kind] for kind in same)


@pytest.mark.parametrize(
    "name", [n for n in LEAVES if n.startswith(("data.simulation.", "data.extraction."))]
)
def test_a_simulated_store_is_made_anew_by_its_settings(base, folder, name):
    def simulated(config):
        recorder = Recorder(folder / "recorded")
        with pytest.raises(Recorder.Stop):
            open_store(config, recorder)
        return recorder.hashes["simulation"]

    plain = replace(base, data=replace(base.data, store=None))
    differs = simulated(plain) != simulated(changed(plain, name))
    assert differs == (name != "data.simulation.threads")


def test_the_copy_of_a_store_has_its_content(folder):
    hashes = {PatchStore.open(folder / name).content_hash for name in ("store", "copy")}
    assert len(hashes) == 1
