"""What a job is, what became of it, and its log."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Protocol

LOG = "job.log"  # in a job's folder: its standard output and error; of rank r > 0: job.rank<r>.log


TAIL_LINES = 12  # of a failed job's log in the summary: the end of a traceback with its message


@dataclass
class Job:
    """A program to run."""

    name: str  # what the table and the summary call it; unique among the jobs of a call
    argv: Sequence[str]  # program and arguments
    # folder of its log, made if absent; None: the log is kept only until the call returns
    out: Path | None = None
    # says whether its result is there already. Asked before the start, to skip it, and after an exit with status 0,
    # which without a result is a failure
    done: Callable[[], bool] | None = None
    # names of jobs that must have ended before, in whatever way. An artifact that both need is locked by its store
    # anyway; this keeps a slot from idling at the lock
    after: Sequence[str] = ()
    cost: float = 1.0  # what it is expected to take, in any unit: of use for the time left


@dataclass
class JobOutcome:
    """How a job ended."""

    name: str  # that of the job
    # done | skipped (its result was there) | failed | stopped (never started, or ended by `fail_fast`)
    status: str
    returncode: int | None = None  # exit status, negative for a signal; None if it never ran
    seconds: float = 0.0  # how long it ran
    log: Path | None = None  # file with its output; None if it never ran or had no folder
    tail: str = ""  # the last lines of its output, if it failed
    why: str = ""  # how it failed, where its exit status does not say

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


def read_tail(file: Path, lines: int, start: int = 0) -> str:
    """The last lines of a log behind byte `start`, without empty ones."""
    with file.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - 8192))
        text = log.read().decode("utf-8", "replace").replace("\r", "\n")
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


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


def is_done(job: Job, *, unknown: bool = False) -> bool:
    """Whether its result is there; `unknown` where nobody can say."""
    return unknown if job.done is None else job.done()


def check_order(jobs: Sequence[Job]) -> None:
    """Refuses names that stand twice, and jobs that wait for each other or for one that is not there."""
    names = [job.name for job in jobs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two jobs of one name: {sorted(twice)}")
    after = {job.name: set(job.after) for job in jobs}
    unknown = set().union(*after.values()) - set(names) if after else set()
    if unknown:
        raise ValueError(f"jobs wait for {sorted(unknown)}, which are not among them")
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        raise ValueError(f"jobs wait for each other: {error.args[1]}") from error
