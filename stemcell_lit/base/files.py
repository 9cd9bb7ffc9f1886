"""Files and folders that are whole or absent, and that replace nothing but what this program made.

While something is made it lies beside its target, in `.NAME.stemcell-lit-BOOT-HOST-RANDOM`, which is locked. One that
nobody holds any more is what an interrupted run left; the next start with the same target clears it away.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stemcell_lit.base import swap
from stemcell_lit.base.ownership import (
    MARKER,
    Marker,
    Seen,
    check_parent,
    foreign,
    listing,
    located,
    own_files,
    refuse_file,
    refuse_folder,
    remove_own,
    sha256,
)
from stemcell_lit.errors import UserError

_KEPT = 2  # texts of a file that are known: the one there, and the one that takes its place


_LONGEST = 100  # bytes of a target's name in the name of what is made beside it


def check_target(path: str | Path, kind: str, *, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuses a folder that may not be made or replaced; to be called before the work.

    Also clears away what an interrupted run left beside it.

    `inputs` are what is read, which must not lie in it; None is skipped.

    Raises:
        UserError: something is in the way. Nothing was changed.
    """
    target = located(path)
    _sweep(target)
    with swap.folder_lock(target.parent):  # nobody exchanges it while it is looked through
        refuse_folder(target, path, kind, inputs, {})


def check_files(folder: str | Path, names: Sequence[str]) -> None:
    """Refuses a folder in which one of these files may not be written or replaced; to be called before the work.

    Raises:
        UserError: the folder cannot be one, or holds a file of the user's of that name. Nothing was changed.
    """
    folder = Path(folder)
    check_parent(located(folder / "x"), folder)
    for name in names:
        target = located(folder / name)
        refuse_file(target, folder / name, own_files(target.parent), None)


@contextmanager
def whole_or_absent(
    path: str | Path, kind: str, *, inputs: Iterable[str | Path | None] = ()
) -> Iterator[Path]:
    """Yields a fresh folder beside `path`; it takes the place of `path` only if the block succeeds.

    The place is taken at once: there is no moment at which a reader finds neither the old folder nor the new one
    (on a file system that cannot exchange two folders there is one, and `restore` mends what a kill then leaves).
    Of two writers at once one comes last, and its folder stays. What has been written is on the disk before.

    Args:
        path: the folder to make. An existing one is replaced where `check_target` allows it, which is asked before
            the block and again behind it.
        kind: of `KINDS`.
        inputs: what is read, which must not lie in it; None is skipped.

    Raises:
        UserError: something is in the way. Nothing was changed.
    """
    target, inputs, seen = located(path), list(inputs), Seen()
    _sweep(target)
    with swap.folder_lock(target.parent):
        refuse_folder(target, path, kind, inputs, seen)
    made = [p for p in target.parents if not p.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    with swap.folder_lock(target.parent):  # nobody sweeps it between its making and its own lock
        holder = _Holder(target)
    try:
        yield holder.new
        _mark(holder.new, kind)
        swap.sync_tree(holder.new)
        with swap.folder_lock(target.parent):
            _place(holder, target, path, kind, inputs, seen)
            swap.sync_path(target.parent)
    except BaseException:
        holder.remove()
        for parent in made:
            with suppress(OSError):  # others have put something there
                parent.rmdir()
        raise
    holder.remove()


def restore(path: str | Path) -> None:
    """Clears away what an interrupted run left beside a folder, and gives it back where it was moved aside."""
    _sweep(located(path))


class _Holder:
    """The folder beside a target in which the new one is made, locked while this process lives.

    It holds `lock`, `new`, `old` (only between two renames) and `complete` (from when `new` is no longer certain to
    be what this run made).
    """

    def __init__(self, target: Path):
        for _ in range(100):
            self.path = _beside(target)
            try:
                self.path.mkdir(mode=0o700)
                self.handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
                swap.try_lock(self.handle)
                self.new.mkdir()
                return
            except (FileExistsError, FileNotFoundError):  # swept in the moment before it was locked
                continue
        raise OSError(f"{target.parent}: no folder can be made beside {target.name}")

    new = property(lambda self: self.path / "new")
    old = property(lambda self: self.path / "old")
    complete = property(lambda self: self.path / "complete")

    def remove(self) -> None:
        """Deletes all of it that this program made."""
        _remove_holder(self.path)
        os.close(self.handle)


def _beside(target: Path) -> Path:
    boot, host = swap.machine()
    return target.with_name(f"{_prefix(target)}{boot}-{host}-{secrets.token_hex(4)}")


def _prefix(target: Path) -> str:
    raw = os.fsencode(target.name)
    if len(raw) <= _LONGEST:
        return f".{target.name}.stemcell-lit-"
    return f".{hashlib.sha256(raw).hexdigest()[:32]}.stemcell-lit-"


def _mark(folder: Path, kind: str) -> None:
    files, folders, others = listing(folder)
    if others:
        raise ValueError(f"{folder}: a folder to be whole holds {others[0]}, which is no file")
    hashes = {name: [sha256(folder / name)] for name in sorted(files)}
    part = folder / f"{MARKER}.part"
    part.write_text(Marker(kind, hashes, sorted(folders)).text(), encoding="utf-8")
    part.replace(folder / MARKER)


def _place(
    holder: _Holder,
    target: Path,
    given: str | Path,
    kind: str,
    inputs: Iterable[str | Path | None],
    seen: Seen,
) -> None:
    """Puts the new folder in its place; the old one is then in the holder."""
    holder.complete.touch()
    while True:
        refuse_folder(target, given, kind, inputs, seen)
        with suppress(FileExistsError):
            try:
                holder.new.rename(target)  # takes no place but an empty folder's
                return
            except NotADirectoryError:  # a file has come there
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        with suppress(FileNotFoundError):  # it has gone in the meantime
            at_once = swap.exchange(holder.new, target)
            if not at_once:
                _in_steps(holder, target)
            old = holder.new if at_once else holder.old
            found = foreign(old, kind, seen)
            if found:  # it came there after the last look
                if at_once:
                    swap.exchange(holder.new, target)
                else:
                    target.rename(holder.new)
                    holder.old.rename(target)
                raise UserError(f"{given}: {found[0]}; nothing was changed; give another folder")
            return


def _in_steps(holder: _Holder, target: Path) -> None:
    """As an exchange, with a moment at which the target is absent; `_sweep_one` mends a kill in it."""
    target.rename(holder.old)
    try:
        holder.new.rename(target)
    except BaseException:
        holder.old.rename(target)
        raise


def _remove_holder(path: Path) -> None:
    """Deletes what is this program's in a holder, and the holder if it is empty then."""
    complete = (path / "complete").exists()
    for name in ("new", "old"):
        if not os.path.lexists(path / name):
            continue
        if name == "new" and not complete:
            shutil.rmtree(path / name, ignore_errors=True)  # nothing but an unfinished making
        else:
            with suppress(OSError):
                remove_own(path / name)
    if not os.path.lexists(path / "new") and not os.path.lexists(path / "old"):
        for name in ("complete", "lock"):
            (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else lies there, and stays
        path.rmdir()


def _sweep(target: Path) -> None:
    """Clears away what interrupted runs left beside a target, and gives it back where it was moved aside."""
    if _left_beside(target):
        with swap.folder_lock(target.parent):
            _clear(target)


def _left_beside(target: Path) -> list[Path]:
    """What makings of a target, of this machine, have left or are just making."""
    pattern = re.compile(re.escape(_prefix(target)) + "([0-9a-f]{8})-([0-9a-f]{8})-[0-9a-f]{8}")
    boot, host = swap.machine()
    try:
        names = [p.name for p in target.parent.iterdir()]
    except OSError:
        return []
    found = [m for m in map(pattern.fullmatch, names) if m]
    # Of another machine nobody here can know whether it still works at it
    return [target.with_name(m[0]) for m in found if m[1] == boot or m[2] == host]


def _clear(target: Path) -> None:
    for path in _left_beside(target):
        with suppress(OSError):
            _sweep_one(path, target)


def _sweep_one(path: Path, target: Path) -> None:
    if path.is_symlink():
        return
    folder = path.is_dir()
    lock = path / "lock" if folder else path
    try:
        handle = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        path.rmdir()  # killed between two calls; fails if anything is there
        return
    try:
        if not swap.try_lock(handle):
            return
        if not folder:
            path.unlink()
            return
        if {p.name for p in path.iterdir()} - {"lock", "complete", "new", "old"}:
            return
        if (path / "old").is_dir() and not os.path.lexists(target):
            (path / "old").rename(target)
        _remove_holder(path)
    finally:
        os.close(handle)


def write_whole(path: str | Path, text: str, *, durable: bool = True) -> None:
    """Writes a text file so that a reader sees the old content or the new, never a part.

    Args:
        path: the file. An existing one is replaced only if this program wrote it and nobody has changed it since.
        text: written as UTF-8.
        durable: whether it is on the disk, and not only safe from a kill, when this returns.

    Raises:
        UserError: a file of the user's is in the way, and was not changed.
    """
    target, data = located(path), text.encode("utf-8")
    check_parent(target, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with swap.folder_lock(target.parent):
        _clear(target)
        marker = own_files(target.parent)
        kept = refuse_file(target, path, marker, data)
        digest = hashlib.sha256(data).hexdigest()
        hashes = [*(h for h in kept if h != digest), digest][-_KEPT:]
        if marker.files.get(target.name) != hashes:
            marker.files[target.name] = hashes
            listed = target.with_name(MARKER)
            with _part(listed, marker.text().encode("utf-8"), durable) as part:
                part.replace(listed)  # first: a kill behind it leaves a file that is still known
        with _part(target, data, durable) as part:
            _take_place(part, target, path, hashes)
        if durable:
            swap.sync_path(target.parent)


@contextmanager
def _part(target: Path, data: bytes, durable: bool) -> Iterator[Path]:
    """A file beside a target with its new content, locked until it has taken the place."""
    part = _beside(target)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            swap.try_lock(handle)
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(handle)
            yield part
    finally:
        part.unlink(missing_ok=True)


def _take_place(part: Path, target: Path, given: str | Path, hashes: Sequence[str]) -> None:
    """Puts a new file in its place, without loss of one that came there after the last look."""
    while True:
        with suppress(FileExistsError):
            swap.move_to_free(part, target)
            return
        with suppress(FileNotFoundError):
            if not swap.exchange(part, target):
                part.replace(target)
            elif sha256(part) not in hashes:
                swap.exchange(part, target)
                raise UserError(f"{given}: has just been changed; nothing was lost; move it away")
            return


def finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
