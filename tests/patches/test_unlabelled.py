"""Import of crops, cells and movies without a label."""

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stemcell_lit.errors import UserError
from stemcell_lit.patches.importing import import_patches
from stemcell_lit.patches.neighbours import joined_to_neighbours
from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.group_keys import ExtractionConfig
from stemcell_lit.settings.patch_keys import ColumnsConfig, ImportCommand, NearConfig


def crops(root, rows):
    """Crops of noise and a table of them."""
    random = np.random.default_rng(0)
    (root / "c").mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.insert(0, "path", [f"c/{i}.png" for i in range(len(table))])
    for path in table["path"]:
        Image.fromarray(random.integers(0, 255, (16, 16), np.uint8)).save(root / path)
    table.to_csv(root / "patches.csv", index=False)
    return root


def take(source, store, **more):
    return import_patches(ImportCommand(str(source), str(store), **more))


def row(label, track, frame=0, x=100, y=100, position="p"):
    at = {"frame": frame, "x": x, "y": y, "position": position}
    return {"label": label, "track": track, **at}


def test_an_empty_label_in_a_table_is_no_label(tmp_path):
    source = crops(tmp_path / "s", [row("a", 1), row("b", 2), row("", 1), row("", 3)])
    store = take(source, tmp_path / "store")
    assert store.classes == ["a", "b"] and store.manifest["label"].tolist() == ["a", "b", "", ""]
    assert store.manifest["group"].tolist() == ["track-1", "track-2", "track-1", "track-3"]


def test_labels_and_folders_named_in_unlabelled_are_no_class(tmp_path):
    source = crops(tmp_path / "s", [row("a", 1), row("later", 2)])
    assert take(source, tmp_path / "x", unlabelled=["later"]).classes == ["a"]
    (source / "patches.csv").unlink()
    (source / "new").mkdir()
    (source / "c" / "1.png").rename(source / "new" / "1.png")
    store = take(source, tmp_path / "y", unlabelled=["new"])
    assert store.manifest["label"].tolist() == ["c", ""]
    with pytest.raises(UserError, match=r"unlabelled=\['old'\]: no patch is labelled 'old'"):
        take(source, tmp_path / "z", unlabelled=["old"])
    with pytest.raises(UserError, match="none of its 2 patches has a label"):
        take(source, tmp_path / "z", unlabelled=["new", "c"])


def test_crops_of_which_nothing_says_what_they_show_are_refused(tmp_path):
    source = crops(tmp_path / "s", [row("a", 1), row("", "")])
    with pytest.raises(UserError, match="1 crops without a label have no track.*near="):
        take(source, tmp_path / "store")
    labelled = crops(tmp_path / "t", [row("a", 1), row("b", "")])
    with pytest.raises(UserError, match="line 3 has no track"):
        take(labelled, tmp_path / "store")
    for near, more, said in (
        (NearConfig(6, None), {}, "expected both"),
        (NearConfig(), {"movies": "m"}, "give near="),
    ):
        with pytest.raises(UserError, match=said):
            take(source, tmp_path / "store", near=near, **more)
    (source / "patches.csv").write_text("path,label,track\nc/0.png,a,1\nc/1.png,,\n")
    with pytest.raises(UserError, match="needs the columns frame, x and y, found no frame"):
        take(source, tmp_path / "store", near=NearConfig(6, 40))
    assert not (tmp_path / "store").exists()


def test_what_lies_near_a_labelled_crop_goes_with_its_group_and_between_two_goes_out(tmp_path):
    rows = [
        row("a", 1, 10, 100),
        row("b", 2, 10, 170),
        row("", "", 16, 60),  # 6 frames, 40 px from track 1
        row("", "", 17, 60),  # 7 frames
        row("", "", 10, 59),  # 41 px
        row("", "", 10, 135),  # 35 px from both
        row("", "", 10, 100, position="q"),  # another field
    ]
    source, columns = crops(tmp_path / "s", rows), ColumnsConfig(movie="position")
    store = take(source, tmp_path / "store", near=NearConfig(6, 40), columns=columns)
    groups = dict(zip(store.manifest["source"], store.manifest["group"], strict=True))
    assert groups["c/2.png"] == "track-1" and "c/5.png" not in groups
    assert [groups[f"c/{i}.png"] for i in (3, 4, 6)] == ["crop-3", "crop-4", "crop-6"]
    assert store.info["made_by"]["near"] == {"frames": 6, "px": 40}


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "a"]),
            st.integers(0, 4),
            st.sampled_from("pq"),
            st.integers(0, 12),
            st.integers(0, 120),
            st.integers(0, 40),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_no_unlabelled_patch_is_near_a_labelled_one_of_another_group(rows):
    names = ["label", "group", "field", "frame", "x", "y"]
    table = pd.DataFrame(rows, columns=names)
    table["group"] = [
        f"{'u' if not label and g > 2 else 'g'}{g}"
        for label, g in zip(table["label"], table["group"], strict=True)
    ]
    groups, keep, _ = joined_to_neighbours(table, NearConfig(3, 20), "t")
    known = (table["label"] != "").to_numpy()
    assert keep[known].all()
    assert [g for g, k in zip(groups, known, strict=True) if k] == table["group"][known].tolist()
    for i in np.flatnonzero(keep & ~known):
        for j in np.flatnonzero(known):
            a, b = table.iloc[i], table.iloc[j]
            close = a["field"] == b["field"] and abs(a["frame"] - b["frame"]) <= 3
            if close and np.hypot(a["x"] - b["x"], a["y"] - b["y"]) <= 20:
                assert groups[i] == groups[j]


def spots(path, places, frames=2):
    """A movie of bright spots on a dark ground, which stay where they are."""
    movie = np.full((frames, 120, 160), 20, np.uint8)
    for y, x in places:
        movie[:, y - 5 : y + 5, x - 5 : x + 5] = 200
    movie += np.random.default_rng(0).integers(0, 5, movie.shape, np.uint8)
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, movie)
    return path


def test_cells_of_the_fields_join_without_a_label(tmp_path):
    rows = [row("a", 1, 0, 40, 40, "p"), row("b", 2, 1, 120, 80, "p")]
    source = crops(tmp_path / "s", rows)
    spots(tmp_path / "m" / "p.tif", [(40, 42), (80, 40), (60, 100), (4, 90)])
    more = {"columns": ColumnsConfig(movie="position"), "um_per_px": 2.0}
    more |= {"colonies": ColoniesConfig(method="contrast"), "near": NearConfig(6, 10)}
    store = take(source, tmp_path / "store", movies=str(tmp_path / "m"), **more)
    bare = store.manifest[~store.labelled]
    assert len(bare) == 6 and set(bare["frame"]) == {0, 1}  # the one at the border is left out
    near = bare[(bare["x"] - 42).abs() + (bare["y"] - 40).abs() < 4]
    assert len(near) == 2 and set(near["group"]) == {"track-1"}
    assert bare["group"].nunique() == 3
    middle = store.pixels[~store.labelled][:, 6:10, 6:10]
    assert (middle >= 200).all()
    (tmp_path / "m" / "p.tif").rename(tmp_path / "m" / "other.tif")
    with pytest.raises(UserError, match="'other', and the column movie of the crops names p"):
        take(source, tmp_path / "store2", movies=str(tmp_path / "m"), **more)
    assert not (tmp_path / "store2").exists()


def test_movies_without_class_maps_give_patches_without_a_label_where_they_are_named(tmp_path):
    for name in "ab":
        spots(tmp_path / "m" / f"{name}.tif", [(40, 40), (80, 110)])
    maps = np.zeros((2, 120, 160), np.uint8)
    maps[:, 20:60, 20:60], maps[:, 60:100, 90:130] = 1, 2
    tifffile.imwrite(tmp_path / "m" / "a_classes.tif", maps)
    more = {"classes": ["x", "y"], "um_per_px": 2.0, "blocks": 2}
    more |= {"extraction": ExtractionConfig(patch_size=16, foreground=0.1)}
    more |= {"colonies": ColoniesConfig(method="contrast")}
    with pytest.warns(UserWarning, match=r"unlabelled=\[b\] takes patches of it"):
        plain = take(tmp_path / "m", tmp_path / "s", **more)
    store = take(tmp_path / "m", tmp_path / "t", unlabelled=["b"], **more)
    bare = store.manifest[~store.labelled]
    assert len(bare) and set(bare["group"]) == {"b"} and set(bare["source"]) == {"b.tif"}
    known = np.flatnonzero(store.labelled)
    assert np.array_equal(store.pixels[known], plain.pixels)
    assert store.manifest.iloc[known].reset_index(drop=True).equals(plain.manifest)
    with pytest.raises(UserError, match="'a' is no movie without class maps; these are b"):
        take(tmp_path / "m", tmp_path / "u", unlabelled=["a"], **more)
    with pytest.raises(UserError, match="go with crops that a table names, found class maps"):
        take(tmp_path / "m", tmp_path / "u", near=NearConfig(1, 1), **more)
