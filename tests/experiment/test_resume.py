"""A run that is killed goes on from its last checkpoint and ends as if nothing had happened."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from stemcell_lit.experiment import run as running
from stemcell_lit.experiment.callbacks import ImagesProgress
from stemcell_lit.settings.command_keys import TrainCommand, typed
from stemcell_lit.settings.compose import compose
from tests.conftest import make_store
from tests.program import Program

IMAGES = 480  # ten epochs of 48


def words(tmp_path, out, task):
    settings = [
        "profile=smoke",
        "trainer=cpu",
        "method=flat",
        f"task={task}",
        f"gan.images={IMAGES}",
    ]
    settings += [f"stage.images={IMAGES}", "stage.validate_every_images=60"]
    settings += [f"data.store={tmp_path / 'store'}", f"out={tmp_path / out}"]
    return ["train", *settings]


def weights(tmp_path, out, name):
    (file,) = (tmp_path / out / "artifacts").glob(f"*/[!.]*/{name}")
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.mark.parametrize(("task", "name"), [("gan", "generator.ckpt"), ("stage", "stage.ckpt")])
def test_a_killed_training_ends_like_an_undisturbed_one(tmp_path, task, name):
    make_store(tmp_path / "store", movies=8)
    whole = Program(*words(tmp_path, "whole", task))
    assert whole.wait() == 0, whole.said

    process = Program(*words(tmp_path, "cut", task))
    deadline = time.monotonic() + 120
    while not (found := list(Path(tmp_path / "cut").glob("artifacts/*/.*.partial/**/last.ckpt"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert found and not list((tmp_path / "cut" / "artifacts").glob(f"*/[!.]*/{name}"))

    again = Program(*words(tmp_path, "cut", task))
    assert again.wait() == 0, again.said
    first, second = weights(tmp_path, "whole", name), weights(tmp_path, "cut", name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains in this process; signals come to it after chosen batches."""
    make_store(tmp_path / "store", movies=8)

    def train(out, task, signals=()):
        sent = dict(signals)
        batches = iter(range(1, 10_000))

        def after_batch(*rest):
            number = sent.pop(next(batches), None)
            if number:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(ImagesProgress, "on_train_batch_end", after_batch)
        settings = words(tmp_path, out, task)[1:]
        settings += ["gan.images=192", "stage.images=192"]
        running.train(typed(compose("train", settings), TrainCommand))

    return train


@pytest.mark.parametrize(("task", "name"), [("gan", "generator.ckpt"), ("stage", "stage.ckpt")])
def test_sigterm_writes_a_checkpoint_after_the_batch_and_nothing_is_lost(
    tmp_path, trained, capsys, task, name
):
    trained("whole", task)
    first = weights(tmp_path, "whole", name)
    for batch in (1, 3, 4, 7):  # epochs of three (gan) and of several batches (stage)
        out = f"cut{batch}"
        with pytest.raises(SystemExit) as ended:
            trained(out, task, {batch: signal.SIGTERM})
        assert ended.value.code == 128 + signal.SIGTERM
        said = capsys.readouterr().err
        (file,) = (tmp_path / out).glob("artifacts/*/.*.partial/**/last.ckpt")
        seen = int(said.split("checkpoint at ")[1].split()[0])
        kept = torch.load(file, weights_only=True)
        assert kept.get("gan_state", kept)["images_seen"] == seen > 0
        trained(out, task)
        second = weights(tmp_path, out, name)
        assert all(torch.equal(first[key], second[key]) for key in first), batch


def test_a_user_signal_goes_on_to_who_waits_for_it_after_the_checkpoint(tmp_path, trained):
    seen = []

    def requeue(number, frame):
        seen.append(list(tmp_path.glob("cut/artifacts/*/.*.partial/**/last.ckpt")))
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as ended:
            trained("cut", "stage", {2: signal.SIGUSR2})
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert ended.value.code == -1 and len(seen) == 1 and len(seen[0]) == 1
