import numpy as np
import pandas as pd
import pytest
import tifffile

from stemcell_lit.errors import UserError
from stemcell_lit.patches.tiles import is_tiles
from tests.patches.commands import import_tiles


@pytest.fixture
def movie(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 64), np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", frames, photometric="minisblack")
    rows = [
        {"frame": t, "y": y, "x": x, "size": 8, "coverage": 0.5, "label": "ab"[(t + x) % 2]}
        for t in (3, 0)
        for y in (0, 32)
        for x in range(0, 64, 8)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "tiles.csv", index=False)
    return tmp_path, frames, pd.DataFrame(rows)


def test_tiles_are_cut_where_the_table_says(movie):
    folder, frames, rows = movie
    store = import_tiles(folder / "m.tif", folder / "tiles.csv", folder / "s", hours_per_frame=0.5)
    for i, r in rows.iterrows():
        assert (store.pixels[i] == frames[r.frame, r.y : r.y + 8, r.x : r.x + 8]).all()
    m = store.manifest
    assert (m["label"] == rows["label"]).all() and (m["time_h"] == rows["frame"] * 0.5).all()
    assert (m["foreground"] == 0.5).all() and m["track"].nunique() == 16
    assert m["y"].iloc[0] == 4 and m["x"].iloc[1] == 12


def test_a_place_stays_in_one_block_of_columns(movie):
    folder, *_ = movie
    m = import_tiles(folder / "m.tif", folder / "tiles.csv", folder / "s", blocks=4).manifest
    assert m.groupby("track")["group"].nunique().max() == 1
    assert m["group"].value_counts().to_dict() == {f"columns-{b}": 8 for b in range(4)}
    spans = m.groupby("group")["x"].agg(["min", "max"]).sort_values("min").to_numpy()
    assert (spans[1:, 0] > spans[:-1, 1]).all()


def test_a_tile_without_a_label_stays_in_its_block_and_is_of_no_class(movie):
    folder, _, rows = movie
    rows.loc[[0, 5], "label"] = ""
    rows.to_csv(folder / "tiles.csv", index=False)
    store = import_tiles(folder / "m.tif", folder / "tiles.csv", folder / "s", blocks=4)
    bare = store.manifest[~store.labelled]
    assert store.classes == ["a", "b"] and bare["x"].tolist() == [4, 44]
    assert bare["group"].tolist() == ["columns-0", "columns-2"]


def test_tables_of_tiles_and_of_files_are_told_apart(movie):
    folder, _, rows = movie
    assert is_tiles(folder / "tiles.csv", {})
    rows.assign(path="a.png").to_csv(folder / "crops.csv", index=False)
    assert not is_tiles(folder / "crops.csv", {})
    with pytest.raises(UserError, match="no such file"):
        is_tiles(folder / "none.csv", {})


def test_hours_of_the_table_are_kept_and_equal_rows_count_once(movie):
    folder, _, rows = movie
    rows["time_h"] = rows["frame"] * 0.25 + 1
    pd.concat([rows, rows.iloc[:3]]).to_csv(folder / "tiles.csv", index=False)
    with pytest.warns(UserWarning, match="3 rows repeat an earlier one"):
        store = import_tiles(
            folder / "m.tif", folder / "tiles.csv", folder / "s", hours_per_frame=9
        )
    assert store.manifest["time_h"].tolist() == rows["time_h"].tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": 60}, "line 2: tile at y 0, x 60 of frame 3 with 8 px lies outside m.tif"),
        ({"frame": 9}, "frame 9 is not there"),
        ({"y": -1}, "line 2, column y: found '-1', expected a whole number from 0"),
        ({"size": 9}, "expected one size"),
        ({"y": 0.5}, "found '0.5', expected a whole number"),
        ({"size": None}, "line 2 has no size"),
    ],
)
def test_a_wrong_tile_is_named_and_nothing_is_written(movie, change, says):
    folder, _, rows = movie
    for column, value in change.items():
        rows[column] = rows[column].astype(object)
        rows.loc[0, column] = value
    rows.to_csv(folder / "tiles.csv", index=False)
    with pytest.raises(UserError, match=says):
        import_tiles(folder / "m.tif", folder / "tiles.csv", folder / "s")
    assert not (folder / "s").exists()


def test_hours_of_the_table_hold_and_a_frame_has_one(movie):
    folder, _, rows = movie
    hours = rows.assign(time_h=rows["frame"].map({0: 0.0, 3: 26.5}))
    hours.to_csv(folder / "hours.csv", index=False)
    m = import_tiles(
        folder / "m.tif", folder / "hours.csv", folder / "s", hours_per_frame=1
    ).manifest
    assert dict(zip(m["frame"], m["time_h"], strict=True)) == {0: 0.0, 3: 26.5}
    hours.loc[5, "time_h"] = 7
    hours.to_csv(folder / "hours.csv", index=False)
    with pytest.raises(UserError, match="line 7.*one time a frame"):
        import_tiles(folder / "m.tif", folder / "hours.csv", folder / "two")
    assert not (folder / "two").exists()
