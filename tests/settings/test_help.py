"""Help teaches: every key has its sentence, from the schema, and fits a terminal."""

from __future__ import annotations

import inspect
import re

import pytest

from stemcell_lit.errors import UserError
from stemcell_lit.settings.command_table import COMMANDS, SETTINGS
from stemcell_lit.settings.field_types import number, sentence_of, setting
from stemcell_lit.settings.help import help_lines, sections_of
from stemcell_lit.settings.keys import keys_of
from stemcell_lit.settings.roles import Role, declared_role, quiet, repeat, where


@pytest.fixture(scope="module")
def shown():
    """Help of every command, short and whole."""
    found = {(name, ""): help_lines(name) for name in COMMANDS}
    return found | {(name, "all"): help_lines(name, "all") for name in SETTINGS}


@pytest.mark.parametrize("command", list(SETTINGS))
def test_every_key_has_a_sentence(command):
    for name, key in keys_of(command).items():
        assert key.sentence, f'{name}: write setting("what it means", ...) around its default'
        assert key.sentence == key.sentence.strip().rstrip("."), f"{name}: a phrase without stop"
        assert len(key.sentence) <= 120, f"{name}: {len(key.sentence)} letters, 120 at most"
    assert all(sections_of(command).values())


def test_every_text_of_help_fits_80_columns(shown):
    for (command, about), lines in shown.items():
        long = [line for line in lines if len(line) > 80]
        assert not long, (command, about, long)
        assert lines[0] and lines[-1] and "`gan/" not in "\n".join(lines)


@pytest.mark.parametrize("command", list(SETTINGS))
def test_the_first_keys_are_ten_at_most_and_hold_all_that_must_be_given(command, shown):
    keys = keys_of(command).values()
    first = [k.name for k in keys if k.first]
    assert min(5, len(keys)) <= len(first) <= 10, first
    assert {k.name for k in keys if k.required} <= set(first)
    text = "\n".join(shown[command, ""])
    listed = re.findall(r"^  ([\w.]+)=", text.split("Choices, ")[0], re.MULTILINE)
    assert sorted(listed) == sorted(first)


@pytest.mark.parametrize("command", list(SETTINGS))
def test_the_whole_help_has_every_key_with_sentence_and_bounds(command, shown):
    text = " ".join(" ".join(shown[command, "all"]).split())
    for name, key in keys_of(command).items():
        assert f" {name}=" in text, name
        assert key.sentence in text, name
        assert not str(key.bound) or f"[{key.bound}]" in text, name


def test_keys_named_as_first_of_a_command_are_keys_of_it():
    from stemcell_lit.settings import command_keys, gan_keys, group_keys

    for file in (command_keys, gan_keys, group_keys):
        for named in re.findall(r'first="([^"]*)"', inspect.getsource(file)):
            assert set(named.split()) <= set(SETTINGS), named


def test_help_of_a_section_or_a_key_shows_it_alone():
    text = "\n".join(help_lines("run", "data.simulation"))
    assert "data.simulation.um_per_px=1.2" in text and "um of a pixel" in text
    assert "stage.lr" not in text and "[64 to 8,192]" in text
    one = help_lines("run", "stage.lr")
    assert next(line for line in one if "=" in line).startswith("  stage.lr=0.002 ")
    assert not any("stage.lr_" in line or "layer_decay" in line for line in one)
    assert "seconds" in " ".join(help_lines("run", "profile"))
    with pytest.raises(UserError, match=r"did you mean stage"):
        help_lines("run", "stagee")


def test_a_choice_without_a_default_is_not_shown_as_one(shown):
    text = "\n".join(shown["reproduce", ""])
    assert (
        "  profile=... " in text
        and "  stage=small " in text
        and "=null" not in text.split("Choices")[1]
    )


def test_methods_are_listed_with_what_they_are(shown):
    text = "\n".join(shown["reproduce", ""])
    assert "    temporal_gan       the full method: tree, constraint in time" in text


def test_a_command_line_that_is_too_long_is_shown_as_a_shell_takes_it(shown):
    text = "\n".join(shown["annotate", ""])
    assert COMMANDS["annotate"].example in " ".join(text.replace("\\\n", " ").split())


def test_a_sentence_changes_nothing_else_of_a_field():
    field = setting("how many", repeat(number(3, least=1)), first="run")
    assert sentence_of(field) == "how many" and field.default == 3
    assert declared_role(field) is Role.REPEAT and field.metadata["bound"].least == 1
    assert declared_role(where(setting("x", number(1)))) is Role.WHERE
    assert setting("x", quiet(number(1.0))).metadata["quiet"] is True
    assert setting("x", dict).default_factory is dict
