import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stemcell_lit.data.crops import import_crops
from stemcell_lit.errors import UserError


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
    if kind == "sizes":
        crop(root / "b" / "1.png", size=(9, 9))
        return "9 x 9"
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
        "sizes",
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
