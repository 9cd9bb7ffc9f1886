import itertools
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import stemcell_lit
from stemcell_lit import __main__ as cli
from stemcell_lit import commands
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings import command_keys
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.command_table import COMMANDS, SETTINGS
from stemcell_lit.settings.compose import compose, register
from tests.conftest import make_store
from tests.program import Program

ROOT = Path(__file__).resolve().parents[1]


def call(*args, cwd):
    """Exit status and output of the command in a process of its own."""
    program = Program(*args, cwd=cwd)
    return program.wait(), program.said


def test_the_version_is_that_of_the_installed_package(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"stemcell-lit {metadata.version('stemcell-lit')}\n"
    assert stemcell_lit.__version__ == metadata.version("stemcell-lit")


def test_help_lists_every_command_with_a_sentence_on_one_screen(capsys):
    for args in ([], ["--help"]):
        cli.main(args)
        shown = capsys.readouterr().out
        lines = shown.splitlines()
        assert len(lines) <= 24 and max(map(len, lines)) <= 80
        for name, command in COMMANDS.items():
            assert f"  {name}" in shown and command.sentence in shown


def test_every_command_has_an_action_and_an_example():
    assert all(callable(getattr(commands, f"do_{name}")) for name in COMMANDS)
    without = [name for name, command in COMMANDS.items() if command.settings is None]
    assert without == ["artifacts", "config", "doctor"]
    for name, command in COMMANDS.items():
        assert command.example.startswith(f"stemcell-lit {name}")


def test_the_actions_are_imported_without_running_the_program():
    code = "import sys, stemcell_lit.commands; print('stemcell_lit.__main__' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("name", list(SETTINGS))
def test_examples_compose(name):
    typed(compose(name, COMMANDS[name].example.split()[2:]), SETTINGS[name])


def test_help_of_a_command_lists_its_keys_and_choices(capsys):
    cli.main(["run", "--help"])
    shown = capsys.readouterr().out
    assert "temporal_gan" in shown and "split.fold=0" in shown and "mitosis" in shown


def choices():
    for group in sorted(
        p for p in (ROOT / "conf").iterdir() if p.is_dir() and p.name not in ("hydra", "colonies")
    ):
        for file in sorted(group.glob("*.yaml")):
            yield group.name, file.stem


@pytest.mark.parametrize(("group", "name"), list(choices()))
def test_every_config_composes_into_the_schema(group, name):
    if group == "experiment":  # of whole tables; what of it trials get is tested beside `reproduce`
        assert typed(
            compose("reproduce", [f"{group}={name}"]), command_keys.ReproduceCommand
        ).methods
        return
    config = typed(compose("run", [f"{group}={name}"]))
    if group == "method":
        assert config.method.name == name


def test_the_search_composes_with_its_defaults():
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = hydra_compose(
            "run", ["hydra/sweeper=optuna"], return_hydra_config=True
        ).hydra.sweeper
    assert found._target_.endswith("StemcellOptunaSweeper") and found.over == []


def test_methods_differ_only_in_what_their_names_say():
    def parts(name):
        c = typed(compose("run", [f"method={name}"]))
        return c.mix.recipe, c.temporal.kind, c.method.tree

    assert parts("flat") == ("real", "none", False)
    assert parts("flat_gan") == ("balance", "none", False)
    assert parts("temporal") == ("real", "hierarchy", True)
    assert parts("temporal_gan") == ("balance", "hierarchy", True)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["dance"], "no command 'dance'"),
        (["run", "stage.lrr=1"], "stage.lrr"),
        (["run", "stage.lr=fast"], "stage.lr=fast: expected a number"),
        (["run", "method=magic"], "flat_gan"),
        (["run", "+new=1"], "new"),
        (["run", "data.store=nowhere"], "nowhere: no such folder; expected a patch store"),
        (["import", "source=nowhere", "store=x"], "nowhere: no such file or folder"),
        (["import", "store=x"], "source= is missing"),
        (["report", "out=nowhere"], "nowhere"),
        (["artifacts", "list"], "artifacts list DIR"),
        (["artifacts", "list", "nowhere"], "no such folder"),
        (["reproduce", "methods=[flat]", "baseline=temporal"], "expected one of methods"),
        (["reproduce", "methods=[flat]", "baseline=flt"], "did you mean flat?"),
        (["train", "task=stage", "node=rot"], "node=rot: expected one of root"),
        (["simulate", "-m", "out=x"], "-m goes with `run`"),
    ],
)
def test_a_users_mistake_gets_one_message_and_status_2(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert says in message and "Traceback" not in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_or_a_profile_may_be_left_out_by_name():
    plain = compose("run", [])
    assert compose("run", ["experiment=null"]) == compose("run", ["profile=null"]) == plain
    assert compose("run", ["profile=smoke"]) != plain
    assert compose("run", ["profile=smoke", "profile=null"]) == plain


def test_a_table_given_for_the_source_of_an_import_is_told_apart_from_a_movie(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("path,label\na.png,x\n")
    with pytest.raises(SystemExit):
        cli.main(["import", f"source={tmp_path / 't.csv'}", f"store={tmp_path / 's'}"])
    assert "t.csv: is a table; expected the folder of its pictures" in capsys.readouterr().err


INSIDE_A_FILE = [
    "simulate out=notes.txt/x",
    "simulate out=new store=notes.txt/x",
    "import source=crops store=notes.txt/x",
    "init notes.txt/x",
    "annotate source=crops out=notes.txt/x classes=[a,b]",
    "run data.store=store data.patch_size=16 out=notes.txt/x",
    "run data.store=store data.patch_size=16 out=new artifacts=notes.txt/x",
    "train task=stage data.store=store data.patch_size=16 out=notes.txt/x",
    "reproduce data.store=store data.patch_size=16 methods=[flat] out=notes.txt/x",
    "judge data.store=store data.patch_size=16 out=notes.txt/x",
    "generate checkpoint=generator.ckpt store=notes.txt/x",
    "evaluate checkpoint=model store=store out=notes.txt/x",
    "predict movie=movie.tif checkpoint=model out=notes.txt/x",
    "report out=notes.txt/x",
]


@pytest.mark.parametrize("line", INSIDE_A_FILE)
def test_an_output_inside_a_file_is_refused_by_the_name_of_that_file(
    line, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store", movies=10)
    for name in ("notes.txt", "movie.tif", "generator.ckpt"):
        Path(name).write_text("mine")
    for name in ("crops", "model"):
        Path(name).mkdir()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as end:
        cli.main(line.split())
    (message,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "\\x0a" not in message
    assert "notes.txt is a file" in message or "notes.txt is no folder" in message
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("name", ["table.csv", "report.html"])
def test_reproduce_refuses_a_folder_that_holds_something_else_in_its_places(
    name, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store", movies=10)
    mine = tmp_path / "res" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(SystemExit) as end:
        settings = ["data.store=store", "data.patch_size=16", "methods=[flat]", "out=res"]
        cli.main(["reproduce", *settings])
    (message,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and f"res/{name}" in message
    assert list((tmp_path / "res").iterdir()) == [mine] and mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["trials", "artifacts", "logs"])
@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_a_file_where_a_folder_of_results_belongs_is_refused_before_anything_runs(
    command, name, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store", movies=8)
    mine = tmp_path / "res" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(SystemExit) as end:
        cli.main([command, "profile=smoke", "trainer=cpu", "data.store=store", "out=res"])
    (message,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and f"res/{name} is a file; move it away" in message
    assert list(mine.parent.iterdir()) == [mine] and mine.read_text() == "mine"


def test_module_and_bare_command_list_the_commands():
    done = subprocess.run([sys.executable, "-m", "stemcell_lit"], capture_output=True, text=True)
    assert done.returncode == 0 and "reproduce" in done.stdout


def test_import_of_the_package_is_light():
    code = "import sys, stemcell_lit; print([m for m in ('torch', 'wandb', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )
    import stemcell_lit

    assert all(getattr(stemcell_lit, name) for name in stemcell_lit.__all__)


def test_reproduce_ends_with_a_table_and_a_report(tmp_path):
    """The main job in small: two methods, two folds, and again without work."""
    make_store(tmp_path / "store", movies=8)
    args = [
        "reproduce",
        "profile=smoke",
        "trainer=cpu",
        "data.store=store",
        "out=res",
        "resamples=200",
        "seeds=[0]",
    ]
    methods = "methods=[flat,temporal_gan]"
    code, said = call(*args, methods, cwd=tmp_path)
    assert code == 0, said
    assert "report.html" in said and "temporal_gan" in said
    names = {p.name for p in (tmp_path / "res").iterdir()}
    assert {"table.csv", "table.md", "report.html", "figures", "trials", "artifacts"} <= names
    header = (tmp_path / "res" / "table.csv").read_text().splitlines()[0]
    assert header == "method,metric,class,mean,low,high,delta,delta_low,delta_high,p,mde,verdict"
    trials = sorted((tmp_path / "res" / "trials").iterdir())
    assert len(trials) == 2 * 2
    times = [(c / "result.json").stat().st_mtime_ns for c in trials]
    code, said = call(*args, methods, cwd=tmp_path)
    assert code == 0, said
    assert times == [(c / "result.json").stat().st_mtime_ns for c in trials]


def test_a_sweep_makes_each_trial_in_its_own_process(tmp_path):
    make_store(tmp_path / "store", movies=8)
    args = ["run", "-m", "profile=smoke", "trainer=cpu", "data.store=store", "out=res"]
    code, said = call(*args, "method=flat,time_only", "split.fold=0,1", cwd=tmp_path)
    assert code == 0, said
    assert "stemcell-lit: 4 done" in said
    found = sorted(p.name[:-9] for p in (tmp_path / "res" / "trials").iterdir())
    assert found == [f"{m}-f{f}-s0" for m, f in itertools.product(("flat", "time_only"), (0, 1))]
    failing = ["method=time_only", "split.fold=7,0", "out=other", "hydra.launcher.slots=1"]
    code, said = call(*args, *failing, "--fail-fast", cwd=tmp_path)
    assert code == 2 and "expected 0 to 1" in said
    assert not (tmp_path / "other").exists()  # planned first: not even the good fold ran


def test_a_refused_sweep_leaves_nothing_and_changes_nothing(tmp_path):
    args = ["run", "-m", "data.store=absent", "out=res", "split.fold=0,1", "trainer=cpu"]
    code, said = call(*args, cwd=tmp_path)
    assert code == 2 and "absent" in said
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "res" / "multirun" / "multirun.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert call(*args, cwd=tmp_path)[0] == 2
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [kept] and kept.read_text() == "mine"


def test_two_ranks_train_one_trial_together(tmp_path):
    """Two trials on two CPU ranks each."""
    make_store(tmp_path / "store", movies=8)
    args = ["run", "-m", "profile=smoke", "trainer=cpu", "trainer.devices=2", "data.store=store"]
    code, said = call(*args, "out=res", "method=flat_gan", "split.fold=0,1", cwd=tmp_path)
    assert code == 0 and "2 done" in said, said
    trials = sorted(p.name[:14] for p in (tmp_path / "res" / "trials").iterdir())
    assert trials == ["flat_gan-f0-s0", "flat_gan-f1-s0"]
    log = (tmp_path / "res" / "artifacts" / "log.jsonl").read_text()
    assert log.count('"event": "made", "kind": "generator"') == 2


def test_several_devices_without_a_launcher_are_refused(tmp_path, capsys):
    make_store(tmp_path / "store")
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["run", f"data.store={tmp_path / 'store'}", "trainer.devices=2", f"out={tmp_path}"]
        )
    assert end.value.code == 2 and "run -m" in capsys.readouterr().err


def test_simulated_movies_import_to_the_same_patches(tmp_path, capsys):
    small = [
        "simulation.movies=2",
        "simulation.frames=3",
        "simulation.size=256",
        "simulation.threads=1",
    ]
    movies, cut = tmp_path / "movies", ["extraction.patches_per_movie=20", "extraction.seed=3"]
    cli.main(["simulate", f"out={movies}", f"store={tmp_path / 'a'}", *small, *cut])
    cli.main(["import", f"source={movies}", f"store={tmp_path / 'b'}", *cut])
    shown = capsys.readouterr().out
    assert "split by movie: 2 groups" in shown
    one, two = (PatchStore.open(tmp_path / name) for name in "ab")
    assert one.content_hash == two.content_hash and 0 < len(one) <= 40
    assert one.info["made_by"]["origin"] == "simulated"
