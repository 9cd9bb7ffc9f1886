"""What each method is stands in its own file; the comparisons of the report follow from it."""

from __future__ import annotations

import shutil

import pytest

from stemcell_lit.errors import UserError
from stemcell_lit.experiment.parts import comparisons
from stemcell_lit.settings import compose, conf
from stemcell_lit.settings.compose import methods, without_generated
from stemcell_lit.settings.help import help_lines

FIXED = [
    ("generated patches", "one network", "flat_gan", "flat"),
    ("generated patches instead of balanced batches", "one network", "flat_gan", "flat_sampler"),
    ("generated patches", "balanced batches", "sampler_gan", "flat_sampler"),
    (
        "generated patches instead of real ones again",
        "balanced batches",
        "sampler_gan",
        "sampler_repeat",
    ),
    ("a generator that knows the classes", "balanced batches", "sampler_gan", "sampler_shuffled"),
    ("generated patches", "tree", "hierarchy_gan", "hierarchy"),
    ("generated patches", "tree, time", "temporal_gan", "temporal"),
    ("time", "one network", "flat_temporal", "flat"),
    ("time", "classical features", "classic_temporal", "classic"),
    ("time", "network and classical features", "stacked_temporal", "stacked"),
    ("time", "tree", "temporal", "hierarchy"),
    ("the tree", "no time", "hierarchy", "flat"),
    ("the tree", "time", "temporal", "flat_temporal"),
    ("adding up, not hard routing", "tree, time", "temporal", "temporal_hard"),
    ("adding up, not hard routing", "full method", "temporal_gan", "temporal_gan_hard"),
    ("classical features instead of a network", "no time", "classic", "flat"),
    ("classical features instead of a network", "time", "classic_temporal", "flat_temporal"),
    ("both averaged instead of a network", "no time", "stacked", "flat"),
    ("both averaged instead of classical features", "no time", "stacked", "classic"),
    ("both averaged instead of a network", "time", "stacked_temporal", "flat_temporal"),
    (
        "both averaged instead of classical features",
        "time",
        "stacked_temporal",
        "classic_temporal",
    ),
    ("a last layer trained again on balanced features", "one network", "flat_refit", "flat"),
    ("generated features", "last layer trained again", "flat_features", "flat_refit"),
]


SOURCES = ("generated", "shuffled", "repeated")


def parts():
    return {name: method.parts for name, method in methods().items()}


def test_the_comparisons_of_the_methods_that_come_with_the_program_are_fixed():
    assert comparisons(parts()) == FIXED


def test_a_table_has_the_comparisons_whose_methods_are_in_it():
    few = {name: parts()[name] for name in ("flat", "flat_gan", "temporal_gan", "flat_focal")}
    assert comparisons(few) == FIXED[:1]


def test_a_method_with_a_part_of_its_own_is_compared_with_the_one_without_it():
    mine = {**parts(), "mine": ["tree", "time", "generated", "denoised"]}
    assert comparisons(mine) == [*FIXED, ("denoised", "full method", "mine", "temporal_gan")]
    plain = {**parts(), "mine": ["denoised"]}
    assert comparisons(plain) == [*FIXED, ("denoised", "one network", "mine", "flat")]


def test_every_method_says_what_it_is_and_its_place():
    found = methods()
    assert all(m.about and m.name == name for name, m in found.items())
    assert len({m.rank for m in found.values()}) == len(found)
    assert [name for name, m in found.items() if m.claimed] == ["temporal_gan"] == list(found)[-1:]


def test_a_methods_parts_are_what_its_settings_say():
    for name, method in methods().items():
        config = compose.compose("run", [f"method={name}"])
        if method.parts is not None:
            assert ("tree" in method.parts) == config.method.tree
            filled = [part for part in method.parts if part in SOURCES]
            real = config.mix.recipe == "real"
            assert filled == (
                []
                if real
                else [SOURCES[0] if config.mix.source == "generator" else config.mix.source]
            )
            assert ("time" in method.parts) == (config.temporal.kind != "none")
            assert ("hard" in method.parts) == config.hierarchy.hard
            assert ("balanced" in method.parts) == (config.stage.sampler == "balanced")


def test_help_says_what_each_method_is():
    lines = " ".join(" ".join(help_lines("run")).split())
    assert all(method.about in lines for method in methods().values())


def test_methods_that_need_no_generator_are_named_from_their_files():
    mixes = {n: compose.compose("run", [f"method={n}"]).mix for n in methods()}
    real = [n for n, m in mixes.items() if m.recipe == "real" or m.source == "repeated"]
    assert without_generated() == real
    assert "time_only" in real and not {"flat_gan", "sampler_shuffled"} & set(real)


def test_a_method_is_added_by_a_file_alone_and_a_broken_one_is_named(tmp_path, monkeypatch):
    shutil.copytree(conf.conf_dir(), tmp_path / "conf")
    for module in (conf, compose):
        monkeypatch.setattr(module, "conf_dir", lambda: tmp_path / "conf")
    file = tmp_path / "conf" / "method" / "mine.yaml"
    file.write_text("# @package _global_\nmethod: {name: mine, about: my own, rank: 25}\n")
    assert list(methods())[:3] == ["time_only", "flat", "mine"]
    assert methods()["mine"].about == "my own" and methods()["mine"].parts is None
    file.write_text("# @package _global_\nmethod: {name: mine, rank: first}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: .*rank"):
        methods()
