"""An answer that got an error never counts, and one that got none always does, whatever the disk does."""

import errno
import os

import pandas as pd
import pytest

from stemcell_lit.annotate import session as annotate_module
from stemcell_lit.annotate.session import Session
from stemcell_lit.annotate.sources import open_session
from stemcell_lit.errors import UserError
from tests.annotate.test_annotate import crops_config, opened, write_crops

FULL = OSError(errno.ENOSPC, "No space left on device")
LINE = len("crops/1.png,spread,1234567890.1\n")


class Disk:
    """Stands for the system's calls: takes so many bytes, or refuses the n-th call of a kind."""

    def __init__(self, monkeypatch, space=None, **refused):
        self.space, self.refused, self.calls = space, refused, {}
        for name in ("pwrite", "fsync", "ftruncate"):
            original = getattr(os, name)
            monkeypatch.setattr(os, name, self.stand_in(name, original))

    def stand_in(self, name, original):
        def call(*args):
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.refused.get(name) in (self.calls[name], "always"):
                raise FULL
            if name != "pwrite" or self.space is None:
                return original(*args)
            handle, data, at = args
            data = data[: self.space]
            if not data:
                raise FULL
            self.space -= len(data)
            return original(handle, data, at)

        return call


def counted(out) -> list[str]:
    """What a next start finds, and what `import` would read, must be the same."""
    found = Session.open(out).answers
    assert pd.read_csv(out / "patches.csv", dtype=str)["label"].tolist() == found
    return found


@pytest.mark.parametrize("cut", [None, "always"])
@pytest.mark.parametrize("space", range(LINE))
def test_a_disk_that_fills_after_any_byte_refuses_the_answer_for_good(
    tmp_path, monkeypatch, space, cut
):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (session, call):
        assert call("/answer", {"index": 0, "label": "dense"}).status_code == 200
        with monkeypatch.context() as patch:
            Disk(patch, space=space, ftruncate=cut)
            reply = call("/answer", {"index": 1, "label": "spread"})
            refused = reply.status_code == 500
            assert not refused or "No space left" in reply.text
            assert session.answers == ["dense"] + ([] if refused else ["spread"])
        given = list(session.answers)
        assert counted(tmp_path / "out") == given
        # and the next one takes its place, not that of another
        assert call("/answer", {"index": len(given), "label": "debris"}).status_code == 200
    assert counted(tmp_path / "out") == [*given, "debris"]


@pytest.mark.parametrize("refused", [{"fsync": 1}, {"fsync": 2}, {"fsync": 3}, {"pwrite": 2}])
def test_an_answer_that_does_not_reach_the_disk_does_not_count(tmp_path, monkeypatch, refused):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (session, call):
        call("/answer", {"index": 0, "label": "dense"})
        with monkeypatch.context() as patch:
            Disk(patch, **refused)
            status = call("/answer", {"index": 1, "label": "spread"}).status_code
        expected = ["dense"] + (["spread"] if status == 200 else [])
        assert session.answers == expected == counted(tmp_path / "out")
        assert call("/answer", {"index": len(expected), "label": "debris"}).status_code == 200
    assert counted(tmp_path / "out") == [*expected, "debris"]


def unwritable(monkeypatch):
    def refuse(*rest, **more):
        raise FULL

    monkeypatch.setattr(annotate_module, "write_whole", refuse)


def test_an_answer_that_cannot_come_into_patches_csv_is_refused(tmp_path, monkeypatch):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (session, call):
        call("/answer", {"index": 0, "label": "dense"})
        with monkeypatch.context() as patch:
            unwritable(patch)
            assert call("/answer", {"index": 1, "label": "spread"}).status_code == 500
        assert session.answers == ["dense"] == counted(tmp_path / "out")
        assert call("/answer", {"index": 1, "label": "debris"}).status_code == 200
    assert counted(tmp_path / "out") == ["dense", "debris"]


@pytest.mark.parametrize("how", ["export", "ftruncate", "fsync"])
def test_an_undo_that_got_an_error_leaves_the_answer(tmp_path, monkeypatch, how):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (session, call):
        for i, label in enumerate(["dense", "spread"]):
            call("/answer", {"index": i, "label": label})
        with monkeypatch.context() as patch:
            if how == "export":
                unwritable(patch)
            else:
                Disk(patch, **{how: "always"})
            status = call("/undo", {}).status_code
        expected = ["dense"] if status == 200 else ["dense", "spread"]
        assert session.answers == expected == counted(tmp_path / "out")
        assert call("/answer", {"index": len(expected), "label": "debris"}).status_code == 200
    assert counted(tmp_path / "out") == [*expected, "debris"]


@pytest.mark.parametrize(
    "line",
    [
        "crops/1.png,sprcrops/1.png,spread,1.0",  # a partial line and another behind it
        "crops/1.png,spread,1.0,more",
        "crops/1.png,spread",
        "crops/1.png,spread,soon",
        "crops/1.png,spread,nan",
        "crops/2.png,spread,1.0",
        'crops/1.png,"spread,1.0',
        "",
    ],
)
def test_lines_that_are_no_answers_are_refused_on_opening(tmp_path, line):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (_, call):
        call("/answer", {"index": 0, "label": "dense"})
    labels = tmp_path / "out" / "labels.csv"
    before = labels.read_text() + line + "\n"
    labels.write_text(before)
    with (
        pytest.raises(UserError, match=r"line 3|not a readable"),
        open_session(crops_config(tmp_path)),
    ):
        pass
    assert labels.read_text() == before


def test_a_table_of_answers_that_was_changed_meanwhile_is_not_written_into(tmp_path):
    write_crops(tmp_path / "crops")
    with opened(crops_config(tmp_path)) as (session, call):
        call("/answer", {"index": 0, "label": "dense"})
        labels = tmp_path / "out" / "labels.csv"
        labels.write_text("path,label,answered\n")
        reply = call("/answer", {"index": 1, "label": "spread"})
        assert reply.status_code == 500 and "changed meanwhile" in reply.text
        assert labels.read_text() == "path,label,answered\n" and session.answers == ["dense"]


def test_of_two_that_begin_at_once_one_is_refused_and_no_answer_is_lost(tmp_path, monkeypatch):
    write_crops(tmp_path / "crops")
    original = annotate_module._write_csv

    def meanwhile(path, *rest):
        original(path, *rest)
        if path.name == "labels.csv":
            monkeypatch.undo()
            with opened(crops_config(tmp_path)) as (_, call):
                call("/answer", {"index": 0, "label": "dense"})

    monkeypatch.setattr(annotate_module, "_write_csv", meanwhile)
    with pytest.raises(UserError, match="just begun"), open_session(crops_config(tmp_path)):
        pass
    assert counted(tmp_path / "out") == ["dense"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["crops", "out"]
