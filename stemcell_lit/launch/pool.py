"""Runs jobs on one machine's devices, one process each, and cleans all of them up.

Hydra's and Lightning's own launchers cannot be combined for this: a rank started by Lightning runs
the whole sweep again. Here every job is a process of its own in a clean environment, and a job on
several devices is that many processes, one a rank, as `srun` starts them on a cluster. So each rank
runs the same program from its beginning and Lightning finds its rank in the environment.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.console import Console

from stemcell_lit.base.ownership import check_parent, located
from stemcell_lit.base.processes import scratch_folder
from stemcell_lit.base.progress import PROGRESS, PROGRESS_ENV, read_rate
from stemcell_lit.errors import UserError
from stemcell_lit.launch.jobs import (
    LOG,
    TAIL_LINES,
    Job,
    JobOutcome,
    check_order,
    is_done,
    read_tail,
    signals,
)
from stemcell_lit.launch.slots import clean_environment, default_slots, free_port
from stemcell_lit.launch.view import JobsView
from stemcell_lit.launch.warm import WarmProcess, can_start_warm

# from SIGTERM to SIGKILL: a checkpoint of these small networks takes a second or two
GRACE_S = 15.0


POLL_S = 0.1  # between two looks at the processes; nothing beside jobs of seconds to hours


# Runs in the child before the job's program: on Linux the kernel kills the child when its launcher
# dies in whatever way, even by SIGKILL (a child's own children, such as loader processes, watch
# their parent themselves). Elsewhere the child outlives a launcher that got SIGKILL. A program of
# its own instead of a `preexec_fn`, which may deadlock in a parent with threads.
_LEASH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):  # it died before the line above
        os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: int | Sequence[Mapping[str, str]],
    devices_per_job: int = 1,
    fail_fast: bool = False,
    title: str = "",
    console: Console | None = None,
) -> list[JobOutcome]:
    """Runs jobs side by side, each in its own process(es), until all have ended.

    A failed job does not stop the others; they are named at the end, with the last lines of their
    logs. On Ctrl-C or SIGTERM all processes get SIGTERM, then SIGKILL, and the signal goes on as
    `KeyboardInterrupt` or `SystemExit`. Nothing is remembered between calls but the jobs' results:
    the same call goes on where an interrupted one was.

    Args:
        jobs: in the order in which they are started.
        slots: that many places on the CPU, or the environment of each place (`default_slots`).
        devices_per_job: processes of a job. With more than one, each finds RANK, LOCAL_RANK,
            WORLD_SIZE, MASTER_ADDR and MASTER_PORT; when one of them fails the others are ended.
        fail_fast: the first failure ends all.
        title: what the table is called.
        console: where progress goes; None: standard error.

    Returns:
        An outcome for each job, in the order of `jobs`.

    Raises:
        UserError: in the place of a log lies something that no job wrote. Nothing was started.
        ValueError: no slots, two jobs of one name, or `after` names an unknown job or a cycle.
    """
    check_order(jobs)
    places = default_slots("cpu", devices_per_job, slots) if isinstance(slots, int) else slots
    if not places:
        raise ValueError("no slots to run jobs in")
    outcomes = {job.name: JobOutcome(job.name, "skipped") for job in jobs if is_done(job)}
    costs = {job.name: job.cost for job in jobs}
    view = JobsView(console or Console(stderr=True), title, len(places), outcomes, costs)
    free = list(range(len(places)))
    queue = [job for job in jobs if job.name not in outcomes]
    for job in queue:
        for log in _logs(job.out, devices_per_job) if job.out else []:
            _check_log(log)
    running: dict[int, _Running] = {}
    with (
        tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch,
        signals() as received,
        view.shown(running),
    ):
        try:
            while (queue or running) and not received:
                for job in [j for j in queue if all(name in outcomes for name in j.after)]:
                    if not free:
                        break
                    slot = free.pop(0)
                    queue.remove(job)
                    running[slot] = _Running(job, places[slot], devices_per_job, Path(scratch))
                for slot, process in list(running.items()):
                    outcome = process.poll()
                    if outcome is not None:
                        del running[slot]
                        free.append(slot)
                        outcomes[outcome.name] = outcome
                        view.ended(outcome)
                if fail_fast and any(o.status == "failed" for o in outcomes.values()):
                    break
                view.refresh()
                time.sleep(POLL_S if running else 0)
        finally:
            stopped = _stop(list(running.values()), received)
            running.clear()
    outcomes.update({o.name: o for o in stopped})
    result = [outcomes.get(job.name, JobOutcome(job.name, "stopped")) for job in jobs]
    view.summary(result, interrupted=bool(received))
    if received:
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received[0])  # as shells report a signal
    return result


class _Running:
    """The processes of one job, a session and process group each."""

    def __init__(self, job: Job, place: Mapping[str, str], ranks: int, scratch: Path):
        self.job = job
        self.started = time.monotonic()
        self._ending: float | None = None  # since when its processes are asked to end
        self._code = 0  # of the rank that failed first
        self._failed_rank = 0
        folder = job.out or Path(tempfile.mkdtemp(dir=scratch))
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = _logs(folder, ranks)
        self._starts = []  # where in each log this attempt begins: earlier ones are kept
        self._processes: list[subprocess.Popen[bytes] | WarmProcess] = []
        self.progress = Path(tempfile.mkdtemp(dir=scratch)) / PROGRESS
        env = clean_environment() | dict(place) | {PROGRESS_ENV: str(self.progress.absolute())}
        if ranks > 1:
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            env |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
            if sys.platform == "linux":  # gloo would look up the host's name, often in vain
                env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        for rank, file in enumerate(self.logs):
            if ranks > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            _check_log(file)
            with file.open("ab") as log:
                command = shlex.join(map(str, job.argv))
                log.write(f"--- {time.strftime('%F %T')} {command}\n".encode())  # see _BEGIN
                log.flush()  # before the job writes, and so that a killed launcher leaves a log of ours
                self._starts.append(log.tell())
                if can_start_warm(job.argv, env):
                    self._processes.append(WarmProcess(job.argv, env, file))
                else:
                    self._processes.append(_start(job.argv, env, log))

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def rate(self) -> float | None:
        return read_rate(self.progress)

    def poll(self) -> JobOutcome | None:
        """Looks after the processes; the outcome once all of them have ended."""
        codes = [p.poll() for p in self._processes]
        for rank, code in enumerate(codes):
            if code and not self._code:
                self._code, self._failed_rank = code, rank
                if self._ending is None:
                    self.terminate()  # the other ranks would wait for it in vain
        if self._ending is not None and time.monotonic() - self._ending > GRACE_S:
            self.kill()
        if any(code is None for code in codes):
            return None
        self.kill()  # what a job leaves running in its groups
        failed = self._code != 0 or not is_done(self.job, unknown=True)
        return JobOutcome(
            self.job.name,
            "failed" if failed else "done",
            self._code,
            self.elapsed,
            self.logs[self._failed_rank] if self.job.out else None,
            self.tail(TAIL_LINES, self._failed_rank) if failed else "",
        )

    def terminate(self) -> None:
        self._ending = time.monotonic()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def tail(self, lines: int, rank: int = 0) -> str:
        """The last lines that this attempt wrote."""
        return read_tail(self.logs[rank], lines, self._starts[rank])

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if isinstance(process, WarmProcess):
                process.send_signal(number)
                continue
            with suppress(ProcessLookupError, PermissionError):  # all of the group have gone
                os.killpg(process.pid, number)


_BEGIN = re.compile(rb"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # of a log that a job wrote


def _logs(folder: Path, ranks: int) -> list[Path]:
    return [folder / (LOG if rank == 0 else f"job.rank{rank}.log") for rank in range(ranks)]


def _check_log(file: Path) -> None:
    """Refuses a log that would be appended to what no job wrote."""
    try:
        state = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        check_parent(located(file), file)
        return
    if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
        with file.open("rb") as log:
            begin = log.read(64)
            if not begin or _BEGIN.match(begin):  # empty: a launcher was killed before it wrote
                return
    raise UserError(
        f"{file}: is no log that a job wrote, and a job's log goes there; nothing was changed; move it away, or give "
        "another folder"
    )


def _start(argv: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
    return subprocess.Popen(
        [*leash, *map(str, argv)],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone, which decides
    )


def _stop(running: list[_Running], received: list[int]) -> list[JobOutcome]:
    """Ends all processes; a second signal of the user shortens the grace."""
    for process in running:
        process.terminate()
    end = time.monotonic() + GRACE_S
    outcomes: dict[str, JobOutcome] = {}
    while len(outcomes) < len(running):
        if time.monotonic() > end or len(received) > 1:
            for process in running:
                process.kill()
        for process in running:
            outcome = process.poll() if process.job.name not in outcomes else None
            if outcome is not None:
                finished = outcome.status == "done"  # in the last moment
                outcome.status = "done" if finished else "stopped"
                outcomes[outcome.name] = outcome
        time.sleep(POLL_S / 5)
    return list(outcomes.values())
