"""Many movies at once: their folders, the tables over all, and going on after a kill."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from stemcell_lit import __main__ as cli
from stemcell_lit.base.progress import Progress
from stemcell_lit.errors import JobsFailed, UserError
from stemcell_lit.movies.frames import Movie
from stemcell_lit.predict import command, mapping
from stemcell_lit.predict.command import TABLES
from stemcell_lit.predict.sources import _folded, _names
from tests.predict.test_predict import make_model, movie_of, noise, run

EACH = {
    *("classes.ome.tif", "overlay.png", "colonies.csv", "shares.csv", "classes.csv"),
    *("shares.png", "predict.json"),
}


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """To draw takes longer than to map; what the pictures show is tested elsewhere."""
    monkeypatch.setattr("stemcell_lit.predict.outputs.png", lambda figure: b"drawn")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    make_model().save(folder)
    return folder


@pytest.fixture
def movies(tmp_path):
    """Three movies of 2 to 4 frames; the folder holds maps and notes, too."""
    folder = tmp_path / "movies"
    folder.mkdir()
    for i in range(3):
        movie_of(folder / f"m{i}.ome.tif", noise(2 + i, 64, 80, seed=i))
    tifffile.imwrite(folder / "m0_classes.tif", np.zeros((2, 64, 80), np.uint8))
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def mapped(monkeypatch):
    """Names of the movies that are worked at; the n-th raises what `mapped.fail` holds for it."""

    class Names(list):
        fail = None

    names, real = Names(), mapping.map_movie

    def counted(config, model, source, *rest):
        names.append(source.name)
        if names.fail and len(names) == names.fail[0]:
            raise names.fail[1]
        real(config, model, source, *rest)

    monkeypatch.setattr(mapping, "map_movie", counted)
    return names


def contents(out):
    """Path -> bytes, without what names the run."""
    files = [p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


@pytest.mark.parametrize("pattern", ["movies", "movies/*", "movies/*.tif"])
def test_each_movie_of_a_folder_or_a_pattern_has_a_folder_of_its_own_and_a_place_in_the_tables(
    pattern, tmp_path, movies, checkpoint
):
    out = run(tmp_path / pattern, checkpoint, tmp_path / "out")
    assert {p.name for p in out.glob("[!.]*")} == {"m0", "m1", "m2", *TABLES}
    for i in range(3):
        assert {p.name for p in (out / f"m{i}").glob("[!.]*")} == EACH
        assert tifffile.imread(out / f"m{i}/classes.ome.tif").shape == (2 + i, 64, 80)
    overview = pd.read_csv(out / "movies.csv")
    assert overview["movie"].tolist() == ["m0", "m1", "m2"]
    assert overview["frames"].tolist() == [2, 3, 4] and set(overview["status"]) == {"mapped"}
    for name in ("shares", "colonies", "classes"):
        whole = pd.read_csv(out / f"{name}.csv")
        assert whole.columns[0] == "movie" and whole["movie"].unique().tolist() == [
            "m0",
            "m1",
            "m2",
        ]
        for movie, part in whole.groupby("movie"):
            own = pd.read_csv(out / movie / f"{name}.csv")
            pd.testing.assert_frame_equal(part.reset_index(drop=True)[list(own)], own)


def test_one_movie_alone_gives_the_same_maps_as_among_many(tmp_path, movies, checkpoint):
    many = run(movies, checkpoint, tmp_path / "many")
    alone = run(movies / "m1.ome.tif", checkpoint, tmp_path / "alone")
    assert {p.name for p in alone.glob("[!.]*")} == EACH
    for name in EACH - {"predict.json"}:
        assert (alone / name).read_bytes() == (many / "m1" / name).read_bytes()


def test_a_folder_of_frames_is_one_movie(tmp_path, checkpoint):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(2):
        tifffile.imwrite(folder / f"t{i}.tif", noise(64, 64, seed=i))
    out = run(folder, checkpoint, tmp_path / "out", um_per_px=2.0)
    assert {p.name for p in out.glob("[!.]*")} == EACH


def test_a_movie_that_cannot_be_read_is_named_and_the_others_are_mapped(
    tmp_path, movies, checkpoint, capsys
):
    whole = (movies / "m0.ome.tif").read_bytes()
    (movies / "m0.ome.tif").write_bytes(whole[: len(whole) // 2])
    words = [f"movie={movies}", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", *words, "colonies=none"])
    said = capsys.readouterr().err
    assert end.value.code == 1 and "1 of 3 movies were not mapped" in said
    named = [line for line in said.splitlines() if line.startswith("not mapped: ")]
    assert len(named) == 1 and "m0.ome.tif" in named[0]
    overview = pd.read_csv(tmp_path / "out/movies.csv").set_index("movie")
    assert overview["status"].tolist() == ["mapped", "mapped", "not mapped"]
    assert "m0.ome.tif" in overview["notices"].iloc[2]
    (movies / "m0.ome.tif").write_bytes(whole)  # mended, the same command does what is left
    cli.main(["predict", *words, "colonies=none"])
    assert set(pd.read_csv(tmp_path / "out/movies.csv")["status"]) == {"mapped"}


def test_a_movie_that_does_not_tell_its_pixel_size_does_not_stop_the_others(
    tmp_path, movies, checkpoint
):
    tifffile.imwrite(movies / "plain.tif", noise(2, 64, 64))
    with pytest.raises(JobsFailed, match="1 of 4 movies were not mapped: .*plain.tif"):
        run(movies, checkpoint, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/movies.csv")["status"].tolist() == [
        *["mapped"] * 3,
        "not mapped",
    ]


def test_movies_none_of_which_can_be_used_are_refused_and_leave_nothing(tmp_path, checkpoint):
    folder = tmp_path / "movies"
    folder.mkdir()
    for i in range(2):
        tifffile.imwrite(folder / f"m{i}.tif", noise(2, 64, 64))
    with pytest.raises(UserError, match="does not tell the size of a pixel"):
        run(folder, checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match="no movie fits this pattern"):
        run(tmp_path / "movies/*.png", checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_after_a_kill_the_same_command_goes_on_and_gives_what_an_unbroken_run_gives(
    tmp_path, movies, checkpoint, mapped
):
    expected = contents(run(movies, checkpoint, tmp_path / "unbroken"))
    mapped.clear()
    mapped.fail = (2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(movies, checkpoint, tmp_path / "out")
    mapped.clear()
    mapped.fail = None
    out = run(movies, checkpoint, tmp_path / "out")
    assert mapped == ["m1", "m2"]
    assert contents(out) == expected
    mapped.clear()
    run(movies, checkpoint, tmp_path / "out", device="cpu")
    assert mapped == [] and contents(out) == expected


def test_one_movie_that_is_done_is_not_done_again(tmp_path, movies, checkpoint, mapped, capsys):
    out = run(movies / "m0.ome.tif", checkpoint, tmp_path / "out")
    before = contents(out)
    run(movies / "m0.ome.tif", checkpoint, tmp_path / "out")
    assert mapped == ["m0"] and contents(out) == before
    assert "1 of them done already, 0 frames to map" in capsys.readouterr().err


def test_a_movie_that_has_changed_is_mapped_again(tmp_path, movies, checkpoint, mapped):
    run(movies, checkpoint, tmp_path / "out")
    mapped.clear()
    movie_of(movies / "m2.ome.tif", noise(5, 64, 80, seed=9))
    out = run(movies, checkpoint, tmp_path / "out")
    assert mapped == ["m2"] and len(pd.read_csv(out / "m2/shares.csv")) == 5


@pytest.mark.parametrize("movie", ["movies", "movies/m1.ome.tif"])
def test_other_settings_or_another_model_are_refused_with_what_differs(
    movie, tmp_path, movies, checkpoint
):
    out = run(tmp_path / movie, checkpoint, tmp_path / "out")
    before = contents(out)
    with pytest.raises(UserError, match=r"out.*made with every=1, now 2; .*unsure=None, now 0.5"):
        run(tmp_path / movie, checkpoint, out, every=2, unsure=0.5)
    make_model(um_per_px=1.5).save(checkpoint)
    with pytest.raises(UserError, match="was made with another model"):
        run(tmp_path / movie, checkpoint, out)
    assert contents(out) == before


def test_the_maps_of_another_movie_are_not_replaced(tmp_path, movies, checkpoint):
    out = run(movies / "m1.ome.tif", checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds the maps of another movie, .*m1.ome.tif"):
        run(movies / "m2.ome.tif", checkpoint, out)
    with pytest.raises(UserError, match="holds the maps of one movie; expected"):
        run(movies, checkpoint, out)


def test_what_this_program_did_not_make_is_refused_and_stays(tmp_path, movies, checkpoint):
    out = tmp_path / "out"
    out.mkdir()
    (out / "shares.csv").write_text("mine")
    with pytest.raises(
        UserError, match=r"holds shares.csv, which is no part of a result of predict"
    ):
        run(movies, checkpoint, out)
    (out / "predict.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds predict.json, which is no part .* and 1 more"):
        run(movies, checkpoint, out)
    assert contents(out) == {"shares.csv": b"mine", "predict.json": b"{}"}
    for place in (movies, tmp_path):
        with pytest.raises(UserError):
            run(movies, checkpoint, place)
    out = run(movies, checkpoint, tmp_path / "new")
    (out / "m0/shares.csv").write_text("edited")
    with pytest.raises(UserError, match="shares.csv in it has been changed"):
        run(movies, checkpoint, out)
    assert (out / "m0/shares.csv").read_text() == "edited"


def test_results_inside_the_folder_of_movies_are_no_movies(tmp_path, movies, checkpoint, mapped):
    for _ in range(2):
        run(movies / "*", checkpoint, movies / "out")
    assert mapped == ["m0", "m1", "m2"]


def test_movies_of_one_name_are_told_apart_by_their_folders(tmp_path, checkpoint):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        movie_of(tmp_path / name / "m.ome.tif", noise(1, 64, 64))
    out = run(tmp_path / "[ab]/*.tif", checkpoint, tmp_path / "out")
    assert {"a_m", "b_m"} < {p.name for p in out.iterdir()}


PARTS = st.text("abAB.", min_size=1, max_size=2).filter(lambda t: t.strip("."))


@given(st.lists(st.tuples(PARTS, PARTS, PARTS), max_size=6, unique=True))
def test_no_two_movies_have_one_folder(paths):
    from pathlib import Path

    movies = [Movie(Path(*parts[:2], f"{parts[2]}.tif"), parts[2]) for parts in paths]
    try:
        names = _names(movies, ["a"])
    except UserError as error:
        assert "rename one of them" in str(error)
        return
    assert len({_folded(n) for n in names} | {"a"}) == len(names) + 1
    assert not any("/" in n or n.startswith(".") for n in names)


def test_something_is_said_before_the_model_is_loaded(
    tmp_path, movies, checkpoint, capsys, monkeypatch
):
    from stemcell_lit.classify.trained import TrainedHierarchy

    def stop(*_):
        raise UserError("stop")

    monkeypatch.setattr(TrainedHierarchy, "load", stop)
    with pytest.raises(UserError, match="stop"):
        run(movies, checkpoint, tmp_path / "out")
    said = capsys.readouterr().err
    assert "looking at" in said and "3 movies: 9 frames to map" in said
    program = "import sys, stemcell_lit.predict.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_time_left_is_that_of_all_frames_of_all_movies(
    tmp_path, movies, checkpoint, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        Progress, "show", lambda self, n, share: seen.append((self.total, n, share))
    )
    movie_of(movies / "m3.ome.tif", noise(1, 128, 160))  # a frame as large as four others
    run(movies, checkpoint, tmp_path / "out")
    assert [(total, n) for total, n, _ in seen] == [(10, n) for n in range(1, 11)]
    np.testing.assert_allclose([s for *_, s in seen], [*(np.arange(1, 10) / 13), 1])


def test_a_line_of_progress_comes_every_so_often_where_there_is_no_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("stemcell_lit.base.progress.time.monotonic", lambda: now[0])
    progress = Progress(10)
    for done in range(1, 10):
        now[0] += 6
        progress.show(done, done / 20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0] == "predict: 3 of 10 frames, 0.17 frames/s, 1.7 min left"


def test_the_record_says_what_each_movie_was_made_with(tmp_path, movies, checkpoint):
    out = run(movies, checkpoint, tmp_path / "out")
    whole = json.loads((out / "predict.json").read_text())
    one = json.loads((out / "m0/predict.json").read_text())
    assert whole["made_with"] == one["made_with"] and one["source"]["path"].endswith("m0.ome.tif")
    assert one["device"] == "cpu" and one["values"] == ["dark", "bright"]


def test_a_gpu_is_used_where_there_is_one_and_refused_where_it_is_asked_for_and_is_not(monkeypatch):
    from stemcell_lit.predict.device import chosen_device

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert chosen_device("auto").type == chosen_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="device=cuda: PyTorch finds no GPU here"):
        chosen_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert chosen_device("auto").type == chosen_device("cuda").type == "cuda"
    assert chosen_device("cpu").type == "cpu"


def test_a_movie_unlike_the_training_patches_is_said_and_recorded(tmp_path, movies):
    from stemcell_lit.classify.domain import Domain

    frames = noise(2, 96, 128)
    patches = np.lib.stride_tricks.sliding_window_view(frames[:, ::2, ::2], (1, 32, 32))
    model = replace(make_model(), domain=Domain.of(patches.reshape(-1, 32, 32)))
    folder = tmp_path / "model"
    folder.mkdir()
    model.save(folder)
    for name, values in (("same", frames), ("dark", frames // 3)):
        movie_of(tmp_path / f"{name}.ome.tif", values)
    run(tmp_path / "same.ome.tif", folder, tmp_path / "a")
    with pytest.warns(UserWarning, match=r"dark.ome.tif does not look like the patches .*darker"):
        run(tmp_path / "dark.ome.tif", folder, tmp_path / "b")
    same, dark = (json.loads((tmp_path / n / "predict.json").read_text()) for n in "ab")
    assert same["domain"] == [] and same["notices"] == []
    assert any("darker" in sentence for sentence in dark["domain"])
    assert command.MOVIES == "movies.csv"
