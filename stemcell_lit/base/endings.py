"""How a command ends that cannot go on: what the system refused, in a sentence; and what nobody foresaw."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stemcell_lit.base.terminal import printable, shell_word

DEBUG = "STEMCELL_LIT_DEBUG"  # 1: an error that nobody foresaw shows its traceback
FULL = 2**20  # bytes; a disk with less is full for what is written here

NO_SPACE = (
    "no space left on this disk; make room or take another folder, then run the same command again"
)
REFUSED = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: "your quota on this disk is used up; make room, then run the same command again",
    errno.EACCES: "permission denied; ask its owner, or take another folder",
    errno.EPERM: "the system does not permit this; ask its owner, or take another folder",
    errno.EROFS: "this disk can only be read; take another folder",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; take another path",
    errno.EISDIR: "is a folder; expected a file",
    errno.EEXIST: "is there already, and is not what was expected there; take another path",
    errno.ENOTEMPTY: "the folder is not empty; take another path",
    errno.ENAMETOOLONG: "the name is too long for this disk; take a shorter one",
    errno.ELOOP: "the link points to itself",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) or run fewer jobs side by side (slots=)",
    errno.ENFILE: "too many files are open on this machine; run the same command again later",
    errno.EIO: "the disk reports an error (I/O); check it, then run the same command again",
    errno.ESTALE: "the network disk has lost this file; run the same command again",
    errno.EFBIG: "the file would be too large for this disk",
    errno.EADDRINUSE: "the port is in use; give another port=, or port=0 for any free one",
    errno.ENOMEM: "not enough memory; give fewer or smaller patches, or fewer jobs side by side (slots=)",
    errno.EAGAIN: "the system starts no more processes for you; run fewer jobs side by side (slots=)",
    errno.ENXIO: "is no ordinary file",
    errno.EINVAL: "the system does not take this name or value",
}
MEMORY = "not enough memory; give fewer or smaller patches, a smaller batch, or fewer jobs side by side (slots=)"
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "cannot allocate memory",
    "unable to allocate",
)
_NOT_WRITTEN = (
    "file write failed",
    "unexpected pos",
    "requested and",
    "no space left",
    "disk full",
)


def refused(error: BaseException, places: Iterable[Path] = ()) -> str | None:
    """What the system refused, in a sentence that names the path; None: the error is of another kind.

    Errors that it came from are looked at, too; `places` are folders that the command writes to, for one without a
    path.
    """
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, OSError) and one.errno in REFUSED:
            path = one.filename2 or one.filename
            if one.errno in (errno.ENOSPC, errno.EDQUOT) and path is None:
                path = next(iter(_full(places)), None)
            if path is None or isinstance(path, int):
                return REFUSED[one.errno]
            return f"{printable(os.fsdecode(path))}: {REFUSED[one.errno]}"
    for one in chain:
        text = str(one).lower()
        if isinstance(one, MemoryError) or any(t in text for t in _NO_MEMORY):
            return f"{MEMORY} ({printable(str(one).splitlines()[0])})" if str(one) else MEMORY
        if isinstance(one, ValueError) and "embedded null" in text:
            return "a path holds a NUL character, which no name can; correct it"
        if isinstance(one, OSError | RuntimeError) and any(t in text for t in _NOT_WRITTEN):
            full = _full(places)
            if full:
                return f"{printable(full[0])}: {NO_SPACE}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _full(places: Iterable[Path]) -> list[Path]:
    """Those of some folders, and of the temporary one, whose disk is full."""
    found = []
    for place in (*places, Path(tempfile.gettempdir())):
        there = next((p for p in (place, *place.absolute().parents) if p.exists()), None)
        try:
            if there is not None and shutil.disk_usage(there).free < FULL:
                found.append(place)
        except OSError:
            continue
    return found


def unforeseen(error: BaseException, words: Sequence[str]) -> str:
    """One line on an error that nobody foresaw; its details go into a file."""
    text = " ".join(str(error).split()) or "no further words"
    what = f"unexpected error, a fault of this program: {type(error).__name__}: {printable(text)[:300]}"
    file = _write_details(error, words)
    if file is None:
        return f"{what}. The details could not be written; {DEBUG}=1 shows them. Please report them with the command"
    return f"{what}. Details, to be reported with what you did: {printable(file)}"


def _write_details(error: BaseException, words: Sequence[str]) -> Path | None:
    trace = "".join(traceback.format_exception(error))
    command = " ".join(["stemcell-lit", *map(shell_word, words)])
    about = [
        f"command: {command}",
        f"folder: {_folder()}",
        f"time: {time.strftime('%Y-%m-%d %H:%M:%S')}",
        f"system: {platform.platform()}, Python {platform.python_version()}",
        f"versions: {_versions()}",
    ]
    content = "\n".join([*about, "", trace]).encode("utf-8", "backslashreplace")
    name = f"stemcell_lit-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in _homes():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as file:
                file.write(content)
        except OSError:
            continue
        return folder / name
    return None


def _homes() -> Iterator[Path]:
    state = os.environ.get("XDG_STATE_HOME", "")
    with contextlib.suppress(RuntimeError):  # a user without a home
        home = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
        yield home / "stemcell_lit"
    yield Path(tempfile.gettempdir())


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it has been deleted
        return "gone"


def _versions() -> str:
    from importlib import metadata

    found = []
    packages = "stemcell_lit torch pytorch-lightning hydra-core omegaconf numpy pandas"
    for name in packages.split():
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def mute() -> None:
    """Nobody reads our output any more: what is left of it goes nowhere, also what is flushed at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
