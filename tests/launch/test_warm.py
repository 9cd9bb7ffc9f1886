"""Jobs forked from a process that has imported everything once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pool import run_jobs
from stemcell_lit.launch.slots import default_slots
from stemcell_lit.launch.warm import PROGRAM, WarmProcess, can_start_warm
from tests.conftest import make_store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs start warm on Linux alone")

LONG = [
    "run",
    "profile=smoke",
    "trainer=cpu",
    "data.store=store",
    "out=res",
    "stage.images=9000000",
]


def environment():
    return {**os.environ, **default_slots("cpu", 1, 2)[0], "PYTHONUNBUFFERED": "1"}


def waited(process, seconds=60.0):
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return process.poll()


def until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ([sys.executable, "-c", "pass"], {}),
        (["stemcell-lit", "run"], {}),
        ([*PROGRAM, "run"], {"CUDA_VISIBLE_DEVICES": "0"}),
    ],
)
def test_other_programs_and_jobs_on_a_gpu_start_cold(argv, changed):
    for program in (PROGRAM, [sys.executable, str(Path(sys.executable).with_name("stemcell-lit"))]):
        assert can_start_warm([*program, "run"], environment())
    assert not can_start_warm(argv, environment() | changed)


def test_a_warm_job_has_its_own_session_environment_folder_and_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store")
    log = tmp_path / "job.log"
    log.write_text("earlier\n")
    job = WarmProcess([*PROGRAM, *LONG], environment() | {"STEMCELL_LIT_TEST": "there"}, log)
    try:
        assert until(lambda: (tmp_path / "res" / "artifacts").is_dir())
        assert os.getsid(job.pid) == job.pid != os.getsid(0)
        assert job.poll() is None
    finally:
        job.send_signal(signal.SIGKILL)
    assert waited(job) == -signal.SIGKILL
    assert "STEMCELL_LIT_TEST" not in os.environ
    assert log.read_text().startswith("earlier\n")


def test_a_warm_job_with_tables_on_a_dashboard_leaves_no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    argv = [*PROGRAM, "run", "profile=smoke", "trainer=cpu", "data.store=store", "out=res"]
    job = WarmProcess(
        [*argv, "logger=offline"], environment() | {"TMPDIR": str(scratch)}, tmp_path / "job.log"
    )
    assert waited(job, 120) == 0, (tmp_path / "job.log").read_text()
    assert list((tmp_path / "res").rglob("*.wandb"))
    left = [f.name for f in scratch.iterdir() if not f.name.startswith("torchinductor")]
    assert not left  # that one is torch's cache, kept on purpose


def test_a_refused_warm_job_ends_with_status_2_and_its_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "job.log"
    assert waited(WarmProcess([*PROGRAM, "run", "stage.imges=3"], environment(), log)) == 2
    assert "stage" in log.read_text() and "Traceback" not in log.read_text()


def test_warm_jobs_do_not_share_what_they_draw_or_set(tmp_path, monkeypatch):
    """Two trials in turn give what each gives in a process that imported everything itself."""
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store")
    settings = ["profile=smoke", "trainer=cpu", "data.store=store", "logger=disabled"]
    found = {}
    for out, program in (
        ("warm", PROGRAM),
        ("cold", [sys.executable, "-W", "ignore", *PROGRAM[1:]]),
    ):
        jobs = [
            Job(f"{out}{seed}", [*program, "run", *settings, f"seed={seed}", f"out={out}"])
            for seed in (0, 1)
        ]
        slots = [environment()]
        assert all(o.ok for o in run_jobs(jobs, slots=slots))
        trials = sorted((tmp_path / out / "trials").iterdir())
        found[out] = [(c.name, (c / "predictions.parquet").read_bytes()) for c in trials]
    assert len(found["warm"]) == 2 and found["warm"] == found["cold"]


def test_warm_jobs_end_with_a_launcher_that_was_killed(tmp_path):
    make_store(tmp_path / "store")
    script = tmp_path / "launcher.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from stemcell_lit.launch.slots import default_slots\n"
        "from stemcell_lit.launch.warm import PROGRAM, WarmProcess\n"
        "import os\n"
        "env = {**os.environ, **default_slots('cpu', 1, 2)[0]}\n"
        f"job = WarmProcess([*PROGRAM, *{LONG!r}], env, Path('job.log'))\n"
        "print(job.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    pid = int(launcher.stdout.readline())
    assert until(lambda: (tmp_path / "res" / "artifacts").is_dir()) and not gone(pid)
    launcher.kill()
    launcher.wait()
    assert until(lambda: gone(pid), 15)
