"""Sweeps on a real Slurm of one node, started for these tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from stemcell_lit.launch.warm import PROGRAM
from tests.conftest import make_store
from tests.launch.local_slurm import LocalSlurm
from tests.program import Program

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
    """What is typed behind `stemcell-lit`."""
    words = ["run", "-m", "profile=smoke", "trainer=cpu", f"data.store={store}", f"out={out}"]
    if launcher == "slurm":
        words += ["hydra.launcher.mem_gb=1", "hydra.launcher.cpus_per_task=1"]
        words += ["hydra.launcher.timeout_min=5"]
    return [*words, f"hydra/launcher={launcher}", *settings]


def sweep(slurm, *words, **rest):
    """Exit status and output."""
    program = Program(*command(*words, **rest), env={**slurm.env, "PYTHONPATH": str(ROOT)})
    return program.wait(400), program.said


@contextmanager
def launcher(slurm, *words):
    """A launcher that does not outlive its test."""
    process = Program(*command(*words), env={**slurm.env, "PYTHONPATH": str(ROOT)})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def trains(slurm, process, out):
    """Waits until the job has trained for a second."""
    end = time.monotonic() + 200
    while not list(out.glob("multirun/.slurm/*/*_progress.json")):
        assert time.monotonic() < end and process.poll() is None, logs(out)
        time.sleep(0.05)


def results(out):
    return {
        p.parent.name: json.loads(p.read_text()) for p in Path(out).glob("trials/[!.]*/result.json")
    }


def logs(out):
    return {p: p.read_text() for p in Path(out).glob("multirun/.slurm/*/*_log.*")}


def test_a_sweep_of_four_trials_with_two_ranks_each_finishes(slurm, store, tmp_path):
    settings = ["trainer.devices=2", "method=flat,flat_gan", "split.fold=0,1"]
    code, said = sweep(slurm, store, tmp_path / "out", *settings)
    assert code == 0, (said[-3000:], logs(tmp_path / "out"))
    assert "4 done" in said
    found = results(tmp_path / "out")
    assert len(found) == 4 and len({(r["method"], r["fold"]) for r in found.values()}) == 4
    starts = [text for path, text in logs(tmp_path / "out").items() if path.name.endswith(".out")]
    ranks = re.findall(r"global_rank=(\d)\((\d)\)", "".join(starts))
    assert sorted(ranks) == [("0", "2")] * 4 + [("1", "2")] * 4
    log = [json.loads(x) for x in (tmp_path / "out/artifacts/log.jsonl").read_text().splitlines()]
    made = [line["kind"] for line in log if line["event"] == "made"]
    assert made.count("generator") == 2 and made.count("generated") == 2  # one a fold
    code, said = sweep(slurm, store, tmp_path / "out", *settings)
    assert code == 0 and "4 skipped" in said


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
        code = slurm.wait(process, 400)
    texts = "".join(logs(tmp_path / "cut").values())
    assert code == 0, (process.said, texts)
    assert "DUE TO PREEMPTION" in texts
    assert re.search(r"SIGTERM: checkpoint at \d+ images", texts)
    assert len(re.findall("Starting with JobEnvironment", texts)) == 4  # two ranks, twice
    log = (tmp_path / "cut/artifacts/log.jsonl").read_text()
    assert log.count('"kind": "generator"') >= 1

    code, said = sweep(slurm, store, tmp_path / "whole", *settings, launcher="local")
    assert code == 0, said
    (cut,), (whole,) = results(tmp_path / "cut").items(), results(tmp_path / "whole").items()
    assert cut[0] == whole[0] and cut[1]["metrics"] == whole[1]["metrics"]
    tables = [
        pd.read_parquet(tmp_path / out / "trials" / cut[0] / "predictions.parquet")
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
        code = slurm.wait(process, 400)
    texts = "".join(logs(tmp_path / "cut").values())
    assert code == 0, (process.said, texts)
    assert re.search(r"SIGUSR2: checkpoint at \d+ images", texts)
    assert texts.count("Starting with JobEnvironment") == 2  # queued again once


def test_a_sweep_that_cannot_work_is_refused_before_any_job(slurm, store, tmp_path):
    code, said = sweep(slurm, store, tmp_path / "out", "method=time_only", "split.fold=0,9")
    assert code == 2 and "split.fold=9: expected 0 to" in said
    assert not (tmp_path / "out/multirun/.slurm").exists() and not results(tmp_path / "out")


def test_more_cores_than_the_node_has_are_told_at_once_with_what_fits(slurm, store, tmp_path):
    settings = ["method=time_only", "hydra.launcher.cpus_per_task=4"]
    code, said = sweep(slurm, store, tmp_path / "out", *settings)
    assert code == 2 and "hydra.launcher.cpus_per_task=2" in said and "Traceback" not in said
    assert not slurm.ask("squeue", "-h").strip()
    default = ["hydra.launcher.cpus_per_task=null", "hydra.launcher.mem_gb=null"]
    code, said = sweep(slurm, store, tmp_path / "out", "method=time_only", *default)
    assert code == 0 and len(results(tmp_path / "out")) == 1, said


def test_a_job_that_slurm_can_never_start_is_told_and_cancelled(slurm, store, tmp_path):
    """As where `sinfo` is not there to ask before; four cores of two wait for ever."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sinfo").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin/sinfo").chmod(0o755)
    words = command(store, tmp_path / "out", "method=time_only", "hydra.launcher.cpus_per_task=4")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    program = Program(*words, env={**slurm.env, "PYTHONPATH": str(ROOT), "PATH": path})
    code, said = program.wait(200), program.said
    assert code == 2 and "Traceback" not in said, said
    assert "can never start 1 of the jobs" in said or "Slurm refuses the jobs" in said
    assert "hydra.launcher." in said and not slurm.ask("squeue", "-h").strip()


def test_ctrl_c_leaves_the_jobs_and_the_same_command_waits_for_them(slurm, store, tmp_path):
    settings = ["method=time_only", "split.fold=0,1"]
    book = tmp_path / "out/multirun/.slurm/jobs.json"
    with launcher(slurm, store, tmp_path / "out", *settings) as process:
        while not book.is_file():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        code, said = process.wait(60), process.said
    assert code == 130 and "Traceback" not in said
    assert "2 jobs stay with Slurm" in said
    before = book.read_text()
    code, said = sweep(slurm, store, tmp_path / "out", *settings)
    assert code == 0, said
    assert book.read_text() == before and len(results(tmp_path / "out")) == 2


def test_a_partition_that_does_not_exist_is_one_sentence(slurm, store, tmp_path):
    settings = ["method=flat", "hydra.launcher.partition=nowhere"]
    code, said = sweep(slurm, store, tmp_path / "out", *settings)
    assert code == 2
    lines = [x for x in said.splitlines() if x.startswith("stemcell-lit")]
    assert len(lines) == 1 and "nowhere" in lines[0] and "hydra.launcher.partition" in lines[0]
    assert "Traceback" not in said


def test_a_missing_submitit_is_named_with_its_remedy(store, tmp_path):
    (tmp_path / "submitit.py").write_text("raise ImportError\n")
    done = subprocess.run(
        [*PROGRAM, *command(store, tmp_path / "out", "method=flat")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert 'pip install "stemcell_lit[slurm]"' in done.stderr


def test_a_missing_sbatch_is_named(store, tmp_path):
    words = command(store, tmp_path / "out", "method=flat")
    program = Program(*words, env={"PATH": str(tmp_path)})
    assert program.wait() == 2
    assert "no sbatch on this machine" in program.said and "Traceback" not in program.said
