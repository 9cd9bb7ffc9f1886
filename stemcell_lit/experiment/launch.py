"""Jobs onto the devices of one machine: a process each, none forgotten, none left behind.

Hydra's and Lightning's own launchers cannot be combined for this: a rank started by Lightning runs
the whole sweep again. Here every job is a process of its own in a clean environment, and a job on
several devices is that many processes, one a rank, as `srun` starts them on a cluster. So each rank
runs the same program from its beginning and Lightning finds its rank in the environment.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stemcell_lit.base import formats as form
from stemcell_lit.base.ownership import check_parent, located
from stemcell_lit.base.processes import scratch_folder
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.warm import WarmProcess, can_start_warm
from stemcell_lit.settings.quoting import plain, printable

PROGRESS = "progress.json"  # while a job trains: images seen and their rate

PROGRESS_ENV = "STEMCELL_LIT_PROGRESS"  # tells a job where that file is

STALE_S = 60.0  # older progress is no progress; a validation may pause it for some seconds

LOG = "job.log"  # in a job's folder: its standard output and error; of rank r > 0: job.rank<r>.log

GRACE_S = (
    15.0  # from SIGTERM to SIGKILL: a checkpoint of these small networks takes a second or two
)

TAIL_LINES = 12  # of a failed job's log in the summary: the end of a traceback with its message

POLL_S = 0.1  # between two looks at the processes; nothing beside jobs of seconds to hours

# What would make a job believe that it is a rank of its parent's group. Lightning takes any
# SLURM_NTASKS for a cluster of its own, and a seed set by the parent would go before the job's.
FOREIGN = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)
FOREIGN_PREFIXES = ("SLURM_", "TORCHELASTIC_", "JSM_")

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


@dataclass
class Job:
    """A program to run.

    Attributes:
        name: what the table and the summary call it; unique among the jobs of a call.
        argv: program and arguments.
        out: folder of its log, made if absent; None: the log is kept only until the call returns.
        done: says whether its result is there already. Asked before the start, to skip it, and
            after an exit with status 0, which without a result is a failure.
        after: names of jobs that must have ended before, in whatever way. An artifact that both
            need is locked by its store anyway; this keeps a slot from idling at the lock.
    """

    name: str
    argv: Sequence[str]
    out: Path | None = None
    done: Callable[[], bool] | None = None
    after: Sequence[str] = ()


@dataclass
class JobOutcome:
    """How a job ended.

    Attributes:
        name: that of the job.
        status: done | skipped (its result was there) | failed | stopped (never started, or ended
            by `fail_fast`).
        returncode: exit status, negative for a signal; None if it never ran.
        seconds: how long it ran.
        log: file with its output; None if it never ran or had no folder.
        tail: the last lines of its output, if it failed.
        why: how it failed, where its exit status does not say.
    """

    name: str
    status: str
    returncode: int | None = None
    seconds: float = 0.0
    log: Path | None = None
    tail: str = ""
    why: str = ""

    @property
    def ok(self) -> bool:
        """Its result is there."""
        return self.status in ("done", "skipped")

    @property
    def reason(self) -> str:
        """How a failed job ended, in words."""
        if self.why:
            return self.why
        if self.returncode is None:
            return "never ran"
        if self.returncode < 0:
            return f"killed by {signal.Signals(-self.returncode).name}"
        if self.returncode == 0:
            return "exit status 0, but without its result"
        return f"exit status {self.returncode}"


def default_slots(
    accelerator: str = "auto", devices_per_job: int = 1, slots: int | None = None
) -> list[dict[str, str]]:
    """The places of this machine where a job can run, each as the environment that points to it.

    The cores that this process may use are divided among all processes of all slots.

    Args:
        accelerator: auto (GPUs where there are any) | gpu or cuda | cpu.
        devices_per_job: GPUs of a slot; on a CPU the number of processes that share a slot.
        slots: how many; None: as many as there are devices for. More of them than that share GPUs.

    Raises:
        UserError: an unknown accelerator, or fewer GPUs than one job needs.
    """
    if devices_per_job < 1 or (slots is not None and slots < 1):
        raise UserError(f"slots={slots} and devices={devices_per_job}: each must be at least 1")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"accelerator {accelerator!r}: expected auto, cpu or gpu")
    gpus = [] if accelerator == "cpu" else _visible_gpus()
    cores = _cores()
    if accelerator == "cpu" or (accelerator == "auto" and not gpus):
        places = [""] * (slots or max(1, cores // devices_per_job))  # no GPU is visible to them
    else:
        groups = [
            ",".join(gpus[i : i + devices_per_job])
            for i in range(0, len(gpus) - devices_per_job + 1, devices_per_job)
        ]
        if not groups:
            raise UserError(
                f"devices={devices_per_job}, but this machine shows {len(gpus)} GPUs; ask for "
                "fewer devices, or for accelerator=cpu"
            )
        places = [groups[i % len(groups)] for i in range(slots or len(groups))]
    threads = str(max(1, cores // (len(places) * devices_per_job)))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "STEMCELL_LIT_THREADS")
    return [{"CUDA_VISIBLE_DEVICES": place, **dict.fromkeys(names, threads)} for place in places]


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: int | Sequence[Mapping[str, str]],
    devices_per_job: int = 1,
    fail_fast: bool = False,
    title: str = "",
    console: Console | None = None,
    grace_s: float = GRACE_S,
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
        grace_s: seconds from SIGTERM to SIGKILL.

    Returns:
        An outcome for each job, in the order of `jobs`.

    Raises:
        UserError: in the place of a log lies something that no job wrote. Nothing was started.
        ValueError: no slots, two jobs of one name, or `after` names an unknown job or a cycle.
    """
    _check_order(jobs)
    places = default_slots("cpu", devices_per_job, slots) if isinstance(slots, int) else slots
    if not places:
        raise ValueError("no slots to run jobs in")
    outcomes = {job.name: JobOutcome(job.name, "skipped") for job in jobs if _is_done(job)}
    view = View(console or Console(stderr=True), title, len(jobs), len(places), outcomes)
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
                    running[slot] = _Running(
                        job, places[slot], devices_per_job, Path(scratch), grace_s
                    )
                for slot, process in list(running.items()):
                    outcome = process.poll()
                    if outcome is not None:
                        del running[slot]
                        free.append(slot)
                        outcomes[outcome.name] = outcome
                        view.ended(outcome, [r.elapsed for r in running.values()])
                if fail_fast and any(o.status == "failed" for o in outcomes.values()):
                    break
                view.refresh()
                time.sleep(POLL_S if running else 0)
        finally:
            stopped = _stop(list(running.values()), grace_s, received)
            running.clear()
    outcomes.update({o.name: o for o in stopped})
    result = [outcomes.get(job.name, JobOutcome(job.name, "stopped")) for job in jobs]
    view.summary(result, interrupted=bool(received))
    if received:
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received[0])  # as shells report a signal
    return result


class RunningJob(Protocol):
    """What the table knows of a job."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def elapsed(self) -> float:
        """Seconds since its start."""

    def tail(self, lines: int) -> str:
        """The last lines that it wrote."""

    def rate(self) -> float | None:
        """Images per second of the training that it is at; None: of none."""


class _Running:
    """The processes of one job, a session and process group each."""

    def __init__(
        self, job: Job, place: Mapping[str, str], ranks: int, scratch: Path, grace_s: float
    ):
        self.job, self.ranks, self.grace_s = job, ranks, grace_s
        self.started = time.monotonic()
        self._ending: float | None = None  # since when its processes are asked to end
        self._code = 0  # of the rank that failed first
        self._failed_rank = 0
        folder = job.out or Path(tempfile.mkdtemp(dir=scratch))
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = _logs(folder, ranks)
        self._starts = []  # where in each log this attempt begins: earlier ones are kept
        self._processes: list[subprocess.Popen | WarmProcess] = []
        self.progress = Path(tempfile.mkdtemp(dir=scratch)) / PROGRESS
        env = _clean_environment() | dict(place) | {PROGRESS_ENV: str(self.progress.absolute())}
        if ranks > 1:
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
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
        if self._ending is not None and time.monotonic() - self._ending > self.grace_s:
            self.kill()
        if any(code is None for code in codes):
            return None
        self.kill()  # what a job leaves running in its groups
        failed = self._code != 0 or not _is_done(self.job, unknown=True)
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
            if _BEGIN.match(log.read(64)):
                return
    raise UserError(
        f"{file}: is no log that a job wrote, and a job's log goes there; nothing was changed; move it away, or give "
        "another folder"
    )


_PROGRESS = form.record({"images": form.whole(), "per_s": form.number(0)})


def write_progress(file: str | Path, seen: int, rate: float) -> None:
    """Notes images seen and their rate; a reader sees the old note or the new one."""
    part = Path(f"{file}.part")
    part.write_text(json.dumps({"images": seen, "per_s": round(rate, 2)}), encoding="utf-8")
    part.replace(file)


def read_rate(file: Path) -> float | None:
    """Images per second of a job that is training, from its note."""
    try:
        if time.time() - file.stat().st_mtime > STALE_S:
            return None
        return float(form.read_json(file, _PROGRESS, "it is written anew", 4096)["per_s"])
    except (OSError, UserError):
        return None  # it does not train


def read_tail(file: Path, lines: int, start: int = 0) -> str:
    """The last lines of a log behind byte `start`, without empty ones."""
    with file.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - 8192))
        text = log.read().decode("utf-8", "replace").replace("\r", "\n")
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def _start(argv: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen:
    leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
    return subprocess.Popen(
        [*leash, *map(str, argv)],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone, which decides
    )


def _stop(running: list[_Running], grace_s: float, received: list[int]) -> list[JobOutcome]:
    """Ends all processes; a second signal of the user shortens the grace."""
    for process in running:
        process.terminate()
    end = time.monotonic() + grace_s
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


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM (and a closed terminal's SIGHUP) instead of obeying them."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may ask for signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class View:
    """What the user sees: a live table in a terminal, a line per finished job elsewhere."""

    console: Console
    title: str
    total: int
    slots: int
    outcomes: Mapping[str, JobOutcome]
    begun: float = field(default_factory=time.monotonic)
    live: Live | None = None
    drawn: float = 0.0
    waits: str = ""  # why jobs wait

    @contextmanager
    def shown(self, running: Mapping[int, RunningJob]) -> Iterator[None]:
        """Draws the table from now on, where there is a terminal."""
        self.running = running
        skipped = len(self.outcomes)
        if skipped:
            self.console.print(f"{skipped} of {self.total} jobs were done already", highlight=False)
        if self.console.is_terminal and skipped < self.total:
            with Live(console=self.console, auto_refresh=False, transient=True) as self.live:
                yield
        else:
            yield
        self.live = None

    def refresh(self) -> None:
        """Draws it again, now and then."""
        if self.live is not None and time.monotonic() - self.drawn > 0.5:
            self.live.update(self._table(), refresh=True)
            self.drawn = time.monotonic()

    def note(self, waits: str) -> None:
        """Says why jobs wait: below the table, or as a line; empty: none does."""
        self.waits = waits
        if self.live is None and waits:
            self.console.print(printable(waits), markup=False, highlight=False, soft_wrap=True)

    def ended(self, outcome: JobOutcome, elapsed: Sequence[float]) -> None:
        """Says that a job has ended; `elapsed`: seconds of those that run."""
        if self.live is not None and outcome.status == "done":
            return  # the table counts it
        ended = len(self.outcomes)
        how = "done" if outcome.status == "done" else f"FAILED ({outcome.reason})"
        line = f"[{ended}/{self.total}] {outcome.name}: {how} in {_clock(outcome.seconds)}"
        ran = sum(o.status != "skipped" for o in self.outcomes.values())
        rate = 60 * ran / (time.monotonic() - self.begun)
        line += f", {rate:.1f} jobs/min" if rate >= 0.5 else f", {60 * rate:.1f} jobs/h"
        left = self._left(elapsed)
        if left is not None and ended < self.total:
            line += f", about {_clock(left)} left"
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def summary(self, outcomes: Sequence[JobOutcome], *, interrupted: bool) -> None:
        """The last word: how many ended how, and each failed job with the end of its log."""
        write = self.console.print
        for o in outcomes:
            if o.status == "failed":
                where = f", log {o.log}" if o.log else ""
                write()
                write(
                    printable(f"FAILED {o.name}: {o.reason}{where}"), markup=False, soft_wrap=True
                )
                for line in o.tail.splitlines():
                    write(f"  | {printable(line)}", markup=False, highlight=False, soft_wrap=True)
        counts = [
            f"{n} {status}"
            for status in ("done", "skipped", "failed", "stopped")
            if (n := sum(o.status == status for o in outcomes))
        ]
        text = f"{self.title or 'jobs'}: {', '.join(counts) or 'none'} in {_clock(self._elapsed())}"
        if interrupted:
            text += "; interrupted, the same command goes on from here"
        write(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self.begun

    def _left(self, elapsed: Sequence[float]) -> float | None:
        """Seconds left, if what remains takes as long as what has ended; None: nothing has."""
        ran = [o.seconds for o in self.outcomes.values() if o.status in ("done", "failed")]
        if not ran:
            return None
        mean = sum(ran) / len(ran)
        queued = self.total - len(self.outcomes) - len(elapsed)
        return (queued * mean + sum(max(0.0, mean - e) for e in elapsed)) / self.slots

    def _table(self) -> Table:
        elapsed = [r.elapsed for r in self.running.values()]
        rates = {slot: r.rate() for slot, r in self.running.items()}
        total = sum(rate for rate in rates.values() if rate is not None)
        failed = sum(o.status == "failed" for o in self.outcomes.values())
        left = self._left(elapsed)
        caption = (
            f"{self.total - len(self.outcomes) - len(elapsed)} queued, {len(elapsed)} running, "
            f"{len(self.outcomes) - failed} done, {failed} failed; {_clock(self._elapsed())}"
            + (f", {total:,.0f} images/s" if total else "")
            + ("" if left is None else f", about {_clock(left)} left")
            + (f"\n{plain(self.waits)}" if self.waits else "")
        )
        table = Table(
            "slot",
            "job",
            "time",
            "images/s",
            "says",
            title=plain(self.title) or None,
            caption=caption,
            expand=True,
            box=None,
        )
        for slot, process in sorted(self.running.items()):
            says = Text(printable(process.tail(1)), no_wrap=True, overflow="ellipsis")
            rate = rates[slot]
            images = "" if rate is None else f"{rate:,.0f}"
            table.add_row(str(slot), plain(process.name), _clock(process.elapsed), images, says)
        return table


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_done(job: Job, *, unknown: bool = False) -> bool:
    return unknown if job.done is None else job.done()


def _check_order(jobs: Sequence[Job]) -> None:
    names = [job.name for job in jobs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two jobs of one name: {sorted(twice)}")
    after = {job.name: set(job.after) for job in jobs}
    unknown = set().union(*after.values()) - set(names) if after else set()
    if unknown:
        raise ValueError(f"jobs wait for {sorted(unknown)}, which are not among them")
    ready = deque(name for name, before in after.items() if not before)
    left = {name: set(before) for name, before in after.items() if before}
    while ready:
        name = ready.popleft()
        for other in [o for o, before in left.items() if name in before]:
            left[other].discard(name)
            if not left[other]:
                del left[other]
                ready.append(other)
    if left:
        raise ValueError(f"jobs wait for each other: {sorted(left)}")


def _clean_environment() -> dict[str, str]:
    """This process's environment without its place in a process group."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)
    }
    return kept | {"PYTHONUNBUFFERED": "1"}  # the log shows what happens now, and all after a kill


def _cores() -> int:
    """Cores that this process may use, which a scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _visible_gpus() -> list[str]:
    import torch  # here: the launcher on a CPU does not need it

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: Any = probe.getsockname()[1]
    return int(port)
