import pytest

from stemcell_lit.classify.model_folder import find_model
from stemcell_lit.errors import UserError


def make(*folders):
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "model.json").write_text("{}")


def test_a_model_is_found_by_its_folder_its_trial_and_the_results_that_hold_it(tmp_path):
    trial, delivered = tmp_path / "trials/flat-f0/model", tmp_path / "model"
    make(trial, delivered)
    assert find_model(trial) == find_model(trial.parent) == trial
    assert find_model(delivered) == find_model(tmp_path) == delivered


def test_results_without_a_model_of_their_own_are_refused_with_their_trials(tmp_path):
    make(tmp_path / "trials/b/model", tmp_path / "trials/a/model")
    for given in (tmp_path, tmp_path / "trials"):
        with pytest.raises(UserError, match=r"trials with theirs \(a and 1 more\).*=.*trials/a"):
            find_model(given)


def test_what_holds_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model.json: no such file; expected the `model` folder"):
        find_model(tmp_path / "nowhere")
