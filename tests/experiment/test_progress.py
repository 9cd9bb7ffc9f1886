"""The line that a training shows."""

from types import SimpleNamespace

from stemcell_lit.experiment import progress


def test_the_time_left_follows_the_rate_of_the_last_minute(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.delenv(progress.PROGRESS_ENV, raising=False)
    trainer, module = SimpleNamespace(global_rank=0), SimpleNamespace(images_seen=0)
    shown = progress.ImagesProgress("stage root", 100_000)
    shown.on_train_start(trainer, module)

    def train(seconds, rate):
        nonlocal now
        for _ in range(seconds):
            now += 1
            module.images_seen += rate
            shown.on_train_batch_end(trainer, module, None, None, 0)
        return capsys.readouterr().err.splitlines()[-1]

    said = train(120, 100)
    assert "12,000 of 100,000 images, 100 images/s, 14.7 min left" in said
    now += 3600  # the machine slept
    assert ", 100 images/s" not in train(15, 100)
    assert ", 100 images/s" in train(75, 100)
    assert ", 50 images/s" in train(90, 50)


def test_the_first_line_comes_after_some_seconds_and_a_resumed_run_counts_its_own_images(
    monkeypatch, capsys
):
    now = 5.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.delenv(progress.PROGRESS_ENV, raising=False)
    trainer, module = SimpleNamespace(global_rank=0), SimpleNamespace(images_seen=50_000)
    shown = progress.ImagesProgress("stage root", 60_000)
    shown.on_train_start(trainer, module)
    now, module.images_seen = 9.0, 50_400
    shown.on_train_batch_end(trainer, module, None, None, 0)
    assert capsys.readouterr().err == ""
    now, module.images_seen = 25.0, 52_000
    shown.on_train_batch_end(trainer, module, None, None, 0)
    line = "stage root: 52,000 of 60,000 images, 100 images/s, 1.3 min left\n"
    assert capsys.readouterr().err == line
