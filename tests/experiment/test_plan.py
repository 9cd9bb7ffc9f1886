"""What cannot work is found before anything runs, and what is proposed works when it is followed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_ten_individuals_of_which_two_hold_a_class_are_planned_whatever_the_seed(tmp_path):
    everyone = [f"worm{i}" for i in range(10)]
    for pair in (["worm0", "worm1"], ["worm4", "worm9"]):
        holders = {"egg": pair, "larva": everyone, "adult": everyone}
        store = write(tmp_path / pair[0], holders)
        for seed in range(3):
            config = trial(store, tmp_path / "out", split=SplitConfig(seed=seed))
            (trials,) = plan([config], every_fold=True)
            assert len(trials) == 3
            tested = [set(t.split.groups(t.store, "test")) & set(pair) for t in trials]
            assert sorted(map(len, tested)) == [0, 1, 1]


def test_classes_in_pairs_of_four_groups_take_a_fold_for_each_group(tmp_path):
    """Any two of four groups share a class: three folds would put two of them together."""
    pairs = {"ab": "ab", "ac": "ac", "ad": "ad", "bc": "bc", "bd": "bd", "cd": "cd"}
    store = write(tmp_path / "s", {name: list(of) for name, of in pairs.items()})
    config = trial(store, tmp_path / "out", split=SplitConfig(validation_share=0))
    (trials,) = plan([config], every_fold=True)
    assert len(trials) == 4


def followed(said, config, holders, path):
    """The configuration after what a message proposes."""
    remedy = said.split("what works: ")[1].split(", or ")[-1]
    for name in list(holders):
        if f"take {name} out" in remedy or f"[{name}]" in remedy:
            kept = {c: groups for c, groups in holders.items() if c != name}
            config = replace(config, data=DataConfig(store=write(path, kept)))
    words = [w.split("=") for w in remedy.replace(",", " ").split() if w.startswith("split.")]
    numbers = {k.removeprefix("split."): float(v) for k, v in words}
    whole = {k: v if k == "validation_share" else int(v) for k, v in numbers.items()}
    return replace(config, split=replace(config.split, **whole))


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_following_the_last_remedy_that_a_message_names_the_plan_holds(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("remedy")
    everyone = [f"m{i}" for i in range(data.draw(st.integers(4, 7)))]
    rare = data.draw(st.sets(st.sampled_from(everyone), min_size=1, max_size=3))
    holders = {"debris": sorted(rare), "dense": everyone, "spread": everyone[::2]}
    folds = data.draw(st.sampled_from([None, 2, 5, 9]))
    split = SplitConfig(folds=folds, seed=data.draw(st.integers(0, 9)))
    config = trial(write(path / "s", holders, each=2), path / "out", split=split)
    try:
        plan([config], every_fold=True)
    except UserError as error:
        assert "what works: " in str(error)
        plan([followed(str(error), config, holders, path / "t")], every_fold=True)


def test_a_store_that_was_imported_is_to_be_imported_again_without_a_class(tmp_path):
    store = write(tmp_path / "s", {"debris": ["m2"], "dense": EVERY, "spread": EVERY})
    file = tmp_path / "s" / "store.json"
    file.write_text(file.read_text().replace('"command": "test"', '"command": "import"'))
    said = refused([trial(store, tmp_path / "out")], every_fold=True)
    assert said.endswith("or import again with without=[debris]")
