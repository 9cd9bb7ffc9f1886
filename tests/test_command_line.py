"""What users type and what is printed for them to paste: every value comes back, every mistake gets its sentence."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stemcell_lit import __main__ as cli
from stemcell_lit.base.terminal import printable, shell_word
from stemcell_lit.errors import UserError
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.command_table import SETTINGS
from stemcell_lit.settings.compose import compose, one_line
from stemcell_lit.settings.keys import keys_of
from stemcell_lit.settings.quoting import command_line, override
from stemcell_lit.settings.words import nearest, read
from stemcell_lit.studies.reproduce import for_trials

ODD = [
    "Exp 3 (day=2), Zürich µ",
    "r/epoch=3",
    "a,b",
    "#1 [x] {y}",
    'it\'s "here"',
    "back\\slash\\",
    "$HOME & ${seed};",
    "\\${x}",
    "50%: a@b ~c + d!",
    "-m",
    "~x",
    "🔬/früh",
    "'half",
    "true",
    "1e3",
    "007",
    "a\nb",
    "choice(a,b)",
    "[a,b]",
    "{a: b}",
]
TEXT = st.text(
    st.one_of(
        st.sampled_from(list("\\${}'\"=,()[]# ~@&;:%+!-.\n")),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    min_size=1,
    max_size=12,
).filter(lambda t: t != "???")


def last(command, key):
    """The one word of a printed command that sets a key."""
    (word,) = [w for w in shlex.split(command)[2:] if w.startswith(f"{key}=")]
    return word


def understood(command, word):
    """The value of the key of a word, as Hydra reads what is made of it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    (again,) = read(command, [word])
    assert read(command, [again]) == [again]  # what a job gets is what its own reader leaves
    parsed = OverridesParser.create().parse_override(again)
    config = OmegaConf.create({"x": None})
    OmegaConf.update(config, "x", parsed.value())
    return OmegaConf.to_container(config, resolve=True)["x"]


@pytest.mark.parametrize("path", ODD)
@pytest.mark.parametrize(("command", "key"), [("run", "data.store"), ("import", "source")])
def test_a_path_means_itself_whatever_its_characters(command, key, path):
    assert understood(command, f"{key}={path}") == path


@settings(max_examples=80, deadline=None)
@given(TEXT)
@example("\\${x}")
def test_a_printed_command_pasted_into_a_shell_sets_the_same_value(path):
    printed = command_line("import", {"source": path, "store": "a", "classes": [path, "b"]})
    if "$'" not in printed:  # that kind of quotes is known to shells alone, see below
        assert understood("import", last(printed, "source")) == path
        assert understood("import", last(printed, "classes")) == [path, "b"]
    assert understood("import", override("source", path)) == path
    assert understood("run", override("out", Path("r") / "x" / "y")) == "r/x/y"


@pytest.mark.parametrize("path", [*ODD, "bell\x07", "\x1b[31mred", "tab\tend"])
def test_a_real_shell_reads_a_printed_word_as_it_was(path):
    made = shell_word(f"source={path}")
    assert "\x1b" not in made and "\x07" not in made
    done = subprocess.run(["bash", "-c", f"printf %s {made}"], capture_output=True, check=True)
    assert done.stdout.decode() == f"source={path}"


@pytest.mark.parametrize("path", ["Exp 3 (day=2), Zürich µ", "r/epoch=3", "${seed} $x", "it's"])
def test_composed_settings_hold_the_path(path):
    config = typed(compose("run", [f"data.store={path}", f"out={path}"]))
    assert config.data.store == config.out == path


def test_quotes_of_hydra_mean_what_is_inside_them():
    assert understood("run", "out='a b'") == understood("run", 'out="a b"') == "a b"
    assert understood("run", "out='a' 'b'") == "'a' 'b'"
    assert understood("run", "out='null'") == "null"
    assert typed(compose("run", ["data.store=null"])).data.store is None


def test_texts_in_a_list_stay_texts():
    found = understood("import", "classes=[yes,no,1e3,007,true, früh ,'a, b',spät & reif]")
    assert found == ["yes", "no", "1e3", "007", "true", "früh", "a, b", "spät & reif"]


def test_a_sweep_over_paths_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read("run", ["out=a,b"], several=True) == ['out="a,b"']
    assert read("run", ["data.store=choice(a,b)"], several=True) == ["data.store=choice(a,b)"]
    assert read("run", ["data.augment=none,turns"], several=True) == ["data.augment=none,turns"]
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"choice\(a,b\)"):
        read("run", ["data.store=a,b"], several=True)


def test_trials_of_reproduce_get_the_users_paths():
    words = ["data.store=Exp 3 (day=2), µ", "out=r/epoch=3", "seeds=[0]", "stage.lr=0.1"]
    kept = for_trials(words)
    assert kept == ["data.store=Exp 3 (day=2), µ", "stage.lr=0.1"]
    config = typed(compose("run", [*kept, override("out", "r/epoch=3")]))
    assert (config.data.store, config.out) == ("Exp 3 (day=2), µ", "r/epoch=3")


MISTAKES = {
    "a decimal comma": (["import", "um_per_px=0,65"], "um_per_px=0.65"),
    "a list in two words": (["import", "classes=[a,", "b]"], "classes=[a,b]"),
    "a list without brackets": (["import", "classes=a,b"], "classes=[a,b]"),
    "a list of numbers without brackets": (["reproduce", "seeds=0,1"], "seeds=[0,1]"),
    "blanks around =": (["import", "source", "=", "x"], "write source=x"),
    "a blank before =": (["import", "source", "=x"], "write source=x"),
    "a blank after =": (["import", "source=", "x"], "write source=x"),
    "blanks inside one word": (["import", "source = x"], "write source=x"),
    "dashes": (["import", "--source", "x"], "write source=x"),
    "dashes and =": (["import", "--um-per-px=2"], "write um_per_px=2"),
    "no key": (["import", "my_crops"], "did you mean source=my_crops?"),
    "no value": (["import", "source="], "source= has no value"),
    "no value of an open key": (["import", "table="], "table=null"),
    "a path cut at a blank": (["import", "source=Exp", "3", "store=a"], "'source=Exp 3'"),
    "a misspelt key": (["run", "stage.lrr=1"], "did you mean stage.lr="),
    "a key without its group": (["run", "dropout=0.1"], "stage.dropout="),
    "a misspelt group": (["run", "metod=flat"], "method="),
    "another command's key": (["import", "out=x"], "no such key"),
    "a word for a number": (["run", "stage.lr=fast"], "stage.lr=fast: expected a number"),
    "a broken number": (["reproduce", "slots=2.5"], "slots=2.5: expected a whole number, or null"),
    "one seed": (["reproduce", "seeds=1"], "seeds=1: expected a list of whole numbers"),
    "words for folds": (["judge", "folds=abc"], "folds=abc: expected a list of whole numbers"),
    "a mapping for a list": (["reproduce", "seeds={a:1}"], "expected a list of whole numbers"),
    "a list for a mapping": (["run", "hierarchy.moves=[1]"], "expected names with values"),
    "moves of wrong types": (["run", "hierarchy.moves={a:1}", "method=temporal"], "hierarchy"),
    "a seed twice": (["reproduce", "seeds=[0,0]"], "seeds=[0, 0]: expected at least one 0 to"),
    "an open bracket": (["run", "hierarchy.moves={a:[b]"], "a bracket is not closed"),
    "several without -m": (["run", "method=flat,temporal"], "run -m"),
    "several values without -m": (["run", "seed=0,1"], "run -m"),
    "null for a path": (["run", "out=null"], "out=null: this key needs a value"),
    "an empty text": (["run", "out=''"], "out=: expected a text that is not empty"),
    "a NUL": (["run", "out=a\0b"], "NUL"),
    "bytes that are no text": (["run", "out=a\udcffb"], "not UTF-8"),
    "a setting of itself": (["run", "seed=${seed}"], "stemcell-lit run: "),
    "an absent setting": (["run", "seed=${nope}"], "nope"),
    "code": (["run", "-m", "hydra.launcher.done=os.getcwd"], "which code is called"),
    "code of a plan": (["run", "-m", "hydra.launcher.plan=os.getcwd"], "which code"),
    "code of a launcher": (["run", "-m", "hydra.launcher._target_=os.getcwd"], "which code"),
    "code of a callback": (["run", "-m", "+hydra.callbacks.x._target_=a.b"], "which code"),
    "code in a mapping": (["run", "hydra.sweeper={_target_:os.getcwd}"], "which code"),
    "an absent folder of settings": (["run", "--config-dir=mine"], "mine: no such folder"),
    "an absent one in two words": (["run", "-cd", "mine"], "mine: no such folder"),
    "a folder without settings": (["run", "--config-dir", "."], "holds no file of a group"),
    "no folder of settings": (["run", "--config-dir"], "write --config-dir DIR"),
    "two folders of settings": (["run", "-cd=a", "--config-dir=b"], "one folder"),
    "a path of settings": (["predict", "--config-path=mine"], "--config-dir DIR"),
    "another file of settings": (["run", "-m", "--config-name=mine"], "--config-dir DIR"),
    "a place to search": (["run", "hydra.searchpath=[file:///x]"], "--config-dir DIR"),
    "one more place": (["run", "-m", "+hydra.searchpath=[pkg://x]"], "--config-dir DIR"),
    "one place of several": (["reproduce", "++hydra.searchpath.0=x"], "--config-dir DIR"),
    "a new key": (["run", "+stage.new=1"], "keys are neither added nor removed"),
    "a key away": (["run", "~stage"], "keys are neither added nor removed"),
    "an absent file of a group": (["run", "hierarchy=./mine.yaml"], "no such file"),
    "an absent file in a list": (["reproduce", "methods=[flat,./mine.yaml]"], "no such file"),
    "a folder for a file": (["run", "stage=../"], "is a folder"),
    "an absent file in a sweep": (["run", "-m", "stage=small,./x.yaml"], "./x.yaml: no such file"),
    "a misspelt choice": (["run", "hierarchy=colonny"], "did you mean colony?"),
    "a misspelt choice in a sweep": (["run", "-m", "gan=tiny,tinny"], "did you mean tiny?"),
    "no kind of settings to show": (["run", "--cfg"], "write --cfg job|hydra|all"),
    "another kind of them": (["run", "--cfg", "mine"], "expected one of job, hydra, all"),
    "another kind of news": (["run", "--info=mine"], "expected one of all, config"),
    "no part of the settings": (["run", "--cfg", "job", "-p", "x"], "no such part"),
    "a part of nothing": (["run", "-p", "stage"], "go with --cfg job"),
    "the jobs of a search": (
        ["run", "-m", "--cfg", "job", "stage.lr=interval(1e-4,1e-2)"],
        "a search chooses its jobs",
    ),
    "several of another command": (["judge", "-m", "--cfg", "job"], "-m goes with `run`"),
    "a shell that is not there": (["-sc", "install=tcsh"], "install=bash"),
    "a sweeper that writes over files": (["run", "-m", "hydra/sweeper=basic"], "leave it out"),
    "the same in quotes": (["run", "-m", "hydra/sweeper='basic'"], "leave it out"),
    "a flag of artifacts": (["artifacts", "list", "--all"], "there are no flags"),
    "too much for artifacts": (["artifacts", "list", "a", "b"], "expected: stemcell-lit artifacts"),
    "a command misspelt": (["reprodce"], "did you mean reproduce?"),
    "a method's own setting beside it": (
        ["predict", "colonies.forest_masks=m.tif"],
        "did you mean colonies.forest.masks=",
    ),
    "an unknown choice": (["run", "method=magic"], "flat_gan"),
    "a choice misspelt": (["run", "method=temporal_gann"], "did you mean temporal_gan?"),
    "a choice of a sweep misspelt": (["run", "-m", "hierarchy=colny,flat"], "did you mean colony?"),
    "a method of a table misspelt": (["reproduce", "methods=[flat,flat_gn]"], "mean flat_gan?"),
    "a generator to judge misspelt": (["judge", "gans=[tny]"], "did you mean tiny?"),
    "a value misspelt": (["run", "stage.loss=focl"], "did you mean focal?"),
    "a value in a list misspelt": (["run", "select.filters=[entropi]"], "did you mean entropy?"),
    "help of a key misspelt": (["run", "--help", "stage.lrr"], "did you mean stage.lr?"),
    "an unknown experiment": (["reproduce", "experiment=x", "methods=[flat]"], "claim"),
}


@pytest.mark.parametrize("kind", list(MISTAKES))
def test_a_mistake_gets_a_line_that_shows_the_right_spelling(kind, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, says = MISTAKES[kind]
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1, lines
    assert says in lines[0], lines
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_keys_are_found_by_their_last_part():
    keys = list(keys_of("run"))
    assert nearest("stage.momentum", keys) == []
    assert set(nearest("lr", keys)) == {"gan.lr", "stage.lr"}


WRONG = st.sampled_from(
    [
        *("abc", "-1", "1.5", "1e400", "nan", "inf", "-inf", "null", "true", "[]", "{}", "[1]"),
        *("[a,b]", "{a:1}", "{a:{b:[c]}}", "[[1]]", "99999999999999999999", "-0.0", "''", "1,2"),
        *("[", "]", "{", "a b", "ü", "${x}", "${oc.env:X}", "${seed}", "range(3)", "int(a)"),
        *("choice(1,2)", "glob(*)", "shuffle(1)", "???", "'", '"', "\\", "=", "@", "[null]"),
        *("[nan]", "{a:nan}", "{1:2}", "0x10", "1_0", "__import__('os')", "!", "%", "[0,0]"),
    ]
)


@pytest.fixture(scope="module")
def composed():
    return {name: compose(name, []) for name in SETTINGS}


@pytest.mark.parametrize("command", list(SETTINGS))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_value_of_any_key_is_taken_or_refused_in_a_sentence(composed, command, data):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key = data.draw(st.sampled_from(list(keys_of(command))))
    value = data.draw(st.one_of(WRONG, TEXT))
    try:
        (word,) = read(command, [f"{key}={value}"])
        parsed = OverridesParser.create().parse_override(word)
        config = composed[command].copy()
        for name, k in keys_of(command).items():
            if k.required:
                OmegaConf.update(config, name, "x")
        try:
            OmegaConf.update(config, key, parsed.value())
        except (
            OmegaConfBaseException
        ) as error:  # which `compose` catches: all of Hydra is inside it
            raise UserError(one_line(error)) from error
        assert isinstance(typed(config, SETTINGS[command]), SETTINGS[command])
    except UserError as error:
        assert len(str(error)) > 10


@pytest.mark.parametrize("value", ["[1]", "nan", "1", "''", "null", "{a:1}", "abc"])
@pytest.mark.parametrize("key", ["hierarchy.tree", "stage"])
def test_groups_and_mappings_are_composed_or_refused(key, value):
    try:
        typed(compose("run", [f"{key}={value}"]))
    except UserError as error:
        assert key in str(error)


def test_names_on_a_terminal_show_their_control_characters():
    assert printable("a\x1b[31mb\n\x07") == "a\\x1b[31mb\\x0a\\x07"
    assert printable("früh 🔬 [/red]") == "früh 🔬 [/red]"


def test_a_readers_end_is_no_error():
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    words = f"{shlex.quote(os.sys.executable)} -m stemcell_lit --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=env)
    assert done.returncode in (0, 141) and done.stderr == ""
    assert done.stdout.startswith("stemcell-lit: ")
