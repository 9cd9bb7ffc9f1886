"""Pages and tables show names as they are: escaped, and escaped once."""

import jinja2
import pytest

from stemcell_lit.base.markdown import in_markdown, markdown_table
from stemcell_lit.base.pages import render


@pytest.fixture
def template(tmp_path):
    file = tmp_path / "page.html.j2"
    file.write_text("{% for n in names %}\n<b>{{ n }} {{ 0.5|percent }}</b>\n{% endfor %}\n")
    return file


def test_a_page_escapes_every_name_once_and_leaves_no_blank_lines(template):
    page = render(template, {"percent": lambda v: f"{100 * v:g} %"}, names=["a & <b>", "c"])
    assert page == "<b>a &amp; &lt;b&gt; 50 %</b>\n<b>c 50 %</b>\n"


def test_a_page_that_lacks_a_value_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="names"):
        render(template, {"percent": str})


def test_a_table_in_markdown_escapes_every_cell():
    found = markdown_table(["a|b", "mean"], [["<x>", 1.5], ["p < 0.001", "–"]], right={"mean"})
    assert found == [
        r"| a\|b | mean |",
        "| --- | ---: |",
        "| &lt;x&gt; | 1.5 |",
        "| p < 0.001 | – |",
    ]


def test_a_sign_before_a_blank_stays_and_one_that_opens_html_does_not():
    assert in_markdown("< 0.001") == "< 0.001"
    assert in_markdown("<\n!-- </p> <!x") == "< !-- &lt;/p&gt; &lt;!x"
