"""What may be replaced or deleted: only what this program made and nobody has changed.

A folder that is an output as a whole holds `.stemcell-lit.json`: its kind, and the SHA-256 of every file in it. It may
be replaced by another of its kind while nothing was added and nothing was changed. Of single files that are outputs the
`.stemcell-lit.json` of their folder knows the SHA-256; each may be replaced while it is as it was written. Everything
else is the user's, also an output that the user has edited.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stemcell_lit.errors import UserError

MARKER = ".stemcell-lit.json"
FORMAT = 1  # of the marker
# What a folder may be, in words
KINDS = {
    "store": "a store of patches",
    "movies": "simulated movies",
    "annotation": "an annotation",
    "trial": "a result",
    "evaluation": "an evaluation",
    "prediction": "a result of predict",
    "model": "a model of deliver",
    "figures": "figures of a report",
    "grids": "grids of generators",
}
_LARGEST_MARKER = 256 * 2**20  # bytes

Seen = dict[str, tuple[int, ...]]  # files whose content was right, and their state then


@dataclass
class Marker:
    """What `.stemcell-lit.json` says."""

    # of `KINDS`; None: the folder is no output as a whole, only files in it are
    kind: str | None = None
    # path inside the folder -> SHA-256 of what this program wrote there, the newest last
    files: dict[str, list[str]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)  # paths of folders inside

    def text(self) -> str:
        """As it is written."""
        content = {
            "made_by": "stemcell_lit",
            "format": FORMAT,
            "kind": self.kind,
            "files": self.files,
            "folders": self.folders,
        }
        return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read_marker(folder: Path) -> Marker | None:
    """None: there is none, or it is not this program's."""
    file = folder / MARKER
    try:
        state = file.lstat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > _LARGEST_MARKER:
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        files = {str(k): [str(v) for v in of] for k, of in found["files"].items()}
        folders = [str(f) for f in found["folders"]]
        if found["made_by"] != "stemcell_lit" or found["format"] != FORMAT:
            return None
        return Marker(found["kind"], files, folders)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def own_files(folder: Path) -> Marker:
    """What is known of single files in a folder.

    Raises:
        UserError: a file of the marker's name is not this program's.
    """
    found = read_marker(folder)
    if found is None and os.path.lexists(folder / MARKER):
        raise UserError(
            f"{folder / MARKER}: is not this program's list of what it wrote there, or is damaged; nothing was "
            "changed; move it away, or give another folder"
        )
    return found or Marker()


def located(path: str | Path) -> Path:
    """The target with its parents resolved, itself not: a link in its place must be seen.

    Raises:
        UserError: no path of this system.
    """
    path = Path(path)
    try:
        if "\0" in str(path):
            raise ValueError("it holds a NUL")
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        if ".." in path.parts and not path.parent.is_dir():
            raise UserError(f"{path}: {path.parent} is no folder; give the path without `..`")
        return Path(os.path.realpath(path.parent)) / path.name
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r}: is no path that can be written ({error})") from error


def refuse_folder(
    path: Path, given: str | Path, kind: str, inputs: Iterable[str | Path | None], seen: Seen
) -> None:
    """Raises a UserError unless a folder may take the place of `path`."""
    expected = (
        f"expected a new or empty folder, or {KINDS[kind]} that this program made and nobody changed; "
        "nothing was changed; give another folder"
    )
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        check_parent(path, given)
        return
    except OSError as error:
        raise UserError(f"{given}: cannot be looked at ({error.strerror}); {expected}") from error
    if stat.S_ISLNK(state.st_mode):
        raise UserError(f"{given}: is a link to {path.readlink()}; {expected}")
    if not stat.S_ISDIR(state.st_mode):
        raise UserError(f"{given}: is a file; {expected}")
    places: list[tuple[str, str | Path]] = [
        ("the folder in which you work", Path.cwd()),
        ("your home folder", os.path.expanduser("~")),  # noqa: PTH111 - where there is no home, `~` harms nothing
        *((f"{i}, which is read", i) for i in inputs if i is not None),
    ]
    for name, place in places:
        if _holds(state, place):
            raise UserError(f"{given}: is or contains {name}; {expected}")
    if os.path.ismount(path):
        raise UserError(f"{given}: is where a disk or another file system is mounted; {expected}")
    try:
        found = foreign(path, kind, seen)
    except OSError as error:
        raise UserError(f"{given}: cannot be looked through ({error}); {expected}") from error
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(f"{given}: {found[0]}{more}; it would be lost; {expected}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{given}: you may not write in {path.parent}; give another folder")


def _holds(folder: os.stat_result, place: str | Path) -> bool:
    """Whether the place is this folder or lies in it, however its path is written."""
    try:
        absolute = Path.cwd() / place
        real = absolute.resolve()
    except (OSError, ValueError, RuntimeError):  # no path at all; its reader says so
        return False
    for path in dict.fromkeys((absolute, *absolute.parents, real, *real.parents)):
        with suppress(OSError, ValueError):
            if os.path.samestat(folder, path.stat()):
                return True
    return False


def check_parent(path: Path, given: str | Path) -> None:
    """Refuses a target whose folder cannot be made."""
    parent = path.parent
    while not os.path.lexists(parent) and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{given}: {parent} is no folder; give another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{given}: you may not write in {parent}; give another path")


def listing(folder: Path) -> tuple[dict[str, os.stat_result], list[str], list[str]]:
    """Regular files, folders, and everything else (links, pipes, mounts) in a folder, at any depth, by their paths.

    Raises:
        OSError: a folder may not be read.
    """
    files: dict[str, os.stat_result] = {}
    folders: list[str] = []
    others: list[str] = []
    left = [""]
    while left:
        place = left.pop()
        with os.scandir(folder / place) as entries:
            for entry in entries:
                name = f"{place}/{entry.name}" if place else entry.name
                state = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(state.st_mode):
                    files[name] = state
                elif stat.S_ISDIR(state.st_mode) and not os.path.ismount(entry.path):
                    folders.append(name)
                    left.append(name)
                else:
                    others.append(name)
    return files, folders, others


def foreign(folder: Path, kind: str, seen: Seen) -> list[str]:
    """What in a folder is not this program's, in words; empty where it may be replaced.

    Files in `seen` are not read again while they stay as they are.

    Raises:
        OSError: something cannot be read.
    """
    files, folders, others = listing(folder)
    if not files and not folders and not others:
        return []
    marker = read_marker(folder)
    if marker is None or marker.kind is None:
        first = sorted([*files, *folders, *others], key=lambda n: (n.startswith("."), n))
        return [f"holds {name}, which is no part of {KINDS[kind]}" for name in first]
    if marker.kind != kind:
        return [f"holds {KINDS.get(marker.kind, marker.kind)}"]
    known = {*marker.folders, MARKER, *marker.files}
    strange = sorted(n for n in (*files, *folders, *others) if n not in known)
    strange += sorted(set(others) & known)
    found = [f"holds {name}, which is no part of {KINDS[kind]}" for name in strange]
    for name, state in sorted(files.items()):
        if name not in marker.files:
            continue
        now = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if seen.get(name) == now:
            continue
        if sha256(folder / name) in marker.files[name]:
            seen[name] = now
        else:
            found.append(f"{name} in it has been changed since it was made")
    return found


def sha256(file: Path) -> str:
    """Of a file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_own(folder: Path) -> None:
    """Deletes a folder that holds nothing but what its marker says that this program made."""
    there, folders, others = listing(folder)
    marker = read_marker(folder) or Marker()
    if others or set(there) - {MARKER, *marker.files}:
        return
    for name in there:
        if name != MARKER:
            (folder / name).unlink()
    (folder / MARKER).unlink(missing_ok=True)  # the last: it says what the others are
    for name in (*sorted(folders, reverse=True), ""):
        with suppress(OSError):
            (folder / name).rmdir()


def refuse_file(target: Path, given: str | Path, marker: Marker, data: bytes | None) -> list[str]:
    """The hash of the file there, if it may be replaced, else raises a UserError; empty where there is none."""
    remedy = (
        "it would be lost; nothing was changed; move it away or rename it, or give another folder"
    )
    try:
        state = target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{given}: cannot be looked at ({error.strerror}); {remedy}") from error
    if not stat.S_ISREG(state.st_mode):
        what = "a link" if stat.S_ISLNK(state.st_mode) else "no file"
        raise UserError(f"{given}: is {what}, and this program writes a file there; {remedy}")
    found = sha256(target)
    known = marker.files.get(target.name, [])
    if found in known or (data is not None and hashlib.sha256(data).hexdigest() == found):
        return [found]
    why = "has been changed since it was made" if known else "is not this program's"
    raise UserError(f"{given}: {why}; {remedy}")
