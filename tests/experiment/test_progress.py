"""The line that a training shows."""

from types import SimpleNamespace

import pytest

from stemcell_lit.experiment import callbacks


@pytest.fixture
def after(monkeypatch, capsys):
    """What is shown by a step so many seconds later, with so many images more than before."""
    now, seen = 100.0, 50_000
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now)
    monkeypatch.delenv(callbacks.PROGRESS_ENV, raising=False)
    trainer, module = SimpleNamespace(global_rank=0), SimpleNamespace(images_seen=seen)
    shown = callbacks.ImagesProgress("stage root", 100_000)
    shown.on_train_start(trainer, module)

    def step(seconds, images):
        nonlocal now
        now += seconds
        module.images_seen += images
        shown.on_train_batch_end(trainer, module, None, None, 0)
        return capsys.readouterr().err

    return step


def test_the_time_left_follows_the_rate_of_the_last_minute(after):
    def train(seconds, rate):
        return "".join(after(1, rate) for _ in range(seconds)).splitlines()[-1]

    assert "62,000 of 100,000 images, 100 images/s, 6.3 min left" in train(120, 100)
    after(3600, 0)  # the machine slept
    assert ", 100 images/s" not in train(15, 100)
    assert ", 100 images/s" in train(75, 100)
    assert ", 50 images/s" in train(90, 50)


def test_the_first_line_comes_after_some_seconds_and_a_resumed_run_counts_its_own_images(after):
    assert after(4, 400) == ""
    line = "stage root: 52,000 of 100,000 images, 100 images/s, 8.0 min left\n"
    assert after(16, 1600) == line
