"""What is expected of trials: shared work is paid once, and what is there costs nothing."""

from dataclasses import replace

import pytest

from stemcell_lit.experiment.classic import feature_table
from stemcell_lit.experiment.costs import TRIAL, costs
from stemcell_lit.experiment.trial import prepare
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    root = tmp_path_factory.mktemp("costs")
    make_store(root / "store", movies=6, frames=4, counts=(1, 3, 2, 2))

    def of(method, *words):
        base = ["profile=smoke", "hierarchy=colony", f"data.store={root / 'store'}"]
        return prepare(
            typed(compose("run", [*base, f"out={root / 'out'}", f"method={method}", *words]))
        )

    return of


def test_what_trials_share_is_paid_by_the_first(trials):
    flat, stacked, classic = trials("flat"), trials("stacked_temporal"), trials("classic")
    alone = {t.config.method.name: costs([t])[0] for t in (flat, stacked, classic)}
    parts = (alone["flat"] - TRIAL) + (alone["classic"] - TRIAL)
    assert alone["stacked_temporal"] == pytest.approx(TRIAL + parts)
    assert costs([flat, classic, stacked])[2] == TRIAL
    assert costs([flat, trials("flat", "seed=1")])[1] == alone["flat"]  # another training


def test_a_tree_costs_as_many_trainings_as_it_has_nodes_and_a_generator_comes_first(trials):
    flat, tree, full = trials("flat"), trials("hierarchy"), trials("hierarchy_gan")
    one, all_nodes, with_gan = costs([flat])[0], costs([tree])[0], costs([full])[0]
    assert all_nodes - TRIAL == pytest.approx(len(tree.hierarchy.nodes) * (one - TRIAL))
    assert with_gan > all_nodes
    again = costs([full, replace(full, config=replace(full.config, seed=1))])
    assert again[1] == pytest.approx(all_nodes)  # the generator is there by then


def test_what_is_made_already_costs_nothing(trials):
    classic = trials("classic")
    before = costs([classic])[0]
    feature_table(classic)
    assert costs([classic])[0] < before


def test_choices_of_tuning_are_paid_for(trials):
    flat = trials("flat")
    tuned = trials("flat", "tune=true")
    choices = len(tuned.config.method.choices)
    assert costs([tuned])[0] - TRIAL == pytest.approx(choices * (costs([flat])[0] - TRIAL))
