"""Which settings make another result: declared beside its default, asked for everywhere."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.field_types import bound_of
from stemcell_lit.settings.group_keys import (
    MethodConfig,
    SimulationConfig,
    StageConfig,
    TrainerConfig,
)
from stemcell_lit.settings.keys import own_keys, role_of
from stemcell_lit.settings.roles import Role, determining


@pytest.mark.parametrize(
    ("key", "role"),
    [
        ("stage.lr", Role.RESULT),
        ("mix.amount", Role.RESULT),
        ("hierarchy.tree.left", Role.RESULT),
        ("not.known", Role.RESULT),
        ("seed", Role.REPEAT),
        ("split.fold", Role.REPEAT),
        ("generator_seed", Role.REPEAT),
        ("method.name", Role.REPEAT),
        ("trainer.devices", Role.REPEAT),
        ("trainer.accelerator", Role.WHERE),
        ("data.store", Role.WHERE),
        ("data.simulation.seed", Role.WHERE),
        ("data.workers", Role.WHERE),
        ("out", Role.SHOWN),
        ("logger.project", Role.SHOWN),
        ("hierarchy.subsets.few", Role.SHOWN),
    ],
)
def test_every_setting_has_the_role_that_its_field_or_group_declares(key, role):
    assert role_of(key) is role


def test_what_determines_a_result_is_everything_but_where_it_is_made_and_how_it_is_shown():
    assert determining(TrainerConfig()) == {"devices": 1, "precision": "32-true", "threads": 1}
    assert determining(SimulationConfig()) == {
        k: v for k, v in asdict(SimulationConfig()).items() if k != "threads"
    }
    found = determining(RunCommand())
    assert "out" not in found and "subsets" not in found["hierarchy"]
    assert set(found["data"]) == {"patch_size", "pixels", "augment"}
    quiet = {"weights", "freeze", "layer_decay", "refit_head", "feature_dose"}
    assert found["stage"] == {k: v for k, v in asdict(RunCommand().stage).items() if k not in quiet}


def test_a_field_with_a_role_keeps_its_bound_and_its_default():
    field = TrainerConfig.__dataclass_fields__["accelerator"]
    assert bound_of(field).choices == ("auto", "cpu", "gpu", "cuda") and field.default == "auto"
    assert RunCommand().method == MethodConfig() and RunCommand().method is not RunCommand().method


def test_commands_of_many_cells_name_what_no_single_cell_is_given():
    assert {"methods", "seeds", "baseline", "method", "split.fold", "out"} <= own_keys("reproduce")
    assert {"gans", "folds", "gan.images", "hierarchy"} <= own_keys("judge")
    assert not {"stage", "gan", "data.store"} & own_keys("reproduce")


def test_a_quiet_default_is_no_part_of_what_determines_a_result_and_another_value_is():
    assert "freeze" not in determining(StageConfig())
    assert determining(StageConfig(freeze="stem"))["freeze"] == "stem"
    assert determining(StageConfig(layer_decay=0.5))["layer_decay"] == 0.5
    # where a file lies is no part of it: what it holds is, see `Trial.outside`
    assert determining(StageConfig(weights="a.pt")) == determining(StageConfig())
