"""Unsure places, probabilities, and what Fiji and napari show of the maps."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL.ImageColor import getrgb

from stemcell_lit.base.drawing import GREY
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import open_frames
from stemcell_lit.predict import napari
from stemcell_lit.predict.found import Values
from stemcell_lit.predict.mapper import Mapper
from stemcell_lit.settings.command_keys import PredictCommand
from tests.predict.test_predict import CLASSES, make_model, make_stage, movie_of, noise, run


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Folder of a model, a movie and its maps, with a threshold that about half of the windows miss."""
    folder = tmp_path_factory.mktemp("mapped")
    (folder / "model").mkdir()
    model = make_model(stage=make_stage(groups=CLASSES))
    movie = movie_of(folder / "movie.ome.tif", noise(3, 96, 128))
    mapper = Mapper(model, (96, 128), 1.0, 16, exact=True)
    with open_frames(movie) as frames:
        p = np.stack([mapper.probabilities(frames.read(i), 2.0 * i) for i in range(3)])
    threshold = round(float(np.median(p.max(-1))), 6)
    replace(model, unsure_below=threshold).save(folder / "model")
    run(movie, folder / "model", folder / "out", exact=True, probabilities=True)
    return (
        folder,
        threshold,
        np.stack([[mapper.spread(q) for q in w.transpose(2, 0, 1)] for w in p]),
    )


def test_what_is_below_the_models_threshold_is_unsure_in_map_shares_and_classes(mapped):
    folder, threshold, p = mapped
    maps = tifffile.imread(folder / "out/classes.ome.tif")
    unsure = p.max(1) < threshold
    assert 0.2 < unsure.mean() < 0.8
    np.testing.assert_array_equal(maps, np.where(unsure, 3, p.argmax(1) + 1))
    shares, colonies, classes = (
        pd.read_csv(folder / f"out/{n}.csv") for n in ("shares", "colonies", "classes")
    )
    for table in (shares, colonies):
        parts = table[[f"share/{n}" for n in (*CLASSES, "unsure")]]
        np.testing.assert_allclose(parts.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(parts["share/unsure"], unsure.mean((1, 2)), atol=1e-5)
    assert classes["class"].tolist() == [*CLASSES, "unsure"]
    np.testing.assert_allclose(classes["mean_area_um2"].sum(), 96 * 128, rtol=1e-5)
    np.testing.assert_allclose(classes["mean_share"].iloc[2], unsure.mean(), rtol=1e-4)
    # one colony fills the frame
    best = (p.argmax(1)[:, None] == np.arange(2)[None, :, None, None]).sum((2, 3)).argmax(1)
    mean = p.mean((2, 3))[np.arange(3), best]
    assert colonies["class"].tolist() == [CLASSES[b] for b in best]
    np.testing.assert_allclose(colonies["probability"], mean, rtol=1e-4)
    assert colonies["unsure"].tolist() == (mean < threshold).tolist()


def test_a_threshold_of_0_leaves_nothing_unsure_and_one_of_the_users_goes_first(mapped, tmp_path):
    folder, threshold, _ = mapped
    model = TrainedHierarchy.load(folder / "model")
    assert model.unsure_below == threshold
    for given, expected in ((None, threshold), (0, None), (0.9, 0.9)):
        found = Values.of(PredictCommand("m", "c", "o", unsure=given), model)
        assert found.threshold == expected and found.last == 2 + (expected is not None)
    out = run(folder / "movie.ome.tif", folder / "model", tmp_path / "out", exact=True, unsure=0)
    assert set(np.unique(tifffile.imread(out / "classes.ome.tif"))) <= {1, 2}
    assert "share/unsure" not in pd.read_csv(out / "shares.csv")


def test_the_threshold_of_a_model_with_a_path_is_one_of_colonies():
    model = make_model()
    model.unsure_below = 0.8
    model.hierarchy = replace(model.hierarchy, temporal="path")
    own, given = (Values.of(PredictCommand("m", "c", "o", unsure=u), model) for u in (None, 0.6))
    assert (own.threshold, own.of_colonies) == (None, 0.8)
    assert (given.threshold, given.of_colonies) == (0.6, 0.6)


def test_a_class_called_unsure_and_more_classes_than_values_are_refused():
    model = make_model()
    config = PredictCommand("m", "c", "o", unsure=0.5)
    model.hierarchy = replace(model.hierarchy, classes=["unsure", "dark"])
    with pytest.raises(UserError, match=r"class of the name 'unsure' already; give unsure=0"):
        Values.of(config, model)
    model.hierarchy = replace(model.hierarchy, classes=[f"c{i}" for i in range(255)])
    with pytest.raises(UserError, match="255 classes; a class map tells at most 255 apart"):
        Values.of(config, model)


def test_probabilities_are_written_for_each_class_and_pixel_and_say_what_they_mean(mapped):
    folder, _, p = mapped
    with tifffile.TiffFile(folder / "out/probabilities.ome.tif") as tiff:
        found, axes, xml = tiff.asarray(), tiff.series[0].axes, tiff.ome_metadata
    assert axes == "TCYX" and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.rint(p * 255))
    assert all(f'Name="{c}"' in xml for c in CLASSES) and "round(255 p)" in xml
    assert not list((folder / "out").glob("*.part"))


def test_the_maps_tell_fiji_and_napari_names_and_colours(mapped):
    """What Bio-Formats reads: indexed colours, the image's name below the title, the description, um and hours."""
    folder, *_ = mapped
    with tifffile.TiffFile(folder / "out/classes.ome.tif") as tiff:
        page, xml = tiff.pages.first, tiff.ome_metadata
        assert page.photometric == tifffile.PHOTOMETRIC.PALETTE
        table = page.colormap // 257
    record = json.loads((folder / "out/predict.json").read_text())
    assert record["values"] == [*CLASSES, "unsure"] and record["colours"][-1] == GREY
    for i, colour in enumerate(record["colours"], 1):
        assert tuple(table[:, i]) == getrgb(colour)
    assert not table[:, 0].any()
    tree = ElementTree.fromstring(xml)
    space = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    image = tree.find("o:Image", space)
    assert image.get("Name") == "1 dark, 2 bright, 3 unsure"
    assert image.find("o:Description", space).text == "0 background; 1 dark; 2 bright; 3 unsure"
    pixels = image.find("o:Pixels", space)
    assert pixels.get("PhysicalSizeX") == "1.0" and pixels.get("TimeIncrement") == "2.0"


def test_napari_gets_labels_with_names_and_colours_over_the_movie(mapped):
    folder, *_ = mapped
    out = folder / "out"
    for place in (out, out / "classes.ome.tif"):
        (image, about, kind), (labels, more, other) = napari.get_reader(str(place))(str(place))
        assert (kind, other) == ("image", "labels") and about["name"] == "movie.ome.tif"
        np.testing.assert_array_equal(image, noise(3, 96, 128))
        np.testing.assert_array_equal(labels, tifffile.imread(out / "classes.ome.tif"))
        assert about["scale"] == more["scale"] == (1.0, 1.0, 1.0)
        assert more["features"]["class"].tolist() == ["background", *CLASSES, "unsure"]
        assert more["features"]["index"].tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(more["colormap"][3][:3], np.array(getrgb(GREY)) / 255, atol=1e-6)
        assert more["colormap"][0][3] == 0


def test_napari_gets_the_maps_alone_where_their_movie_is_gone(mapped, tmp_path):
    folder, *_ = mapped
    alone = tmp_path / "renamed.tif"
    alone.write_bytes((folder / "out/classes.ome.tif").read_bytes())
    layers = napari.get_reader(str(alone))(str(alone))
    assert [kind for *_, kind in layers] == ["labels"]


def test_the_reader_leaves_to_napari_what_is_not_of_predict(mapped, tmp_path):
    folder, *_ = mapped
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    tifffile.imwrite(tmp_path / "plain.tif", noise(2, 32, 32))
    for path in (
        *(folder / "movie.ome.tif", folder / "out/probabilities.ome.tif", folder),
        *(tmp_path / "broken.tif", tmp_path / "plain.tif", tmp_path / "nowhere.ome.tif"),
    ):
        assert napari.get_reader(str(path)) is None
    assert napari.get_reader([str(folder / "out")]) is None


def test_the_manifest_names_a_function_that_is_there_and_is_found_by_napari():
    file = Path(napari.__file__).with_suffix(".yaml")
    about = yaml.safe_load(file.read_text(encoding="utf-8"))
    (command,) = about["contributions"]["commands"]
    module, name = command["python_name"].split(":")
    assert getattr(import_module(module), name) is napari.get_reader
    assert about["contributions"]["readers"][0]["command"] == command["id"]
    npe2 = pytest.importorskip("npe2")
    npe2.PluginManifest.from_file(file).validate_imports()


def test_nothing_of_the_program_imports_the_reader_for_napari():
    package = Path(napari.__file__).parents[1]
    texts = (p.read_text(encoding="utf-8") for p in package.rglob("*.py"))
    assert not any("predict.napari" in t or "import napari" in t for t in texts)
