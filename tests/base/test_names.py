import hypothesis.strategies as st
import pytest
from hypothesis import given

from stemcell_lit.base.names import LONGEST, safe_name

TEXTS = st.text(max_size=300) | st.sampled_from(
    [
        "",
        ".",
        "..",
        "/",
        "x/../../../../victim/photo",
        "\0",
        "nul",
        "con.txt",
        "-rf",
        "a" * 300,
        "\ud800",
        "é" * 200,
    ]
)


@given(TEXTS)
def test_a_name_is_one_part_of_a_path_on_any_system(text):
    name = safe_name(text)
    assert 0 < len(name.encode("utf-8")) <= LONGEST
    assert not set(name) & set('/\\\0:*?"<>|\n') and name[0] not in ".-" and name[-1] not in ". "
    assert name.split(".")[0].casefold() not in ("con", "nul", "prn", "aux", "com1", "lpt9")


@given(TEXTS, TEXTS)
def test_two_texts_never_share_a_name_even_where_capitals_are_not_told_apart(one, other):
    if one != other:
        assert safe_name(one).casefold() != safe_name(other).casefold()


@given(TEXTS)
def test_the_name_of_a_name_is_never_that_of_another_text(text):
    name = safe_name(text)
    assert name == text or safe_name(name) != name


@pytest.mark.parametrize("text", ["dense", "flat_gan", "tiny+confidence", "amount-0.25", "3"])
def test_plain_names_stay_as_they_are(text):
    assert safe_name(text) == text


def test_other_names_can_still_be_read():
    assert safe_name("Dense cells").startswith("Dense-cells-")
    assert safe_name("плотные").startswith("плотные-")
    assert safe_name("x/../../photo").startswith("x-photo-")
