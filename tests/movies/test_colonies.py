"""Colonies: where they are, at any magnification; who is who over time; what merged and split."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from omegaconf import OmegaConf
from scipy import ndimage as ndi

from stemcell_lit.errors import UserError
from stemcell_lit.movies.colonies import (
    PixelClassifier,
    classifier_of,
    drop_near_border,
    foreground,
    label_colonies,
)
from stemcell_lit.movies.frames import open_frames
from stemcell_lit.movies.tracks import EVENT_COLUMNS, TABLE_COLUMNS, track
from stemcell_lit.settings.colony_keys import ColoniesConfig, ContrastConfig, PaperConfig
from stemcell_lit.settings.command_keys import PredictCommand, typed
from stemcell_lit.settings.compose import compose

CONF = Path(__file__).parents[2] / "conf" / "colonies"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "phc-c2dl-psc"


def cells(um_per_px: float = 1.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A field of 320 x 320 um under uneven light with bright round cells of 24 um."""
    rng = np.random.default_rng(seed)
    size = round(320 / um_per_px)
    y, x = np.mgrid[:size, :size] * um_per_px
    truth = np.zeros((size, size), bool)
    for cy in range(40, 300, 60):
        for cx in range(40, 300, 60):
            truth |= np.hypot(y - cy, x - cx) < 12
    light = 0.25 + 0.15 * x / 320
    body = ndi.gaussian_filter(truth.astype(np.float32), 2 / um_per_px)
    frame = light * (1 + 0.8 * body) + rng.normal(0, 0.002, truth.shape)
    return frame.astype(np.float32), truth


def f1(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def configured(name: str) -> ColoniesConfig:
    schema = OmegaConf.structured(ColoniesConfig)
    return OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.load(CONF / f"{name}.yaml")))


# --- foreground ---------------------------------------------------------------------------------


@pytest.mark.parametrize("um_per_px", [0.8, 1.6, 2.4])
def test_settings_in_micrometres_hold_at_any_magnification(um_per_px):
    frame, truth = cells(um_per_px)
    mask = foreground(frame, ColoniesConfig(grow_um=0), um_per_px)
    assert f1(mask, truth) > 0.85
    assert label_colonies(mask).max() == 25


def test_the_papers_map_finds_every_cell():
    frame, truth = cells()
    mask = foreground(frame, configured("paper"), 1.6)
    assert mask.shape == truth.shape and mask.dtype == bool
    assert (mask & truth).sum() / truth.sum() > 0.95
    assert f1(mask, truth) > 0.5  # entropy spreads by its radius: outlines lie too far out


@pytest.mark.parametrize("name", sorted(p.stem for p in CONF.glob("*.yaml")))
def test_every_configuration_is_legal_and_named_after_its_file(name):
    config = configured(name)
    assert config.name == name
    frame, truth = cells()
    classifier = None
    if config.method == "forest":
        config.forest.trees = 20
        classifier = PixelClassifier(config, 1.6).fit([(*cells(seed=1), None)])
    mask = foreground(frame, config, 1.6, classifier=classifier)
    assert (mask & truth).sum() / truth.sum() > 0.9
    assert f1(mask, truth) > 0.4


def test_what_methods_share_stands_on_top_and_each_has_its_own_below_its_name():
    words = ["movie=m", "checkpoint=c", "out=o", "colonies=colony"]
    own = ["colonies.grow_um=1", "colonies.contrast.low=0.07", "colonies.forest.trees=7"]
    found = typed(compose("predict", [*words, *own]), PredictCommand).colonies
    assert (found.grow_um, found.join_um, found.forest.trees) == (1.0, 15.0, 7)
    assert found.contrast == ContrastConfig(cell_um=5.0, low=0.07, high=0.08, polarity="both")
    assert found.paper == PaperConfig()


def test_a_forest_learns_from_annotated_pixels_alone():
    """Labels outside of `where` are wrong on purpose."""
    config = configured("forest")
    config.forest.trees = 20
    frame, truth = cells(seed=1)
    where = np.zeros_like(truth)
    where[:100] = True
    classifier = PixelClassifier(config, 1.6).fit([(frame, np.where(where, truth, ~truth), where)])
    other, expected = cells(seed=2)
    probability = classifier.probability(other)
    assert probability.dtype == np.float32 and probability.shape == other.shape
    assert f1(foreground(other, config, 1.6, classifier=classifier), expected) > 0.95


def write_annotated(folder, um_per_px=1.6):
    """Six frames of cells, of which two are annotated; returns the settings that name them."""
    scenes = [cells(um_per_px, seed=i) for i in range(6)]
    masks = np.stack([t if i in (1, 4) else np.zeros_like(t) for i, (_, t) in enumerate(scenes)])
    pixels = np.stack([np.rint(255 * f.clip(0, 1)) for f, _ in scenes]).astype(np.uint8)
    tifffile.imwrite(folder / "few.tif", pixels, photometric="minisblack")
    tifffile.imwrite(folder / "few_masks.tif", masks.astype(np.uint8), photometric="minisblack")
    config = configured("forest")
    config.forest.trees, config.forest.pixels = 20, 5000
    config.forest.movie, config.forest.masks = (
        str(folder / "few.tif"),
        str(folder / "few_masks.tif"),
    )
    config.forest.um_per_px = um_per_px
    return config


def test_a_forest_is_fitted_anew_to_the_same_trees(tmp_path):
    config = write_annotated(tmp_path)
    other, expected = cells(seed=9)
    one, two = (classifier_of(config) for _ in range(2))
    np.testing.assert_array_equal(one.probability(other), two.probability(other))
    assert f1(foreground(other, config, 1.6, classifier=one), expected) > 0.95
    finer, truth = cells(0.8, seed=9)  # a movie of another magnification
    assert f1(foreground(finer, config, 0.8, classifier=one), truth) > 0.9
    assert classifier_of(configured("contrast")) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"masks": None}, "give colonies.forest.movie"),
        ({"masks": "few_short.tif"}, "few_short.tif: found 5 maps"),
        ({"masks": "few_blank.tif"}, "few_blank.tif: .*annotate at least one frame"),
        ({"um_per_px": None}, "give um_per_px"),
        ({"frames": 0}, "forest.frames=0"),
    ],
)
def test_a_forest_without_proper_annotation_is_refused(tmp_path, change, says):
    config = write_annotated(tmp_path)
    masks = tifffile.imread(tmp_path / "few_masks.tif")
    tifffile.imwrite(tmp_path / "few_short.tif", masks[:5], photometric="minisblack")
    tifffile.imwrite(tmp_path / "few_blank.tif", masks * 0, photometric="minisblack")
    for key, value in change.items():
        setattr(config.forest, key, str(tmp_path / value) if isinstance(value, str) else value)
    with pytest.raises(UserError, match=says):
        classifier_of(config)


@pytest.mark.parametrize("method", ["contrast", "paper"])
def test_a_blank_frame_has_no_colonies(method):
    for level in (0.0, 0.5, 1.0):
        assert not foreground(np.full((60, 70), level), ColoniesConfig(method=method), 1.6).any()


def test_8_bit_and_float_frames_give_one_map():
    frame, _ = cells()
    bits = np.rint(frame * 255).astype(np.uint8)
    a = foreground(bits, ColoniesConfig(), 1.6)
    b = foreground(bits.astype(np.float32) / 255, ColoniesConfig(), 1.6)
    np.testing.assert_array_equal(a, b)


def test_dark_cells_are_found_when_told_so():
    frame, truth = cells()
    dark = ColoniesConfig(grow_um=0, contrast=ContrastConfig(polarity="dark"))
    assert f1(foreground(0.6 - frame, dark, 1.6), truth) > 0.8
    both = configured("colony")
    mask = foreground(0.6 - frame, both, 1.6)
    assert (mask & truth).sum() / truth.sum() > 0.95
    assert f1(mask, truth) > 0.4  # texture is averaged over half a cell: outlines lie further out


def test_small_holes_are_filled_and_gaps_joined():
    frame = np.full((100, 140), 0.3, np.float32)
    frame[40:60, 40:52] = frame[40:60, 56:68] = 0.6
    base = ColoniesConfig(grow_um=0, max_hole_um2=0)
    apart = label_colonies(foreground(frame, base, 1.0)).max()
    joined = label_colonies(foreground(frame, dataclasses.replace(base, join_um=8), 1.0)).max()
    assert (apart, joined) == (2, 1)
    ring = np.full((100, 140), 0.3, np.float32)
    ring[40:60, 40:60] = 0.6
    ring[48:52, 48:52] = 0.3
    for area, filled in ((0, False), (10, False), (100, True), (None, True)):
        config = dataclasses.replace(base, max_hole_um2=area)
        assert foreground(ring, config, 1.0)[50, 50] == filled


@given(hnp.arrays(bool, (12, 15)), st.floats(0, 6))
def test_dropping_near_the_border_keeps_whole_colonies_or_none(mask, margin):
    kept = drop_near_border(mask, margin)
    labels = label_colonies(mask)
    assert not (kept & ~mask).any()
    for label in range(1, labels.max() + 1):
        part = kept[labels == label]
        centre = np.array(np.nonzero(labels == label)).mean(1)
        inside = (centre >= margin).all() and (centre < np.array(mask.shape) - margin).all()
        assert part.all() if inside else not part.any()


def test_what_cannot_be_done_is_said():
    frame, _ = cells()
    for config, um, word in (
        (ColoniesConfig(), None, "um_per_px"),
        (ColoniesConfig(), -1.0, "um_per_px"),
        (ColoniesConfig(method="magic"), 1.6, "magic"),
        (ColoniesConfig(contrast=ContrastConfig(polarity="up")), 1.6, "contrast.polarity=up"),
        (ColoniesConfig(contrast=ContrastConfig(low=0.3)), 1.6, "contrast.low"),
        (ColoniesConfig(contrast=ContrastConfig(cell_um=0)), 1.6, "contrast.cell_um"),
        (ColoniesConfig(grow_um=-1), 1.6, "grow_um"),
        (ColoniesConfig(method="forest"), 1.6, "classifier"),
    ):
        with pytest.raises(UserError, match=word):
            foreground(frame, config, um)
    with pytest.raises(UserError, match="shape"):
        foreground(np.zeros((2, 3, 4)), ColoniesConfig(), 1.6)
    with pytest.raises(UserError, match="fit"):
        PixelClassifier(ColoniesConfig(), 1.6).probability(frame)
    with pytest.raises(UserError, match="annotate"):
        PixelClassifier(ColoniesConfig(), 1.6).fit([(frame, np.zeros(frame.shape, bool), None)])


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"reference movie {SHARED.name} is not there")
def test_contrast_agrees_with_the_reference_annotation():
    """Three frames that the settings were not chosen on; the benchmark does all."""
    with open_frames(SHARED / "frames.tif") as frames, open_frames(SHARED / "foreground.tif") as t:
        for i in (47, 167, 287):
            found = foreground(frames.read(i), ColoniesConfig(margin_um=32), 1.6)
            assert f1(found, t.read(i) > 127) > 0.84


# --- tracks -------------------------------------------------------------------------------------


def boxes(*corners: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    for top, left, bottom, right in corners:
        mask[top:bottom, left:right] = True
    return mask


def test_a_moving_colony_keeps_its_track_and_its_figures():
    masks = [boxes((10, 2 + 3 * t, 20, 12 + 3 * t)) for t in range(6)]
    tracks = track(masks, um_per_px=2.0)
    assert list(tracks.table.columns) == list(TABLE_COLUMNS)
    assert tracks.table["track"].tolist() == [1] * 6
    last = tracks.table.iloc[-1]
    assert (last["area_px"], last["area_um2"]) == (100, 400)
    assert (last["y"], last["x"]) == (14.5, 21.5)
    assert not tracks.table["cut"].any()
    assert tracks.events.empty and list(tracks.events.columns) == list(EVENT_COLUMNS)


def test_a_merge_is_recorded_and_the_larger_goes_on():
    apart = boxes((10, 5, 20, 20), (10, 25, 20, 30))
    tracks = track([apart, boxes((10, 5, 20, 30))])
    assert tracks.table["track"].tolist() == [1, 2, 1]
    assert tracks.events.to_dict("records") == [
        {"frame": 1, "kind": "merge", "track": 2, "other": 1}
    ]


def test_a_split_is_recorded_and_the_larger_goes_on():
    apart = boxes((10, 5, 20, 20), (10, 25, 20, 30))
    tracks = track([boxes((10, 5, 20, 30)), apart])
    assert tracks.table["track"].tolist() == [1, 1, 2]
    assert tracks.events.to_dict("records") == [
        {"frame": 1, "kind": "split", "track": 2, "other": 1}
    ]


def test_a_colony_missed_for_one_frame_keeps_its_track():
    here, empty = boxes((10, 5, 20, 20)), boxes()
    assert track([here, empty, here]).table["track"].tolist() == [1, 1]
    assert track([here, empty, empty, here]).table["track"].tolist() == [1, 2]


def test_a_touch_below_the_least_overlap_is_no_link():
    first, touching, overlapping = (boxes((10, at, 20, at + 20)) for at in (5, 24, 23))
    assert track([first, touching]).table["track"].tolist() == [1, 2]  # a twentieth is shared
    assert track([first, overlapping]).table["track"].tolist() == [1, 1]  # a tenth


def test_colonies_cut_by_the_frame_are_marked():
    tracks = track([boxes((0, 5, 8, 9), (20, 20, 30, 30), (30, 50, 40, 60))])
    assert tracks.table["cut"].tolist() == [True, False, True]


def test_a_movie_without_colonies_has_an_empty_table():
    for masks in ([], [boxes()] * 3):
        tracks = track(masks)
        assert tracks.table.empty and tracks.events.empty
        assert list(tracks.table.columns) == list(TABLE_COLUMNS)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 7), st.just(9), st.just(8))))
def test_tracks_and_events_fit_together(masks):
    tracks = track(iter(masks))
    table, events = tracks.table, tracks.events
    # every colony of every frame, once, and no track twice in a frame
    assert len(table) == sum(label_colonies(m).max() for m in masks)
    assert not table.duplicated(["frame", "track"]).any()
    assert not table.duplicated(["frame", "label"]).any()
    assert sorted(table["track"].unique()) == list(range(1, table["track"].nunique() + 1))
    # a track is absent for no more than one frame
    for _, frames in table.groupby("track")["frame"]:
        assert (np.diff(frames) <= 2).all()
    # who merges is gone from that frame on; who splits off begins there; the other goes on
    first, last = (table.groupby("track")["frame"].agg(how) for how in ("min", "max"))
    present = set(zip(table["frame"], table["track"], strict=True))
    for event in events.itertuples():
        assert (event.frame, event.other) in present
        if event.kind == "merge":
            assert last[event.track] == event.frame - 1
        else:
            assert first[event.track] == event.frame
            assert first[event.other] < event.frame
    assert not events.duplicated(["kind", "track"]).any()
    # painting gives each colony the number of its track
    for number, mask in enumerate(masks):
        labels = label_colonies(mask)
        rows = table[table["frame"] == number]
        painted = tracks.paint(labels, number)
        assert (painted > 0).tolist() == mask.tolist()
        for label, name in zip(rows["label"], rows["track"], strict=True):
            assert (painted[labels == label] == name).all()


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(bool, (9, 8)), st.integers(2, 5))
def test_colonies_that_rest_keep_their_tracks(mask, count):
    tracks = track([mask] * count)
    assert tracks.events.empty
    assert tracks.table["track"].nunique() == label_colonies(mask).max()


def test_wrong_masks_are_refused():
    with pytest.raises(UserError, match="frame 1"):
        track([boxes(), boxes()[:5]])
