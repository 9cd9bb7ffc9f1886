"""The way of a newcomer who installs the package: own classes in, one model out, without a checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.conftest import SHARED, make_patches

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The command of the wheel, in a virtual environment of its own that borrows what the package requires."""
    root = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    venv.create(root / "venv", with_pip=False)
    place = next((root / "venv" / "lib").glob("python*")) / "site-packages"
    wheel = next(root.glob("*.whl"))
    zipfile.ZipFile(wheel).extractall(place)
    (place / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return [str(root / "venv" / "bin" / "python"), "-m", "stemcell_lit"]


def call(program, *words, cwd):
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*program, *words], cwd=cwd, env=clean, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


def test_the_wheel_carries_what_is_not_code(program, tmp_path):
    code, said = call(program, "--version", cwd=tmp_path)
    assert code == 0 and "stemcell-lit" in said
    place = next(Path(program[0]).parents[1].glob("lib/python*/site-packages"))
    for name in (
        "stemcell_lit/conf/run.yaml",
        "stemcell_lit/conf/hierarchy/colony.yaml",
        "stemcell_lit/report/report.html.j2",
        "stemcell_lit/report/report.css",
        "stemcell_lit/predict/napari.yaml",
        "hydra_plugins/stemcell_lit_launcher/__init__.py",
    ):
        assert (place / name).is_file(), name


def lab_of_small_pictures(folder):
    """Crops beside a CSV with hours under another name, classes as a lab may call them, and a movie."""
    rng = np.random.default_rng(0)
    classes = ["lag phase", "yes", "late"]
    rows = ["path,label,track,hours"]
    (folder / "crops").mkdir()
    for i, pixels in enumerate(make_patches(np.arange(72) % 3, 16, rng)):
        Image.fromarray(pixels).save(folder / "crops" / f"{i}.png")
        rows.append(f"{i}.png,{classes[i % 3]},t{i // 4},{i % 3 * 10 + i % 2}")
    (folder / "crops" / "patches.csv").write_text("\n".join(rows) + "\n")
    movie = rng.integers(0, 255, (2, 64, 64)).astype(np.uint8)
    tifffile.imwrite(folder / "movie.tif", movie, metadata={"axes": "TYX"})
    return "crops", "movie.tif", classes, [], (2, 64, 64)


def lab_of_exp911(folder):
    """Real crops of dividing cells and the raw frames that some were cut from."""
    crops, frames = SHARED / "cellcognition-exp911", SHARED / "cellcognition-frames"
    if not (crops.is_dir() and frames.is_dir()):
        pytest.skip("no real crops and frames here")
    classes = ["apo", "earlyana", "inter", "lateana", "meta", "pro", "prometa", "telo"]
    return str(crops), str(frames), classes, ["every=10", "stride=64"], (1, 1040, 1392)


@pytest.mark.parametrize("lab", [lab_of_small_pictures, lab_of_exp911])
def test_from_own_classes_to_a_model_in_use_without_a_checkout(program, tmp_path, lab):
    source, movie, classes, coarse, shape = lab(tmp_path)

    def done(*words):
        code, said = call(program, *words, cwd=tmp_path)
        assert code == 0, said
        return said

    done("import", f"source={source}", "store=stores/cells", "um_per_px=0.65")
    done("init", ".", "store=stores/cells", "name=lab")
    small = ["profile=smoke", "trainer=cpu", "seeds=[0]", "methods=[flat,classic]", "resamples=50"]
    said = done("reproduce", "experiment=lab", "out=results/lab", *small)
    assert "own settings: " in said
    assert "stemcell-lit deliver out=results/lab" in said
    done("deliver", "out=results/lab")
    model = json.loads((tmp_path / "results" / "lab" / "model" / "model.json").read_text())
    assert set(model["hierarchy"]["classes"]) == set(classes)
    where = [f"movie={movie}", "checkpoint=results/lab", "out=maps", "colonies=none"]
    done("predict", *where, "um_per_px=0.65", *coarse)
    maps = tifffile.imread(tmp_path / "maps" / "classes.ome.tif").reshape(shape)
    assert 0 < maps.max() <= len(classes) + 1  # one more: unsure
