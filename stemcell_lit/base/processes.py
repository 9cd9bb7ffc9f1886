"""Processes that end with the one that started them, and its folder for temporary files, which goes with it.

A program that is killed says nothing to its children and removes nothing. So children are tied to it by the kernel,
and what it leaves in the folder for temporary files is found by the next one, which can tell by a lock that it belongs
to nobody any more.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from stemcell_lit.base.swap import try_lock

PREFIX = "stemcell_lit_"  # of folders for temporary files
_LOCK = ".lock"  # in each: held by its process and those forked from it
_POLL_S = 0.5  # between two looks at the parent, where the kernel does not tell
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_scratch: dict[int, Path] = {}  # of this process, by its id: a forked one has its own


def end_with_parent(parent: int, *, watch: bool = True) -> None:
    """Ties this process to its parent, which may end in whatever way: called first thing in a child.

    Args:
        parent: id of the parent, as it knows itself.
        watch: also looks now and then, from a thread, for where the kernel does not tell. Not in a process that will
            be forked: forks of one with threads are not safe.
    """
    if sys.platform == "linux":
        # The kernel's signal is for the end of the *thread* that started the child: here the parent's main one.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    if watch:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def plain_main() -> Iterator[None]:
    """Hides which program this process runs: a child started meanwhile need not import it again.

    A program without a main guard would else begin anew in each child.
    """
    program = sys.modules["__main__"]
    hidden = {name: getattr(program, name, None) for name in ("__spec__", "__file__")}
    try:
        for name in hidden:
            setattr(program, name, None)
        yield
    finally:
        for name, value in hidden.items():
            setattr(program, name, value)


def scratch_folder() -> Path:
    """This process's folder for temporary files, made at the first call, gone when the process ends.

    What processes that were killed have left is removed first. The sockets and queues of `multiprocessing` lie in it,
    too.
    """
    pid = os.getpid()
    if pid not in _scratch:
        sweep_scratch()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Locked before it has its name, so that nobody finds it free; not closed before the process ends, and those
        # forked from it.
        handle = os.open(folder / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT, 0o600)
        try_lock(handle)
        (folder / f"{_LOCK}.new").rename(folder / _LOCK)
        _scratch[pid] = folder
        multiprocessing.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]
        atexit.register(_remove, folder, pid)
    return _scratch[pid]


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not a forked process that took the finalizers with it
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> None:
    """Removes folders of `scratch_folder` whose processes have ended without doing so.

    One whose lock nobody holds belonged to this user's process and to no living one. Others are left alone.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = folder / _LOCK
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not lock.is_file():
                continue
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, or not ours
            continue
        try:
            if try_lock(handle):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
