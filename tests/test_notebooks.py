"""The notebooks run from the first cell to the last on a small result, and are stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from stemcell_lit.report.pictures import Pictures
from stemcell_lit.report.report import make_report
from tests.report.test_report import write_results

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_look_at_a_result_runs_on_a_result(tmp_path, monkeypatch):
    methods = ("flat", "temporal_gan")
    out = write_results(tmp_path / "results", methods=methods, seeds=1, per_group=12)
    monkeypatch.setattr(Pictures, "make", lambda self: {})  # the notebook draws its own
    make_report(out, resamples=50)
    monkeypatch.setenv("STEMCELL_LIT_RESULTS", str(out))
    path = next(p for p in NOTEBOOKS if p.name.startswith("01_"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert any("temporal_gan against flat" in o.get("text", "") for o in outputs)
