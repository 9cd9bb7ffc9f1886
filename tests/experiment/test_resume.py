"""A run that is killed goes on from its last checkpoint and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import make_store

IMAGES = 480  # ten epochs of 48


def command(tmp_path, out, task):
    settings = [
        "profile=smoke",
        "trainer=cpu",
        "method=flat",
        f"task={task}",
        f"gan.images={IMAGES}",
    ]
    settings += [f"stage.images={IMAGES}", "stage.validate_every_images=60"]
    settings += [f"data.store={tmp_path / 'store'}", f"out={tmp_path / out}"]
    return [sys.executable, "-m", "stemcell_lit", "train", *settings]


def weights(tmp_path, out, name):
    (file,) = (tmp_path / out / "artifacts").glob(f"*/[!.]*/{name}")
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.mark.parametrize(("task", "name"), [("gan", "generator.ckpt"), ("stage", "stage.ckpt")])
def test_a_killed_training_ends_like_an_undisturbed_one(tmp_path, task, name):
    make_store(tmp_path / "store", movies=8)
    subprocess.run(command(tmp_path, "whole", task), check=True, capture_output=True)

    process = subprocess.Popen(
        command(tmp_path, "cut", task), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (found := list(Path(tmp_path / "cut").glob("artifacts/*/.*.partial/last.ckpt"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert found and not list((tmp_path / "cut" / "artifacts").glob(f"*/[!.]*/{name}"))

    subprocess.run(command(tmp_path, "cut", task), check=True, capture_output=True)
    first, second = weights(tmp_path, "whole", name), weights(tmp_path, "cut", name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
