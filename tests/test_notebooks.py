"""The notebooks run from the first cell to the last, with public names alone, and are stored without outputs."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import stemcell_lit

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# pictures that each draws
DRAWN = {
    "01_movie_and_patches": 3,
    "02_generator": 2,
    "03_tree_and_time": 1,
    "04_sweep_to_model": 2,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_uses_public_names_alone(path):
    source = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    assert not re.search(r"(from|import) stemcell_lit\.", source)
    listed = re.search(r"^from stemcell_lit import (\([^)]*\)|.*)$", source, re.MULTILINE)
    assert listed and set(re.findall(r"\w+", listed[1])) <= set(stemcell_lit.__all__)


def test_the_notebooks_run_one_after_the_other(tmp_path, monkeypatch):
    assert [p.stem for p in NOTEBOOKS] == list(DRAWN)
    monkeypatch.setenv("STEMCELL_LIT_QUICK", "1")
    monkeypatch.setenv("STEMCELL_LIT_NOTEBOOKS", str(tmp_path / "work"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        assert not [o for o in outputs if o.output_type == "error"]
        assert sum("image/png" in o.get("data", {}) for o in outputs) == DRAWN[path.stem], path
    assert (tmp_path / "work" / "sweep" / "model" / "MODEL_CARD.md").is_file()
