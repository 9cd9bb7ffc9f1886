"""`init`: a project over the classes of a store, whatever their names, that composes as it is and hides nothing."""

import shlex

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stemcell_lit import __main__ as cli
from stemcell_lit.classify.tree import classes_of
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.project.initial import hierarchy_text, start
from stemcell_lit.settings import conf
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.command_table import SETTINGS
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.group_keys import HierarchyConfig
from stemcell_lit.settings.own import check_file
from stemcell_lit.settings.patch_keys import InitCommand
from stemcell_lit.studies.reproduce import for_trials
from tests.conftest import make_store

ODD = [
    "1",
    "yes",
    "no",
    "null",
    "1e3",
    "a b",
    "a: b",
    "#x",
    "${seed}",
    "\\${x}",
    "'q\"",
    "früh",
    "~",
]
CODE = {f"_{n}_" for n in ("target", "args", "partial", "recursive", "convert")}
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
).filter(lambda t: t.strip() and t not in {"by_time", "???"} | CODE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conf.use(None)
    return tmp_path


def odd_store(path, classes, times):
    rows = pd.DataFrame({"label": classes, "group": [f"g{i}" for i in range(len(classes))]})
    if times:
        rows["time_h"] = np.arange(len(classes), 0.0, -1.0)
    return PatchStore.write(path, np.zeros((len(classes), 8, 8), np.uint8), rows, classes=classes)


def test_a_project_over_a_store_composes_and_its_moves_follow_the_hours(here):
    make_store(here / "store", movies=2)
    cli.main(["init", "mine", "store=store"])
    tree = (here / "mine" / "conf" / "hierarchy" / "mine.yaml").read_text()
    assert "A GUESS, CHECK IT" in tree and "EXAMPLE" not in tree
    conf.use("mine/conf")
    config = typed(compose("reproduce", ["experiment=mine"]), SETTINGS["reproduce"])
    conf.use(None)
    assert config.hierarchy.name == "mine" and config.hierarchy.temporal == "prior"
    assert classes_of(config.hierarchy.tree) == ["debris", "dense", "spread", "differentiated"]
    assert config.hierarchy.moves == {
        **{"dense": ["debris"], "debris": ["spread"]},
        **{"spread": ["differentiated"], "differentiated": []},
    }
    assert config.data.store == str(here / "store") and "temporal_gan" in config.methods


def test_without_times_there_are_no_moves_and_without_a_store_the_classes_are_an_example(here):
    make_store(here / "plain" / "store", movies=2, timed=False)
    cli.main(["init", "plain", "store=plain/store"])
    text = (here / "plain" / "conf" / "hierarchy" / "plain.yaml").read_text()
    assert "moves: null" in text and "temporal: none" in text
    experiment = (here / "plain" / "conf" / "experiment" / "plain.yaml").read_text()
    assert yaml.safe_load(experiment)["data"]["store"] == "store" and "temporal" not in experiment
    cli.main(["init", "folder=b", "name=other"])
    assert "AN EXAMPLE" in (here / "b" / "conf" / "hierarchy" / "other.yaml").read_text()
    assert "replaced by yours" in (here / "b" / "README.md").read_text()


def test_every_command_of_its_page_composes(here, monkeypatch):
    cli.main(["init", "mine"])
    monkeypatch.chdir(here / "mine")
    page = (here / "mine" / "README.md").read_text()
    lines = [shlex.split(line)[1:] for line in page.splitlines() if "stemcell-lit " in line]
    assert [line[0] for line in lines if line[0] != "deliver"] == ["import", "reproduce", "predict"]
    for command, *words in lines:
        typed(compose(command, words), SETTINGS[command])


def test_the_trials_of_its_experiment_get_its_tree_and_its_store(here, monkeypatch):
    odd_store(here / "mine" / "${odd}, store", ["a", "b"], times=True)
    cli.main(["init", "mine", "store=mine/${odd}, store"])
    monkeypatch.chdir(here / "mine")
    config = typed(compose("run", for_trials(["experiment=mine"])))
    assert (config.hierarchy.name, config.data.store) == ("mine", "${odd}, store")
    assert (
        typed(compose("run", for_trials(["experiment=mine", "hierarchy=flat"]))).hierarchy.tree
        == {}
    )


def test_nothing_is_written_over_and_the_same_call_again_is_no_mistake(here):
    cli.main(["init", "mine"])
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    cli.main(["init", "mine"])
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before
    for name in ("README.md", "conf/experiment/mine.yaml"):
        file = here / "mine" / name
        file.write_text("my own")
        with pytest.raises(UserError, match=f"{name}: is there already"):
            start(InitCommand(folder="mine"))
        assert file.read_text() == "my own"
        file.write_bytes(before[file])
    (here / "file").write_text("mine")
    (here / "page").mkdir()
    (here / "page" / "README.md").write_text("mine")
    for folder in ("file", "page"):
        with pytest.raises(UserError):
            start(InitCommand(folder=folder))
    assert [p.name for p in (here / "page").iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["init"], "folder= is missing"),
        (["init", "mine", "store=nowhere"], "nowhere"),
        (["init", "flat"], "name=flat: is that of a built-in hierarchy"),
        (["init", "mine", "name=a b"], "expected letters"),
        (["init", "7"], "give name=NAME"),
        (["init", "a", "b"], "expected key=value"),
    ],
)
def test_a_mistake_writes_nothing(here, capsys, words, says):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2 and says in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", ["_target_", "by_time", "???"])
def test_a_class_that_no_file_of_settings_can_hold_is_refused_before_anything_is_written(
    here, name
):
    odd_store(here / "store", ["a", name], times=False)
    with pytest.raises(UserError, match="a name that a file of settings cannot hold"):
        start(InitCommand(folder="mine", store="store"))
    assert [p.name for p in here.iterdir()] == ["store"]


def as_written(file, classes, timed):
    """Median hours as they may be, for a tree that is written to the file."""
    hours = {c: float(i) for i, c in enumerate(reversed(classes))} if timed else {}
    file.write_text(hierarchy_text("mine", classes, hours or None, True), encoding="utf-8")
    order = list(hours)
    return {c: order[i + 1 : i + 2] for i, c in enumerate(order)}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(classes=st.lists(NAMES, min_size=2, max_size=5, unique=True), timed=st.booleans())
def test_a_written_tree_is_read_back_as_the_same_classes_and_moves(here, classes, timed):
    file = here / "mine.yaml"
    moves = as_written(file, classes, timed)
    check_file(file, "hierarchy")
    found = typed(OmegaConf.load(file), HierarchyConfig)  # the loader of Hydra
    assert classes_of(found.tree) == classes and (found.moves or {}) == moves


@pytest.mark.parametrize("timed", [False, True])
def test_odd_names_of_classes_are_the_same_once_composed(here, timed):
    moves = as_written(here / "mine.yaml", ODD, timed)
    found = typed(compose("run", ["hierarchy=./mine.yaml"])).hierarchy
    assert classes_of(found.tree) == ODD and (found.moves or {}) == moves


def test_import_names_init_where_no_tree_is_over_the_classes(here, capsys):
    from PIL import Image

    for label in ("yes", "no"):
        (here / "crops" / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((16, 16), i, np.uint8)).save(
                here / "crops" / label / f"{i}.png"
            )
    cli.main(["import", "source=crops", "store=stores/mine"])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "stemcell-lit init" in x]
    words = shlex.split(line.split("stemcell-lit ")[1])
    cli.main(words)
    assert (here / "mine" / "conf" / "hierarchy" / "mine.yaml").is_file()
