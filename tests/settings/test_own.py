"""Settings of the user's own: a file by its path, `conf/` of the working folder, and the folder of `--config-dir`."""

import shutil
from pathlib import Path

import pytest

from stemcell_lit import __main__ as cli
from stemcell_lit.errors import UserError
from stemcell_lit.settings import conf, own
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose, hierarchies, methods
from stemcell_lit.settings.own import check_chosen
from stemcell_lit.settings.words import located, read

TREE = "name: mine\ntemporal: prior\ntree: {cells: [a, b], debris: debris}\n"
# what a file of a group may say, and what becomes of it
FILES = {
    "hierarchy": (TREE, "hierarchy.tree.debris", "debris"),
    "method": (
        "# @package _global_\ndefaults:\n  - override /mix: balance\nmethod: {name: mine, tree: true}\n",
        "mix.recipe",
        "balance",
    ),
    "gan": ("defaults: [tiny, _self_]\nname: mine\nimages: 4096\n", "gan.images", 4096),
    "stage": ("name: mine\nwidth: 8\nlr: 1e-3\n", "stage.lr", 0.001),
    "classic": ("name: mine\nC: 3\n", "classic.C", 3.0),
    "select": ("name: mine\nfilters: [entropy]\n", "select.filters", ["entropy"]),
    "mix": ("recipe: ratio\namount: 0.5\n", "mix.amount", 0.5),
    "split": ("folds: 4\n", "split.folds", 4),
    "temporal": ("kind: window\nmargin_h: 2\n", "temporal.margin_h", 2.0),
    "trainer": ("accelerator: cpu\nthreads: 2\n", "trainer.threads", 2),
    "logger": ("wandb: disabled\n", "logger.wandb", "disabled"),
    "data": ("patch_size: 16\n", "data.patch_size", 16),
    "profile": ("stage: {width: 4}\n", "stage.width", 4),
    "experiment": ("# @package _global_\nstage: {width: 6}\n", "stage.width", 6),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, without a folder of settings."""
    monkeypatch.chdir(tmp_path)
    conf.use(None)
    yield tmp_path
    conf.use(None)


def put(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def value(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("group", FILES)
def test_a_file_of_any_group_is_chosen_by_its_path_and_by_its_name_in_a_folder(here, group):
    text, key, expected = FILES[group]
    put(f"a b/{group}, (v=2).yaml", text)
    found = compose("run", [f"{group}=./a b/{group}, (v=2).yaml"])
    assert value(found, key) == expected
    put(f"conf/{group}/mine.yaml", text)
    by_name = compose("run", [f"{group}=mine"])
    assert typed(found) == typed(by_name)
    (here / "x").mkdir()
    conf.use("conf")
    assert compose("run", [f"{group}=mine"]) == by_name
    assert conf.for_jobs() == [f"--config-dir={here / 'conf'}"]


def test_colonies_of_predict_are_chosen_by_a_path_too(here):
    put("mine.yaml", "name: mine\nmethod: paper\npaper: {opening_um: 3}\n")
    found = compose("predict", ["colonies=./mine.yaml"])
    assert found.colonies.paper.opening_um == 3


def test_every_group_is_tested_above():
    assert set(FILES) | {"colonies"} == set(conf.groups())


def test_a_file_of_ones_own_hides_the_built_in_one_and_this_is_said(here):
    assert conf.notice() is None and conf.own_dir() is None
    put("conf/hierarchy/mine.yaml", TREE)
    assert str(here / "conf") in conf.notice() and ", and hides" not in conf.notice()
    put("conf/stage/small.yaml", "name: small\nwidth: 3\n")
    assert conf.notice().endswith("and hides stage/small")
    assert compose("run", []).stage.width == 3
    conf.use("conf")
    assert conf.notice() is None


def test_a_conf_folder_of_another_program_and_the_built_in_one_are_no_settings_of_ones_own(
    here, monkeypatch
):
    put("conf/config.yaml", "x: 1\n")
    put("conf/model/mine.yaml", "x: 1\n")
    assert conf.own_dir() is None
    monkeypatch.chdir(conf.conf_dir().parent)
    assert conf.own_dir() is None and conf.notice() is None and conf.for_jobs() == []


def test_the_users_own_are_listed_proposed_and_known_as_methods_and_trees(here, capsys):
    put("conf/hierarchy/mine.yaml", TREE)
    put("conf/method/my_method.yaml", "method: {name: my_method, about: my own, rank: 0}\n")
    put("conf/method/broken.yaml", "method: [\n")
    assert next(iter(methods())) == "my_method" and "broken" not in methods()
    assert "mine" in hierarchies()
    cli.main(["run", "--help"])
    shown = capsys.readouterr().out
    assert "flat | mine | mitosis" in shown and "my own" in shown
    with pytest.raises(UserError, match="did you mean my_method"):
        compose("run", ["method=my_methd"])
    put("beside.yaml", TREE)
    with pytest.raises(UserError, match=r"did you mean \./beside\.yaml"):
        compose("run", ["hierarchy=beside.yaml"])


def test_one_file_builds_on_others_of_ones_own(here):
    put("conf/hierarchy/mine.yaml", TREE)
    text = "defaults:\n  - override /hierarchy: mine\nmethod: {name: deep, tree: true}\n"
    put("elsewhere/deep.yaml", text)
    found = compose("run", ["method=elsewhere/deep.yaml"])
    assert (found.method.name, found.hierarchy.name) == ("deep", "mine")


def test_paths_are_absolute_for_jobs_and_stay_as_they_are(here):
    put("b.yaml", TREE)
    absolute = str(here / "b.yaml")
    assert located("run", ["hierarchy=./b.yaml", "out=./x"]) == [
        f"hierarchy={absolute}",
        "out=./x",
    ]
    many = read("run", ["hierarchy=choice(flat,./b.yaml)"], several=True)
    assert many == read("run", ["hierarchy=flat,./b.yaml"], several=True)
    assert many == [f"hierarchy=choice(flat,{absolute})"] == read("run", many, several=True)
    put("my tree, v2.yaml", TREE)
    whole = f'hierarchy="{here}/my tree, v2.yaml"'
    escaped = f"hierarchy={here}/my\\ tree\\,\\ v2.yaml"  # as Hydra's sweepers write it
    for word in (whole, escaped, "hierarchy=./my tree, v2.yaml"):
        assert read("run", [word]) == [whole]
    put("m.yaml", "method: {name: m}\n")
    (word,) = located("reproduce", ["methods=[flat,./m.yaml]"])
    assert word == f"methods=[flat,{here / 'm.yaml'}]" and located("reproduce", [word]) == [word]


HOSTILE = {
    "a tag": ("name: !!python/object/apply:os.getcwd []\n", "tag"),
    "a bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n"
            for a, b in zip("abcde", "bcdef", strict=True)
        ),
        "more than",
    ),
    "too much": ("name: mine\n# " + "x" * 300_000, "mine.yaml"),
    "a target": ("name: mine\ntree: {_target_: os.system}\n", "which code is called"),
    "a deep target": ("name: mine\nsubsets: {a: [{_args_: [x]}]}\n", "which code is called"),
    "Hydra's settings": ("name: mine\nhydra: {launcher: {slots: 1}}\n", "hydra: no such key"),
    "another place": ("# @package hydra.launcher\nname: mine\n", "is put at hydra.launcher"),
    "everywhere": ("# @package _global_\nname: mine\n", "is put at _global_"),
    "a choice elsewhere": ("defaults: [/mix@hydra.launcher: real]\nname: mine\n", "expected `- "),
    "a choice of Hydra's": ("defaults: [override /hydra/launcher: slurm]\nname: mine\n", "`- "),
    "a choice by path": ("defaults: [/stage: /etc/x.yaml]\nname: mine\n", "expected `- "),
    "a way up": ("defaults: [../stage/small]\nname: mine\n", "expected `- "),
    "no list of choices": ("defaults: {mix: real}\nname: mine\n", "expected a list"),
    "a reference": ("name: mine\ntree: {a: '${oc.env:HOME}'}\n", "stand here as they are"),
    "a misspelt key": (
        "name: mine\ntreee: {a: a}\n",
        "line 2: treee: no such key; did you mean tree?",
    ),
    "a dotted key": ("name: mine\ntree.a: a\n", "as tree: {a: VALUE}"),
    "another type": ("name: mine\nleaves: 3.5x\n", "leaves: 3.5x: expected true or false"),
    "a list": ("[1, 2]\n", "holds no settings"),
    "nothing": ("", "holds no settings"),
    "no YAML": ("name: [\n", "not readable as YAML"),
    "no name": ("tree: {a: a}\n", "gives no name"),
    "a truth for a class": ("name: mine\ntree: {a: [yes]}\n", "quote it: 'yes'"),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_means_ill_or_nothing_is_refused_by_its_name(here, capsys, kind, several):
    text, says = HOSTILE[kind]
    put("conf/hierarchy/mine.yaml", text)
    put("mine.yaml", text)
    for choice in ("mine", "./mine.yaml"):
        with pytest.raises(SystemExit) as end:
            cli.main(["run", *(["-m"] if several else []), f"hierarchy={choice}"])
        *noted, said = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and says in said and "mine.yaml" in said, said
        assert not noted or noted[0].startswith("own settings")
    assert sorted(p.name for p in here.iterdir()) == ["conf", "mine.yaml"]


def test_a_file_that_another_one_chooses_is_looked_at_as_well(here):
    put("conf/stage/bad.yaml", "name: bad\nwidth: {_target_: os.getcwd}\n")
    put("m.yaml", "defaults: [override /stage: bad]\nmethod: {name: m}\n")
    with pytest.raises(UserError, match=r"bad\.yaml: line 2: _target_: which code"):
        compose("run", ["method=./m.yaml"])


def test_code_of_ones_own_is_named_by_the_user_or_in_a_file_that_the_user_names(here):
    network = "name: {}\nnetwork: module:lab.net\n"
    put("conf/stage/mine.yaml", network.format("mine"))
    put("there.yaml", network.format("there"))
    for choice in ("mine", "./there.yaml"):
        assert compose("run", [f"stage={choice}"]).stage.network == "module:lab.net"
    put("conf/stage/small.yaml", network.format("small"))  # came with the folder, and is no choice
    for words in ([], ["stage=small"], ["method=flat"]):
        with pytest.raises(UserError, match=r"small\.yaml: line 2: module:lab\.net: names code"):
            compose("run", words)


def test_a_file_in_a_folder_has_the_name_that_it_gives(here):
    put("conf/hierarchy/other.yaml", TREE)
    with pytest.raises(UserError, match="gives the name mine, expected that of the file, other"):
        compose("run", ["hierarchy=other"])


def test_a_tree_is_written_on_the_command_line(here):
    tree = "hierarchy.tree={cells:[a,b],debris:debris}"
    found = compose("run", ["hierarchy=flat", tree]).hierarchy
    assert found.tree == {"cells": ["a", "b"], "debris": "debris"}
    with pytest.raises(UserError, match="hierarchy=flat"):
        compose("run", [tree])  # it would join the one of the default
    put("e.yaml", "hierarchy: {tree: {a: a}}\n")
    with pytest.raises(UserError, match="override /hierarchy: flat"):
        compose("run", ["experiment=./e.yaml"])


@pytest.mark.parametrize(
    "choice",
    [
        *("bad", "'bad'", "good,bad", "choice(good,bad)", "choice('good','bad')", "[good,bad]"),
        *("shuffle(good,bad)", "glob(*)", "glob([b*],exclude=c*)", "tag(x,choice(good,bad))"),
        "bad.yaml",
    ],
)
@pytest.mark.parametrize("built_in", [False, True])
def test_each_name_that_is_chosen_has_its_file_checked(here, monkeypatch, choice, built_in):
    if built_in:
        shutil.copytree(conf.conf_dir(), here / "built_in")
        for module in (conf, own):
            monkeypatch.setattr(module, "conf_dir", lambda: here / "built_in")
    group = here / ("built_in" if built_in else "conf") / "hierarchy"
    put(group / "good.yaml", "name: good\n")
    put(group / "bad.yaml", "name: bad\ntree: {a: [yes]}\n")
    with pytest.raises(UserError, match=r"bad.yaml: line 2: yes is true or false"):
        check_chosen([f"hierarchy={choice}"])
    check_chosen(["hierarchy=good", "hierarchy=choice(good,good)", "hierarchy=glob(g*)"])
