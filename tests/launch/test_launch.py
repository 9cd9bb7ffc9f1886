"""Jobs side by side: none forgotten, none on another's device, none left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from stemcell_lit.base import progress
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import callbacks
from stemcell_lit.launch import slots as slots_file
from stemcell_lit.launch import view
from stemcell_lit.launch.jobs import Job, JobOutcome, check_order
from stemcell_lit.launch.pool import run_jobs
from stemcell_lit.launch.slots import default_slots
from stemcell_lit.launch.view import JobsView


def job(name: str, body: str, **rest) -> Job:
    return Job(name, [sys.executable, "-S", "-c", textwrap.dedent(body)], **rest)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # ended; whether somebody collects it is not ours
            return True
        time.sleep(0.05)
    return False


def read_soon(path: Path, seconds: float = 20) -> str:
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


# --- what runs, and what is said of it ------------------------------------------------------------


def test_a_failed_job_does_not_stop_the_others_and_is_named_with_its_last_words(tmp_path):
    console = quiet()
    jobs = [
        job("good", "print('fine')", out=tmp_path / "good"),
        job("bad", "print('before'); raise SystemExit('no such patch')", out=tmp_path / "bad"),
        job("killed", "import os; os.kill(os.getpid(), 9)", out=tmp_path / "killed"),
        job("last", "print('fine')"),
    ]
    outcomes = run_jobs(jobs, slots=2, console=console, title="sweep")
    assert [o.status for o in outcomes] == ["done", "failed", "failed", "done"]
    assert [o.returncode for o in outcomes] == [0, 1, -9, 0]
    assert "fine" in (tmp_path / "good" / "job.log").read_text()
    assert "before\nno such patch" in outcomes[1].tail
    text = said(console)
    assert "FAILED bad: exit status 1" in text and "| no such patch" in text
    assert "FAILED killed: killed by SIGKILL" in text
    assert "sweep: 2 done, 2 failed" in text
    assert "[4/4]" in text and "jobs/min" in text and " left" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_names_and_logs_of_jobs_neither_command_the_terminal_nor_are_markup(tmp_path, terminal):
    odd = "[red]a[/x]\x1b]0;owned\x07"
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    run_jobs(
        [job(odd, "print('\\x1b]0;owned[/y]'); import time; time.sleep(1); raise SystemExit(1)")],
        slots=1,
        console=console,
        title=odd,
    )
    text = said(console)
    assert "\x1b]0" not in text and "\x07" not in text
    assert "[red]a[/x]\\x1b]0;owned\\x07" in text and "owned[/y]" in text


def test_slow_jobs_are_counted_by_the_hour():
    console = quiet()
    done = JobOutcome("slow", "done", 0, 1200.0)
    begun = time.monotonic() - 1200
    costs = dict.fromkeys(["slow", *"abcd"], 1.0)
    JobsView(console, "judge", 1, {"slow": done}, costs, begun=begun).ended(done)
    assert "[1/5] slow: done in 20:00, 3.0 jobs/h, about 1:20:00 left" in said(console)


def test_time_left_counts_a_job_by_what_it_costs():
    console = quiet()
    done = JobOutcome("cheap", "done", 0, 10.0)
    costs = {"cheap": 5.0, "dear": 600.0, "other": 100.0}
    shown = JobsView(console, "judge", 2, {"cheap": done}, costs)
    shown.ended(done)  # two slots, but the dear one runs on one of them
    assert "about 20:00 left" in said(console)


def test_a_job_whose_result_is_there_is_skipped_and_counted(tmp_path):
    console = quiet()

    def trial(name: str) -> Job:
        result = tmp_path / name
        return job(name, f"open({str(result)!r}, 'x')", done=result.exists)

    names = ["a", "b", "c"]
    assert [o.status for o in run_jobs([trial("a")], slots=1, console=quiet())] == ["done"]
    outcomes = run_jobs([trial(n) for n in names], slots=2, console=console)
    assert [o.status for o in outcomes] == ["skipped", "done", "done"]
    assert "1 of 3 jobs were done already" in said(console)
    again = run_jobs([trial(n) for n in names], slots=2, console=quiet())
    assert [o.status for o in again] == ["skipped"] * 3 and all(o.ok for o in again)


def test_a_job_that_ends_without_its_result_has_failed():
    (outcome,) = run_jobs([job("a", "", done=lambda: False)], slots=1, console=quiet())
    assert outcome.status == "failed" and "without its result" in outcome.reason


def test_fail_fast_ends_what_runs_and_starts_nothing_more(tmp_path):
    jobs = [
        job("slow", "import time; time.sleep(60)"),
        job("bad", "raise SystemExit(3)"),
        job("never", f"open({str(tmp_path / 'ran')!r}, 'x')"),
    ]
    start = time.monotonic()
    outcomes = run_jobs(jobs, slots=2, fail_fast=True, console=quiet())
    assert [o.status for o in outcomes] == ["stopped", "failed", "stopped"]
    assert time.monotonic() - start < 20 and not (tmp_path / "ran").exists()


def test_a_log_keeps_earlier_attempts_and_the_summary_shows_the_last(tmp_path):
    for text in ("first", "second"):
        (outcome,) = run_jobs(
            [job("a", f"raise SystemExit({text!r})", out=tmp_path)], slots=1, console=quiet()
        )
    assert outcome.tail == "second"
    assert "first" in (tmp_path / "job.log").read_text()


@pytest.mark.parametrize("kind", ["a file", "a pipe", "a link", "a hard link", "a folder"])
def test_nothing_is_written_into_a_log_that_no_job_wrote(tmp_path, kind):
    mine, log = tmp_path / "mine", tmp_path / "out" / "job.log"
    log.parent.mkdir()
    mine.write_text("--- 2026-01-02 03:04:05 mine" if "link" in kind else "mine")
    make = {"a file": lambda: mine.rename(log), "a folder": log.mkdir}
    make |= {"a pipe": lambda: os.mkfifo(log), "a link": lambda: log.symlink_to(mine)}
    make.get(kind, lambda: log.hardlink_to(mine))()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    jobs = [job("a", "open('ran', 'w')"), job("b", "open('ran', 'w')", out=log.parent)]
    with pytest.raises(UserError, match=r"out/job\.log: is no log that a job wrote"):
        run_jobs(jobs, slots=1, console=quiet())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not Path("ran").exists()


def test_a_log_begins_as_a_jobs_log_before_the_job_writes(tmp_path):
    """A launcher that is killed at any moment leaves a log that the same sweep goes on with."""
    log = tmp_path / "job.log"
    log.touch()  # killed before it wrote
    look = f"import pathlib; assert pathlib.Path({str(log)!r}).read_text().startswith('--- ')"
    (outcome,) = run_jobs([job("a", look, out=tmp_path)], slots=1, console=quiet())
    assert outcome.ok, outcome.tail


def test_a_file_in_the_place_of_a_logs_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt is no folder"):
        run_jobs([job("a", "", out=tmp_path / "notes.txt" / "a")], slots=1, console=quiet())


def test_a_program_that_does_not_exist_is_a_failed_job():
    (outcome,) = run_jobs([Job("a", ["/no/such/program"])], slots=1, console=quiet())
    assert (
        outcome.status == "failed" and outcome.tail == "/no/such/program: No such file or directory"
    )


def test_a_terminal_gets_a_live_table():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    run_jobs(
        [job("trial", "import time; print('870 images/s'); time.sleep(1)")] * 1,
        slots=1,
        console=console,
        title="sweep",
    )
    assert "trial" in said(console) and "870 images/s" in said(console)
    assert "0 queued, 1 running, 0 done, 0 failed" in said(console)


def test_output_that_is_redirected_says_every_minute_what_runs(tmp_path, monkeypatch):
    console = quiet()
    slow = [job(n, "import time; time.sleep(.6)", out=tmp_path / n) for n in ("slow", "slower")]
    monkeypatch.setattr(view, "QUIET_S", 0.2)
    run_jobs(slow, slots=1, console=console)
    assert "1 queued, 1 running, 0 done, 0 failed; 0." in said(console)
    assert "s: slow (0." in said(console)  # who runs, and since when


NOTING = """
    import os, time
    from pathlib import Path
    file = Path(os.environ["STEMCELL_LIT_PROGRESS"])
    file.write_text('{"images": 400, "per_s": RATE}')
    time.sleep(1.5)
    file.unlink()
"""


def test_the_table_shows_images_per_second_of_each_job_and_of_all(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    jobs = [
        job("one", NOTING.replace("RATE", "1211.6"), out=tmp_path / "one"),
        job("two", NOTING.replace("RATE", "305"), out=tmp_path / "two"),
        job("three", "import time; time.sleep(1)", out=tmp_path / "three"),
    ]
    assert all(o.ok for o in run_jobs(jobs, slots=3, console=console))
    assert "1,212" in said(console) and "305" in said(console)
    assert "1,517 images/s" in said(console)


def test_a_note_of_progress_is_whole_and_an_old_one_is_none(tmp_path):
    file = tmp_path / "progress.json"
    assert progress.read_rate(file) is None
    progress.write_progress(file, 640, 321.456)
    assert json.loads(file.read_text()) == {"images": 640, "per_s": 321.46}
    assert progress.read_rate(file) == 321.46 and list(tmp_path.iterdir()) == [file]
    old = time.time() - progress.STALE_S - 1
    os.utime(file, (old, old))
    assert progress.read_rate(file) is None
    file.write_text("{")
    assert progress.read_rate(file) is None


def test_a_training_notes_its_rate_at_most_once_a_second_and_clears_the_note(tmp_path, monkeypatch):
    now, notes = [100.0], []
    monkeypatch.setenv(progress.PROGRESS_ENV, str(tmp_path / "progress.json"))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        callbacks, "write_progress", lambda *a: (notes.append(a[1:]), progress.write_progress(*a))
    )
    shown = callbacks.ImagesProgress("stage root", 1000)
    rank, module = SimpleNamespace(global_rank=0), SimpleNamespace(images_seen=50)
    shown.on_train_start(rank, module)
    for _ in range(24):
        now[0] += 0.125
        module.images_seen += 10
        shown.on_train_batch_end(rank, module, None, None, 0)
    assert notes == [(130, 80), (210, 80), (290, 80)]
    assert progress.read_rate(tmp_path / "progress.json") == 80
    shown.on_train_end(rank, module)
    assert list(tmp_path.iterdir()) == []


# --- order ----------------------------------------------------------------------------------------


def test_a_job_waits_for_what_it_comes_after_even_if_that_fails(tmp_path):
    log = tmp_path / "log"

    def note(name: str, more: str = "") -> str:
        return f"import time; open({str(log)!r}, 'a').write({name + ' '!r}); {more}"

    jobs = [
        job("c", note("c"), after=["b"]),
        job("b", note("b", "time.sleep(0.3)"), after=["a"]),
        job("a", note("a", "time.sleep(0.3); raise SystemExit(1)")),
    ]
    outcomes = run_jobs(jobs, slots=3, console=quiet())
    assert log.read_text().split() == ["a", "b", "c"]
    assert [o.status for o in outcomes] == ["done", "done", "failed"]


GRAPHS = st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=7)


@settings(deadline=None)
@given(GRAPHS)
def test_an_order_is_refused_exactly_if_no_sequence_obeys_it(graph):
    count = len(graph)
    after = {str(i): {str(j % count) for j in before} for i, before in enumerate(graph)}
    jobs = [Job(name, [], after=sorted(before)) for name, before in after.items()]
    ended: set[str] = set()
    while ready := [n for n in after if n not in ended and after[n] <= ended]:
        ended |= set(ready)
    if len(ended) == count:
        check_order(jobs)
    else:
        with pytest.raises(ValueError, match="wait for each other"):
            check_order(jobs)


def test_two_jobs_of_one_name_or_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match="one name"):
        run_jobs([Job("a", []), Job("a", [])], slots=1)
    with pytest.raises(ValueError, match="not among them"):
        run_jobs([Job("a", [], after=["b"])], slots=1)
    with pytest.raises(ValueError, match="no slots"):
        run_jobs([Job("a", [])], slots=[])


# --- devices --------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(1, 8), st.none() | st.integers(1, 80))
def test_cpu_slots_never_take_more_threads_than_cores_unless_asked(cores, devices, slots):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots_file, "_cores", lambda: cores)
        places = default_slots("cpu", devices, slots)
    threads = int(places[0]["STEMCELL_LIT_THREADS"])
    assert len(places) == slots if slots else len(places) * devices <= max(cores, devices)
    assert threads == 1 or len(places) * devices * threads <= cores
    assert all(p == places[0] and p["CUDA_VISIBLE_DEVICES"] == "" for p in places)


@given(st.integers(1, 16), st.integers(1, 4), st.none() | st.integers(1, 20))
def test_gpu_slots_share_a_gpu_only_if_asked(gpus, devices, slots):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots_file, "_visible_gpus", lambda: [f"GPU-{i}" for i in range(gpus)])
        if devices > gpus:
            with pytest.raises(UserError, match="fewer devices"):
                default_slots("gpu", devices, slots)
            return
        places = default_slots("auto", devices, slots)
    groups = [p["CUDA_VISIBLE_DEVICES"].split(",") for p in places]
    assert all(len(group) == devices for group in groups)
    assert len(places) == (slots or gpus // devices)
    used = [gpu for group in groups for gpu in group]
    if len(places) <= gpus // devices:
        assert len(set(used)) == len(used)


def test_nonsense_is_refused_in_a_sentence(monkeypatch):
    with pytest.raises(UserError, match="accelerator 'tpu'"):
        default_slots("tpu")
    with pytest.raises(UserError, match="at least 1"):
        default_slots("cpu", 0)
    monkeypatch.setattr(slots_file, "_visible_gpus", list)
    with pytest.raises(UserError, match="shows 0 GPUs"):
        default_slots("gpu")


REPORT = """
    import json, os, time
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RANK", "SLURM_NTASKS", "PL_GLOBAL_SEED")
    print(json.dumps({"begin": time.time(), **{n: os.environ.get(n) for n in names}}))
    time.sleep(0.3)
    print(json.dumps({"end": time.time()}))
"""


def test_a_slot_holds_one_job_at_a_time_in_a_clean_environment(tmp_path, monkeypatch):
    for name in ("RANK", "SLURM_NTASKS", "PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "7")
    slots = [{"CUDA_VISIBLE_DEVICES": str(i), "OMP_NUM_THREADS": "3"} for i in range(2)]
    jobs = [job(f"{i}", REPORT, out=tmp_path / str(i)) for i in range(5)]
    assert all(o.ok for o in run_jobs(jobs, slots=slots, console=quiet()))
    spans: dict[str, list] = {"0": [], "1": []}
    for i in range(5):
        lines = (tmp_path / str(i) / "job.log").read_text().splitlines()
        env, end = map(json.loads, lines[-2:])
        assert [env["RANK"], env["SLURM_NTASKS"], env["PL_GLOBAL_SEED"]] == [None] * 3
        assert env["OMP_NUM_THREADS"] == "3"
        spans[env["CUDA_VISIBLE_DEVICES"]].append((env["begin"], end["end"]))
    for held in spans.values():
        assert held
        ordered = sorted(held)
        assert all(a[1] <= b[0] for a, b in pairwise(ordered))


DDP = """
import torch
import pytorch_lightning as pl

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
    def training_step(self, batch, index):
        return self.net(batch[0]).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
    def on_train_start(self):
        total = torch.tensor([self.global_rank + 1])
        torch.distributed.all_reduce(total)
        print("rank", self.global_rank, "of", self.trainer.world_size, "sum", int(total))

data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)))
pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
).fit(Module(), data)
torch.distributed.destroy_process_group()  # else its threads may abort a process that ends
"""

LOST = """
    import os, time
    if os.environ["RANK"] == "1":
        raise SystemExit("out of memory")
    time.sleep(60)  # as in a collective operation that never completes
"""


def test_ranks_of_a_job_form_one_group_and_a_lost_one_ends_its_job_alone(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DDP)
    jobs = [
        job("lost", LOST, out=tmp_path / "lost"),
        Job("good", [sys.executable, script], out=tmp_path / "good"),
    ]
    lost, good = run_jobs(jobs, slots=2, devices_per_job=2, console=quiet())
    logs = [(tmp_path / "good" / f).read_text() for f in ("job.log", "job.rank1.log")]
    assert good.ok, logs
    assert "rank 0 of 2 sum 3" in logs[0] and "rank 1 of 2 sum 3" in logs[1]
    assert lost.status == "failed" and lost.returncode == 1
    assert lost.tail == "out of memory" and lost.log == tmp_path / "lost" / "job.rank1.log"
    assert lost.seconds < good.seconds


# --- ends -----------------------------------------------------------------------------------------

# A job with a child of its own; both ignore SIGTERM if told to.
FAMILY = """
    import os, signal, subprocess, sys, time
    if {stubborn}:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    with open({file!r}, "w") as file:
        print(os.getpid(), child.pid, file=file)
    time.sleep(60)
"""


def launcher(tmp_path: Path, stubborn: bool) -> tuple[subprocess.Popen, list[int]]:
    """A launcher in a process of its own with two running families and a queued job."""
    script = tmp_path / "launcher.py"
    files = [str(tmp_path / f"family{i}") for i in range(2)]
    bodies = [textwrap.dedent(FAMILY).format(stubborn=stubborn, file=f) for f in files]
    script.write_text(
        "import sys\n"
        "from stemcell_lit.launch.jobs import Job; from stemcell_lit.launch.pool import run_jobs\n"
        f"bodies = {bodies!r} + ['']\n"
        "jobs = [Job(str(i), [sys.executable, '-S', '-c', b]) for i, b in enumerate(bodies)]\n"
        "from stemcell_lit.launch import pool\npool.GRACE_S = 1\nrun_jobs(jobs, slots=2)\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)
    return process, [int(pid) for f in files for pid in read_soon(Path(f)).split()]


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_behind(tmp_path, number, stubborn):
    process, pids = launcher(tmp_path, stubborn)
    process.send_signal(number)
    text = process.communicate(timeout=20)[1]
    assert all(gone(pid) for pid in pids)
    assert "3 stopped" in text and "run the same command again to continue" in text
    if number == signal.SIGINT:
        assert process.returncode == -signal.SIGINT  # Python's own way to end by Ctrl-C
    else:
        assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_killed_launcher_takes_its_jobs_along(tmp_path):
    process, pids = launcher(tmp_path, stubborn=True)
    process.kill()
    process.communicate()
    jobs = pids[::2]  # their own children watch them, or not: that is theirs
    assert all(gone(pid) for pid in jobs)
    for pid in pids[1::2]:
        os.kill(pid, signal.SIGKILL)


def test_what_a_finished_job_leaves_running_is_ended(tmp_path):
    file = tmp_path / "pid"
    body = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        with open({str(file)!r}, "w") as file:
            print(child.pid, file=file)
    """
    assert run_jobs([job("a", body)], slots=1, console=quiet())[0].ok
    assert gone(int(file.read_text()))
