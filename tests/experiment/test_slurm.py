"""Sweeps on a real Slurm of one node, started for these tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import make_store
from tests.experiment.local_slurm import LocalSlurm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = LocalSlurm.missing()
    if missing:
        pytest.skip(missing)
    pytest.importorskip("submitit", reason="the extra `slurm`")
    cluster = LocalSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        trouble = cluster.start()
        if trouble:
            pytest.skip(trouble)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store"
    make_store(path, movies=8)
    return path


def command(store, out, *settings, launcher="slurm"):
    words = ["run", "-m", "profile=smoke", "trainer=cpu", f"data.store={store}", f"out={out}"]
    if launcher == "slurm":
        words += ["hydra.launcher.mem_gb=1", "hydra.launcher.cpus_per_task=1"]
        words += ["hydra.launcher.timeout_min=5"]
    words += [f"hydra/launcher={launcher}", *settings]
    return [sys.executable, "-m", "stemcell_lit", *words]


def sweep(slurm, *words, **rest):
    env = {**slurm.env, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*words, **rest), env=env, capture_output=True, text=True, timeout=400, check=False
    )


@contextmanager
def launcher(slurm, *words):
    """A launcher that does not outlive its test."""
    env = {**slurm.env, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command(*words), env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def trains(slurm, process, out):
    """Waits until the job has trained for a second."""
    end = time.monotonic() + 200
    while not list(out.glob("multirun/.slurm/*/*_progress.json")):
        assert time.monotonic() < end and process.poll() is None, logs(out)
        time.sleep(0.05)


def results(out):
    return {
        p.parent.name: json.loads(p.read_text()) for p in Path(out).glob("cells/[!.]*/result.json")
    }


def logs(out):
    return {p: p.read_text() for p in Path(out).glob("multirun/.slurm/*/*_log.*")}


def test_a_sweep_of_four_cells_with_two_ranks_each_finishes(slurm, store, tmp_path):
    settings = ["trainer.devices=2", "method=flat,flat_gan", "split.fold=0,1"]
    done = sweep(slurm, store, tmp_path / "out", *settings)
    assert done.returncode == 0, (done.stderr[-3000:], logs(tmp_path / "out"))
    assert "4 done" in done.stderr
    found = results(tmp_path / "out")
    assert len(found) == 4 and len({(r["method"], r["fold"]) for r in found.values()}) == 4
    starts = [text for path, text in logs(tmp_path / "out").items() if path.name.endswith(".out")]
    ranks = re.findall(r"global_rank=(\d)\((\d)\)", "".join(starts))
    assert sorted(ranks) == [("0", "2")] * 4 + [("1", "2")] * 4
    log = [json.loads(x) for x in (tmp_path / "out/artifacts/log.jsonl").read_text().splitlines()]
    made = [line["kind"] for line in log if line["event"] == "made"]
    assert made.count("generator") == 2 and made.count("generated") == 2  # one a fold
    again = sweep(slurm, store, tmp_path / "out", *settings)
    assert again.returncode == 0 and "4 skipped" in again.stderr


def test_a_preempted_job_is_queued_again_and_ends_with_the_undisturbed_result(
    slurm, store, tmp_path
):
    settings = ["trainer.devices=2", "method=flat_gan", "gan.images=1600"]
    settings += ["gan.validate_every_images=800"]
    with launcher(slurm, store, tmp_path / "cut", *settings) as process:
        trains(slurm, process, tmp_path / "cut")
        (urgent := tmp_path / "urgent.sh").write_text(
            "#!/bin/bash\n#SBATCH --partition=urgent --ntasks=2 --output=/dev/null\ntrue\n"
        )
        slurm.ask("sbatch", str(urgent))
        said = slurm.wait(process, 400)
    texts = "".join(logs(tmp_path / "cut").values())
    assert process.returncode == 0, (said, texts)
    assert "DUE TO PREEMPTION" in texts
    assert re.search(r"SIGTERM: checkpoint at \d+ images", texts)
    assert len(re.findall("Starting with JobEnvironment", texts)) == 4  # two ranks, twice
    log = (tmp_path / "cut/artifacts/log.jsonl").read_text()
    assert log.count('"kind": "generator"') >= 1

    env = {**slurm.env, "PYTHONPATH": str(ROOT)}
    undisturbed = command(store, tmp_path / "whole", *settings, launcher="local")
    subprocess.run(undisturbed, env=env, check=True, capture_output=True, timeout=300)
    (cut,), (whole,) = results(tmp_path / "cut").items(), results(tmp_path / "whole").items()
    assert cut[0] == whole[0] and cut[1]["metrics"] == whole[1]["metrics"]
    tables = [
        pd.read_parquet(tmp_path / out / "cells" / cut[0] / "predictions.parquet")
        for out in ("cut", "whole")
    ]
    pd.testing.assert_frame_equal(*tables)


def test_a_warning_before_the_time_limit_queues_the_job_again(slurm, store, tmp_path):
    settings = ["method=flat_gan", "gan.images=9600", "gan.validate_every_images=9600"]
    with launcher(slurm, store, tmp_path / "cut", *settings) as process:
        trains(slurm, process, tmp_path / "cut")
        (book,) = (tmp_path / "cut").glob("multirun/.slurm/jobs.json")
        (job,) = json.loads(book.read_text()).values()
        slurm.ask("scancel", "--signal=USR2", job)
        said = slurm.wait(process, 400)
    texts = "".join(logs(tmp_path / "cut").values())
    assert process.returncode == 0, (said, texts)
    assert re.search(r"SIGUSR2: checkpoint at \d+ images", texts)
    assert texts.count("Starting with JobEnvironment") == 2  # queued again once


def test_a_job_that_fails_is_named_and_the_others_finish(slurm, store, tmp_path):
    done = sweep(slurm, store, tmp_path / "out", "method=time_only", "split.fold=0,9")
    assert done.returncode == 1
    assert "1 of 2 jobs failed: split.fold=9" in done.stderr and "1 done, 1 failed" in done.stderr
    assert "UserError: " in done.stderr and "split.fold=9" in done.stderr
    assert len(results(tmp_path / "out")) == 1


def test_ctrl_c_leaves_the_jobs_and_the_same_command_waits_for_them(slurm, store, tmp_path):
    settings = ["method=time_only", "split.fold=0,1"]
    book = tmp_path / "out/multirun/.slurm/jobs.json"
    with launcher(slurm, store, tmp_path / "out", *settings) as process:
        while not book.is_file():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert "2 jobs stay with Slurm" in said
    before = book.read_text()
    done = sweep(slurm, store, tmp_path / "out", *settings)
    assert done.returncode == 0, done.stderr
    assert book.read_text() == before and len(results(tmp_path / "out")) == 2


def test_a_partition_that_does_not_exist_is_one_sentence(slurm, store, tmp_path):
    done = sweep(slurm, store, tmp_path / "out", "method=flat", "hydra.launcher.partition=nowhere")
    assert done.returncode == 2
    lines = [x for x in done.stderr.splitlines() if x.startswith("stemcell-lit")]
    assert len(lines) == 1 and "nowhere" in lines[0] and "hydra.launcher.partition" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("absent", ["submitit", "sbatch"])
def test_what_is_missing_is_named_with_its_remedy(store, tmp_path, absent):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if absent == "submitit":
        (tmp_path / "hidden").mkdir()
        (tmp_path / "hidden" / "submitit.py").write_text("raise ImportError\n")
        env["PYTHONPATH"] = f"{tmp_path / 'hidden'}:{ROOT}"
    else:
        env["PATH"] = str(tmp_path)
    done = subprocess.run(
        command(store, tmp_path / "out", "method=flat"),
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    wanted = {
        "submitit": 'pip install "stemcell_lit[slurm]"',
        "sbatch": "no sbatch on this machine",
    }
    assert wanted[absent] in done.stderr
