"""The rooms of the package: nothing imports upwards, and docs/architecture.md says where everything is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "stemcell_lit"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def _exists(path: str) -> bool:
    outside = (
        path.startswith(("conf/", "docs/", "tests/", "hydra_plugins/")) or path == "pyproject.toml"
    )
    return ((ROOT if outside else PACKAGE) / path).exists()


def test_no_room_imports_one_above_it_and_no_two_files_import_each_other():
    program = Path(sys.executable).with_name(
        "lint-imports"
    )  # in this process it would disable all loggers
    found = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_room_has_its_line_in_the_architecture_page():
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    rooms |= {p.name for p in PACKAGE.glob("*.py")} - {"__init__.py"}
    listed = re.findall(r"^\| (`.*?) \|", PAGE.split("## From a frame")[0], re.MULTILINE)
    assert {name for line in listed for name in re.findall(r"`([\w.]+)`", line)} == rooms


def test_every_path_named_in_the_architecture_page_exists():
    paths = re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|yaml|toml|j2)|(?:\w+/)+)`", PAGE)
    made = {"result.json", "stemcell_lit/"}
    missing = [path for path in paths if path not in made and not _exists(path)]
    assert len(paths) > 50
    assert not missing


def test_every_name_of_the_architecture_page_is_in_the_file_that_it_names():
    named = re.findall(r"`([\w.]+)`(?: and `([\w.]+)`)? (?:in|of) `([\w/]+\.py)`", PAGE)
    assert len(named) > 10
    for *names, path in named:
        text = (PACKAGE / path).read_text(encoding="utf-8")
        for name in filter(None, names):
            assert re.search(rf"\b{name.rsplit('.', 1)[-1]}\b", text), f"{name} is not in {path}"


def test_every_room_or_file_named_in_readme_and_docs_exists():
    rooms = "|".join(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
    pages = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/wandb.md"}
    for page in sorted(pages):  # wandb.md names panels, such as patches/train
        for name in re.findall(rf"`((?:{rooms})/\w*)(?:\.py)?`", page.read_text(encoding="utf-8")):
            assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), (page, name)


def test_no_file_of_the_package_is_longer_than_500_lines():
    long = [p for p in PACKAGE.rglob("*.py") if len(p.read_text("utf-8").splitlines()) > 500]
    assert not long
