"""A checkpoint is whole or absent; one that is broken is said, and the same command ends as if nothing had been."""

import errno
import os

import pytest
import torch

from stemcell_lit.base import checkpoints
from stemcell_lit.base.checkpoints import PART, read_whole, save_whole, write_bytes_whole
from stemcell_lit.gan.module import GANModule
from tests.gan.helpers import CLASSES, SIDE, TINY, Killed, fit


def full_disk(monkeypatch, after: int, where: str):
    """Writing, syncing or renaming fails, writing after so many bytes."""

    def refuse(*rest, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "fsync":
        monkeypatch.setattr(checkpoints.os, "fsync", refuse)
    elif where == "replace":
        monkeypatch.setattr(checkpoints.Path, "replace", refuse)
    else:
        original = checkpoints.Path.open

        def opened(self, mode="r", *rest, **more):
            stream = original(self, mode, *rest, **more)
            if "w" in mode:
                write = stream.write

                class Cut:
                    def __enter__(self):
                        return self

                    def __exit__(self, *error):
                        stream.close()

                    def write(self, data):
                        write(bytes(data)[:after])
                        refuse()

                return Cut()
            return stream

        monkeypatch.setattr(checkpoints.Path, "open", opened)


@pytest.mark.parametrize("old", [b"", b"what was there"])
@pytest.mark.parametrize(
    ("where", "after"), [("write", k) for k in range(12)] + [("fsync", 0), ("replace", 0)]
)
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path, monkeypatch, old, where, after
):
    file = tmp_path / "last.ckpt"
    if old:
        file.write_bytes(old)
    full_disk(monkeypatch, after, where)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_whole(b"hello world", file)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["last.ckpt"] if old else [])
    assert not old or file.read_bytes() == old


def test_every_cut_and_every_changed_part_of_a_checkpoint_is_seen(tmp_path):
    file = tmp_path / "x.ckpt"
    save_whole({"state_dict": {"w": torch.arange(64.0)}, "n": 3}, file)
    assert read_whole(file)["n"] == 3
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"."):
            read_whole(file)
    place = whole.index(torch.arange(64.0).numpy().tobytes())
    for hole in (slice(place + 4, place + 5), slice(place, place + 256)):  # as of a power failure
        changed = bytearray(whole)
        changed[hole] = bytes(len(whole[hole]))
        file.write_bytes(changed)
        if bytes(changed) != whole:
            with pytest.raises(ValueError, match="changed"):
                read_whole(file)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {}, "x": Bomb()}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"."):
        read_whole(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """Weights after the whole budget, and last.ckpt of a training that was killed on its way."""
    folder = tmp_path_factory.mktemp("halfway")
    whole = fit(folder / "whole", images=96)
    with pytest.raises(Killed):
        fit(folder / "cut", images=96, dies_at=48)
    return whole.state_dict(), (folder / "cut" / "last.ckpt").read_bytes()


def broken(how: str, good: bytes, folder) -> bytes:
    file = folder / "other"
    if how == "another shape":
        save_whole({**torch.load(_at(folder, good), weights_only=True)}, file)
        content = read_whole(file)
        name = next(k for k, v in content["state_dict"].items() if v.ndim > 1)
        content["state_dict"][name] = content["state_dict"][name][:-1]
    elif how == "without counters":
        content = torch.load(_at(folder, good), weights_only=True)
        del content["gan_state"]
    elif how == "without optimisers":
        content = torch.load(_at(folder, good), weights_only=True)
        content["optimizer_states"] = content["optimizer_states"][:1]
    elif how == "optimisers of another shape":
        content = torch.load(_at(folder, good), weights_only=True)
        state = content["optimizer_states"][0]["state"]
        state[0]["exp_avg"] = state[0]["exp_avg"][..., :-1]
    else:
        return {
            "empty": b"",
            "cut": good[: len(good) // 2],
            "one byte short": good[:-1],
            "zeros": bytes(len(good)),
            "text": b"no checkpoint",
        }[how]
    save_whole(content, file)
    return file.read_bytes()


def _at(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "good").write_bytes(content)
    return folder / "good"


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "cut",
        "one byte short",
        "zeros",
        "text",
        "another shape",
        "without counters",
        "without optimisers",
        "optimisers of another shape",
    ],
)
def test_a_broken_last_checkpoint_is_said_and_the_result_is_the_undisturbed_one(
    tmp_path, halfway, capsys, how
):
    expected, good = halfway
    out = tmp_path / "again"
    out.mkdir()
    content = broken(how, good, tmp_path / "made")
    (out / "last.ckpt").write_bytes(content)
    (out / f"last.ckpt{PART}").write_bytes(b"half")
    found = fit(out, images=96).state_dict()
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and str(out / "last.ckpt") in said[0] and "begins again" in said[0]
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert not list(out.glob(f"*{PART}"))


def test_a_whole_last_checkpoint_is_gone_on_from_without_a_word(tmp_path, halfway, capsys):
    expected, good = halfway
    (tmp_path / "last.ckpt").write_bytes(good)
    found = fit(tmp_path, images=96)
    assert capsys.readouterr().err == ""
    assert found.images_seen == 96
    assert all(torch.equal(found.state_dict()[k], expected[k]) for k in expected)


def test_the_trial_of_a_checkpoint_leaves_the_network_as_it_was(tmp_path, halfway):
    (tmp_path / "last.ckpt").write_bytes(halfway[1])
    module = GANModule({**TINY, "images": 96}, CLASSES, SIDE)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    random = torch.get_rng_state()
    checkpoints.check_resumable(tmp_path / "last.ckpt", module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.images_seen == 0 and torch.equal(torch.get_rng_state(), random)
