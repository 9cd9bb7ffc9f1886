import json
import subprocess
import sys

import pytest

from stemcell_lit.__main__ import compose
from stemcell_lit.experiment.run import run, typed
from tests.conftest import make_store


def settings(tmp_path, *overrides):
    make_store(tmp_path / "store", movies=8, frames=2, counts=(1, 3, 3, 1))
    base = ["profile=smoke", "trainer=cpu", "method=flat", f"data.store={tmp_path / 'store'}"]
    return [*base, f"out={tmp_path / 'out'}", *overrides]


def cell(tmp_path, *overrides):
    return run(typed(compose("run", settings(tmp_path, *overrides))))


def test_a_cell_logs_offline_under_the_id_of_its_hash(tmp_path):
    assert typed(compose("run", [])).logger.wandb == "offline"
    # In a process of its own: W&B may write the last of its file when the process ends.
    command = [sys.executable, "-m", "stemcell_lit", "run", *settings(tmp_path, "logger=offline")]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = (tmp_path / "out" / "cells").glob("*/result.json")
    result = json.loads(file.read_text())
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert folder.name.endswith(result["hash"])
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    for name in ("test/macro/tpr", "test/f1/dense", "predictions"):
        assert name.encode() in content


def test_disabled_leaves_no_trace(tmp_path):
    cell(tmp_path, "logger=disabled")
    assert not (tmp_path / "out" / "wandb").exists()


def test_a_wandb_that_does_not_start_costs_a_warning_and_no_result(tmp_path, monkeypatch):
    import wandb

    def broken(**settings):
        raise OSError("no network")

    monkeypatch.setattr(wandb, "init", broken)
    with pytest.warns(UserWarning, match="goes on without it"):
        assert (cell(tmp_path, "logger=online") / "result.json").is_file()


def test_a_wandb_that_fails_at_the_end_costs_a_warning_and_no_result(tmp_path, monkeypatch):
    import wandb

    def broken(*args, **settings):
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "Table", broken)
    with pytest.warns(UserWarning, match="the result is whole without it"):
        assert (cell(tmp_path, "logger=offline") / "result.json").is_file()
