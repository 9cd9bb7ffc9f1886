"""Whatever ends the program ends what it started; what it left for temporary use goes at the next start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stemcell_lit.base import processes
from stemcell_lit.base.processes import scratch_folder, sweep_scratch

# A parent with children of each kind, which say their ids and then wait.
PARENT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from stemcell_lit.base.processes import end_with_parent, plain_main, scratch_folder

def say():
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    print(scratch_folder(), flush=True)
    if sys.argv[1] == "pool":
        pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),))
        jobs = [pool.submit(say) for _ in range(2)]
    elif sys.argv[1] == "jobs":
        import threading
        from stemcell_lit.launch.jobs import Job; from stemcell_lit.launch.pool import run_jobs
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        jobs = [Job(n, [sys.executable, "-c", f"import sys; sys.stdout = open({sys.argv[2]!r} + {n!r}, 'w'); {code}"])
                for n in ("a", "b")]
        run_jobs(jobs, slots=2)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(what, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["pool", "jobs"])
def test_no_child_outlives_its_parent_and_the_next_start_removes_what_it_left(
    tmp_path, monkeypatch, kind, number
):
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), kind, str(tmp_path / "id-")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert parent.stdout is not None
    folder = Path(parent.stdout.readline().strip())
    if kind == "pool":
        children = [int(parent.stdout.readline()) for _ in range(2)]
    else:
        files = [tmp_path / f"id-{n}" for n in "ab"]
        children = [until(lambda f=f: f.is_file() and int(f.read_text() or 0)) for f in files]
    assert all(alive(c) for c in children) and folder.is_dir()
    monkeypatch.setattr(processes.tempfile, "tempdir", str(scratch))
    sweep_scratch()
    assert folder.is_dir()  # in use
    parent.send_signal(number)
    parent.wait(30)
    until(lambda: not any(alive(c) for c in children), 10)
    sweep_scratch()
    assert list(scratch.iterdir()) == []


def test_only_folders_of_this_program_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    foreign = tmp_path / "stemcell_lit_thesis"  # by its name alone
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("1")
    (tmp_path / "pymp-abc").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".lock").touch()
    (tmp_path / "stemcell_lit_link").symlink_to(elsewhere)
    left = tmp_path / "stemcell_lit_left"
    left.mkdir()
    (left / ".lock").touch()
    sweep_scratch()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"stemcell_lit_thesis", "pymp-abc", "elsewhere", "stemcell_lit_link"}


def test_a_process_has_one_folder_and_removes_it_at_its_end(tmp_path):
    assert scratch_folder() == scratch_folder()
    code = (
        "import multiprocessing.util as u; from stemcell_lit.base.processes import scratch_folder;"
        "assert u.get_temp_dir() == str(scratch_folder())"
    )
    code = "from stemcell_lit.base.processes import scratch_folder; scratch_folder();" + code
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert list(tmp_path.iterdir()) == []


def test_a_program_without_a_main_guard_can_simulate(tmp_path):
    script = tmp_path / "guardless.py"
    script.write_text(
        "from pathlib import Path\n"
        "from stemcell_lit.simulate.write import simulate\n"
        "from stemcell_lit.settings.group_keys import SimulationConfig\n"
        "simulate(SimulationConfig(movies=2, frames=1, size=64, threads=2), Path('movies'))\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path, timeout=120)
    assert len(list((tmp_path / "movies").glob("*_classes.tif"))) == 2
