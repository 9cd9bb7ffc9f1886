"""ArtifactStore: what is expensive is made once, and found again by what determines it.

Layout of a store::

    log.jsonl                a line for every making, reuse and failure: for people, read by no command
    <kind>/<hash>/           a finished artifact: whatever its maker wrote, and artifact.json
    <kind>/.<hash>.partial/  one that is being made, or whose making was cut off
    <kind>/.<hash>.lock      held by the operating system for the process that makes it

A folder takes its final name in one rename, so it is whole or absent. A power failure may still
leave a renamed folder with empty files; that is one of the reasons why an artifact is checked by
hash when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock, Timeout

from stemcell_lit.base import formats as form
from stemcell_lit.base import swap
from stemcell_lit.base.ownership import sha256
from stemcell_lit.base.ranks import Ranks
from stemcell_lit.errors import UserError

FORMAT = 1  # of the store; a part of every hash, so that a new format never reads an old artifact


POLL_S = 0.2  # between two looks at a lock that another job holds; makings take seconds to hours


_ABOUT = "artifact.json"


def canonical(value: Any) -> Any:
    """Reduces a value to JSON types, so that equal settings look equal however they were written.

    Tuples become lists, paths become text, dataclasses become dicts, and a float without a
    fraction becomes an int (`lr=1` and `lr=1.0` are one setting; YAML and Python disagree on which
    of them they write).

    Raises:
        TypeError: a value without an order or an unambiguous text, such as a set or an array.
        ValueError: NaN or infinity, for which JSON has no sign.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a key cannot hold {value}; name it with a text or None")
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return canonical({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        wrong = [k for k in value if not isinstance(k, str)]
        if wrong:
            raise TypeError(f"the names in a key must be text, found {wrong[0]!r}")
        return {str(k): canonical(value[k]) for k in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [canonical(v) for v in value]
    raise TypeError(
        f"a key cannot hold a {type(value).__name__}; give plain values or a hash of it"
    )


def key_hash(key: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of `key` as canonical JSON.

    64 bits: no clash among millions of keys.
    """
    text = json.dumps(canonical(key), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """What artifact.json says of a finished artifact."""

    kind: str  # what it is, such as `generator`
    hash: str  # its name, of kind, format and key
    path: Path  # its folder
    key: dict[str, Any]  # everything that determines it
    time: float  # when it was finished, seconds since 1970
    # how long the making took, the last attempt alone if it went on from an earlier one
    seconds: float
    files: dict[str, dict[str, Any]]  # path inside the folder -> {"size": bytes, "sha256": hex}

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(int(f["size"]) for f in self.files.values())


class Recipe(ABC):
    """How an artifact is made; `ArtifactStore.get` sees to the rest: once, whole, by one job at a time."""

    kind: ClassVar[str]  # what it is, such as `generator`; a short lower-case name
    # `make` can go on from what an interrupted call of it left in the folder. Otherwise the folder is always empty at
    # first
    resumable: ClassVar[bool] = False
    # `make` runs on all ranks with the same folder; otherwise on the first alone
    together: ClassVar[bool] = False

    @abstractmethod
    def key(self) -> Mapping[str, Any]:
        """Everything that determines the content, and nothing else; see `canonical` for what it may hold."""

    @abstractmethod
    def make(self, folder: Path) -> None:
        """Fills the folder. If it raises, nothing is stored."""


class ArtifactStore:
    """A folder of artifacts, shared by any number of jobs on machines that see it.

    The lock belongs to the operating system, which frees it when its process ends in whatever way.
    On a network file system without `flock`, filelock falls back to a lock file, which outlives a
    killed maker; put the store elsewhere.

    Attributes:
        root: the folder; made when the first artifact is.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._checked: dict[
            Path, tuple[int, int]
        ] = {}  # file -> (mtime, size) when its hash was right

    def locate(self, recipe: Recipe) -> Path:
        """The folder of an artifact, made or not."""
        return self._place(recipe.kind, recipe.key())

    def get(self, recipe: Recipe) -> Path:
        """Returns the folder of an artifact and makes it first if nobody has.

        If another job is making it, waits for that and says so. Where `torch.distributed` is
        initialised, this is a collective call: all ranks take it together and the first one holds
        the lock. The group's timeout must then allow for a making by another job.

        Raises:
            UserError: the artifact has changed since it was made.
        """
        key = recipe.key()
        folder = self._place(recipe.kind, key)
        ranks = Ranks()
        if not ranks.first:
            partial = ranks.share(None)
            if partial is not None:
                if recipe.together:
                    recipe.make(Path(partial))
                ranks.wait()
        elif self._exists(folder):
            ranks.share(None)
        else:
            with self._locked(folder):
                if self._exists(folder):  # made while this job waited
                    ranks.share(None)
                else:
                    self._make(folder, key, recipe, ranks)
                    return folder
        if ranks.first:
            self._verify(folder)
            self._log("reused", folder, 0.0)
        ranks.wait()
        return folder

    def list(self) -> list[Artifact]:
        """All finished artifacts, oldest first.

        Raises:
            UserError: one of them cannot be read.
        """
        folders = self.root.glob("[!.]*/[!.]*/")
        found = [_read(p) for p in folders if os.path.lexists(p / _ABOUT)]
        return sorted(found, key=lambda a: (a.time, a.kind, a.hash))

    def show(self, hash: str) -> Artifact:
        """The artifact whose hash begins with `hash`.

        Raises:
            UserError: none or several do.
        """
        found = [a for a in self.list() if a.hash.startswith(hash)]
        if len(found) != 1:
            known = ", ".join(f"{a.kind}/{a.hash}" for a in found or self.list()) or "nothing yet"
            raise UserError(
                f"{self.root}: {len(found) or 'no'} artifacts begin with {hash!r}, expected one; "
                f"found {known}"
            )
        return found[0]

    def prune(self, keep: Callable[[Artifact], bool]) -> Sequence[Path]:
        """Deletes the artifacts that `keep` does not want, and returns their folders; leaves alone what is being made.

        A job that is reading one which goes will fail.

        Raises:
            UserError: a folder holds something that is no part of its artifact.
        """
        gone = []
        for folder in [a.path for a in self.list() if not keep(a)]:
            try:
                with FileLock(_lock_file(folder), timeout=0):
                    strange = _strange_in(folder)
                    if strange:
                        raise UserError(
                            f"{folder}: holds {strange}, which is no part of the artifact and would be lost; nothing "
                            "was deleted in it; move it away first"
                        )
                    doomed = folder.with_name(f".{folder.name}.gone")  # whole or absent, here too
                    shutil.rmtree(doomed, ignore_errors=True)
                    folder.replace(doomed)
                    shutil.rmtree(doomed)
                    gone.append(folder)
            except Timeout:
                continue
        return gone

    def _place(self, kind: str, key: Mapping[str, Any]) -> Path:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", kind):
            raise ValueError(f"kind {kind!r} must be a short lower-case name")
        return self.root / kind / key_hash({"kind": kind, "format": FORMAT, "key": key})

    def _make(self, folder: Path, key: Mapping[str, Any], recipe: Recipe, ranks: Ranks) -> None:
        partial = folder.with_name(f".{folder.name}.partial")
        if not recipe.resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        start = time.monotonic()
        try:
            ranks.share(str(partial))
            recipe.make(partial)
            ranks.wait()  # every rank has written its part
            files = {
                f.relative_to(partial).as_posix(): {"size": f.stat().st_size, "sha256": sha256(f)}
                for f in sorted(partial.rglob("*"))
                if f.is_file() and f != partial / _ABOUT
            }
            seconds = time.monotonic() - start
            about = {
                "kind": folder.parent.name,
                "hash": folder.name,
                "format": FORMAT,
                "key": canonical(key),
                "time": time.time(),
                "seconds": round(seconds, 3),
                "files": files,
            }
            (partial / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            swap.sync_tree(partial)  # a power cut must not leave its name with empty files
            partial.replace(folder)
            swap.sync_path(folder.parent)
        except BaseException:  # an interrupt too
            self._log("failed", folder, time.monotonic() - start)
            if not recipe.resumable:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        self._log("made", folder, seconds)
        ranks.wait()  # nobody reads before it has its name

    def _exists(self, folder: Path) -> bool:
        if not folder.exists():
            return False
        if not (folder / _ABOUT).is_file():
            raise UserError(f"{folder}: no {_ABOUT} in it; {_remedy(folder)}")
        return True

    def _verify(self, folder: Path) -> None:
        for name, expected in _read(folder).files.items():
            file = folder / name
            if not file.is_file():
                raise UserError(f"{file}: missing from the artifact; {_remedy(folder)}")
            stat = file.stat()
            state = (stat.st_mtime_ns, stat.st_size)
            if self._checked.get(file) == state:
                continue
            if stat.st_size != expected["size"]:
                raise UserError(
                    f"{file}: {stat.st_size} bytes, expected {expected['size']}; {_remedy(folder)}"
                )
            found = sha256(file)
            if found != expected["sha256"]:
                raise UserError(
                    f"{file}: changed since it was made (SHA-256 {found[:12]}, expected "
                    f"{expected['sha256'][:12]}); {_remedy(folder)}"
                )
            self._checked[file] = state

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_file(folder))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            name = f"{folder.parent.name} {folder.name}"
            print(f"waiting for {name}, which another job is making", file=sys.stderr, flush=True)
            lock.acquire(poll_interval=POLL_S)
        try:
            yield
        finally:
            lock.release()

    def _log(self, event: str, folder: Path, seconds: float) -> None:
        line = {
            "event": event,
            "kind": folder.parent.name,
            "hash": folder.name,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "seconds": round(seconds, 3),
            "time": round(time.time(), 3),
        }
        data = (json.dumps(line) + "\n").encode()
        # One write in append mode is one line, however many jobs write at once.
        handle = os.open(self.root / "log.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)


def _read(folder: Path) -> Artifact:
    about = form.read_json(folder / _ABOUT, ARTIFACT, _remedy(folder))
    if (about["kind"], about["hash"]) != (folder.parent.name, folder.name):
        raise UserError(
            f"{folder / _ABOUT}: is of {about['kind']}/{about['hash']}, expected "
            f"{folder.parent.name}/{folder.name}; {_remedy(folder)}"
        )
    names = ("key", "time", "seconds", "files")
    return Artifact(about["kind"], about["hash"], folder, *(about[name] for name in names))


def _strange_in(folder: Path) -> str | None:
    """A file or link in a finished artifact that was not made with it; None: there is none."""
    known = {_ABOUT, *_read(folder).files}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in known:
            return name
    return None


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and run again, then it is made anew"


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


ARTIFACT = form.record(
    {
        "kind": form.text(64, r"[a-z0-9][a-z0-9_-]*", "a short lower-case name"),
        "hash": form.text(16, "[0-9a-f]{16}", "16 hexadecimal digits"),
        "key": form.mapping(form.anything),
        "time": form.number(0),
        "seconds": form.number(0),
        "files": form.mapping(
            form.record(
                {
                    "size": form.whole(),
                    "sha256": form.text(64, "[0-9a-f]{64}", "64 hexadecimal digits"),
                }
            ),
            keys=form.inside,
        ),
    }
)
