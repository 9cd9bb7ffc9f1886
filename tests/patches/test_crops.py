import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemcell_lit.errors import UserError
from tests.patches.commands import import_crops


def crop(path, value=0, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).convert(mode).save(path)


def folders(root):
    for c, n in (("a", 3), ("b", 2)):
        for i in range(n):
            crop(root / c / f"{i}.png", 10 * i)


def test_a_folder_per_class_imports(tmp_path):
    folders(tmp_path / "src")
    crop(tmp_path / "src" / "a" / "10.png", 99)
    store = import_crops(tmp_path / "src", tmp_path / "s")
    assert store.manifest["source"].tolist() == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
        "a/10.png",
        "b/0.png",
        "b/1.png",
    ]
    assert store.classes == ["a", "b"]
    assert store.pixels[3, 0, 0] == 99
    assert store.manifest["group"].nunique() == 6 and "crop" in store.info["made_by"]["split_by"]


def test_a_table_gives_labels_tracks_and_times(tmp_path):
    folders(tmp_path / "src")
    pd.DataFrame(
        {
            "path": ["a/0.png", "b/1.png"],
            "label": ["x", "y"],
            "track": [7, 7],
            "frame": [2, 4],
            "x": [1, 2],
            "y": [3, 4],
        }
    ).to_csv(tmp_path / "src" / "patches.csv", index=False)
    m = import_crops(tmp_path / "src", tmp_path / "s", hours_per_frame=0.5).manifest
    assert m["group"].tolist() == ["track-7", "track-7"] and m["track"].tolist() == ["7", "7"]
    assert (
        m["time_h"].tolist() == [1.0, 2.0]
        and m["frame"].tolist() == [2, 4]
        and m["y"].tolist() == [3, 4]
    )


def test_colours_become_gray_and_large_crops_are_cut_at_their_centre(tmp_path):
    image = np.zeros((10, 12, 3), np.uint8)
    image[3:7, 4:8] = 200
    (tmp_path / "src" / "a").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "src" / "a" / "c.png")
    store = import_crops(tmp_path / "src", tmp_path / "s", size=4)
    assert (store.pixels == 200).all() and store.pixels.shape == (1, 4, 4)


def make_bad(kind, root):
    if kind == "empty":
        root.mkdir()
        return "expected a folder per class"
    folders(root)
    table = pd.DataFrame({"path": ["a/0.png"], "label": ["a"], "track": [1]})
    if kind == "truncated":
        (root / "a" / "1.png").write_bytes((root / "a" / "1.png").read_bytes()[:40])
        return r"1\.png: cannot be decoded"
    if kind == "16 bit":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "a" / "1.png")
        return "found uint16, expected uint8 as in a/0.png"
    if kind == "escape":
        crop(root.parent / "secret.png")
        table["path"] = "../secret.png"
    if kind == "absent":
        table["path"] = "a/77.png"
    if kind == "column":
        table = table.drop(columns="label")
    if kind == "no track":
        table["track"] = [None]
    if kind == "no number":
        table["frame"] = ["soon"]
    table.to_csv(root / "patches.csv", index=False)
    return {
        "escape": "outside",
        "absent": "no such file",
        "column": "'label' is missing",
        "no track": "line 2 has no track",
        "no number": "'soon', expected a finite number",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "truncated",
        "16 bit",
        "escape",
        "absent",
        "column",
        "no track",
        "no number",
    ],
)
def test_bad_input_gets_one_message_and_leaves_no_store(tmp_path, kind):
    says = make_bad(kind, tmp_path / "src")
    with pytest.raises(UserError, match=says):
        import_crops(tmp_path / "src", tmp_path / "s", hours_per_frame=1)
    assert not (tmp_path / "s").exists()


def test_exp911_imports_split_by_track(exp911, tmp_path):
    store = import_crops(exp911, tmp_path / "s")
    counts = store.manifest["label"].value_counts().to_dict()
    assert counts == {
        "inter": 215, "apo": 199, "telo": 136, "pro": 112, "meta": 110, "lateana": 83, "prometa": 80, "earlyana": 40
    }  # fmt: skip
    # 280 tracks; nine crops are the very picture of a crop in another track, which joins 11 of them into 3
    assert store.manifest["track"].nunique() == 280
    assert store.manifest["group"].nunique() == 272
    assert store.pixels.shape == (975, 64, 64)


def noise(path, seed, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (8, 8), dtype)
    Image.fromarray(values).save(path)


def table(root, *lines):
    root.mkdir(parents=True, exist_ok=True)
    (root / "patches.csv").write_text("\n".join(lines) + "\n")


def test_a_track_is_a_track_of_its_movie_or_group(tmp_path):
    for i in range(4):
        noise(tmp_path / f"{i}.png", i)
    rows = [f"{i}.png,a,{'AB'[i // 2]},{i % 2}" for i in range(4)]
    table(tmp_path, "path,label,movie,track", *rows)
    m = import_crops(tmp_path, tmp_path / "s").manifest
    assert m["group"].tolist() == ["track-A/0", "track-A/1", "track-B/0", "track-B/1"]
    assert m["track"].tolist() == ["A/0", "A/1", "B/0", "B/1"]
    table(tmp_path, "path,label,group,track", *rows)
    m = import_crops(tmp_path, tmp_path / "s").manifest
    assert m["group"].tolist() == ["group-A", "group-A", "group-B", "group-B"]
    assert m["track"].tolist() == ["A/0", "A/1", "B/0", "B/1"]


def test_equal_pixels_share_a_group_and_join_those_they_are_in(tmp_path):
    for i, seed in enumerate((0, 1, 1, 3, 4)):
        noise(tmp_path / f"{i}.png", seed)
    rows = [f"{i}.png,{'aabaa'[i]},g{(1, 2, 3, 3, 4)[i]}" for i in range(5)]
    table(tmp_path, "path,label,group", *rows)
    with pytest.warns(UserWarning) as said:
        m = import_crops(tmp_path, tmp_path / "s").manifest
    assert m["group"].tolist() == ["group-g1", "group-g2", "group-g2", "group-g2", "group-g4"]
    texts = " ".join(str(w.message) for w in said)
    assert "2.png those of 1.png; 2 groups are joined by that into 1" in texts
    assert "labelled differently, such as 1.png 'a' and 2.png 'b'" in texts


def test_16_bit_crops_get_one_scale_that_the_store_records(tmp_path):
    for i in range(6):
        noise(tmp_path / "src" / "ab"[i % 2] / f"{i}.png", i, np.uint16)
    store = import_crops(tmp_path / "src", tmp_path / "s")
    low, high = store.info["made_by"]["scaling"]
    assert store.scaling == (low, high)
    raw = np.stack([np.asarray(Image.open(tmp_path / "src" / s)) for s in store.manifest["source"]])
    assert (low, high) == tuple(np.percentile(raw, (0.1, 99.9)))
    expected = np.rint(np.clip((raw - low) / (high - low), 0, 1) * 255)
    assert np.abs(store.pixels - expected).max() <= 1


def test_folders_of_classes_and_groups_are_understood_and_what_is_left_out_is_said(tmp_path):
    src = tmp_path / "src"
    for i, place in enumerate(("a/m1", "a/m2", "b/m1", "b/m2")):
        noise(src / place / "0.PNG", i)
    noise(src / ".ipynb_checkpoints" / "0.png", 9)
    noise(src / "__MACOSX" / "0.png", 9)
    noise(src / "stray.png", 9)
    (src / "a" / "m1" / "._0.png").write_bytes(b"\0\5")
    (src / "a" / "m1" / "film.gif").write_bytes(b"GIF89a")
    (src / "empty").mkdir()
    with pytest.warns(UserWarning) as said:
        store = import_crops(src, tmp_path / "s")
    assert store.classes == ["a", "b"]
    assert store.manifest["group"].tolist() == ["group-m1", "group-m2"] * 2
    texts = " ".join(str(w.message) for w in said)
    for part in (
        "the 2 groups are m1, m2",
        "1 pictures lie beside the class folders",
        "1 files of types that are not read (1 .gif) are left out, such as film.gif",
        "folders without pictures are no classes: empty",
    ):
        assert part in texts


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (["a/0.png", "a/m/1.png"], "1 pictures and 1 more in its sub-folders"),
        (["a/m/0.png", "b/1.png"], "the pictures of b lie in no sub-folders, those of a do"),
        (["a/m/t/0.png", "a/m/1.png"], "lies deeper than a/m"),
        (["train/a/0.png", "test/a/1.png"], "are parts of a split"),
        (["Dense/0.png", "dense/1.png"], "differ in upper and lower case alone"),
    ],
)
def test_folders_with_two_readings_are_refused(tmp_path, places, says):
    for i, place in enumerate(places):
        noise(tmp_path / "src" / place, i)
    with pytest.raises(UserError, match=says):
        import_crops(tmp_path / "src", tmp_path / "s")


def test_pipes_and_links_among_crops_are_refused_and_never_opened(tmp_path):
    noise(tmp_path / "src" / "a" / "0.png", 0)
    os.mkfifo(tmp_path / "src" / "a" / "9.png")
    with pytest.raises(UserError, match="9.png: a pipe"):
        import_crops(tmp_path / "src", tmp_path / "s")
    (tmp_path / "src" / "a" / "9.png").unlink()
    (tmp_path / "src" / "a" / "9.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="9.png: a link that leads nowhere"):
        import_crops(tmp_path / "src", tmp_path / "s")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("crops\\0.png", None),
        ("./crops/../crops/0.PNG", None),
        ("crops/0.png", None),
        ("D:\\crops\\0.png", "is a path on another computer"),
        ("\\\\server\\crops\\0.png", "is a path on another computer"),
        ("../secret.png", "lies outside"),
        ("..\\secret.png", "lies outside"),
        ("/etc/hostname", "lies outside"),
        ("crops/out.png", "lies outside"),
        ("crops", "a folder, expected a picture"),
        ("crops/7.png", "no such file, named in line 2 of patches.csv"),
        ("crops/Two.png", "found 'TWO.png' and 'two.png'"),
    ],
)
def test_paths_are_found_as_any_system_writes_them_but_never_outside(tmp_path, path, says):
    root = tmp_path / "src"
    for i, name in enumerate(("crops/0.png", "crops/two.png", "crops/TWO.png", "../secret.png")):
        noise(root / name, i)
    (root / "crops" / "out.png").symlink_to(tmp_path / "secret.png")
    table(root, "path,label", f"{path},a")
    if says is None:
        assert import_crops(root, tmp_path / "s").manifest["source"].tolist() == ["crops/0.png"]
    else:
        with pytest.raises(UserError) as error:
            import_crops(root, tmp_path / "s")
        assert says in str(error.value) and not (tmp_path / "s").exists()


def test_labels_that_are_to_be_left_out_are_and_are_counted(tmp_path):
    folders(tmp_path / "src")
    for i in range(2):
        crop(tmp_path / "src" / "c" / f"{i}.png", 200 + i)
    with pytest.warns(UserWarning, match="3 patches labelled a are left out, as without= says"):
        store = import_crops(tmp_path / "src", tmp_path / "s", without=["a"])
    assert store.classes == ["b", "c"] and len(store) == 4
    with pytest.raises(UserError, match=r"no patch is labelled 'd'; found \['a', 'b', 'c'\]"):
        import_crops(tmp_path / "src", tmp_path / "t", without=["d"])
