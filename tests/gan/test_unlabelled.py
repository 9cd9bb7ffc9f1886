"""Generators learn from patches without a label under the null condition."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.splits import make_split
from stemcell_lit.errors import UserError
from stemcell_lit.gan.conditions import Conditions
from stemcell_lit.gan.families import make_module
from stemcell_lit.gan.flow import FlowModule
from stemcell_lit.gan.module import GANModule
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.gan_keys import GANConfig
from stemcell_lit.settings.group_keys import SplitConfig
from stemcell_lit.settings.roles import determining
from tests.gan.helpers import CLASSES, FLOW, SIDE, TINY, fit, stripes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    wave, label = stripes(np.random.default_rng(0), 72)
    names = [CLASSES[c] if i % 4 else "" for i, c in enumerate(label)]
    rows = pd.DataFrame({"label": names, "group": [f"g{i // 3 % 6}" for i in range(72)]})
    pixels = np.round((wave + 1) * 127.5).astype(np.uint8)
    path = tmp_path_factory.mktemp("gan") / "store"
    store = PatchStore.write(path, pixels, rows, classes=CLASSES)
    split = make_split(store, SplitConfig(folds=3, validation_share=0.25))
    scope = Scope.of_classes(CLASSES)
    return PatchDataModule(
        store, split, scope, unlabelled=True, epoch_images=24, batch_size=12, augment="none"
    )


@pytest.mark.parametrize("settings", [{}, {"network": "unet"}], ids=["gan", "flow"])
def test_n_and_n_images_with_unlabelled_ones_are_the_2n_bit_for_bit(data, tmp_path, settings):
    from tests.gan.helpers import Killed

    whole = fit(tmp_path / "a", data=data, unlabelled=True, **settings)
    with pytest.raises(Killed):
        fit(tmp_path / "b", dies_at=24, data=data, unlabelled=True, **settings)
    again = fit(tmp_path / "b", data=data, unlabelled=True, **settings)
    assert whole.images_seen == again.images_seen == 48
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.sample(torch.arange(3), 0).shape == (3, SIDE, SIDE)


def test_patches_without_a_label_are_seen_under_the_null_condition_alone(data, tmp_path):
    """Of the others the share that is hidden is, too; generated ones share the condition."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(GANModule):
        def _scores(self, parts, label, draw):
            seen.append((self.current, label))
            return super()._scores(parts, label, draw)

        def training_step(self, batch, batch_idx):
            self.current = batch["label"]
            super().training_step(batch, batch_idx)

    module = Watched({**TINY, "unlabelled": True, "hidden_share": 0.5, "images": 96}, CLASSES, SIDE)
    from stemcell_lit.experiment.training import fit as product_fit
    from stemcell_lit.settings.group_keys import TrainerConfig

    product_fit(module, data, TrainerConfig(accelerator="cpu"), tmp_path, "test", 96)
    told, used = (torch.cat(parts) for parts in zip(*seen, strict=True))
    null = module.conditions.null
    assert null == len(CLASSES) and (used[told < 0] == null).all()
    hidden = used[told >= 0] == null
    assert 0.2 < hidden.float().mean() < 0.8
    assert torch.equal(used[told >= 0][~hidden], told[told >= 0][~hidden])
    assert module.critic.embedding.num_embeddings == len(CLASSES) + 1


def test_the_null_condition_stands_behind_all_modes():
    conditions = Conditions([[0.5, 0.5], [1.0]])
    batch = {"label": torch.tensor([0, 1, -1]), "mode": torch.tensor([1, 2, -1])}
    assert conditions.of(batch).tolist() == [1, 2, 3] and conditions.null == 3
    flow = FlowModule(FLOW, CLASSES, SIDE)
    assert flow.conditions.null == flow.generator.network.null


@pytest.mark.parametrize("condition", ["auxiliary", "separate"])
def test_a_critic_that_needs_the_class_refuses_them(condition):
    gan = {**TINY, "unlabelled": True, "condition": condition}
    with pytest.raises(UserError, match="no place for patches without a class"):
        make_module(gan, CLASSES, SIDE, 0)


def test_without_the_key_nothing_changes():
    assert "unlabelled" not in determining(GANConfig())
    assert determining(GANConfig(unlabelled=True))["unlabelled"] is True
    with pytest.raises(UserError, match="hidden_share"):
        make_module({**TINY, "hidden_share": 0.3}, CLASSES, SIDE, 0)
    plain = make_module(asdict(GANConfig()), CLASSES, 16, 0)
    assert plain.generator.embedding.num_embeddings == len(CLASSES)
