"""`config` names what set each value last: the schema, a file of conf/, an experiment, the command line."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from stemcell_lit import __main__ as cli
from stemcell_lit.errors import UserError
from stemcell_lit.settings.command_table import SETTINGS
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.keys import keys_of
from stemcell_lit.settings.origins import lines_of, origins


def found(command, *words):
    return {v.key: v for v in origins(command, words)}


@pytest.fixture(scope="module")
def run():
    words = ("method=flat_gan", "profile=gpu", "stage=vgg", "stage.lr=0.01", "split.folds=null")
    return found("run", *words)


@pytest.mark.parametrize(
    ("key", "value", "origin"),
    [
        ("stage.lr", 0.01, "command line"),  # over conf/stage/vgg.yaml
        ("split.folds", None, "command line"),  # though it is the default
        ("stage.network", "vgg", "conf/stage/vgg.yaml"),
        ("stage.mixup", 0.0, "default"),
        ("method.name", "flat_gan", "conf/method/flat_gan.yaml"),
        ("mix.recipe", "balance", "conf/mix/balance.yaml"),  # which the method's file chooses
        ("data.patch_size", 64, "conf/profile/gpu.yaml"),
        ("gan.images", 400_000, "conf/profile/gpu.yaml"),
        ("trainer.accelerator", "gpu", "conf/trainer/gpu.yaml"),
        ("hierarchy.tree", None, "conf/hierarchy/colony.yaml"),
        ("out", "results/default", "default"),
    ],
)
def test_each_value_is_attributed_to_what_set_it_last(run, key, value, origin):
    assert run[key].origin == origin
    assert value is None or run[key].value == value


def test_an_experiment_is_named_and_the_command_line_stands_over_it():
    values = found("reproduce", "experiment=claim", "seeds=[7]")
    assert values["tune"].origin == values["gan.images"].origin == "conf/experiment/claim.yaml"
    assert values["gan.images"].value == 192_000
    assert (values["seeds"].value, values["seeds"].origin) == ([7], "command line")
    assert values["seeds"].default == [0, 1] and values["seeds"].changed


def test_quotes_and_settings_of_the_launcher_change_no_attribution():
    values = found("run", "method='flat_gan'", "hydra/launcher=slurm", "hydra.launcher.partition=p")
    assert values["method.name"].origin == "conf/method/flat_gan.yaml"
    assert not [v for v in values.values() if v.origin == "command line"]


def test_a_value_of_the_commands_own_file_is_attributed_to_it():
    assert found("judge")["stage.images"].origin == "conf/judge.yaml"


def test_a_value_inside_a_mapping_and_a_mapping_of_values_are_of_the_command_line():
    values = found("run", "hierarchy.moves.dense=[spread]", "stage={lr:0.5}")
    assert values["hierarchy.moves"].origin == values["stage.lr"].origin == "command line"
    assert values["stage.lr"].value == 0.5 and values["stage.network"].origin != "command line"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("reproduce", ["experiment=doses", "mix=ratio"]),
        ("judge", ["profile=smoke", "gan=dcgan"]),
        ("run", ["method=temporal_hard"]),
        ("import", ["colonies=paper", "source=a"]),
    ],
)
def test_values_are_those_that_the_command_gets_and_a_default_is_the_schemas(command, words):
    config = OmegaConf.to_container(compose(command, words))
    values = origins(command, words)
    assert [v.key for v in values] == list(keys_of(command))
    for v in values:
        inside = config
        for name in v.key.split("."):
            inside = inside[name]
        assert v.value == inside
        assert v.origin != "default" or not v.changed, v.key


@pytest.mark.parametrize("command", list(SETTINGS))
def test_no_value_differs_from_the_schema_without_an_origin(command):
    assert all(v.origin != "default" or not v.changed for v in origins(command, []))


def test_config_prints_a_line_for_each_key_with_the_changed_ones_first(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cli.main(["config", "import", "source=my crops", "blocks=4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(keys_of("import"))
    marks = [line[0] for line in lines]
    assert marks == sorted(marks, reverse=True) and marks[0] == "*"
    blocks = next(line for line in lines if " blocks=" in line)
    assert blocks.split(maxsplit=2) == ["*", "blocks=4", "command line (10 by default)"]
    assert any(x.startswith("* ") and "my crops" in x and "command line" in x for x in lines)
    assert any("store=..." in x and "must be given" in x for x in lines)
    assert list(tmp_path.iterdir()) == []


def test_flags_and_words_of_the_command_itself_are_understood(capsys):
    cli.main(["config", "reproduce", "--fail-fast"])
    assert "* fail_fast=true" in capsys.readouterr().out
    cli.main(["config", "predict", "colonies=none"])
    assert "* colonies.method=none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "config COMMAND"),
        (["artifacts"], "has no settings"),
        (["runn"], "did you mean run?"),
        (["run", "stage.lrr=1"], "did you mean stage.lr="),
        (["run", "stage.lr=-1"], "expected above 0"),
        (["run", "method=flatt"], "did you mean flat?"),
        (["run", "-m", "seed=0,1"], "leave -m out"),
    ],
)
def test_config_refuses_what_the_command_would(words, says):
    from stemcell_lit.commands import do_config

    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        do_config(words)


def test_a_shown_word_sets_the_same_value_again():
    words = ["hierarchy=mitosis", "stage.lr=0.001", "out=r/Exp 3 (day=2)"]
    values = origins("run", words)
    assert lines_of("run", values)
    from stemcell_lit.settings.quoting import override

    again = origins(
        "run", [override(v.key, v.value) for v in values if v.key in ("out", "stage.lr")]
    )
    kept = {v.key: v.value for v in again}
    assert (kept["out"], kept["stage.lr"]) == ("r/Exp 3 (day=2)", 0.001)


def test_a_key_that_is_called_as_a_group_is_shown_as_the_command_takes_it(capsys):
    found = {v.key: v for v in origins("deliver", ["out=x", "method=flat"])}
    assert (found["method"].value, found["method"].origin) == ("flat", "command line")
    cli.main(["deliver", "out=x", "method=flat", "--cfg", "job"])
    assert "method: flat" in capsys.readouterr().out
