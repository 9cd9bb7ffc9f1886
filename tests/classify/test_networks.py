"""Networks by name: what they are built of, what they begin with, what of them is learned."""

import re
import sys
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stemcell_lit.base.weights import save_safe
from stemcell_lit.classify import monai_networks, networks
from stemcell_lit.classify.pretrained import start_from, weights_hash
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import content_of, load_stage, save_weights
from stemcell_lit.data.datamodule import PatchDataModule, Scope
from stemcell_lit.data.splits import make_split
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.training import fit
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import SplitConfig, StageConfig, TrainerConfig
from tests.conftest import CLASSES, make_store

GROUPS = {c: [c] for c in CLASSES}
TINY = """
from torch import nn

def tiny(outputs, width, dropout, channels):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, outputs))

def narrow(outputs, width, dropout, channels):
    return nn.Sequential(nn.Conv2d(channels, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def conv(outputs, width, dropout, channels):
    return nn.Sequential(nn.Conv2d(channels, outputs, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

number = 5
"""


def module(size=32, allow=None, channels=1, **changes):
    stage = {**asdict(StageConfig()), "width": 4, **changes}
    return StageModule(stage, "root", GROUPS, [4, 20, 16, 8], size, 1, channels, allow)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A working folder with a module of the user's own; its name."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def trained(tmp_path, **changes):
    """One step of training on patches of 32 px; the module and the trainable weights before."""
    store = make_store(tmp_path / "store", movies=3, frames=2, counts=(1, 2, 1, 1), size=32)
    data = PatchDataModule(
        store,
        make_split(store, SplitConfig(folds=3, validation_share=0)),
        Scope.of_classes(CLASSES),
        batch_size=8,
    )
    made = module(batch_size=8, images=8, validate_every_images=8, **changes)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    fit(made, data, TrainerConfig(accelerator="cpu"), tmp_path / "fit", "stage", 8)
    return made, before


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_wrong_name_is_told_the_three_forms_and_the_nearest_names():
    for name, near in (
        ("monai/resnet18", "monai/ResNet18"),
        ("monai/DenseNet", "monai/DenseNet"),
        ("Residual", "residual"),
    ):
        with pytest.raises(UserError) as told:
            check(StageConfig(network=name), "stage.")
        message = str(told.value)
        assert message.startswith(f"stage.network={name}: expected one of small | valid | vgg |")
        assert "monai/<name> | module:<package>.<attribute>" in message
        assert "did you mean" in message and near in message
    for name in ("module:", "module:tiny", "module:a.b c", "module:../a.b", "module:a.b()"):
        with pytest.raises(UserError, match="expected one of small"):
            check(StageConfig(network=name))
    check(StageConfig(network="module:my_package.my_file.tiny"))


@pytest.mark.parametrize("name", ["monai/ResNet18", "monai/DenseNet121"])
def test_networks_of_monai_train_on_small_gray_patches(name, tmp_path):
    made, before = trained(tmp_path, network=name)
    after = made.state_dict()
    learned = [k for k, _ in made.named_parameters()]
    assert all(torch.isfinite(v).all() for v in after.values())
    # a bias in front of a normalisation has no gradient; every kernel has
    assert all(not torch.equal(after[k], before[k]) for k in learned if after[k].ndim > 1)


def test_every_name_of_monai_is_built_for_gray_patches_with_a_head_of_its_own():
    with torch.device("meta"):
        for name in ("ResNet50", "DenseNet169", "EfficientNetBN-b0", "SEResNet50", "SEResNeXt50"):
            network = networks.maker(f"monai/{name}")(3, width=16, dropout=0.25, channels=2)
            first = next(p for p in network.parameters() if p.ndim == 4)
            (head,) = networks.heads(network, 3)
            assert first.shape[1] == 2 and head.dropout == 0.25
            assert not [m for m in network.modules() if isinstance(m, nn.Dropout) and m.p > 0]
            assert len(networks.parts(network, head)) >= networks.LEAST_PARTS, name


def test_without_monai_the_extra_that_brings_it_is_named(monkeypatch):
    monai_networks._nets.cache_clear()
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(
        UserError, match=r"monai/ResNet18: MONAI is not installed.*stemcell-lit\[monai\]"
    ):
        module(network="monai/ResNet18")


def test_monai_leaves_the_way_in_which_warnings_are_shown_as_it_was():
    before = warnings.showwarning
    monai_networks._nets.cache_clear()
    for name in [n for n in sys.modules if n == "monai"]:
        del sys.modules[name]
    monai_networks._nets("monai/ResNet18")
    assert warnings.showwarning is before


def test_patches_that_a_network_cannot_take_are_refused_with_the_least_size():
    with pytest.raises(UserError, match=r"monai/DenseNet121: patches of 24 px .* expected 29 or"):
        module(24, network="monai/DenseNet121")
    with pytest.raises(UserError, match=r"=vgg: patches of 31 px .* expected 32 or more"):
        module(31, network="vgg")
    assert module(32, network="vgg")(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


def test_the_residual_network_costs_what_its_description_says():
    from torch.utils.flop_counter import FlopCounterMode

    cost = {}
    for name in ("small", "residual"):
        network = networks.build(name, 7, 16, 0.2, seed=0).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 1, 32, 32))
        cost[name] = counter.get_total_flops() / 2e6  # an addition and a multiplication each
        weights = sum(p.numel() for p in network.parameters()) / 1e6
    assert cost["small"] == pytest.approx(8, abs=0.5) and cost["residual"] == pytest.approx(
        21, abs=0.5
    )
    assert weights == pytest.approx(0.7, abs=0.05)


def test_a_residual_block_begins_as_its_shortcut():
    block, x = networks.Residual(4, 4).eval(), torch.randn(2, 4, 5, 5).relu()
    torch.testing.assert_close(block(x), x)


# --- a network of the user's own --------------------------------------------------------------------------------------


def test_a_network_of_ones_own_is_found_in_the_working_folder_and_trains(tiny, tmp_path):
    name = f"module:{tiny}.tiny"
    made, before = trained(tmp_path, network=name, allow=f"{tiny}.tiny")
    assert not torch.equal(before["network.0.weight"], made.state_dict()["network.0.weight"])


def test_no_checkpoint_can_have_a_module_imported_that_its_reader_does_not_name(tiny, tmp_path):
    made = module(network=f"module:{tiny}.tiny", allow=f"{tiny}.tiny").eval()
    file = tmp_path / "stage.ckpt"
    save_weights(made, file)
    del sys.modules[tiny]
    for allowed in (None, f"{tiny}.narrow", "os.system"):
        with pytest.raises(UserError, match=rf"allow_module={tiny}\.tiny") as told:
            load_stage(file, allowed)
        assert str(file) in str(told.value)
    with pytest.raises(UserError, match="allow_module"):
        StageModule(**made.hparams)  # as Lightning does it
    assert tiny not in sys.modules, "it was imported"
    again = load_stage(file, f"{tiny}.tiny")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32)).astype(np.uint8)
    np.testing.assert_array_equal(made.probabilities(pixels), again.probabilities(pixels))


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        ("number", "is int, expected a callable of"),
        ("missing", "is not there"),
        ("nn", "is module, expected a callable of"),
        ("narrow", r"shape \[1, 7\], expected logits of shape \[1, 4\]"),
    ],
)
def test_what_is_no_network_is_refused_with_what_was_expected(tiny, attribute, told):
    name = f"{tiny}.{attribute}"
    with pytest.raises(UserError, match=rf"module:{tiny}\.{attribute}: .*{told}"):
        module(network=f"module:{name}", allow=name)


def test_a_module_that_is_not_there_is_looked_for_in_the_folder_named(tiny, tmp_path):
    with pytest.raises(UserError, match=f"nowhere cannot be imported .*{tmp_path}"):
        module(network="module:nowhere.net", allow="nowhere.net")


def test_a_network_without_a_last_linear_layer_trains_but_has_no_head_to_retrain(tiny):
    made = module(network=f"module:{tiny}.conv", allow=f"{tiny}.conv")
    assert made.configure_optimizers()
    with pytest.raises(UserError, match=r"no linear layer of 4 outputs.*stage\.retrain_head"):
        made.retrain_head(10, 0)


# --- weights to begin with --------------------------------------------------------------------------------------------


def rgb(network):
    """The weights of a network as if it had been trained on colours, with a head of nine classes."""
    state = {k: v.clone() for k, v in network.state_dict().items()}
    stem = next(k for k, v in state.items() if v.ndim == 4)
    share = torch.tensor([0.5, 0.3, 0.2])[:, None, None]
    state[stem] = state[stem] * share
    for k in [k for k in state if k.startswith(("fc.", "12."))]:
        state[k] = torch.zeros(9, *state[k].shape[1:])
    return state


@pytest.mark.parametrize("name", ["residual", "monai/ResNet10"])
@pytest.mark.parametrize("how", ["safetensors", "torch", "wrapped"])
def test_weights_of_a_file_are_those_of_the_network_but_for_stem_and_head(name, how, tmp_path):
    source = networks.build(name, 4, 4, 0.2, seed=3).eval()
    state, file = rgb(source), tmp_path / "weights.pt"
    if how == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    elif how == "torch":
        torch.save(state, file)
    else:
        torch.save(
            {"epoch": 3, "state_dict": {f"module.model.{k}": v for k, v in state.items()}}, file
        )
    target = networks.build(name, 4, 4, 0.2, seed=4).eval()
    head = {k: v.clone() for k, v in networks.heads(target, 4)[0].state_dict().items()}
    start_from(target, name, str(file), 4)
    (own,), (other,) = networks.heads(target, 4), networks.heads(source, 4)
    assert all(torch.equal(v, head[k]) for k, v in own.state_dict().items())
    own.load_state_dict(other.state_dict())
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target(x), source(x), rtol=1e-3, atol=1e-4)


def test_a_gray_picture_in_several_views_is_answered_as_one_in_colours_was(tmp_path):
    source = networks.build("small", 4, 4, 0.2, seed=3).eval()
    torch.save(rgb(source), tmp_path / "w.pt")
    target = networks.build("small", 4, 4, 0.2, seed=4, channels=2, members=2).eval()
    start_from(target, "small", str(tmp_path / "w.pt"), 4)
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for member in target.members:
        torch.testing.assert_close(member[0](x.expand(-1, 2, -1, -1)), source[0](x))


@pytest.mark.parametrize("name", ["stage.ckpt", "stage.safetensors"])
def test_weights_of_a_stage_are_taken_up_by_another_with_other_classes(tmp_path, name):
    first = module()
    write = (
        save_weights if name.endswith("ckpt") else lambda m, file: save_safe(content_of(m), file)
    )
    write(first, tmp_path / name)
    second = StageModule(first.stage, "root", {"a": ["a"], "b": ["b"]}, [1, 1], 32, seed=9)
    start_from(second.network, "small", str(tmp_path / name), 2)
    assert torch.equal(first.network[0][0].weight, second.network[0][0].weight)


def misfits():
    def renamed(s):
        s["layer9.0.conv1.weight"] = s.pop("layer3.0.conv1.weight")

    def lacking(s):
        del s["layer3.0.conv1.weight"]

    def wider(s):
        s["layer3.0.conv1.weight"] = torch.zeros(256, 64, 3, 3)

    def five(s):
        s["conv1.weight"] = torch.zeros(64, 5, 7, 7)

    def infinite(s):
        s["bn1.weight"][3] = torch.inf

    return [
        (renamed, r"has layer9\.0\.conv1\.weight, which that network lacks"),
        (lacking, r"has no layer3\.0\.conv1\.weight, expected one of shape \[256, 128, 3, 3\]"),
        (
            wider,
            r"layer3\.0\.conv1\.weight has shape \[256, 64, 3, 3\], expected \[256, 128, 3, 3\]",
        ),
        (five, r"conv1\.weight has shape \[64, 5, 7, 7\], expected \[64, 1, 7, 7\]"),
        (infinite, r"bn1\.weight is with NaN or infinite numbers"),
        (lambda s: s.clear(), "without tensors"),
    ]


@pytest.mark.parametrize(("change", "told"), misfits())
def test_a_file_that_does_not_fit_is_refused_with_the_layer_named(change, told, tmp_path):
    network, file = networks.build("monai/ResNet10", 4, 4, 0.2, seed=3), tmp_path / "w.pt"
    state = {k: v.clone() for k, v in network.state_dict().items()}
    change(state)
    torch.save(state, file)
    with pytest.raises(UserError, match=told) as error:
        start_from(network, "monai/ResNet10", str(file), 4)
    assert str(file) in str(error.value)


def test_weights_of_another_network_or_no_weights_at_all_are_refused(tmp_path):
    network, file = networks.build("small", 4, 4, 0.2, seed=3), tmp_path / "w.pt"
    torch.save({"encoder.weight": torch.zeros(3)}, file)
    with pytest.raises(
        UserError, match="none of its 1 layers .*found encoder.weight, expected 0.0"
    ):
        start_from(network, "small", str(file), 4)
    file.write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"not a readable file of weights .*expected safetensors"):
        start_from(network, "small", str(file), 4)
    with pytest.raises(UserError, match=r"stage\.weights=.*nowhere\.pt: no such file"):
        start_from(network, "small", str(tmp_path / "nowhere.pt"), 4)


def test_what_weights_hold_is_hashed_and_not_where_they_lie(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"the same")
    (tmp_path / "c").write_bytes(b"another")
    a, b, c = (weights_hash("small", str(tmp_path / name)) for name in "abc")
    assert a == b != c


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def test_without_a_network_the_file_to_fetch_and_its_place_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args, **more):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    told = rf"densenet121-a639ec97\.pth is not in {tmp_path}/checkpoints .*not known.*put it there"
    with pytest.raises(UserError, match=told):
        weights_hash("monai/DenseNet121", "imagenet")
    with pytest.raises(UserError, match=r"none for stage\.network=monai/ResNet18; .*DenseNet121"):
        weights_hash("monai/ResNet18", "imagenet")
    with pytest.raises(UserError, match=r"none for stage\.network=small"):
        weights_hash("small", "imagenet")


def test_the_files_of_imagenet_are_those_that_monai_asks_for(monkeypatch):
    from monai.networks.nets import densenet, efficientnet, senet

    asked = [*efficientnet.url_map.values(), *senet.SE_NET_MODELS.values()]

    def note(url, **more):
        asked.append(url)
        raise OSError

    monkeypatch.setattr(densenet, "load_state_dict_from_url", note)
    for name in (n for n in monai_networks.IMAGENET if n.startswith("Dense")):
        with pytest.raises(OSError), torch.device("meta"):
            monai_networks._make(monai_networks._nets("monai/"), name, 1000, 3, pretrained=True)
    assert set(monai_networks.IMAGENET.values()) < {url.rpartition("/")[2] for url in asked}


def test_weights_of_imagenet_are_checked_by_their_name_and_must_hold_every_layer(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    nets = monai_networks._nets("monai/")
    torch.manual_seed(5)
    source = monai_networks._make(nets, "DenseNet121", 1000, 3)
    state = {
        # as the file's author called them
        re.sub(r"layers\.(\w+)(\d)", r"\1.\2", k).replace("class_layers.out", "classifier"): (
            v + 0.01 if v.is_floating_point() else v
        )
        for k, v in source.state_dict().items()
    }
    file = tmp_path / "checkpoints" / monai_networks.IMAGENET["DenseNet121"]
    file.parent.mkdir()
    torch.save(state, file)
    with pytest.raises(UserError, match=r"its SHA-256 begins with \w{8}, expected a639ec97"):
        weights_hash("monai/DenseNet121", "imagenet")
    found = monai_networks.imagenet_state("monai/DenseNet121")
    name = "features.denseblock1.denselayer1.layers.norm1.weight"
    assert torch.equal(found[name], source.state_dict()[name] + 0.01)
    del state["features.denseblock4.denselayer3.conv.1.weight"]  # MONAI would leave it random
    torch.save(state, file)
    told = r"holds no features\.denseblock4\.denselayer3\.layers\.conv1\.weight"
    with pytest.raises(UserError, match=told):
        monai_networks.imagenet_state("monai/DenseNet121")


# --- what is learned, and how fast ------------------------------------------------------------------------------------


def test_each_part_of_a_network_has_its_share_of_the_rate():
    made = module(network="monai/ResNet10", layer_decay=0.5, lr=0.1)
    scale = {
        id(p): g["scale"] for g in made.configure_optimizers().param_groups for p in g["params"]
    }
    names = dict(made.network.named_parameters())
    assert len(scale) == len(names)
    first = {"fc": 1.0, "layer4": 0.5, "layer3": 0.25, "layer2": 0.125, "layer1": 0.0625}
    first |= {"conv1": 0.03125, "bn1": 0.03125}
    for name, p in names.items():
        assert scale[id(p)] == first[name.split(".")[0]], name
    decayed = [g for g in made.configure_optimizers().param_groups if g["weight_decay"] > 0]
    assert all(p.ndim > 1 for g in decayed for p in g["params"])


def test_a_network_without_decay_of_rates_has_the_two_groups_that_it_always_had():
    groups = module().configure_optimizers().param_groups
    assert [g["scale"] for g in groups] == [1.0, 1.0]
    assert [g["weight_decay"] > 0 for g in groups] == [True, False]


@pytest.mark.parametrize(
    ("kept", "learns"), [("stem", {"2", "3", "5", "6", "8", "12"}), ("body", {"12"})]
)
def test_frozen_parts_are_not_learned_and_their_statistics_stay(kept, learns):
    made = module(freeze=kept, members=2)
    for member in made.network.members:
        learned = {n.split(".")[0] for n, p in member.named_parameters() if p.requires_grad}
        assert learned == learns
        assert not member[0][1].training and member[11].training  # its normalisation; the dropout
    made.eval()
    made.train()
    assert not made.network.members[0][0][1].training


def test_weights_that_are_no_part_of_a_child_belong_to_the_first_part():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 3))
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))

    own = Own()
    (head,) = networks.heads(own, 2)
    found = networks.parts(own, head)
    assert found[0][0] is own.token and found[-1][0] is head.weight
    assert sorted(map(id, own.parameters())) == sorted(id(p) for part in found for p in part)
