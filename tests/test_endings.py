"""What the system refuses gets a sentence and status 2; what nobody foresaw a line, a file and status 1."""

from __future__ import annotations

import errno
import io
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from stemcell_lit import __main__ as cli
from stemcell_lit import commands
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.trial import with_settings
from stemcell_lit.report import print_table
from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.field_types import bound_of, check
from stemcell_lit.settings.group_keys import TrainerConfig
from stemcell_lit.settings.keys import keys_of


@pytest.fixture
def fails(monkeypatch, tmp_path, capsys):
    """Runs a command that raises an error; status and lines on standard error."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STEMCELL_LIT_DEBUG", raising=False)

    def run(error):
        def action(words):
            raise error

        monkeypatch.setattr(commands, "do_report", action)
        with pytest.raises(SystemExit) as end:
            cli.main(["report", "out=r x"])
        return end.value.code, capsys.readouterr().err.splitlines()

    return run


def test_lines_of_a_refusal_stay_lines_and_a_users_value_can_begin_none(fails):
    code, lines = fails(UserError("2 things cannot work:", "- a\x1b[31m\nb", "- c"))
    assert code == 2
    assert lines == [
        "stemcell-lit report: 2 things cannot work:",
        "- a\\x1b[31m\\x0ab",
        "- c",
    ]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "", "r/a"), "r/a: no space left"),
        (OSError(errno.EDQUOT, "", "r/a"), "r/a: your quota"),
        (PermissionError(errno.EACCES, "", "r/a"), "r/a: permission denied"),
        (OSError(errno.EROFS, "", "r/a"), "r/a: this disk can only be read"),
        (FileNotFoundError(errno.ENOENT, "", "r/a"), "r/a: no such file or folder"),
        (NotADirectoryError(errno.ENOTDIR, "", "r/a"), "r/a: a part of this path is a file"),
        (IsADirectoryError(errno.EISDIR, "", "r/a"), "r/a: is a folder"),
        (OSError(errno.ENAMETOOLONG, "", "r/a"), "r/a: the name is too long"),
        (OSError(errno.EMFILE, ""), "too many files are open"),
        (MemoryError("Unable to allocate 3 TiB"), "not enough memory"),
        (RuntimeError("can't allocate memory: you tried to allocate 9 bytes"), "not enough memory"),
        (ValueError("embedded null byte"), "NUL character"),
        (OSError(errno.EACCES, "", "a\x1b[31m\nb"), "a\\x1b[31m\\x0ab: permission denied"),
    ],
)
def test_what_the_system_refuses_is_one_sentence_with_its_path(fails, error, says):
    code, lines = fails(error)
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("stemcell-lit report: ") and says in lines[0], lines


def test_an_error_behind_an_error_is_the_one_that_counts(fails):
    outer = RuntimeError("could not save")
    outer.__cause__ = OSError(errno.ENOSPC, "", "r/a")
    assert "no space left" in fails(outer)[1][0]


def test_an_unforeseen_error_is_one_line_and_its_details_lie_in_a_file(fails, tmp_path):
    code, lines = fails(KeyError("odd"))
    assert code == 1 and len(lines) == 1 and "unexpected error" in lines[0]
    (file,) = (tmp_path / "state" / "stemcell_lit").iterdir()
    assert lines[0].endswith(str(file))
    text = file.read_text()
    assert "Traceback" in text and "command: stemcell-lit report 'out=r x'" in text
    assert "hydra-core" in text


def test_details_that_cannot_be_written_are_said_in_the_same_line(fails, monkeypatch):
    monkeypatch.setattr("stemcell_lit.base.endings._homes", lambda: iter(()))
    code, lines = fails(KeyError("odd"))
    assert code == 1 and len(lines) == 1 and "could not be written" in lines[0]


def test_debug_shows_the_traceback(fails, monkeypatch):
    monkeypatch.setenv("STEMCELL_LIT_DEBUG", "1")
    with pytest.raises(KeyError, match="odd"):
        fails(KeyError("odd"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("stage.lr=nan", "expected a finite number"),
        ("stage.dropout=2", "expected 0 or more and below 1"),
        ("stage.width=0", "expected 1 to 4,096"),
        ("stage.batch_size=0", "expected 1 or more"),
        ("data.patch_size=0", "expected 1 to 8,192"),
        ("trainer.devices=0", "expected 1 to 1,024"),
        ("trainer.threads=-1", "expected 0 to 1,024"),
        ("trainer.threads=100000", "expected 0 to 1,024"),
        ("trainer.accelerator=tpu", "expected one of auto | cpu | gpu"),
        ("seed=-1", "expected 0 to 2,147,483,647"),
        ("seed=18446744073709551616", "too large"),
        ("gan.betas=[0.5]", "expected 2 numbers, each 0 or more and below 1"),
        ("select.filters=[glitter]", "expected some of confidence"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_bounds(word, says, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", word])
    said = capsys.readouterr().err
    assert end.value.code == 2 and word.partition("=")[0] in said and says in said


def test_bounds_show_in_the_help(capsys):
    cli.main(["judge", "--help", "all"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "one per GPU, or per core on a CPU [1 to 4,096]" in shown
    assert "or read by workers [resident | workers]" in shown


def test_bounds_hold_for_settings_chosen_by_tuning():
    check(RunCommand())
    with pytest.raises(UserError, match=r"stage\.dropout=2"):
        with_settings(RunCommand(), {"stage.dropout": 2})
    kept = with_settings(RunCommand(out="${seed} (1)"), {"stage.width": 8})
    assert kept.out == "${seed} (1)" and kept.stage.width == 8
    with pytest.raises(UserError, match="devices"):
        check(replace(RunCommand(), trainer=TrainerConfig(devices=0)))
    assert keys_of("run")["stage.lr"].bound.above == 0
    assert all(bound_of(f) is not None for f in RunCommand.__dataclass_fields__.values())


def test_the_printed_table_shows_names_as_they_are():
    row = {"class": "", "mean": 0.5, "low": 0.4, "high": 0.6, "delta": 0.0}
    row |= {"delta_low": 0.0, "delta_high": 0.1, "p": 1.0, "mde": 0.03, "verdict": "not shown"}
    names = ["flat_gan [mix.amount=0.0]", "flat_gan [mix.amount=1.0]", "[/red]", "\x1b[31mred"]
    table = pd.DataFrame(
        [{"method": n, "metric": m, **row} for n in names for m in print_table.METRICS]
    )
    out = io.StringIO()
    print_table._print_macro(Console(file=out, width=200), table, "")
    shown = out.getvalue()
    assert (
        all(n in shown for n in names[:3])
        and "\\x1b[31mred" in shown
        and "\x1b[31mred" not in shown
    )
