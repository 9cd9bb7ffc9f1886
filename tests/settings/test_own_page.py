"""The examples of docs/own_settings.md, as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from stemcell_lit import __main__ as cli

PAGE = (Path(__file__).parents[2] / "docs" / "own_settings.md").read_text(encoding="utf-8")
FILES = re.findall(r"^`(conf/[\w/]+\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [
    line
    for block in re.findall(r"^```bash\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_an_example_of_the_page_composes_with_its_files(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    cli.main(shlex.split(line)[1:])
    said = capsys.readouterr()
    assert "--config-dir" in line or said.err.startswith("own settings: ")
    if "--cfg" in line:
        assert all(isinstance(d, dict) for d in yaml.safe_load_all(said.out))
    else:
        assert str(tmp_path / "conf") in said.out


def test_the_page_has_files_and_commands():
    assert len(FILES) == 2 and len(LINES) == 9
