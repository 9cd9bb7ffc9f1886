"""What cannot work is found before anything runs, and what is proposed works when it is followed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.data.splits import fold_count
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.plan import plan
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import RunCommand
from stemcell_lit.settings.group_keys import (
    DataConfig,
    HierarchyConfig,
    MethodConfig,
    SplitConfig,
    TemporalConfig,
)


def write(path, holders, each=6, times=False):
    """A store in which each class is in the groups named."""
    rows = [
        {"label": c, "group": g, "time_h": float(i) if times else np.nan}
        for c, groups in holders.items()
        for g in groups
        for i in range(each)
    ]
    manifest = pd.DataFrame(rows)
    pixels = np.zeros((len(rows), 32, 32), np.uint8)
    PatchStore.write(path, pixels, manifest, classes=list(holders), made_by={"command": "test"})
    return str(path)


def trial(store, out, method="flat", **groups):
    flat = HierarchyConfig()
    given = {"data": DataConfig(store=store), "hierarchy": flat, "out": str(out), **groups}
    return RunCommand(**given, method=MethodConfig(name=method))


EVERY = [f"m{i}" for i in range(6)]


def refused(configs, **how):
    with pytest.raises(UserError) as error:
        plan(configs, **how)
    return str(error.value)


def test_a_value_out_of_bounds_is_refused_of_a_caller_in_python_too(tmp_path):
    store = write(tmp_path / "s", {"dense": EVERY, "spread": EVERY})
    config = replace(trial(store, tmp_path / "out"), seed=-1)
    assert refused([config]) == "seed=-1: expected 0 to 2,147,483,647"


def test_a_class_of_one_group_is_found_in_the_fold_that_tests_it(tmp_path):
    store = write(tmp_path / "s", {"debris": ["m2"], "dense": EVERY, "spread": EVERY})
    said = refused([trial(store, tmp_path / "out")], every_fold=True, baseline="flat")
    assert "debris is in one group alone, m2" in said and "split.folds" not in said
    assert not (tmp_path / "out").exists()


def test_following_either_remedy_of_a_class_of_one_group_the_plan_holds(tmp_path):
    store = write(tmp_path / "s", {"debris": ["m2"], "dense": EVERY, "spread": EVERY})
    said = refused([trial(store, tmp_path / "out")], every_fold=True)
    count = int(said.split("in at least ")[1].split()[0])
    assert "take debris out of the source and import again" in said
    without = write(tmp_path / "a", {"dense": EVERY, "spread": EVERY})
    assert plan([trial(without, tmp_path / "out")], every_fold=True)
    for others in (["m0", "m1", "m3"], ["m5", "m4", "m3"]):
        held = ["m2", *others][:count]
        more = write(tmp_path / "b", {"debris": held, "dense": EVERY, "spread": EVERY})
        assert plan([trial(more, tmp_path / "out")], every_fold=True)


def test_nine_crops_a_class_without_groups_are_planned(tmp_path):
    crops = {c: [f"{c}{i}" for i in range(9)] for c in ("dense", "spread")}
    store = write(tmp_path / "s", crops, each=1)
    (trials,) = plan([trial(store, tmp_path / "out")], every_fold=True)
    assert [c.config.split.fold for c in trials] == [0, 1, 2]


@pytest.mark.parametrize("folds", [7, 40])
def test_more_folds_than_groups_get_a_number_that_works(tmp_path, folds):
    store = write(tmp_path / "s", {"dense": EVERY, "spread": EVERY})
    config = trial(store, tmp_path / "out", split=SplitConfig(folds=folds))
    said = refused([config], every_fold=True)
    assert "6 groups cannot make" in said
    proposed = int(said.split("what works: split.folds=")[1])
    assert plan([replace(config, split=SplitConfig(folds=proposed))], every_fold=True)


def test_every_problem_is_told_at_once_and_one_remedy_mends_all(tmp_path):
    store = write(tmp_path / "s", {"dense": EVERY, "spread": EVERY})
    tree = HierarchyConfig(name="other", tree={"dense": "dense", "sparse": "sparse"})
    tree_method = MethodConfig(name="flat", tree=True)
    config = replace(
        trial(store, tmp_path / "out", split=SplitConfig(folds=20), hierarchy=tree),
        data=DataConfig(store=store, patch_size=24),
        method=tree_method,
    )
    said = refused([config], every_fold=True)
    assert "its tree holds" in said and "data.patch_size=24" in said and said.count("\n- ") == 2
    words = dict(w.split("=") for w in said.split("what works: ")[1].split())
    mended = replace(
        config,
        hierarchy=HierarchyConfig(name=words["hierarchy"]),
        data=replace(config.data, patch_size=int(words["data.patch_size"])),
        split=SplitConfig(folds=int(words["split.folds"])),
    )
    assert words["hierarchy"] == "flat" and plan([mended], every_fold=True)


def test_methods_that_need_times_can_be_left_out(tmp_path):
    store = write(tmp_path / "s", {"dense": EVERY, "spread": EVERY})
    configs = [
        trial(store, tmp_path / "out"),
        trial(store, tmp_path / "out", "flat_temporal", temporal=TemporalConfig(kind="prior")),
    ]
    said = refused(configs, every_fold=True, baseline="flat")
    assert "needs the time of each patch" in said and said.endswith("what works: methods=[flat]")
    assert plan(configs[:1], every_fold=True, baseline="flat")


def test_a_fold_that_does_not_exist_is_refused_before_movies_are_simulated(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("simulated")

    monkeypatch.setattr("stemcell_lit.simulate.write.simulate", never)
    config = replace(RunCommand(), out=str(tmp_path / "out"), split=SplitConfig(fold=9))
    said = refused([config])
    assert "split.fold=9: expected 0 to 2" in said and "what works: split.fold=2" in said
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_out_is_named(tmp_path):
    store = write(tmp_path / "s", {"dense": EVERY, "spread": EVERY})
    (tmp_path / "note").write_text("mine")
    said = refused([trial(store, tmp_path / "note" / "out")])
    assert "note is a file" in said and (tmp_path / "note").read_text() == "mine"


def test_planned_trials_are_those_that_run(tmp_path):
    from stemcell_lit.experiment.trial import prepare

    store = write(tmp_path / "s", {"dense": EVERY, "spread": EVERY})
    config = trial(store, tmp_path / "out")
    ((planned,),) = plan([config])
    assert planned.name == prepare(config).name
    assert fold_count(planned.store, config.split) == 3
