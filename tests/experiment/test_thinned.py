"""A trial whose rare classes are thinned, from the command line to the report."""

import json

import pytest

from stemcell_lit import __main__ as cli
from stemcell_lit.report.sweep import make_reports
from stemcell_lit.settings.command_keys import ReproduceCommand, typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.studies import reproduce as module
from tests.conftest import make_store

THIN = ["split.thin_ratio=20", "split.thin_classes=[debris,differentiated]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Finished trials of flat, thinned, on both folds of a store."""
    root = tmp_path_factory.mktemp("thinned")
    make_store(root / "store", movies=8)
    return root


def words(folder, *more):
    base = ["run", "profile=smoke", "trainer=cpu", "stage.images=64"]
    return [*base, f"data.store={folder / 'store'}", f"out={folder / 'out'}", *more]


def test_a_thinned_trial_says_what_it_learned_from_and_so_does_the_report(folder, capsys):
    for fold in (0, 1):
        cli.main(words(folder, "method=flat", f"split.fold={fold}", *THIN))
    files = sorted(folder.glob("out/trials/*/result.json"))
    assert len(files) == 2
    for file in files:
        info = json.loads(file.read_text())
        thinned = info["split"]["thinned"]
        assert set(thinned) == {"debris", "differentiated"}
        real, (stage,) = info["data"]["real"], info["stages"]
        for name, found in thinned.items():
            assert found["patches"] == real[name] == stage["train"][name][0]
            assert 0 < found["patches"] < found["patches_before"]
            assert found["ratio"] == pytest.approx(max(real.values()) / real[name], abs=0.01)
    make_reports(folder / "out", resamples=50)
    page = (folder / "out" / "report.html").read_text()
    told = json.loads(files[0].read_text())["split"]["thinned"]["debris"]
    assert "Training parts are thinned on purpose" in page
    assert f"debris {told['patches']} of {told['patches_before']} patches" in page


def test_a_misspelt_class_ends_a_command_with_the_nearest_name(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words(folder, "split.thin_ratio=20", "split.thin_classes=[debri]"))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "no class debri" in said and "did you mean debris?" in said and "Traceback" not in said


def test_a_table_says_before_it_runs_what_thinning_reaches(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "run_jobs", lambda jobs, **k: [])
    monkeypatch.setattr(module, "make_reports", lambda *a, **k: None)
    told = ["profile=smoke", f"data.store={folder / 'store'}", f"out={tmp_path / 'x'}"]
    told += ["experiment=imbalance", "methods=[flat]", "sweep.values=[2,500]"]
    config = typed(compose("reproduce", told), ReproduceCommand)
    assert module.reproduce(config, told, lambda w: typed(compose("run", w))) == 0
    said = capsys.readouterr().err
    assert "split.thin_ratio=2: debris has " in said
    assert "split.thin_ratio=500: debris has " in said and "loses its last track" in said
