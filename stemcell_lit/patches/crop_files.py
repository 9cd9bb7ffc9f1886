"""Files of crops: found by the paths of a table, or in a folder per class; nothing is left out without a word."""

from __future__ import annotations

import os
import stat
import unicodedata
import warnings
from collections import Counter
from pathlib import Path, PureWindowsPath

import pandas as pd

from stemcell_lit.errors import UserError
from stemcell_lit.movies.suffixes import IMAGE_SUFFIXES, TIFF_SUFFIXES, natural_key
from stemcell_lit.patches.labels import check_looks, clean_label, clean_name, why_no_name

SUFFIXES = IMAGE_SUFFIXES + TIFF_SUFFIXES
# What systems leave in folders; names that begin with a dot are no data, either
_NO_DATA = {"__macosx", "thumbs.db", "desktop.ini", "icon\r", "ehthumbs.db", "@eadir"}
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class CropFiles:
    """Files named relative to a folder, as tables name them, whatever system wrote these.

    Nothing outside `base` is read; `table` is named in messages.
    """

    def __init__(self, base: Path, table: Path):
        self._base, self._table = base, table
        self._root = Path(os.path.realpath(base))
        self._inside: dict[str, bool] = {}  # folder -> whether it lies in the base
        self._listing: dict[str, dict[str, list[str]]] = {}
        self._renamed: list[tuple[str, str]] = []

    def find(self, name: str, line: int) -> str:
        r"""The file of a path in the table: relative to the base, as it is called on disk, with `/`.

        Args:
            name: as the table has it; `\` and other cases are understood where one file fits.
            line: of the table.

        Raises:
            UserError: absolute, outside the base, absent, or no regular file.
        """
        here = f"{self._table}: line {line}: {name[:200]!r}"
        expected = f"expected a path relative to {self._base}"
        windows = PureWindowsPath(name)
        rooted = windows.drive or ("\\" in name and windows.root)
        if rooted and not os.path.lexists(self._base / name):
            raise UserError(
                f"{here} is a path on another computer, {expected}; cut off what comes before it"
            )
        found = os.path.normpath(name)
        if Path(found).is_absolute():
            found = os.path.relpath(found, self._base.absolute())
        if not os.path.lexists(self._base / found):
            found = self._other_spelling(name, found, here, line)
        self._check(found, here)
        return found

    def find_all(self, rows: pd.DataFrame) -> list[str]:
        """The file of each row of the table, from its `path` and `line`; those called otherwise on disk are told."""
        both = zip(rows["path"], rows["line"], strict=True)
        found = [self.find(name, int(line)) for name, line in both]
        if self._renamed:
            name, other = self._renamed[0]
            warnings.warn(
                f"{self._table}: {len(self._renamed)} paths are written otherwise on disk, such as {name!r}, which is "
                f"{other!r}",
                stacklevel=2,
            )
        return found

    def _other_spelling(self, name: str, found: str, here: str, line: int) -> str:
        parts = os.path.normpath(name.replace("\\", "/")).split("/")
        if ".." in parts or Path(found).is_absolute():
            raise UserError(
                f"{here} lies outside {self._base}; paths must stay inside the source folder"
            )
        at = ""
        for part in parts:
            names = self._names(at)
            same = names.get(_key(part), [])
            exact = [n for n in same if n == part] or [
                n
                for n in same
                if unicodedata.normalize("NFC", n) == unicodedata.normalize("NFC", part)
            ]
            same = exact if len(exact) == 1 else same
            if len(same) > 1:
                raise UserError(
                    f"{here}: found {' and '.join(repr(s) for s in sorted(same))} in {self._base / at}, expected one "
                    "file; write the name as it is on disk"
                )
            if not same:
                raise UserError(
                    f"{self._base / found}: no such file, named in line {line} of {self._table.name}; correct its path"
                )
            at = f"{at}/{same[0]}" if at else same[0]
        self._renamed.append((name, at))
        return at

    def _names(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._listing:
            self._listing[folder] = {}
            # only folders inside the base are ever listed
            if self._is_inside(folder) and (self._base / folder).is_dir():
                for entry in (self._base / folder).iterdir():
                    self._listing[folder].setdefault(_key(entry.name), []).append(entry.name)
        return self._listing[folder]

    def _is_inside(self, folder: str) -> bool:
        if folder not in self._inside:
            real = Path(os.path.realpath(self._base / folder))
            self._inside[folder] = real.is_relative_to(self._root)
        return self._inside[folder]

    def _check(self, found: str, here: str) -> None:
        file = self._base / found
        inside = self._is_inside(found.rpartition("/")[0])
        try:
            if inside and stat.S_ISLNK(file.lstat().st_mode):
                inside = Path(os.path.realpath(file)).is_relative_to(self._root)
            if not inside:
                raise UserError(
                    f"{file}: lies outside {self._base}; paths must stay inside the source folder"
                )
            check_regular(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{here}: cannot be read ({reason}); correct its path") from error


def check_regular(file: Path) -> None:
    """Refuses what is no file: opening it could wait for ever.

    Raises:
        UserError: a folder, pipe, device or broken link.
    """
    try:
        mode = file.stat().st_mode
    except OSError as error:
        kind = "a link that leads nowhere" if file.is_symlink() else f"not there ({error.strerror})"
        raise UserError(f"{file}: {kind}, expected a picture; remove or replace it") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{file}: {kind}, expected a picture; remove or replace it")


def folder_rows(source: Path) -> pd.DataFrame:
    """Crops in a folder per class, or per class and group.

    Returns:
        A row a crop: `path` relative to the source, `label`, and `group` where the classes have sub-folders. The same
        group under two classes is one.

    Raises:
        UserError: no classes, files on both levels or below them, or names that look alike.
    """
    folders, beside = _listed(source)
    if {f.name.casefold() for f in folders} <= _SPLITS and len(folders) > 1:
        raise UserError(
            f"{source}: found {', '.join(f.name for f in folders)}, which are parts of a split, expected a folder per "
            "class; put all crops of a class into one folder: splits are made here, by groups"
        )
    rows: list[dict[str, str]] = []
    other: list[Path] = [f for f in beside if f.suffix.lower() not in SUFFIXES]
    stray = [f for f in beside if f.suffix.lower() in SUFFIXES]
    empty: list[str] = []
    flat: list[str] = []
    for folder in folders:
        label = _named(folder, clean_label(folder.name))
        inner, files = _listed(folder)
        direct = _pictures(files, other)
        nested: list[tuple[str, Path]] = []
        for group in inner:
            deeper, below = _listed(group)
            pictures = _pictures(below, other)
            if found := next((f for d in deeper for f in _walk(d)), None):
                raise UserError(
                    f"{found}: lies deeper than {folder.name}/{group.name}, expected CLASS/picture or "
                    "CLASS/GROUP/picture; move it, or name the crops in a patches.csv"
                )
            nested += [(_named(group, clean_name(group.name)), f) for f in pictures]
        if direct and nested:
            raise UserError(
                f"{folder}: found {len(direct)} pictures and {len(nested)} more in its sub-folders, expected one or "
                "the other; put each picture into a sub-folder named by its movie or group, or all into one folder"
            )
        if direct:
            flat.append(folder.name)
        elif not nested:
            empty.append(folder.name)
        rows += [{"path": _relative(f, source), "label": label} for f in direct]
        rows += [{"path": _relative(f, source), "label": label, "group": g} for g, f in nested]
    if not rows:
        raise UserError(
            f"{source}: found neither patches.csv nor a sub-folder with images; expected a folder per class "
            f"holding {', '.join(SUFFIXES)} files, or a CSV with columns path and label"
        )
    frame = pd.DataFrame(rows)
    check_looks(
        ((f.name.strip(), str(f)) for f in folders if f.name not in empty), str(source), True
    )
    if "group" in frame:
        if flat:
            nesting = frame.loc[frame["group"].notna(), "label"].iloc[0]
            raise UserError(
                f"{source}: the pictures of {flat[0]} lie in no sub-folders, those of {nesting} do; expected "
                "CLASS/GROUP/picture or CLASS/picture for all; put each "
                "picture into a sub-folder named by its movie or group, or none"
            )
        groups = sorted(set(frame["group"]), key=natural_key)
        check_looks(((g, "a sub-folder") for g in groups), str(source))
        shown = ", ".join(groups[:6]) + (", ..." if len(groups) > 6 else "")
        warnings.warn(
            f"{source}: folders are understood as CLASS/GROUP: the {len(groups)} groups are {shown}",
            stacklevel=3,
        )
    _say_left_out(source, stray, other, empty)
    return frame


def pictures_below(source: Path) -> list[Path]:
    """The pictures of a folder and of its sub-folders, two levels down; what is left out is said."""
    other: list[Path] = []
    folders, files = _listed(source)
    found = _pictures(files, other)
    for folder in folders:
        inner, files = _listed(folder)
        found += _pictures(files, other)
        for group in inner:
            found += _pictures(_listed(group)[1], other)
    _say_left_out(source, [], other, [])
    return found


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Sub-folders by name and other entries in natural order, without hidden ones."""
    entries = [
        e
        for e in sorted(folder.iterdir(), key=lambda e: natural_key(e.name))
        if not e.name.startswith(".") and e.name.casefold() not in _NO_DATA
    ]
    folders = sorted((e for e in entries if e.is_dir()), key=lambda e: e.name)
    inside = os.path.realpath(folder)
    for e in folders:
        if e.is_symlink() and not Path(os.path.realpath(e)).is_relative_to(inside):
            raise UserError(f"{e}: is a link to a folder outside {folder}; copy the folder there")
    return folders, [e for e in entries if not e.is_dir()]


def _pictures(files: list[Path], other: list[Path]) -> list[Path]:
    found = []
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            check_regular(file)
            found.append(file)
        else:
            other.append(file)
    return found


def _walk(folder: Path) -> list[Path]:
    """Pictures anywhere below a folder; links are not followed."""
    found = []
    for at, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if not n.startswith(".")]
        found += [
            Path(at) / n
            for n in names
            if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")
        ]
    return sorted(found)


def _named(folder: Path, name: str) -> str:
    if reason := why_no_name(name):
        raise UserError(
            f"{folder}: its name {reason}; expected a name of a class or group; rename it"
        )
    return name


def _relative(file: Path, source: Path) -> str:
    return file.relative_to(source).as_posix()


def _say_left_out(source: Path, stray: list[Path], other: list[Path], empty: list[str]) -> None:
    if stray:
        warnings.warn(
            f"{source}: {len(stray)} pictures lie beside the class folders and are left out, such as {stray[0].name}",
            stacklevel=4,
        )
    if other:
        kinds = Counter(f.suffix.lower() or "no suffix" for f in other)
        shown = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        warnings.warn(
            f"{source}: {len(other)} files of types that are not read ({shown}) are left out, such as {other[0].name}",
            stacklevel=4,
        )
    if empty:
        warnings.warn(
            f"{source}: folders without pictures are no classes: {', '.join(empty[:12])}",
            stacklevel=4,
        )


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
