"""What the system offers to replace whole files and folders: exchange, locks, and writing through to the disk."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no locks, and so nothing of another process is ever cleaned up
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2
# The file system or the kernel does not know the call
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM}
_MANY = 100  # files, from which one call for the whole file system is quicker than one for each


@cache
def _libc() -> ctypes.CDLL | None:
    with suppress(OSError):
        return ctypes.CDLL(None, use_errno=True)
    return None


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """True if done, False if the system does not know it.

    Raises:
        OSError: it knows it and refuses.
    """
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(new))


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two files or folders of a file system at once; nobody ever sees either absent.

    Returns:
        False where the system cannot: then nothing is done.

    Raises:
        OSError: one of them is absent, or may not be moved.
    """
    return _renameat2(one, other, _EXCHANGE)


def move_to_free(old: Path, new: Path) -> None:
    """Gives a file its name if that is free.

    Raises:
        FileExistsError: it is not.
    """
    if _renameat2(old, new, _NOREPLACE):
        return
    os.link(old, new)
    old.unlink()


def try_lock(handle: int) -> bool:
    """Locks an open file until it is closed or its process ends; False if another holds it or nobody can know."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One at a time among the processes that take this lock; where a file system has no locks, all at once."""
    handle = None
    try:
        if fcntl is not None:
            with suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


@cache
def machine() -> tuple[str, str]:
    """Eight hex digits each of the start of the machine that this process lives in, and of the machine's name."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return _short(boot), _short(socket.gethostname())


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def sync_path(path: Path) -> None:
    """Brings a file, or the names in a folder, onto the disk.

    Raises:
        OSError: the disk is full or broken.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # network file systems that cannot for a folder
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Brings everything in a folder onto the disk, so that its name never outlives its content.

    Raises:
        OSError: the disk is full or broken.
    """
    files, folders = [], [folder]
    for place, names, leaves in os.walk(folder):
        folders += [Path(place, n) for n in names]
        files += [Path(place, n) for n in leaves]
    if len(files) > _MANY:
        call = getattr(_libc(), "syncfs", None)
        handle = os.open(folder, os.O_RDONLY)
        try:
            if call is not None and call(handle) == 0:
                return
        finally:
            os.close(handle)
    for path in (*files, *reversed(folders)):
        if not path.is_symlink():
            sync_path(path)
