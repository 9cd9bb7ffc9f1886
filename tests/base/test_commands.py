"""Every command that makes a folder, on folders that hold something else."""

import json

import numpy as np
import pytest
from PIL import Image

from stemcell_lit import __main__ as cli
from stemcell_lit.base.artifacts import ArtifactStore
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.generator_quality import grid_file
from stemcell_lit.report.wandb_runs import _forget
from tests.base.test_files import make, state
from tests.recipes import Thing


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which somebody works: crops, a thesis, results that others have made."""
    monkeypatch.chdir(tmp_path)
    for label in ("dense", "spread"):
        folder = tmp_path / "in/crops" / label
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "d/.hidden").mkdir(parents=True)
    (tmp_path / "d/.hidden/notes").write_text("mine")
    (tmp_path / "movie.tif").write_bytes(b"II")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("d")
    return tmp_path


OUTS = ["d", ".", "..", "in", "file", "link", "file/new"]
COMMANDS = {
    "import": ["source=in/crops", "store={}"],
    "import with a table": ["source=in/crops", "table=in/crops", "store={}"],
    "simulate": ["out={}"],
    "simulate with a store": ["out=new", "store={}"],
    "evaluate": ["checkpoint=d/.hidden", "store=in", "out={}"],
    "generate": ["checkpoint=in/crops/dense/0.png", "store={}"],
    "predict": ["movie=in/crops", "checkpoint=d/.hidden", "out={}"],
    "annotate": ["source=in/crops", "classes=[dense,spread]", "out={}"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", [*OUTS, "in/crops"])
def test_a_folder_that_holds_something_else_is_refused_and_stays(place, capsys, command, out):
    if out == "in/crops" and command.startswith("import with"):
        pytest.skip("the same as without one")
    before = state(place)
    words = [w.replace("{}", out) for w in COMMANDS[command]]
    with pytest.raises(SystemExit) as end:
        cli.main([command.split()[0], *words])
    said = capsys.readouterr().err.strip()
    assert end.value.code == 2 and state(place) == before
    assert said.count("\n") == 0 and out.split("/")[0] in said
    assert "Traceback" not in said and "checkpoint" not in said  # refused before the model is read


def test_a_store_is_imported_again_and_what_a_user_puts_into_it_stops_that(place, capsys):
    words = ["import", "source=in/crops", "store=stores/mine"]
    cli.main(words)
    cli.main(words)
    (place / "stores/mine/notes.txt").write_text("mine")
    before = state(place)
    with pytest.raises(SystemExit):
        cli.main(words)
    assert state(place) == before and "notes.txt" in capsys.readouterr().err


def test_a_label_is_no_path():
    name = grid_file("x/../../../../victim/photo")
    assert "/" not in name and grid_file("x-------victim-photo") != name


def test_an_artifact_that_holds_a_users_file_is_not_pruned(tmp_path):
    store = ArtifactStore(tmp_path)
    folder = store.get(Thing(lambda f: (f / "x").write_text("1")))
    (folder / "notes").write_text("mine")
    with pytest.raises(UserError, match="notes"):
        store.prune(lambda a: False)
    (folder / "notes").unlink()
    assert store.prune(lambda a: False) == [folder]


def test_a_hash_in_a_shared_result_deletes_nothing_else(tmp_path):
    run = tmp_path / "wandb/offline-run-1-abcd"
    (run / "files").mkdir(parents=True)
    for hostile in ("*", "../..", "a/b", ""):
        with pytest.raises(UserError, match="hash"):
            _forget(tmp_path, hostile)
    (run / "notes").write_text("mine")
    with pytest.raises(UserError, match="notes"):
        _forget(tmp_path, "abcd")
    (run / "notes").unlink()
    _forget(tmp_path, "abcd")
    assert not run.exists()


def test_a_report_replaces_nothing_of_the_users(place):
    from stemcell_lit.report.report import check_report

    make(place / "res/figures", "figures")
    check_report(place / "res")
    (place / "res/report.html").write_text("mine")
    with pytest.raises(UserError, match=r"report\.html"):
        check_report(place / "res")
    (place / "res/report.html").unlink()
    (place / "res/figures/mine.png").write_text(json.dumps("mine"))
    with pytest.raises(UserError, match=r"mine\.png"):
        check_report(place / "res")
