"""Sorting by hand: what was answered is on disk, whatever happens next, and `import` reads it."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from werkzeug.test import Client

from stemcell_lit.annotate import page, session, sources
from stemcell_lit.annotate.page import Page, class_keys
from stemcell_lit.annotate.session import Session
from stemcell_lit.annotate.sources import open_session
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy
from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import read_picture
from stemcell_lit.settings.colony_keys import ColoniesConfig, ContrastConfig
from stemcell_lit.settings.group_keys import HierarchyConfig, StageConfig, TemporalConfig
from stemcell_lit.settings.patch_keys import AnnotateCommand
from tests.conftest import make_store
from tests.patches.commands import import_crops

CLASSES = ["debris", "dense", "spread", "differentiated"]
TOKEN = "t0ken"
PORT = 5000


def write_crops(folder: Path, count: int = 6, size: int = 16) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (size, size), np.uint8)).save(folder / f"c{i}.png")
    return folder


def write_movie(path: Path, frames: int = 3, seed: int = 0) -> Path:
    """Two bright, textured colonies that stay where they are, on even ground."""
    rng = np.random.default_rng(seed)
    stack = np.full((frames, 160, 200), 90, np.uint8)
    for left in (10, 120):
        stack[:, 20:140, left : left + 70] = rng.integers(110, 250, (frames, 120, 70))
    tifffile.imwrite(path, stack, photometric="minisblack")
    return path


def movie_config(tmp_path: Path, **more) -> AnnotateCommand:
    colonies = ColoniesConfig(
        background_um=5.0,
        contrast=ContrastConfig(cell_um=3.0, polarity="both", low=0.1, high=0.2),
        grow_um=0.0,
    )
    given = {
        "source": str(tmp_path / "movie.tif"),
        "out": str(tmp_path / "out"),
        "classes": CLASSES,
        "size": 16,
        "um_per_px": 1.0,
        "hours_per_frame": 0.5,
        "colonies": colonies,
    }
    return AnnotateCommand(**{**given, **more})


def crops_config(tmp_path: Path, **more) -> AnnotateCommand:
    given = {"source": str(tmp_path / "crops"), "out": str(tmp_path / "out"), "classes": CLASSES}
    return AnnotateCommand(**{**given, **more})


@contextmanager
def opened(config):
    """A client of the page, as its own browser window would speak to it."""
    with open_session(config) as session:
        page = Page(session, sources._Surroundings(session, config), TOKEN)
        page.port = PORT
        client = Client(page)

        def call(path, body=None, **headers):
            given = {k.replace("_", "-"): v for k, v in headers.items()}
            headers = {"Host": f"127.0.0.1:{PORT}", "X-Token": TOKEN, **given}
            headers = {k: v for k, v in headers.items() if v is not None}
            if body is None:
                return client.get(path, headers=headers)
            return client.post(path, json=body, headers=headers)

        yield session, call


def labels_on_disk(out: Path) -> list[str]:
    return pd.read_csv(out / "labels.csv", dtype=str)["label"].tolist()


def test_every_answer_is_on_disk_before_the_reply(tmp_path, monkeypatch):
    write_crops(tmp_path / "crops")
    synced = []
    labels = tmp_path / "out" / "labels.csv"
    with opened(crops_config(tmp_path)) as (_, call):
        synced.clear()
        monkeypatch.setattr(session.os, "fsync", lambda handle: synced.append(labels.read_text()))
        for i, label in enumerate(["dense", "unsure", "spread"]):
            state = call("/answer", {"index": i, "label": label}).json
            assert state["done"] == i + 1 and state["total"] == 6
            assert synced[-1] == labels.read_text() and synced[-1].count("\n") == i + 2
            assert labels_on_disk(tmp_path / "out")[-1] == label
        table = pd.read_csv(tmp_path / "out" / "patches.csv")
        assert table["label"].tolist() == ["dense", "spread"]


def test_an_answer_to_a_patch_no_longer_asked_is_not_taken(tmp_path):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (_, call):
        assert call("/answer", {"index": 0, "label": "dense"}).status_code == 200
        twice = call("/answer", {"index": 0, "label": "dense"})
        assert twice.status_code == 409 and twice.json["done"] == 1
        assert call("/answer", {"index": 1, "label": "cat"}).status_code == 400
        assert call("/answer", {"label": ["x"]}).status_code == 400
        assert labels_on_disk(tmp_path / "out") == ["dense"]


def test_undo_takes_back_also_what_an_earlier_run_answered(tmp_path):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (_, call):
        for i, label in enumerate(["dense", "unsure"]):
            call("/answer", {"index": i, "label": label})
    with opened(crops_config(tmp_path)) as (_, call):
        assert call("/undo", {}).json["undone"] == "unsure"
        assert call("/undo", {}).json["undone"] == "dense"
        assert call("/undo", {}).json["undone"] is None
        assert call("/answer", {"index": 0, "label": "spread"}).json["last"] == "spread"
    assert labels_on_disk(tmp_path / "out") == ["spread"]
    assert len((tmp_path / "out" / "patches.csv").read_text().splitlines()) == 2


def test_an_answer_cut_short_by_a_power_failure_is_asked_again(tmp_path):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (_, call):
        call("/answer", {"index": 0, "label": "dense"})
    with (tmp_path / "out" / "labels.csv").open("a") as stream:
        stream.write("crops/1.png,spr")
    with opened(crops_config(tmp_path)) as (session, call):
        assert session.answers == ["dense"]
        call("/answer", {"index": 1, "label": "spread"})
    assert labels_on_disk(tmp_path / "out") == ["dense", "spread"]


def start(config: AnnotateCommand):
    """A server in a process of its own; returns it and a function that asks it."""
    code = (
        "import json, sys; from stemcell_lit.annotate.page import annotate;"
        "from stemcell_lit.settings.patch_keys import AnnotateCommand;"
        "annotate(AnnotateCommand(**json.loads(sys.argv[1])))"
    )
    given = {k: getattr(config, k) for k in ("source", "out", "classes")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # ignored where these tests run in a shell's background, and a child would go on ignoring it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    shown = ""
    assert process.stdout is not None and process.stderr is not None
    while "Ctrl-C" not in shown:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        shown += line
    found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", shown)
    assert found, shown
    port, token = int(found[1]), found[2]

    def ask(path, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Token": token, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=90) as reply:
            return json.loads(reply.read())

    return process, port, token, ask


def test_a_killed_server_loses_nothing_and_ctrl_c_says_how_to_go_on(tmp_path):
    write_crops(tmp_path / "crops")
    config = crops_config(tmp_path)
    process, port, token, ask = start(config)
    try:
        # bound to this machine's loopback alone: no other address of it answers
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        local = re.findall(rf"\s([0-9A-F]+):{port:04X}\s+0+:0000\s+0A", listening)
        assert local == ["0100007F"]
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=90)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?token={token}", timeout=90) as page:
            assert b"Sorting patches" in page.read()
        ask("/answer", {"index": 0, "label": "dense"})
        ask("/answer", {"index": 1, "label": "spread"})
        with pytest.raises(UserError, match="another annotate is at work"), open_session(config):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    again, _, other, ask = start(config)
    try:
        assert other != token
        state = ask("/state")
        assert (state["done"], state["last"]) == (2, "spread")
        ask("/answer", {"index": 2, "label": "dense"})
    finally:
        again.send_signal(signal.SIGINT)
        output, errors = again.communicate(timeout=90)
    assert again.returncode == 0, errors
    assert "3 of 6 answered: debris 0, dense 2, spread 1" in output
    assert f"stemcell-lit import source={tmp_path / 'out'}" in output
    assert token not in errors and other not in errors


def test_what_is_exported_imports_with_the_same_labels_groups_and_pixels(tmp_path):
    write_movie(tmp_path / "movie.tif")
    config = movie_config(tmp_path, groups="family")
    with opened(config) as (session, call):
        total = len(session.items)
        assert total == 3 * 4
        given = [[*CLASSES[:2], "unsure"][i % 3] for i in range(total)]
        for i, label in enumerate(given):
            call("/answer", {"index": i, "label": label})
        items, command = session.items, session.import_command()
    kept = [i for i in range(total) if given[i] != "unsure"]
    store = import_crops(tmp_path / "out", tmp_path / "store", um_per_px=1.0)
    found = store.manifest
    assert found["label"].tolist() == [given[i] for i in kept]
    assert found["group"].tolist() == [f"group-{items[i]['group']}" for i in kept]
    assert found["track"].tolist() == [items[i]["track"] for i in kept]
    assert found["group"].nunique() == 2  # two colonies
    assert np.allclose(found["time_h"], found["frame"] * 0.5) and found["frame"].nunique() == 3
    movie = tifffile.imread(tmp_path / "movie.tif")
    for row, pixels in zip(found.itertuples(), store.pixels, strict=True):
        y, x = int(row.y) - 8, int(row.x) - 8
        assert (pixels == movie[row.frame, y : y + 16, x : x + 16]).all()
        assert (pixels > 100).mean() > 0.2  # on a colony; the ground is 90
    assert "um_per_px=1" in command and "classes=[debris,dense]" in command
    # neither the clock nor the place is told to the one who sorts
    with opened(config) as (_, call):
        assert not {"time_h", "frame", "label"} & set(call("/state").json)


def test_surroundings_have_the_patch_in_the_middle(tmp_path):
    write_movie(tmp_path / "movie.tif")
    with opened(movie_config(tmp_path)) as (session, call):
        for i in range(len(session.items)):
            reply = call(f"/around/{i}.png")
            (tmp_path / "seen.png").write_bytes(reply.data)
            seen, patch = (
                read_picture(tmp_path / "seen.png"),
                read_picture(session.folder / session.items[i]["path"]),
            )
            assert seen.shape == (80, 80) and (seen[32:48, 32:48] == patch).all()
        assert call("/around/99.png").status_code == 404


def groups_of(config):
    with open_session(config) as session:
        return [(i["group"], i["track"], float(i["y"]), float(i["x"])) for i in session.items]


def test_a_movie_of_few_families_is_grouped_by_blocks_of_its_field_and_says_so(tmp_path):
    write_movie(tmp_path / "movie.tif")
    with pytest.warns(UserWarning, match=r"2 groups, worth .* blocks of the field are kept"):
        found = groups_of(movie_config(tmp_path))
    assert len({group for group, *_ in found}) > 3
    for group, track, y, x in found:
        row, column = map(int, group.removeprefix("movie/block-").split("-"))
        for side, at, number in ((160, y, row), (200, x, column)):  # wholly inside: 3 x 3 blocks
            assert (at - 8) * 3 // side == (at + 7) * 3 // side == number
        assert track.startswith(f"{group}/colony-")  # no track lies in two groups


@pytest.mark.parametrize(("groups", "prefix"), [("family", "family-"), ("time", "time-")])
def test_what_a_single_movie_is_grouped_by_can_be_chosen(tmp_path, groups, prefix):
    write_movie(tmp_path / "movie.tif", frames=6)
    found = groups_of(movie_config(tmp_path, groups=groups))
    assert {g.removeprefix("movie/").startswith(prefix) for g, *_ in found} == {True}
    assert len({g for g, *_ in found}) == {"family": 2, "time": 3}[groups]


def test_a_field_too_small_for_blocks_is_refused_where_they_are_asked_for(tmp_path):
    write_movie(tmp_path / "movie.tif")
    with pytest.raises(UserError, match="groups=block: .* too small for two blocks"):
        groups_of(movie_config(tmp_path, groups="block", size=64))


def test_several_movies_are_grouped_by_movie(tmp_path):
    (tmp_path / "movies").mkdir()
    for name in ("a", "b"):
        write_movie(tmp_path / "movies" / f"{name}.tif", frames=2)
        write_movie(tmp_path / "movies" / f"{name}_classes.tif", frames=2)  # a map, not a movie
    with open_session(movie_config(tmp_path, source=str(tmp_path / "movies"))) as session:
        assert {item["group"] for item in session.items} == {"a", "b"}


def test_a_store_is_sorted_again_with_its_groups_and_an_order_that_repeats(tmp_path):
    store = make_store(tmp_path / "store", movies=2, timed=False)
    orders = []
    for out in ("out", "more"):
        config = AnnotateCommand(
            source=str(tmp_path / "store"), out=str(tmp_path / out), limit=10, seed=3
        )
        with opened(config) as (session, call):
            assert session.classes == store.classes and len(session.items) == 10
            for i in range(10):
                call("/answer", {"index": i, "label": CLASSES[i % 2]})
            orders.append([item["track"] for item in session.items])
    assert orders[0] == orders[1]
    again = import_crops(tmp_path / "out", tmp_path / "again")
    assert set(again.manifest["group"]) <= {"group-movie_00", "group-movie_01"}
    assert again.manifest["time_h"].isna().all()  # unknown stays unknown
    for row, pixels in zip(again.manifest.itertuples(), again.pixels, strict=True):
        source = (store.manifest["track"] == row.track) & (store.manifest["frame"] == row.frame)
        assert (store.pixels[np.flatnonzero(source)[0]] == pixels).all()


def least_sure(tmp_path: Path, pixels: np.ndarray, um_per_px: float | None = None) -> np.ndarray:
    """Top probabilities of patches by the model in `model`, written there."""
    hierarchy = Hierarchy.build(["a", "b"], HierarchyConfig(), TemporalConfig(), flat=True)
    n = np.arange(4)
    hierarchy = hierarchy.fit(n % 2, np.full(4, np.nan), np.array([""] * 4), n)
    plan = {**asdict(StageConfig()), "width": 2}
    stage = StageModule(plan, "root", {"a": ["a"], "b": ["b"]}, [1, 1], 16, seed=3).eval()
    for parameter in stage.parameters():
        parameter.data *= 3
    model = TrainedHierarchy(hierarchy, {"root": stage}, 16, um_per_px)
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    return model.network_probabilities(pixels, np.full(len(pixels), np.nan)).max(1)


def test_with_a_model_the_patches_it_is_least_sure_of_are_asked_first(tmp_path):
    store = make_store(tmp_path / "store", movies=2)
    top = least_sure(tmp_path, np.asarray(store.pixels))
    given = {"checkpoint": str(tmp_path / "model"), "limit": 20}
    asked = []
    for name in ("one", "two"):
        where = {"source": str(store.path), "out": str(tmp_path / name), "kind": "store"}
        with open_session(AnnotateCommand(**where, **given)) as begun:
            assert begun.info["settings"]["checkpoint"] == given["checkpoint"]
            asked.append([np.asarray(Image.open(tmp_path / name / i["path"])) for i in begun.items])
    np.testing.assert_array_equal(asked[0], asked[1])  # the order repeats
    pixels = [p.tobytes() for p in np.asarray(store.pixels)]
    found = np.array([top[pixels.index(np.asarray(p, np.uint8).tobytes())] for p in asked[0]])
    assert len(found) == 20 and (np.diff(found) >= 0).all()
    np.testing.assert_allclose(found, np.sort(top)[:20])
    with (
        pytest.raises(UserError, match="was begun with checkpoint="),
        open_session(AnnotateCommand(**where, limit=20)),
    ):
        pass


def test_a_patch_that_shows_less_than_a_model_looks_at_is_refused(tmp_path):
    write_crops(tmp_path / "crops")
    least_sure(tmp_path, np.zeros((1, 16, 16), np.uint8), um_per_px=2.0)
    config = crops_config(tmp_path, checkpoint=str(tmp_path / "model"), um_per_px=1.0)
    with (
        pytest.raises(UserError, match=r"16 px, which are 32 px here, and a patch has 16 x 16"),
        open_session(config),
    ):
        pass
    assert not (tmp_path / "out").exists()


def test_crops_of_several_sizes_come_with_a_size_to_import(tmp_path):
    write_crops(tmp_path / "crops", 3, 24)
    write_crops(tmp_path / "crops" / "sub", 3, 16)
    with opened(crops_config(tmp_path)) as (session, call):
        for i in range(6):
            call("/answer", {"index": i, "label": "dense"})
        assert "size=16" in session.import_command()
    assert len(import_crops(tmp_path / "out", tmp_path / "store", size=16)) == 6


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/state", {}, 200),
        ("/state", {"Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"}, 200),
        ("/state", {"Host": "evil.example"}, 403),  # a name made to point here
        ("/state", {"Host": f"evil.example:{PORT}"}, 403),
        ("/state", {"Host": "127.0.0.1:1"}, 403),
        ("/state", {"Origin": "http://evil.example"}, 403),
        ("/state", {"Origin": "null"}, 403),
        ("/state", {"Origin": f"https://127.0.0.1:{PORT}"}, 403),
        ("/state", {"Origin": "http://127.0.0.1:1"}, 403),
        ("/state", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("/state", {"Sec_Fetch_Site": "same-site"}, 403),
        ("/state", {"X_Token": "guess"}, 403),
        ("/state", {"X_Token": None}, 403),
        ("/?token=guess", {"X_Token": None}, 403),
        (f"/?token={TOKEN}", {"X_Token": None}, 200),
        ("/patch/0.png", {}, 200),
        ("/patch/99.png", {}, 404),
        ("/patch/-1.png", {}, 404),
        ("/around/0.png", {}, 404),  # no movie here
        ("/patch/../../secret.png", {}, 404),
        ("/patch/..%2f..%2fsecret.png", {}, 404),
        ("/session.json", {}, 404),
        ("/answer", {}, 405),  # never by a mere link
    ],
)
def test_only_the_page_itself_is_served(tmp_path, path, headers, status):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (_, call):
        reply = call(path, **headers)
        assert reply.status_code == status
        assert "Access-Control-Allow-Origin" not in reply.headers


def test_a_foreign_page_cannot_answer_or_undo(tmp_path):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (session, call):
        body = {"index": 0, "label": "dense"}
        for headers in ({"Origin": "http://evil.example"}, {"X_Token": None}):
            assert call("/answer", body, **headers).status_code == 403
            assert call("/undo", {}, **headers).status_code == 403
            # the token in the address is for pictures and the page, not for answers
        assert call(f"/answer?token={TOKEN}", body, X_Token=None).status_code == 403
        assert session.answers == []


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (_, call):
        reply = call("/")
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert not re.findall(r"(?:https?:)?//\w+\.\w", reply.text)


def test_paths_that_leave_their_folder_are_refused(tmp_path):
    write_crops(tmp_path / "crops")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "secret.png")
    (tmp_path / "crops" / "patches.csv").write_text("path\n../secret.png\n")
    with pytest.raises(UserError, match="lies outside"), open_session(crops_config(tmp_path)):
        pass
    (tmp_path / "crops" / "patches.csv").unlink()
    with open_session(crops_config(tmp_path)):
        pass
    items = tmp_path / "out" / "items.csv"
    items.write_text(re.sub(r"crops/0\.png", "../secret.png", items.read_text()))
    with pytest.raises(UserError, match="lies outside"), open_session(crops_config(tmp_path)):
        pass


def test_a_letter_per_class_that_no_other_key_has():
    assert class_keys(CLASSES) == ["d", "e", "s", "i"]
    assert class_keys(["up", "Zoo", "o", "2"]) == ["p", "o", "", ""]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"source": "nowhere"}, "nowhere: no such file or folder"),
        ({"classes": None}, "classes= is missing"),
        ({"classes": ["dense"]}, "expected 2 to 9"),
        ({"classes": ["dense", "dense"]}, "expected each class once"),
        ({"classes": ["dense", "Unsure "]}, "none called unsure"),
        ({"classes": ["dense", "Dense"]}, "differ in upper and lower case alone"),
        ({"classes": ["dense", " "]}, "is empty"),
        ({"kind": "film"}, "expected one of auto"),
        ({"size": 0}, "expected 1 to 8,192"),
        ({"foreground": 0.0}, "expected above 0 to 1"),
        ({"port": 70000}, "expected 0"),
        ({"kind": "store"}, "expected a patch store"),
        ({"kind": "movie", "size": 64, "channel": "c0"}, "smaller than size=64"),
        ({"kind": "movie", "size": 8, "channel": "c0"}, "um_per_px"),
        ({"source": "empty"}, "no images in it"),
    ],
)
def test_a_users_mistake_is_named_and_leaves_nothing(tmp_path, more, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_crops(tmp_path / "crops")
    (tmp_path / "empty").mkdir()
    config = crops_config(tmp_path, **more)
    with pytest.raises(UserError, match=re.escape(says)) as error, open_session(config):
        pass
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["crops", "empty"]


def test_a_folder_begun_otherwise_or_edited_is_refused(tmp_path):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (_, call):
        call("/answer", {"index": 0, "label": "dense"})

    def refused(says, **more):
        with pytest.raises(UserError, match=says), open_session(crops_config(tmp_path, **more)):
            pass

    refused("was begun with seed=0, now it is 1", seed=1)
    refused("was begun with crops, not with other", source="other")
    refused("holds answers 'dense'", classes=["debris", "spread"])
    refused("holds something else", out=str(tmp_path / "crops"))
    with open_session(crops_config(tmp_path, classes=[*CLASSES, "mitosis"])) as session:
        assert session.classes[-1] == "mitosis" and session.answers == ["dense"]
    with open_session(crops_config(tmp_path, classes=None)) as session:
        assert session.classes[-1] == "mitosis"
    labels = tmp_path / "out" / "labels.csv"
    labels.write_text(labels.read_text().replace("dense", "cat"))
    refused("line 2 holds")
    (tmp_path / "out" / "session.json").write_text("{")
    refused("not readable as JSON")


def test_a_taken_port_is_named(tmp_path):
    write_crops(tmp_path / "crops")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: cannot be bound"):
            page.annotate(crops_config(tmp_path, port=port))


def test_answers_from_several_windows_at_once_are_each_taken_once(tmp_path):
    write_crops(tmp_path / "crops", 12)
    with opened(crops_config(tmp_path)) as (session, call):

        def hammer():
            for i in range(12):
                call("/answer", {"index": i, "label": "dense"})

        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(session.answers) == 12
    assert labels_on_disk(tmp_path / "out") == ["dense"] * 12
    assert Session.open(tmp_path / "out").answers == ["dense"] * 12
