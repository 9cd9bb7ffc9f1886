"""Every case is read right or refused with a remedy, and nothing of the user's is changed."""

import pytest

from tests.cases.harness import judge
from tests.cases.known_pictures import PICTURES
from tests.cases.known_tables import TABLES
from tests.cases.new_inputs import NEW

WRONG: dict[str, str] = {
    "07 colour table, green": "silent",
    "11 stacks as crops": "silent",
    "16-bit crops": "refused wrongly",
    "09 tracks restart": "silent",
    "19 duplicates": "silent",
    "16 blanks and case": "silent",
    "03 hidden folder": "silent",
    "26 files of a Mac": "refused wrongly",
    "28 nested": "refused wrongly",
    "10 trailing comma": "refused wrongly",
    "24 spreadsheets": "refused wrongly",
    "25 units row": "refused wrongly",
    "36 paths of Windows": "refused wrongly",
    "33 numbers": "refused wrongly",
    "17 a class in one group": "silent",
    "37 few crops": "refused wrongly",
    "float crops, big-endian": "refused wrongly",
    "RGB PNG of 16 bits": "silent",
    "white is zero, 16 bit": "refused wrongly",
    "animated PNG as a crop": "silent",
    "German Excel with sep=;": "refused wrongly",
    "R: row names, a class NA": "refused wrongly",
    "TrackMate: four lines of header": "refused wrongly",
    "Unicode of a Mac": "refused wrongly",
    "a Cyrillic letter": "silent",
    "a crop in two classes": "silent",
    "hours in the table of tiles": "silent",
    "leftovers of Windows and Synology": "silent",
    "GIFs among the crops": "silent",
}  # name of a case -> how it is still wrong


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
