"""Networks by name in whole trials: the documented one of a user's own, weights, what is refused first."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from safetensors.torch import load_file

from stemcell_lit.classify import networks
from stemcell_lit.classify.network_features import NetworkFeatures
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.evaluation import evaluate_store
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.results import collect
from stemcell_lit.experiment.run import run
from stemcell_lit.experiment.trial import prepare, with_settings
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.predict.command import predict
from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.command_keys import EvaluateCommand, PredictCommand, RunCommand, typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store

DOCS = Path(__file__).resolve().parents[2] / "docs" / "networks.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a store, and with the documented module, which is forgotten afterwards."""
    make_store(tmp_path / "store", movies=4, frames=3, size=16)
    (tmp_path / "my_networks.py").write_text(BLOCKS[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_networks", None)


def config(*words, **more):
    base = ["profile=smoke", "trainer=cpu", "method=flat", "logger=disabled", "data.store=store"]
    base += ["stage.images=32", "stage.validate_every_images=32", "out=out", "data.patch_size=null"]
    return typed(compose("run", [*base, *words]), RunCommand)


def weights(file, seed, network="small"):
    torch.save(networks.build(network, 4, 4, 0.2, seed=seed).state_dict(), file)


def test_the_documented_network_of_ones_own_is_twelve_lines_that_train_and_map_a_movie(place):
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 12
    trial = run(config("stage.network=module:my_networks.plain", "stage.width=4"))
    model, out = trial / "model", place / "maps"
    movie = np.random.default_rng(0).integers(0, 255, (2, 48, 48)).astype(np.uint8)
    tifffile.imwrite(place / "movie.tif", movie)
    asked = {"movie": "movie.tif", "checkpoint": str(model), "out": str(out), "threads": 1}
    asked["colonies"] = ColoniesConfig(method="none")
    del sys.modules["my_networks"]
    with pytest.raises(UserError, match=r"give allow_module=my_networks\.plain"):
        predict(PredictCommand(**asked))
    with pytest.raises(UserError, match=r"give allow_module=my_networks\.plain"):
        evaluate_store(EvaluateCommand(str(model), "store", "again"))
    assert "my_networks" not in sys.modules and not out.exists()
    predict(PredictCommand(**asked, allow_module="my_networks.plain", um_per_px=1.0))
    about = json.loads((out / "predict.json").read_text())
    assert about["shared"] == ["root"] and not about["exact"]
    evaluate_store(EvaluateCommand(str(model), "store", "again", "my_networks.plain"))


@pytest.mark.parametrize("network", ["monai/ResNet10", "module:my_networks.strided"])
def test_predict_cuts_windows_out_where_layers_share_nothing_and_says_so(network, place):
    with (place / "my_networks.py").open("a") as file:
        file.write(
            "\n\ndef strided(outputs, width, dropout, channels):\n"
            "    return nn.Sequential(nn.Conv2d(channels, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
            "        nn.Linear(8, outputs))\n"
        )
    trial = run(config(f"stage.network={network}"))
    tifffile.imwrite(place / "movie.tif", np.zeros((1, 40, 40), np.uint8))
    command = PredictCommand(
        "movie.tif", str(trial / "model"), "maps", ColoniesConfig(method="none")
    )
    command.allow_module, command.um_per_px = "my_networks.strided", 1.0
    with pytest.warns(
        UserWarning, match=f"stage root: stage.network={network}: its windows cannot"
    ):
        predict(command)
    about = json.loads((place / "maps" / "predict.json").read_text())
    assert about["shared"] == [] and about["exact"]
    assert any("its windows are cut out" in notice for notice in about["notices"])


# --- features of a network, under a classical model ---------------------------------------------------------------


def features_of(network, weights=None):
    words = [f"classic.features={network}", "method=classic", "classic=linear"]
    return [*words, *([f"classic.weights={weights}"] if weights else [])]


def test_a_classical_model_learns_from_what_the_body_of_a_network_says(place):
    for name, seed in (("a.pt", 1), ("b.pt", 2)):
        torch.save(networks.build("small", 4, 16, 0.2, seed=seed).state_dict(), name)
    trial = run(config(*features_of("small", "a.pt")))
    about = json.loads((trial / "result.json").read_text())
    assert about["importance"] is None  # its features have no names
    for file in place.glob("*.pt"):
        file.rename(file.with_suffix(".gone"))  # the model holds what it needs
    model = TrainedHierarchy.load(trial / "model")
    store = PatchStore.open("store")
    table = pd.read_parquet(trial / "predictions.parquet")
    rows = table["patch"].to_numpy()
    p, _ = model.predict(store.pixels[rows], store.manifest.iloc[rows])
    kept = table[[f"p/{c}" for c in store.classes]].to_numpy()
    np.testing.assert_allclose(kept, p, atol=1e-4)
    extractor = model.stages["root"].table.extractor
    turned = np.rot90(store.pixels[rows], 1, (1, 2))
    np.testing.assert_allclose(extractor(turned), extractor(store.pixels[rows]), atol=1e-3)
    for file in place.glob("*.gone"):
        file.rename(file.with_suffix(".pt"))
    a, b = (prepare(config(*features_of("small", f"{n}.pt"))) for n in "ab")
    assert a.hash != b.hash and a.folder == trial
    run(b.config)
    names = {found.method for found in collect("out")}
    assert {f"classic.weights={n}.pt" in "".join(names) for n in "ab"} == {True}, names


def test_features_of_a_network_of_ones_own_need_its_name_again_where_the_model_is_used(place):
    trial = run(config(*features_of("module:my_networks.plain")))
    with pytest.raises(UserError, match="give allow_module=my_networks.plain"):
        TrainedHierarchy.load(trial / "model")
    model = TrainedHierarchy.load(trial / "model", "my_networks.plain")
    assert isinstance(model.stages["root"].table.extractor, NetworkFeatures)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (features_of("small"), "random weights says little; give classic.weights="),
        (features_of("small", "w.pt"), r"w\.pt: .*small: 0\.0\.weight has shape \[4, 1, 3, 3\]"),
        (features_of("smal"), "did you mean small"),
    ],
)
def test_features_that_cannot_be_had_are_refused_before_anything_runs(words, told, place):
    weights("w.pt", 5)
    with pytest.raises(UserError, match=told):
        plan([config(*words)])
    assert not (place / "out").exists()


def test_weights_from_colour_pictures_are_shown_what_they_are_used_to(place):
    state = networks.build("small", 4, 16, 0.2, seed=1).state_dict()
    stem = next(n for n, v in state.items() if v.ndim == 4)
    torch.save(state | {stem: state[stem].expand(-1, 3, -1, -1) / 3}, "rgb.pt")
    torch.save(state, "gray.pt")
    pixels = PatchStore.open("store").pixels[:4]
    gray, rgb = (NetworkFeatures.begin("small", f"{n}.pt", 1, 16) for n in ("gray", "rgb"))
    assert (gray.key["colour"], rgb.key["colour"]) == (False, True)
    seen = (torch.from_numpy(np.array(pixels)).float()[:, None] / 255 - 0.449) / 0.226
    np.testing.assert_allclose(rgb._scaled(torch.from_numpy(np.array(pixels))), seen, atol=1e-5)


def test_the_documented_network_of_timm_is_built_where_timm_imports():
    try:
        scope: dict = {}
        exec(BLOCKS[1], scope)
    except Exception as error:  # of torchvision, too
        pytest.skip(f"timm does not import here: {error}")
    assert scope["lite0"](3, 16, 0.1, 1)(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_another_version_of_a_module_or_of_a_file_of_weights_is_another_trial(place):
    own = config("stage.network=module:my_networks.plain")
    first = prepare(own).hash
    with (place / "my_networks.py").open("a") as file:
        file.write("# changed\n")
    assert prepare(own).hash != first
    weights("a.pt", 1)
    (place / "sub").mkdir()
    (place / "sub" / "b.pt").write_bytes((place / "a.pt").read_bytes())
    weights("c.pt", 2)
    a, b, c = (prepare(config(f"stage.weights={w}")).hash for w in ("a.pt", "sub/b.pt", "c.pt"))
    assert a == b != c and a != prepare(config()).hash
    kept = with_settings(config("stage.weights=a.pt"), {"stage.lr": 0.1})
    assert kept.stage.weights == "a.pt"


def test_other_content_of_weights_that_tuning_tries_is_another_trial(place):
    tuned = config("tune=true", "method.choices=[{stage.weights: a.pt}]")
    weights("a.pt", 1)
    first = prepare(tuned).hash
    assert prepare(tuned).hash == first
    weights("a.pt", 2)
    assert prepare(tuned).hash != first
    with pytest.raises(UserError, match="method.choices: found 3, expected settings such as"):
        with_settings(tuned, 3)


def test_a_trial_begins_with_its_weights_and_is_a_row_of_its_own(place):
    words = ["stage.width=4", "stage.freeze=body", "stage.lr=0.01"]
    weights("w.pt", 5)
    begun = run(config(*words, "stage.weights=w.pt"))
    plain = run(config("stage.width=4"))
    given = torch.load("w.pt", weights_only=True)
    found = load_file(begun / "model" / "stage-0.safetensors")
    changed = {name for name, v in given.items() if not torch.equal(found[f"network.{name}"], v)}
    assert changed == {"12.weight", "12.bias"}  # nor were the statistics of what is frozen
    digits = prepare(config(*words, "stage.weights=w.pt")).outside["weights"][:8]
    names = {trial.method for trial in collect("out")}
    assert plain != begun and any(f"stage.weights=w.pt@{digits}" in name for name in names), names


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stage.freeze=stem"], "stage.freeze=stem: keeps random weights as they are"),
        (["stage.weights=nowhere.pt"], "stage.weights=nowhere.pt: no such file"),
        (
            ["stage.weights=w.pt", "stage.width=8"],
            r"w\.pt: .*0\.0\.weight has shape \[4, 1, 3, 3\]",
        ),
        (["stage.network=valid"], "valid: patches of 16 px leave nothing"),
        (["stage.network=module:my_networks.gone"], "gone of my_networks is not there"),
        (["stage.network=module:my_networks.bare", "stage.retrain_head=0.2"], "no linear layer of"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(words, told, place):
    weights("w.pt", 5)
    with (place / "my_networks.py").open("a") as file:
        file.write(
            "\n\ndef bare(outputs, width, dropout, channels):\n"
            "    return nn.Sequential(nn.Conv2d(channels, outputs, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        )
    with pytest.raises(UserError, match=told):
        plan([config(*words)])
    assert not (place / "out").exists()
