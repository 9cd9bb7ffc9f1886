from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from stemcell_lit.classify.networks import NETWORKS, NetworkEnsemble, build
from stemcell_lit.classify.pseudo import pseudo_balance
from stemcell_lit.classify.stage import StageModule, class_weights, focal_loss
from stemcell_lit.classify.trained import load_stage, save_weights
from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.splits import Split, make_split
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.experiment.training import fit
from stemcell_lit.settings.group_keys import SplitConfig, StageConfig, TrainerConfig
from tests.conftest import CLASSES, make_store

GROUPS = {c: [c] for c in CLASSES}
CPU = TrainerConfig(accelerator="cpu")


def plan(**changes):
    small = {"width": 4, "batch_size": 16, "images": 400, "validate_every_images": 200}
    return {**StageConfig().__dict__, **small, **changes}


def module(**changes):
    return StageModule(plan(**changes), "root", GROUPS, [4, 20, 16, 8], 16, seed=1)


def data_of(store, seed=0):
    return PatchDataModule(
        store,
        make_split(store, SplitConfig(folds=3)),
        Scope.of_classes(CLASSES),
        batch_size=16,
        seed=seed,
    )


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("size", [32, 64])
def test_networks_map_patches_of_any_used_size_to_logits(name, size):
    network = build(name, 3, 4, 0.1, seed=0).eval()
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 3)


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    a = build("small", 3, 4, 0.0, seed=5)
    torch.manual_seed(2)
    b, c = build("small", 3, 4, 0.0, seed=5), build("small", 3, 4, 0.0, seed=6)
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(a.parameters()), next(c.parameters()))
    with pytest.raises(
        UserError, match=r"resnet: expected one of small \| valid \| vgg \| residual"
    ):
        build("resnet", 3, 4, 0.0, seed=0)


def test_losses_follow_their_formulas():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 3, 1, 1])
    p = logits.softmax(1)[torch.arange(6), target]
    assert focal_loss(logits, target, 0.0).item() == pytest.approx(
        F.cross_entropy(logits, target).item()
    )
    assert focal_loss(logits, target, 2.0).item() == pytest.approx(
        (-((1 - p) ** 2) * p.log()).mean().item()
    )
    prior = torch.tensor([4, 20, 16, 8.0]) / 48
    adjusted = module(loss="logit_adjusted").loss(logits, target)
    assert adjusted.item() == pytest.approx(F.cross_entropy(logits + prior.log(), target).item())
    half = module(loss="logit_adjusted", tau=0.5).loss(logits, target)
    assert half.item() == pytest.approx(F.cross_entropy(logits + prior.log() / 2, target).item())
    weights = class_weights([4, 20, 16, 8])
    assert (weights * torch.tensor([4, 20, 16, 8.0])).std() < 1e-6
    picked = weights[target]
    expected = -(picked * p.log()).sum() / picked.sum()
    assert module(loss="weighted").loss(logits, target).item() == pytest.approx(expected.item())
    with pytest.raises(UserError, match=r"stage\.loss=hinge"):
        module(loss="hinge").loss(logits, target)


@pytest.mark.parametrize("loss", ["plain", "weighted", "focal", "logit_adjusted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weight_scales_the_terms_of_the_loss(loss, smoothing):
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 4, generator=random), torch.tensor([0, 1, 2, 3, 1, 1])
    weight, m = torch.rand(6, generator=random), module(loss=loss, label_smoothing=smoothing)
    whole = m.loss(logits, target)
    for c in (0.0, 0.5, 1.0):
        torch.testing.assert_close(m.loss(logits, target, torch.full((6,), c)), c * whole)
    each = [m.loss(logits, target, row) for row in torch.eye(6)]
    torch.testing.assert_close(sum(each), whole)
    parts = sum(w * term for w, term in zip(weight, each, strict=True))
    torch.testing.assert_close(m.loss(logits, target, weight), parts)
    many = m.loss(torch.stack([logits, -logits]), target, weight)
    torch.testing.assert_close(many, (parts + m.loss(-logits, target, weight)) / 2)


def test_statistics_are_measured_anew_as_the_mean_over_batches_and_nothing_else_changes():
    m = module(dropout=0.5)
    random = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 1, 16, 16, generator=random) + i for i in range(3)]
    before = {k: v.clone() for k, v in m.state_dict().items()}
    state = torch.random.get_rng_state()
    m.measure_statistics(iter(batches))
    assert torch.equal(state, torch.random.get_rng_state())  # nothing was dropped
    assert m.training and m.network[0][1].momentum == 0.1
    inputs = [m.network[0][0](b) for b in batches]
    expected = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(m.network[0][1].running_mean, expected)
    changed = {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all("running_" in k or "num_batches" in k for k in changed)


def test_statistics_of_frozen_parts_stay_when_others_are_measured_anew():
    m = module(freeze="stem")
    batches = [torch.ones(8, 1, 16, 16) * i for i in range(3)]
    kept = m.network[0][1].running_mean.clone()
    other = m.network[2][1].running_mean.clone()
    m.measure_statistics(iter(batches))
    assert torch.equal(m.network[0][1].running_mean, kept)
    assert not torch.equal(m.network[2][1].running_mean, other)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    m = module(lr=1.0)
    assert m.learning_rate(0) == pytest.approx(0.1) and m.learning_rate(0.05) == pytest.approx(1)
    assert m.learning_rate(1) == pytest.approx(0) and m.learning_rate(0.525) == pytest.approx(0.5)


def test_the_papers_schedule_is_a_tenth_from_half_the_budget():
    m = module(lr=1.0, schedule="step")
    assert [m.learning_rate(p) for p in (0, 0.49, 0.5, 1)] == [1, 1, 0.1, 0.1]
    with pytest.raises(UserError, match=r"stage\.schedule=linear"):
        module(schedule="linear").learning_rate(0)


def test_an_ensemble_answers_with_the_mean_of_its_members(store):
    m = module(members=3).eval()
    assert isinstance(m.network, NetworkEnsemble)
    x = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    each = m.network.each(x)
    assert not torch.allclose(each[0], each[1])  # other first weights
    torch.testing.assert_close(m(x).softmax(1), each.softmax(-1).mean(0))
    target = torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(m.loss(each, target), sum(m.loss(e, target) for e in each) / 3)
    with pytest.raises(UserError, match=r"stage\.members=0"):
        module(members=0)


def test_members_are_trained_as_if_alone(store, tmp_path):
    """No member learns from what another says: a loss on the mean would."""
    m = module(members=2, dropout=0.0)
    fit(m, data_of(store), CPU, tmp_path / "two", "stage", 400)
    alone = module(dropout=0.0)
    alone.network.load_state_dict(module(members=2, dropout=0.0).network.members[1].state_dict())
    fit(alone, data_of(store), CPU, tmp_path / "one", "stage", 400)
    x = torch.from_numpy(store.pixels[:8]).float()[:, None] / 127.5 - 1
    # the mean over members halves each gradient; AdamW does not see scales, but for its epsilon
    torch.testing.assert_close(
        m.eval().network.members[1](x), alone.eval().network(x), atol=0.05, rtol=0.05
    )


def test_turned_patches_get_the_same_answer_with_turns(store):
    m = module(turns=True)
    pixels = store.pixels[:6]
    turned = np.rot90(pixels, 1, (1, 2))[:, ::-1]
    np.testing.assert_allclose(m.probabilities(pixels), m.probabilities(turned), atol=1e-5)
    plain = module(turns=False)
    assert not np.allclose(plain.probabilities(pixels), plain.probabilities(turned), atol=1e-5)


def test_mixup_trains_on_mixtures(store, monkeypatch):
    m = module(mixup=0.4)
    batch = next(iter(data_of(store).train_dataloader()))
    fed = []
    monkeypatch.setattr(m.network, "forward", lambda x: fed.append(x) or torch.zeros(len(x), 4))
    torch.manual_seed(3)
    m._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    m.training_step(batch, 0)
    torch.manual_seed(3)
    lam = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(len(batch["label"]))
    expected = lam * batch["pixels"] + (1 - lam) * batch["pixels"][other]
    torch.testing.assert_close(fed[0], expected)


def test_a_retrained_head_leaves_the_features_alone(store, tmp_path):
    m = module()
    fit(m, data_of(store), CPU, tmp_path / "first", "stage", 400)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    m.retrain_head(100, seed=4)
    fit(m, data_of(store), CPU, tmp_path / "second", "stage", 100)
    changed = {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    last = [k for k in before if k.startswith("network.")][-2:]
    assert changed == set(last)  # weight and bias of the last layer; batch statistics too stay


def test_pseudo_labels_fill_the_rare_with_the_surest():
    p = np.array([[0.95, 0.05], [0.2, 0.8], [0.01, 0.99], [0.08, 0.92], [0.4, 0.6]])
    rows, labels = pseudo_balance(p, [10, 8], 0.7)
    assert rows.tolist() == [2, 3] and labels.tolist() == [1, 1]
    rows, labels = pseudo_balance(p, [10, 3], 0.9)
    assert rows.tolist() == [2, 3]  # the gap of seven stays open
    assert len(pseudo_balance(p, [5, 5], 0.5)[0]) == 0


def weights_of(m):
    return torch.cat([v.flatten().float() for v in m.state_dict().values()])


def test_training_learns_and_spends_its_budget_in_images(store, tmp_path):
    m, data = module(images=1500), data_of(store)
    fit(m, data, CPU, tmp_path / "a", "stage", 1500)
    assert 1500 <= m.images_seen < 1516
    assert m.curve[-1]["loss"] < 0.7 * m.curve[0]["loss"]
    rows = make_split(store, SplitConfig(folds=3)).test
    p = m.probabilities(store.pixels[rows])
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert (p.argmax(1) == store.labels[rows]).mean() > 0.6  # 0.45 for the largest class alone


def test_the_same_seed_gives_the_same_weights(store, tmp_path):
    found = []
    for i in range(2):
        torch.manual_seed(7)
        m = module()
        fit(m, data_of(store), CPU, tmp_path / str(i), "stage", 400)
        found.append(weights_of(m))
    assert torch.equal(*found)


def test_resume_is_bit_exact(store, tmp_path):
    """A run cut off after any checkpoint ends as if it had not been."""

    class Cut(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    torch.manual_seed(7)
    whole = module()
    fit(whole, data_of(store), CPU, tmp_path / "whole", "stage", 400)

    torch.manual_seed(7)
    first = module()
    original = pl.Trainer.__init__

    def with_cut(self, *args, **kwargs):
        kwargs["callbacks"] = [*kwargs["callbacks"], Cut()]
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Trainer, "__init__", with_cut)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(first, data_of(store), CPU, tmp_path / "cut", "stage", 400)
    assert (tmp_path / "cut" / "last.ckpt").is_file() and first.images_seen < 400

    torch.manual_seed(99)  # a new process has another random state
    second = module()
    fit(second, data_of(store), CPU, tmp_path / "cut", "stage", 400)
    assert second.images_seen == whole.images_seen
    assert torch.equal(weights_of(second), weights_of(whole))
    assert second.curve == whole.curve


def test_weights_come_back_without_unpickling_code(store, tmp_path):
    m = module().eval()
    save_weights(m, tmp_path / "stage.ckpt")
    again = load_stage(tmp_path / "stage.ckpt")
    assert again.groups == m.groups and again.node == "root"
    np.testing.assert_array_equal(
        m.probabilities(store.pixels[:5]), again.probabilities(store.pixels[:5])
    )
    (tmp_path / "bad.ckpt").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a readable stage"):
        load_stage(tmp_path / "bad.ckpt")


def test_lightning_checkpoints_reload_with_weights_only(store, tmp_path):
    m = module()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
    )
    trainer.fit(m, data_of(make_store(tmp_path / "s2")))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = StageModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert torch.equal(weights_of(again), weights_of(m))


def test_trainer_test_gives_the_metrics_of_the_test_patches(store):
    data, stage = data_of(store), module()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    (found,) = trainer.test(stage, data, verbose=False)
    rows = make_split(store, SplitConfig(folds=3)).test
    called = stage.eval()(torch.from_numpy(store.pixels[rows]).float()[:, None] / 127.5 - 1)
    expected = scores(store.labels[rows], called.argmax(1).numpy(), CLASSES)
    assert found == pytest.approx(
        {f"test/{name}": value for name, value in expected.items()}, nan_ok=True
    )


def test_a_stage_without_test_patches_gives_no_metrics(store):
    split = make_split(store, SplitConfig(folds=3))
    none = Split(split.train, split.val, split.test[:0])
    data = PatchDataModule(store, none, Scope.of_classes(CLASSES), batch_size=16)
    assert data.test_dataloader() == []
