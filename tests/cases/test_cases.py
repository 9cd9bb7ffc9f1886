"""Every case is read right or refused with a remedy, and nothing of the user's is changed."""

import pytest

from tests.cases.harness import judge
from tests.cases.known_pictures import PICTURES
from tests.cases.known_tables import TABLES
from tests.cases.new_inputs import NEW

WRONG: dict[str, str] = {}  # name of a case -> how it is still wrong


def marked(table):
    return [
        pytest.param(
            one,
            id=one.name,
            marks=[pytest.mark.xfail(reason=WRONG[one.name], strict=True)]
            if one.name in WRONG
            else [],
        )
        for one in table
    ]


@pytest.mark.parametrize("one", marked((*PICTURES, *TABLES)))
def test_a_known_input_is_read_right_or_refused(one, tmp_path):
    sort, why = judge(one, tmp_path)
    assert not sort, f"{sort}: {why}"


@pytest.mark.parametrize("one", marked(NEW))
def test_a_new_input_is_read_right_or_refused(one, tmp_path):
    sort, why = judge(one, tmp_path)
    assert not sort, f"{sort}: {why}"


def test_each_case_has_a_name_of_its_own():
    names = [one.name for one in (*PICTURES, *TABLES, *NEW)]
    assert len(set(names)) == len(names) and set(WRONG) <= set(names)
