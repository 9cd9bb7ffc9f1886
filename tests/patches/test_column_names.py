"""Columns under other names: taken where the name has one meaning, asked about where it has two."""

import numpy as np
import pytest

from stemcell_lit.errors import UserError
from stemcell_lit.patches.column_names import unit_of
from stemcell_lit.patches.tables import read_table
from stemcell_lit.settings.patch_keys import ColumnsConfig
from tests.patches.commands import import_crops
from tests.patches.test_crops import noise, table

KNOWN = ("group", "track", "frame", "time_h")


def read(path, header, *rows, columns=None):
    table(path, header, *rows)
    return read_table(path / "patches.csv", ["path", "label"], KNOWN, columns=columns or {})


@pytest.mark.parametrize(
    ("name", "hours"),
    [
        ("hours", 30),
        ("Time (h)", 30),
        ("time_in_hours", 30),
        ("hpi", 30),
        ("t_min", 0.5),
        ("time_min", 0.5),
        ("Minutes", 0.5),
        ("elapsed time [min]", 0.5),
        ("time_s", 30 / 3600),
        ("t(sec)", 30 / 3600),
        ("time_days", 720),
    ],
)
def test_a_column_whose_name_tells_its_unit_is_read_as_time_with_a_notice(tmp_path, name, hours):
    with pytest.warns(UserWarning, match="is read as time in "):
        found = read(tmp_path, f"path,label,{name}", "a.png,x,30")
    assert found.numbers("time_h", least=0).tolist() == [pytest.approx(hours, rel=1e-12)]


@pytest.mark.parametrize("name", ["time", "t", "Timepoint", "time_point", "TIMESTAMP"])
def test_a_column_of_time_without_a_unit_is_asked_about_and_the_answer_works(tmp_path, name):
    with pytest.raises(UserError) as error:
        read(tmp_path, f"path,label,{name}", "a.png,x,30")
    said = str(error.value)
    for key, hours in (("time_h", 30), ("time_min", 0.5)):
        assert f"columns={{{key}:{name}}}" in said
        found = read(tmp_path, f"path,label,{name}", "a.png,x,30", columns={key: name})
        assert found.numbers("time_h").tolist() == [hours]
    assert f"columns={{frame:{name}}} if it numbers frames" in said
    found = read(tmp_path, f"path,label,{name}", "a.png,x,30", columns={"frame": name})
    assert found.whole("frame").tolist() == [30] and "time_h" not in found.rows
    with pytest.warns(UserWarning, match=f"not used: {name}"):
        found = read(tmp_path, f"path,label,{name}", "a.png,x,30", columns={"time_h": None})
    assert "time_h" not in found.rows


@pytest.mark.parametrize("name", ["min", "max", "day", "h", "s", "second", "timer", "state"])
def test_a_name_that_may_mean_something_else_is_no_time(name):
    assert unit_of(name) is None


def test_two_columns_that_tell_times_are_refused(tmp_path):
    with pytest.raises(UserError, match="'hours' and 't_min' both tell times"):
        read(tmp_path, "path,label,hours,t_min", "a.png,x,1,60")


def test_time_h_goes_before_every_other_name(tmp_path):
    with pytest.warns(UserWarning, match="not used: time, hours"):
        found = read(tmp_path, "path,label,time_h,time,hours", "a.png,x,2,9,9")
    assert found.numbers("time_h").tolist() == [2]


def test_any_table_can_be_taken_without_editing_it(tmp_path):
    for i in range(4):
        noise(tmp_path / f"{i}.png", i)
    rows = [f"{i}.png,{'ab'[i % 2]},w{i},{i * 30}" for i in range(4)]
    table(tmp_path, "File name,class,Well,acquired", *rows)
    names = {"path": "File name", "label": "class", "group": "well", "time_min": "acquired"}
    m = import_crops(tmp_path, tmp_path / "s", columns=ColumnsConfig(**names)).manifest
    assert m["label"].tolist() == list("abab")
    assert m["group"].tolist() == [f"group-w{i}" for i in range(4)]
    assert np.array_equal(m["time_h"], [0, 0.5, 1, 1.5])


def test_a_column_given_that_is_not_there_or_not_read_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match="found no column of that name among path, label, t"):
        read(tmp_path, "path,label,t", "a.png,x,1", columns={"time_h": "hrs"})
    with pytest.raises(UserError, match=r"columns\.size=t: that is not read from .*, expected"):
        read(tmp_path, "path,label,t", "a.png,x,1", columns={"size": "t"})


def test_a_missing_column_is_asked_for_with_the_key_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"or give columns=\{label:class\}"):
        read(tmp_path, "path,class", "a.png,x")
