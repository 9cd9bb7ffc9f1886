"""The examples of docs/deliver.md run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.conftest import make_store

PAGE = Path(__file__).resolve().parents[2] / "docs/deliver.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["classify", "train"])
def test_an_example_of_the_page_runs(block, stacked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "stores/mine")
    shutil.copytree(stacked / "model", tmp_path / "results/mine/model")
    rng = np.random.default_rng(0)
    tifffile.imwrite("movie.tif", rng.integers(0, 255, (2, 64, 48), np.uint8))
    exec(compile(block, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    if "Classifier" in block:
        assert "(50, 4)" in said and "(64, 48)" in said
    else:
        assert float(said.splitlines()[-1].split()[0]) > 0.2
