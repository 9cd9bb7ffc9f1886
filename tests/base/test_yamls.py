"""Files of settings that a command line chooses are looked at before Hydra reads them without bounds."""

import pytest

from stemcell_lit.base.yamls import check_chosen
from stemcell_lit.errors import UserError


@pytest.mark.parametrize(
    "value",
    [
        *("bad", "'bad'", "good,bad", "choice(good,bad)", "choice('good','bad')", "[good,bad]"),
        *("shuffle(good,bad)", "glob(*)", "glob([b*],exclude=c*)", "tag(x,choice(good,bad))"),
        "bad.yaml",
    ],
)
def test_each_name_that_is_chosen_has_its_file_checked(tmp_path, value):
    group = tmp_path / "hierarchy"
    group.mkdir()
    (group / "good.yaml").write_text("name: good\n")
    (group / "bad.yaml").write_text("tree: {a: [yes]}\n")
    with pytest.raises(UserError, match="bad.yaml: line 1: yes is true or false"):
        check_chosen(tmp_path, [f"hierarchy={value}"])
    check_chosen(tmp_path, ["hierarchy=good", "hierarchy=choice(good,good)", "hierarchy=glob(g*)"])
