import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from stemcell_lit.base import files, ownership, swap
from stemcell_lit.base.files import check_files, check_target, whole_or_absent, write_whole
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore

HIDDEN = ".stemcell-lit.json"


def state(folder: Path) -> dict:
    """Everything in a folder: path -> content, link or what it is; also when it was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ("link", path.readlink())
        elif path.is_file():
            found[name] = ("file", path.read_bytes(), path.stat().st_mtime_ns)
        else:
            found[name] = ("folder" if path.is_dir() else "other",)
    return found


def make(path, kind="store", inputs=(), **content):
    with whole_or_absent(path, kind, inputs=inputs) as folder:
        for name, text in (content or {"a": "1", "b": "2"}).items():
            (folder / name).write_text(text)


def told(path: Path) -> set[str]:
    return {p.name for p in path.iterdir() if p.name != HIDDEN}


def refuses(path, kind="store", inputs=(), match=""):
    """Refused by the early check and by the making, and nothing around it changed."""
    top = Path(path).absolute().parent
    before = state(top)
    with pytest.raises(UserError, match=match) as caught:
        check_target(path, kind, inputs=inputs)
    with pytest.raises(UserError, match=match):
        make(path, kind, inputs)
    assert state(top) == before
    assert "\n" not in str(caught.value)


# --- what is in the way -------------------------------------------------------------------------------


def test_a_folder_of_the_same_kind_is_replaced(tmp_path):
    make(tmp_path / "s", a="1", b="2")
    make(tmp_path / "s", a="3")
    assert told(tmp_path / "s") == {"a"} and (tmp_path / "s/a").read_text() == "3"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_new_or_empty_folder_is_filled_and_its_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new", "deep/down/here", "x=1, (2) #é"):
        make(tmp_path / place)
        assert told(tmp_path / place) == {"a", "b"}


def test_a_folder_of_the_users_is_refused_and_what_is_in_it_named(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.tex").write_text("years of work")
    refuses(tmp_path / "d", match=r"thesis\.tex")


@pytest.mark.parametrize(
    "foreign", ["notes.txt", ".hidden", "sub/notes.txt", "sub/.h/deep/x", "sub/", "Thumbs.db"]
)
def test_what_a_user_put_into_an_output_keeps_it(tmp_path, foreign):
    make(tmp_path / "s")
    place = tmp_path / "s" / foreign
    if foreign.endswith("/"):
        place.mkdir()
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("mine")
    refuses(tmp_path / "s", match=foreign.split("/")[0])


@pytest.mark.parametrize("to", ["elsewhere.txt", "nowhere", ".."])
def test_a_link_in_an_output_keeps_it(tmp_path, to):
    (tmp_path / "elsewhere.txt").write_text("mine")
    make(tmp_path / "s")
    (tmp_path / "s/link").symlink_to(Path("..") / to)
    refuses(tmp_path / "s", match="link")


def test_a_file_of_an_output_that_was_replaced_by_a_link_keeps_it(tmp_path):
    make(tmp_path / "s")
    (tmp_path / "s/a").rename(tmp_path / "moved")
    (tmp_path / "s/a").symlink_to(tmp_path / "moved")
    refuses(tmp_path / "s", match="a")


def test_an_output_that_was_edited_is_refused_even_at_the_same_size(tmp_path):
    make(tmp_path / "s", a="1", b="2")
    at = (tmp_path / "s/b").stat()
    (tmp_path / "s/b").write_text("9")
    os.utime(tmp_path / "s/b", ns=(at.st_atime_ns, at.st_mtime_ns))
    refuses(tmp_path / "s", match="b in it has been changed")


def test_an_output_of_another_kind_is_refused(tmp_path):
    make(tmp_path / "m", "movies")
    refuses(tmp_path / "m", "store", match="simulated movies")


def test_a_marker_copied_among_other_files_makes_them_nobody_elses(tmp_path):
    make(tmp_path / "s", a="1")
    (tmp_path / "mine").mkdir()
    shutil.copy(tmp_path / "s" / HIDDEN, tmp_path / "mine")
    (tmp_path / "mine/a").write_text("mine")
    refuses(tmp_path / "mine", match="a in it has been changed")
    (tmp_path / "mine/a").write_text("1")
    (tmp_path / "mine/b").write_text("mine")
    refuses(tmp_path / "mine", match="b")


@pytest.mark.parametrize(
    "text", ["{}", "", "[1]", '{"made_by": "stemcell_lit", "files": 3}', "[" * 9999]
)
def test_a_file_that_only_has_the_markers_name_is_the_users(tmp_path, text):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / HIDDEN).write_text(text)
    refuses(tmp_path / "s", match="stemcell-lit")
    before = state(tmp_path)
    with pytest.raises(UserError, match="stemcell-lit"):
        write_whole(tmp_path / "s/table.csv", "x")
    assert state(tmp_path) == before


def test_a_marker_that_names_files_outside_deletes_none(tmp_path):
    (tmp_path / "victim").write_text("mine")
    make(tmp_path / "s", a="1")
    marker = json.loads((tmp_path / "s" / HIDDEN).read_text())
    marker["files"] |= {"../victim": marker["files"]["a"], str(tmp_path / "victim"): ["0"]}
    (tmp_path / "s" / HIDDEN).write_text(json.dumps(marker))
    make(tmp_path / "s", a="2")
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_file_given_as_folder_is_refused(tmp_path):
    (tmp_path / "f").write_text("mine")
    refuses(tmp_path / "f", match="is a file")
    refuses(tmp_path / "f" / "s", match="no folder")
    os.mkfifo(tmp_path / "pipe")
    refuses(tmp_path / "pipe", match="is a file")


@pytest.mark.parametrize("to", ["real", "nothing", "s", "real/file"])
def test_a_link_given_as_folder_is_refused(tmp_path, to):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("mine")
    (tmp_path / "s").symlink_to(tmp_path / to)
    refuses(tmp_path / "s", match="is a link")


def test_nothing_that_holds_the_source_is_replaced_however_it_is_written(tmp_path, monkeypatch):
    make(tmp_path / "d/in", a="1")
    monkeypatch.chdir(tmp_path / "d")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    source = tmp_path / "d/in"
    for written in (
        source,
        source / "a",
        "in",
        "./in/../in/a",
        tmp_path / "link/in",
        tmp_path / "link/in/a",
    ):
        for target in (
            "in",
            "in/",
            "./in",
            "../d/in",
            tmp_path / "link/in",
            tmp_path / "d/../d/in",
        ):
            refuses(target, inputs=[None, written], match="which is read")
    (tmp_path / "d/out").mkdir()
    (tmp_path / "d/out/source").symlink_to(source)
    refuses("out", inputs=["out/source"], match="which is read")


def test_an_empty_folder_that_one_works_in_or_lives_in_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    for target in (
        ".",
        "..",
        "../..",
        tmp_path / "a/b",
        tmp_path / "a",
        tmp_path,
        "/",
        "../b",
        "../../a",
    ):
        with pytest.raises(UserError, match=r"is or contains the folder in which you work"):
            check_target(target, "store")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="your home folder"):
        make(tmp_path / "a")
    assert state(tmp_path) == {"a": ("folder",), "a/b": ("folder",)}


def test_a_mount_is_refused(tmp_path, monkeypatch):
    make(tmp_path / "s")
    monkeypatch.setattr(os.path, "ismount", lambda p: Path(p).name == "s")
    refuses(tmp_path / "s", match="mounted")


@pytest.mark.parametrize("bad", ["a\0b", "x" * 300, "missing/../s"])
def test_what_is_no_path_is_a_sentence(tmp_path, bad):
    with pytest.raises(UserError):
        check_target(f"{tmp_path}/{bad}", "store")
    with pytest.raises(UserError):
        make(f"{tmp_path}/{bad}")
    with pytest.raises(UserError):
        write_whole(f"{tmp_path}/{bad}", "text")
    assert state(tmp_path) == {}


def test_what_comes_while_it_works_is_not_lost(tmp_path):
    with pytest.raises(UserError, match="notes"), whole_or_absent(tmp_path / "s", "store") as new:
        (new / "a").write_text("1")
        (tmp_path / "s").mkdir()
        (tmp_path / "s/notes").write_text("mine")
    assert state(tmp_path).keys() == {"s", "s/notes"}
    make(tmp_path / "t")
    with (
        pytest.raises(UserError, match="is a file"),
        whole_or_absent(tmp_path / "t", "store") as new,
    ):
        (new / "a").write_text("1")
        shutil.rmtree(tmp_path / "t")
        (tmp_path / "t").write_text("mine")
    assert (tmp_path / "t").read_text() == "mine"


@pytest.mark.parametrize("at_once", [True, False])
def test_what_comes_after_the_last_look_is_not_lost(tmp_path, monkeypatch, at_once):
    make(tmp_path / "s")
    exchange, came = swap.exchange, []

    def late(one, other):
        if not came:
            (tmp_path / "s/late").write_text("mine")
            came.append(True)
        return at_once and exchange(one, other)

    monkeypatch.setattr(swap, "exchange", late)
    with pytest.raises(UserError, match="late"):
        make(tmp_path / "s", a="new")
    monkeypatch.undo()
    assert told(tmp_path / "s") == {"a", "b", "late"} and (tmp_path / "s/a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_failure_leaves_nothing_not_even_the_folders_above(tmp_path):
    with pytest.raises(RuntimeError), whole_or_absent(tmp_path / "a/b/s", "store") as new:
        (new / "sub").mkdir()
        raise RuntimeError
    assert state(tmp_path) == {}


NAMES = st.sampled_from(
    ["a", "b", "notes.txt", ".hidden", "store.json", "pixels.npy", HIDDEN, "sub"]
)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["file", "folder", "link in", "link out", "broken"]),
    max_size=6,
)


def plant(folder: Path, tree: dict) -> None:
    for name, what in tree.items():
        path = folder / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):
                continue
            if what == "file":
                path.write_text(f"the user's {name}")
            elif what == "folder":
                path.mkdir()
            else:
                path.symlink_to({"link in": ".", "link out": "/", "broken": "nowhere"}[what])


@settings(max_examples=100, deadline=None)
@given(
    around=TREES,
    inside=TREES,
    target=st.sampled_from(["d", "d/s", "a", "d/sub", "d/../d", "sub/new", "."]),
    source=st.sampled_from(["d", "a", "d/a", "sub"]),
    kind=st.sampled_from(sorted(ownership.KINDS)),
    ours=st.booleans(),
    single=st.booleans(),
)
def test_no_byte_of_the_users_is_ever_lost(
    tmp_path_factory, around, inside, target, source, kind, ours, single
):
    top = tmp_path_factory.mktemp("t")
    (top / "d").mkdir()
    mine: set[str] = set()
    if ours:
        with contextlib.suppress(UserError):
            make(top / target, kind, a="ours", b="ours")
            own = (top / target).resolve()
            mine = {p.relative_to(top).as_posix() for p in own.rglob("*")}
    plant(top / "d", inside)
    plant(top, around)
    before = state(top)
    path = top / target / ("notes.txt" if single else "")
    try:
        if single:
            write_whole(path, "ours")
        else:
            make(path, kind, inputs=[top / source], c="new")
    except UserError:
        now = state(top)
        assert now == before
    else:
        now = state(top)
        for name, what in before.items():
            if (
                what[0] != "folder"
                and Path(top / name).resolve() != path.resolve()
                and name not in mine
            ):
                assert now.get(name) == what or (name.endswith(HIDDEN) and single)
    assert not [n for n in now if "stemcell-lit-" in n]
    shutil.rmtree(top)


# --- files --------------------------------------------------------------------------------------------


def test_a_file_is_written_again_and_again(tmp_path):
    for text in ("1", "2", "1", "3"):
        write_whole(tmp_path / "out/table.csv", text)
        assert (tmp_path / "out/table.csv").read_text() == text
    assert told(tmp_path / "out") == {"table.csv"}


def test_a_file_of_the_users_is_refused_and_so_is_one_that_was_edited(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    write_whole(tmp_path / "table.csv", "1")
    (tmp_path / "table.csv").write_text("corrected by hand")
    (tmp_path / "link.md").symlink_to("nowhere")
    (tmp_path / "folder.md").mkdir()
    before = state(tmp_path)
    for name in ("report.html", "table.csv", "link.md", "folder.md"):
        with pytest.raises(UserError, match=name):
            check_files(tmp_path, ["new.csv", name])
        with pytest.raises(UserError, match=name):
            write_whole(tmp_path / name, "ours")
    assert state(tmp_path) == before
    (tmp_path / "table.csv").rename(tmp_path / "mine.csv")  # the remedy
    write_whole(tmp_path / "table.csv", "2")
    assert (tmp_path / "mine.csv").read_text() == "corrected by hand"


def test_a_kill_between_the_record_and_the_file_is_no_edit(tmp_path, monkeypatch):
    write_whole(tmp_path / "t", "1")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_take_place", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / "t", "2")
    monkeypatch.undo()
    assert (tmp_path / "t").read_text() == "1"
    write_whole(tmp_path / "t", "3")
    assert (tmp_path / "t").read_text() == "3"


def test_a_file_that_changes_after_the_last_look_is_not_lost(tmp_path, monkeypatch):
    write_whole(tmp_path / "t", "1")
    exchange = swap.exchange

    def late(one, other):
        if (tmp_path / "t").read_text() == "1":
            (tmp_path / "t").write_text("mine")
        return exchange(one, other)

    monkeypatch.setattr(swap, "exchange", late)
    with pytest.raises(UserError, match="just been changed"):
        write_whole(tmp_path / "t", "2")
    assert (tmp_path / "t").read_text() == "mine"


def test_many_writers_of_one_folder_forget_none_of_their_files(tmp_path):
    def write(i):
        for text in "abc":
            write_whole(tmp_path / f"{i}.csv", text)

    threads = [threading.Thread(target=write, args=[i]) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(8):
        write_whole(tmp_path / f"{i}.csv", "again")
    assert told(tmp_path) == {f"{i}.csv" for i in range(8)}


# --- at once, and after a kill ------------------------------------------------------------------------


def test_a_reader_beside_always_finds_it(tmp_path):
    def store(number):
        pixels = np.full((4, 8, 8), number, np.uint8)
        rows = pd.DataFrame({"label": ["a"] * 4})
        PatchStore.write(tmp_path / "s", pixels, rows, classes=["a"])

    store(0)
    ended, looks, absent = threading.Event(), [0], [0]

    def look():
        while not ended.is_set():
            looks[0] += 1
            absent[0] += not (tmp_path / "s/store.json").exists()
            time.sleep(1e-5)  # the other thread shall have its turn

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(200):
        make(tmp_path / "s", **{"store.json": str(i)}) if i else store(i)
    ended.set()
    reader.join()
    assert looks[0] > 200 and absent[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("at_once", [True, False])
def test_of_many_writers_one_comes_last_and_its_folder_is_whole(tmp_path, monkeypatch, at_once):
    if not at_once:
        monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    failed = []

    def write(i):
        try:
            for _ in range(10):
                make(tmp_path / "s", **{name: str(i) for name in "abcd"})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=[i]) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert len({(tmp_path / "s" / name).read_text() for name in "abcd"}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    make(tmp_path / "s")


def in_a_child(action) -> None:
    """Runs it in a process of its own, which ends as if it were killed."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            action()
        os._exit(9)
    os.waitpid(pid, 0)


POINTS = ["block", "_mark", "exchange", "after exchange", "_remove_holder", "rename 1", "rename 2"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("there", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_the_next_start_clears_up(
    tmp_path, point, there
):
    if there:
        make(tmp_path / "s", a="old")
    before = state(tmp_path)

    def die(*args):
        os._exit(9)

    def doomed():
        if point == "block":
            with whole_or_absent(tmp_path / "s", "store") as new:
                (new / "a").write_text("half")
                die()
        if point in ("_mark", "_remove_holder"):
            setattr(files, point, die)
        if point == "exchange":
            swap.exchange = die
        if point == "after exchange":
            exchange = swap.exchange
            swap.exchange = lambda *a: (exchange(*a), die())
        if point.startswith("rename"):
            swap.exchange = lambda *a: False
            count, rename = [0], Path.rename

            def counted(self, to):
                count[0] += self.name in ("s", "new")
                if count[0] == int(point[-1]) + 1:
                    die()
                return rename(self, to)

            Path.rename = counted
        make(tmp_path / "s", a="new")

    in_a_child(doomed)
    check_target(tmp_path / "s", "store")
    now = state(tmp_path)
    assert not [n for n in now if "stemcell-lit-" in n]
    if (tmp_path / "s").exists():
        assert (tmp_path / "s/a").read_text() in ("old", "new")
    else:
        assert not there
    if there and point in ("block", "_mark", "exchange", "rename 1"):
        assert now == before
    make(tmp_path / "s", a="again")
    assert [p.name for p in tmp_path.iterdir()] == ["s"] and told(tmp_path / "s") == {"a"}


def test_a_reader_gets_a_store_back_that_a_kill_left_moved_aside(tmp_path):
    pixels, rows = np.zeros((4, 8, 8), np.uint8), pd.DataFrame({"label": ["a"] * 4})
    PatchStore.write(tmp_path / "s", pixels, rows, classes=["a"])

    def doomed():
        swap.exchange = lambda *a: False
        rename = Path.rename
        dies = lambda to: to.name == "s" and not to.exists()  # noqa: E731
        Path.rename = lambda self, to: os._exit(9) if dies(to) else rename(self, to)
        PatchStore.write(tmp_path / "s", pixels + 1, rows, classes=["a"])

    in_a_child(doomed)
    assert not (tmp_path / "s").exists()
    assert PatchStore.open(tmp_path / "s").pixels.max() == 0


def test_what_another_process_is_making_is_left_alone(tmp_path):
    with whole_or_absent(tmp_path / "s", "store") as first:
        (first / "a").write_text("first")
        make(tmp_path / "s", a="second")
        check_target(tmp_path / "s", "store")
        assert first.is_dir()
    assert (tmp_path / "s/a").read_text() == "first"


def test_leftovers_of_other_targets_and_of_other_machines_stay(tmp_path, monkeypatch):
    def doomed(name, machine=None):
        def run():
            if machine:
                swap.machine = lambda: machine
            with whole_or_absent(tmp_path / name, "store") as new:
                (new / "a").write_text("half")
                os._exit(9)

        in_a_child(run)

    doomed("s")
    doomed("t")
    doomed("s", ("0" * 8, "1" * 8))
    (tmp_path / ".s.stemcell-lit-notes").mkdir()
    (tmp_path / ".s.abcd1234").write_text("mine")
    make(tmp_path / "s")
    left = sorted(p.name for p in tmp_path.iterdir())
    assert len(left) == 5 and left[0] == ".s.abcd1234" and left[-1] == "s"
    assert sum("00000000-11111111" in n for n in left) == 1
    assert sum(n.startswith(".t.") for n in left) == 1


def test_a_kill_while_a_file_is_written_leaves_nothing_after_the_next_start(tmp_path):
    write_whole(tmp_path / "t", "old")

    def doomed():
        files._take_place = lambda *a: os._exit(9)
        write_whole(tmp_path / "t", "new")

    in_a_child(doomed)
    assert len(list(tmp_path.iterdir())) == 3
    write_whole(tmp_path / "t", "newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == [HIDDEN, "t"]
