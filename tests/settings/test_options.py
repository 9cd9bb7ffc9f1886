"""Hydra's habits: `--cfg`, `--info`, `--config-dir` and the Tab key; and what happens where nobody reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stemcell_lit import __main__ as cli
from stemcell_lit.settings.command_table import SETTINGS
from stemcell_lit.settings.completion import complete
from stemcell_lit.settings.options import options_of

TREE = "name: mine\ntree: {cells: [a, b], debris: debris}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "hierarchy").mkdir(parents=True)
    (tmp_path / "conf" / "hierarchy" / "mine.yaml").write_text(TREE)
    return tmp_path


@pytest.mark.parametrize("command", list(SETTINGS))
def test_cfg_shows_the_settings_of_every_command_and_runs_nothing(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    cli.main([command, "--cfg", "job"])
    assert isinstance(yaml.safe_load(capsys.readouterr().out), dict)
    assert not list(tmp_path.iterdir())


def test_cfg_of_a_sweep_shows_each_job(here, capsys):
    cli.main(["run", "-m", "--cfg", "job", "hierarchy=mine,flat", "seed=0,1", "stage.lr=0.1"])
    said = capsys.readouterr()
    shown = list(yaml.safe_load_all(said.out))
    assert [(s["hierarchy"]["name"], s["seed"]) for s in shown] == [
        *(("mine", 0), ("mine", 1), ("flat", 0), ("flat", 1))
    ]
    assert "# hierarchy=mine seed=0 stage.lr=0.1" in said.out
    assert said.err.startswith("own settings: ") and said.err.count("\n") == 1
    tree = "hierarchy.tree={a:[dense,spread],b:debris},{a:dense,b:debris}"
    cli.main(["run", "-m", "--cfg", "job", "-p", "hierarchy.tree", "hierarchy=flat", tree])
    trees = list(yaml.safe_load_all(capsys.readouterr().out))
    assert trees == [{"a": ["dense", "spread"], "b": "debris"}, {"a": "dense", "b": "debris"}]
    cli.main(["run", "-m", "--cfg", "hydra", "-p", "hydra.sweeper"])
    assert "stemcell_lit_sweeper" in capsys.readouterr().out


def test_a_part_of_the_settings_is_shown(here, capsys):
    cli.main(["run", "-c", "job", "-p", "hierarchy", "hierarchy=./conf/hierarchy/mine.yaml"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["tree"] == {"cells": ["a", "b"], "debris": "debris"}


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_info_says_where_settings_come_from(here, capsys, sweep):
    cli.main(["run", *sweep, "--info", "searchpath"])
    assert f"own://{here / 'conf'}" in capsys.readouterr().out
    cli.main(["run", *sweep, "--info=defaults", "hierarchy=mine"])
    assert "hierarchy/mine" in capsys.readouterr().out


def test_a_folder_that_is_named_takes_the_place_of_conf(here, monkeypatch, capsys):
    (here / "lab" / "hierarchy").mkdir(parents=True)
    (here / "lab" / "hierarchy" / "theirs.yaml").write_text(TREE.replace("mine", "theirs"))
    cli.main(["run", "--config-dir", "lab", "--help"])
    assert "mitosis | theirs" in capsys.readouterr().out
    cli.main(["run", "-cd=lab", "--cfg", "job", "-p", "hierarchy.name", "hierarchy=theirs"])
    assert capsys.readouterr() == ("theirs\n", "")
    with pytest.raises(SystemExit):
        cli.main(["run", "--config-dir", "lab", "--cfg", "job", "hierarchy=mine"])


def test_options_stand_anywhere_and_values_are_no_options():
    found = options_of(["a=1", "-m", "--config-dir", "a=b", "source=-m", "--cfg=all", "--resolve"])
    assert (found.words, found.folder, found.cfg) == (["a=1", "source=-m"], "a=b", "all")
    assert found.several and found.resolve and found.shows
    assert options_of(["--info", "seed=1"]).info == "all"


def test_the_tab_key_knows_commands_keys_and_choices(here):
    assert complete("stemcell-lit rep") == ["reproduce", "report"]
    assert "stage.sampler=" in complete("stemcell-lit run stage.s")
    assert complete("stemcell-lit run stage.sampler=b") == ["stage.sampler=balanced"]
    assert complete("stemcell-lit run hierarchy=mi") == ["hierarchy=mine", "hierarchy=mitosis"]
    assert complete("stemcell-lit run -m method=flat,time_") == ["method=flat,time_only"]
    assert complete("stemcell-lit run tune=") == ["tune=true", "tune=false"]
    assert "seed=" not in complete("stemcell-lit run seed=1 se")
    assert complete("stemcell-lit run --cfg j") == ["job"]
    assert complete("stemcell-lit import source=x") == complete("stemcell-lit artifacts l") == []
    assert complete("stemcell-lit reproduce --fail") == ["--fail-fast"]


def test_bash_completes_with_the_script_of_install(here):
    program = here / "bin" / "stemcell-lit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stemcell_lit "$@"\n')
    program.chmod(0o755)
    script = """
eval "$(stemcell-lit -sc install=bash)"
for COMP_LINE in "stemcell-lit run hierarchy=mi" "stemcell-lit run hierarchy=./co"; do
    COMP_POINT=${#COMP_LINE}; _stemcell_lit; (IFS=' '; echo "${COMPREPLY[*]}")
done
complete -p stemcell-lit
"""
    root = Path(cli.__file__).parents[1]
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    complete_with = "complete -F _stemcell_lit stemcell-lit"
    assert done.stdout.splitlines() == ["mine mitosis", "./conf", complete_with]


CLOSED = """
import contextlib, os, sys
from stemcell_lit import __main__ as cli
from stemcell_lit.settings.compose import compose
compose("run", [])  # once for all
read, write = os.pipe()
os.close(read)
for line in sys.argv[1:]:
    for streams in ((1,), (1, 2)):
        child = os.fork()
        if not child:
            for stream in streams:
                os.dup2(write, stream)
            try:
                cli.main(line.split())
            except SystemExit as end:
                with contextlib.suppress(BrokenPipeError):
                    sys.stdout.flush()
                os._exit(end.code)
            os._exit(0)
        print(line, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_where_nobody_reads_a_command_ends_without_a_traceback(here):
    lines = ["--help", "--version", "run --help", "run --cfg job", "-sc install=bash"]
    lines += ["run -m --cfg job method=flat,temporal", "run --info"]
    root = Path(cli.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, *lines, "run --cfg job stage.lrr=1", "dance"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    ends = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    for line, status in ends:
        assert status in ({"141"} if line in lines else {"2", "141"}), (line, status)
    assert len(ends) == 2 * (len(lines) + 2)
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr, done.stderr[-2000:]
