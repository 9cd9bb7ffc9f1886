"""Jobs that start warm: forked from a process that has imported everything once.

Importing torch, Lightning and the rest takes about 9 seconds of a core, a quarter of a small trial. A
job is still a process of its own; only its imports are shared. On Linux and without a GPU alone: a
CUDA context does not survive a fork, and elsewhere forks of a process with libraries loaded are not
safe.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver
from pathlib import Path

from stemcell_lit.base.processes import plain_main, scratch_folder
from stemcell_lit.launch.leash import LAUNCHER

PRELOADED = [
    "stemcell_lit.launch.leash",  # first: importing the rest takes seconds, in which the launcher may die
    "stemcell_lit.commands",
    "stemcell_lit.studies.judge",
    "hydra",
    "wandb",
    "wandb.sdk.launch",  # 2 s of a core, at the start of each run otherwise
]
PROGRAM = [sys.executable, "-m", "stemcell_lit"]
_PROGRAMS = (PROGRAM, [sys.executable, str(Path(sys.executable).with_name("stemcell-lit"))])
_AT_IMPORT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read once, when libraries are loaded
_loaded_with: dict[str, str | None] = {}  # their values, once the server runs


def can_start_warm(argv: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a command of this package may be forked from the server, in this environment."""
    return (
        sys.platform == "linux"
        and _arguments(argv) is not None
        and env.get("CUDA_VISIBLE_DEVICES") == ""
        and all(_loaded_with.get(name, env.get(name)) == env.get(name) for name in _AT_IMPORT)
    )


def _arguments(argv: Sequence[str]) -> list[str] | None:
    """Those behind this package's program; None for another one."""
    words = list(map(str, argv))
    for program in _PROGRAMS:
        if words[: len(program)] == program:
            return words[len(program) :]
    return None


class WarmProcess:
    """A command of this package in a process of its own, session and process group.

    Looks like `subprocess.Popen` to who waits for it. It ends with the process that called this, in
    whatever way that ended.

    `argv` begins with `PROGRAM` or the console script of the same environment; output is appended to `log`.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        if not _loaded_with:
            _loaded_with.update({name: env.get(name) for name in _AT_IMPORT})
        tied = {
            "TMPDIR": str(scratch_folder())
        }  # what its imports put there goes with this process
        if threading.current_thread() is threading.main_thread():
            # The end of another thread is not the end of the launcher.
            tied[LAUNCHER] = str(os.getpid())
        with _environment({**env, **tied}):
            forkserver.ensure_running()
        words = _arguments(argv)
        if words is None:
            raise ValueError(f"{argv[:3]}: expected {PROGRAM} or its script")
        arguments = (words, dict(env), str(log.absolute()), str(Path.cwd()))
        self._process = context.Process(target=_main, args=arguments)
        with plain_main():
            self._process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # it has not opened its session yet, or has gone
                if self.poll() is None:
                    os.kill(self.pid, number)


def _main(arguments: list[str], env: dict[str, str], log: str, folder: str) -> None:
    """What the forked process does."""
    os.setsid()
    # What the server's imports asked for is the server's to do, at its exit; and what this job asks for is done at
    # its own, though the server's finalizers were registered already: else its temporary folders stay.
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    tempfile.tempdir = None  # the server's, until this job's own environment is asked
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["stemcell-lit", *arguments]
    sys.orig_argv = [*PROGRAM, *arguments]
    try:
        runpy.run_module(PROGRAM[-1], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without them


def _end_with_the_launcher() -> None:
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    connection.wait([launcher.sentinel])
    os.killpg(0, signal.SIGKILL)


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """This process's environment is another one for a moment: what it starts inherits that."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(env)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
