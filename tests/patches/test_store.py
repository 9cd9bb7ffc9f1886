import json

import numpy as np
import pandas as pd
import pytest

from stemcell_lit.base.files import whole_or_absent, write_whole
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from tests.conftest import make_store


def test_store_comes_back_as_written(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    made = PatchStore.write(
        tmp_path / "s",
        pixels,
        pd.DataFrame({"label": list("abbaa")}),
        classes=["b", "a"],
        um_per_px=0.5,
    )
    again = PatchStore.open(tmp_path / "s")
    assert (again.pixels == pixels).all()
    assert again.labels.tolist() == [1, 0, 0, 1, 1]
    assert again.classes == ["b", "a"] and again.info["um_per_px"] == 0.5
    assert again.content_hash == made.content_hash
    assert isinstance(again.pixels, np.memmap)
    assert set(again.manifest["origin"]) == {"real"} and again.seen_groups == set()


def test_content_hash_follows_pixels_labels_and_class_order(tmp_path):
    pixels = np.zeros((2, 4, 4), np.uint8)
    rows = pd.DataFrame({"label": ["a", "b"]})

    def hash_of(pixels, rows, classes):
        return PatchStore.write(tmp_path / "s", pixels, rows, classes=classes).content_hash

    first = hash_of(pixels, rows, ["a", "b"])
    assert first == hash_of(pixels.copy(), rows.copy(), ["a", "b"])
    changed = pixels.copy()
    changed[1, 3, 3] = 1
    assert first != hash_of(changed, rows, ["a", "b"])
    assert first != hash_of(pixels, rows[::-1].reset_index(drop=True), ["a", "b"])
    assert first != hash_of(pixels, rows, ["b", "a"])


@pytest.mark.parametrize(
    ("pixels", "labels", "says"),
    [
        (np.zeros((2, 4, 4), np.float32), ["a", "a"], "uint8"),
        (np.zeros((2, 4), np.uint8), ["a", "a"], "uint8"),
        (np.zeros((3, 4, 4), np.uint8), ["a", "a"], "3 patches but 2"),
        (np.zeros((2, 4, 4), np.uint8), ["a", "z"], "'z'"),
        (np.zeros((0, 4, 4), np.uint8), [], "no patches"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, pixels, labels, says):
    with pytest.raises(UserError, match=says):
        PatchStore.write(tmp_path / "s", pixels, pd.DataFrame({"label": labels}), classes=["a"])
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_no_stores(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        PatchStore.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"store\.json"):
        PatchStore.open(tmp_path)
    make_store(tmp_path / "s")
    info = json.loads((tmp_path / "s" / "store.json").read_text())
    (tmp_path / "s" / "store.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        PatchStore.open(tmp_path / "s")
    (tmp_path / "s" / "store.json").write_text(json.dumps(info))
    (tmp_path / "s" / "pixels.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="not a readable"):
        PatchStore.open(tmp_path / "s")


def test_pickled_pixels_are_never_loaded(tmp_path):
    store = make_store(tmp_path / "s")
    np.save(tmp_path / "s" / "pixels.npy", np.array([object()] * len(store)), allow_pickle=True)
    with pytest.raises(UserError, match="holds object"):
        PatchStore.open(tmp_path / "s")


def test_outputs_appear_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "a.txt", "old")
    with whole_or_absent(tmp_path / "d", "store") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), whole_or_absent(tmp_path / "d", "store") as folder:
        (folder / "x").write_text("half")
        raise RuntimeError
    assert (tmp_path / "d" / "x").read_text() == "old"
    with whole_or_absent(tmp_path / "d", "store") as folder:
        (folder / "y").write_text("new")
    names = sorted(p.name for p in tmp_path.rglob("*"))
    assert names == [".stemcell-lit.json", ".stemcell-lit.json", "a.txt", "d", "y"]


def test_a_stores_name_does_not_command_the_terminal(tmp_path):
    store = make_store(tmp_path / "a\x1b[31m\nb")
    assert "\\x1b[31m\\x0ab" in str(store) and "\x1b" not in str(store) + repr(store)
