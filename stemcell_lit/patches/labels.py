"""Names that people give: of classes, groups, tracks and movies; one spelling each, and never two that look alike."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from stemcell_lit.errors import UserError

UNSURE = "unsure"  # not a class: left out of stores, and counted
UNLABELLED = ""  # not a class, either: a patch that nobody labelled; the one sign of it, in tables and in stores
LONGEST_NAME = 200  # characters

# No width and no meaning in a name: zero-width space, word joiner, byte order mark, soft hyphen
_NOTHING = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))
_JOINERS = "\u200c\u200d"  # have a meaning inside words of some scripts, none at their ends
# Cyrillic and Greek letters that print as Latin ones do; dashes, quotes, the dotless i
_LOOKS = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04cf\u0501\u04bb"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u03b1\u03b9\u03bd\u03bf\u03c1\u03f2\u0131"
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2018\u2019\u02bc\u201c\u201d",
    "ABEKMHOPCTYXIJSaeopcyxijsldhABEZHIKMNOPTYXaivopci-------'''\"\"",
)


def clean_name(text: str) -> str:
    """A name as it is stored: Unicode NFC, plain blanks, nothing invisible, no blanks around it."""
    if text.isascii():
        return text.strip()
    text = unicodedata.normalize("NFC", text).translate(_NOTHING)
    text = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)
    return text.strip().strip(_JOINERS).strip()


def clean_label(text: str) -> str:
    """`clean_name` of a class; `unsure` in any case is `unsure`."""
    name = clean_name(text)
    return UNSURE if unicodedata.normalize("NFKC", name).casefold() == UNSURE else name


def why_no_name(name: str) -> str:
    """Why a cleaned name cannot be used; empty where it can."""
    if not name:
        return "is empty"
    if len(name) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} characters"
    if not all(c.isprintable() or c in _JOINERS for c in name):
        return "holds a character that cannot be printed"
    return ""


def look(name: str, separators: bool = False) -> str:
    """What two names have in common that people take for one; with `separators`, `a_b`, `a-b` and `a b`, too."""
    text = unicodedata.normalize("NFKC", name).translate(_LOOKS)
    text = unicodedata.normalize("NFKC", text.casefold()).translate(_LOOKS)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return re.sub(r"[\s_-]+" if separators else r"\s+", " ", text)


def check_looks(names: Iterable[tuple[str, str]], where: str, separators: bool = False) -> None:
    """Refuses names, each with the place where it stands, that differ but look alike.

    Raises:
        UserError: two do.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, place in names:
        other, there = seen.setdefault(look(name, separators), (name, place))
        if other != name:
            if other.casefold() == name.casefold():
                how = "differ in upper and lower case alone"
            elif look(other) == look(name):
                how = f"look alike ({other!a} and {name!a})"
            else:
                how = "differ in blanks, hyphens and underscores alone"
            raise UserError(
                f"{where}: found {other!r} ({there}) and {name!r} ({place}), which {how}; expected one spelling "
                "of one name; correct one of them, or rename it if they are different things"
            )


def checked_classes(classes: Sequence[str]) -> list[str]:
    """The names given in `classes=`, cleaned.

    Raises:
        UserError: one is given twice, looks like another, cannot be used, or is called unsure.
    """
    names = [clean_label(str(name)) for name in classes]
    for name in names:
        if reason := why_no_name(name):
            raise UserError(f"classes={names}: {name!r} {reason}; rename that class")
    if len(set(names)) != len(names) or UNSURE in names:
        raise UserError(f"classes={names}: expected each class once, and none called {UNSURE}")
    check_looks(((name, "in classes=") for name in names), "classes=", separators=True)
    return names


def checked_labels(
    rows: pd.DataFrame,
    classes: Sequence[str] | None,
    where: Path,
    without: Sequence[str] | None = None,
    unlabelled: Sequence[str] | None = None,
) -> tuple[list[str], pd.DataFrame, pd.DataFrame]:
    """Classes in their order, the rows that have one or no label at all, and those that are labelled `unsure`.

    Args:
        rows: with a column `label`, as `clean_label` gives it.
        classes: the classes and their order; None: alphabetical.
        where: begins messages.
        without: labels whose rows are left out, with a notice.
        unlabelled: labels whose rows have no class; they get `UNLABELLED` in the place of it.

    Raises:
        UserError: a label that is not among the given classes, a class without rows, a label to leave out or to take
            for none that no row has, or no labelled row.
    """
    rows = _left_out(rows, [clean_label(str(name)) for name in without or ()], where)
    bare = _named("unlabelled", rows, [clean_label(str(name)) for name in unlabelled or ()], where)
    rows = rows.assign(label=rows["label"].mask(bare, UNLABELLED))
    doubtful = (rows["label"] == UNSURE).to_numpy()
    sure = rows[~doubtful].reset_index(drop=True)
    labels = sorted(set(sure["label"]) - {UNLABELLED})
    if not labels:
        what = f"all of its {len(rows)} patches are {UNSURE}" if len(rows) else "no patch is left"
        if len(sure):
            what = f"none of its {len(rows)} patches has a label"
        raise UserError(f"{where}: {what}; expected labelled ones")
    names = checked_classes(classes) if classes else labels
    strange = [name for name in labels if name not in names]
    if strange:
        raise UserError(
            f"{where}: found the label {strange[0]!r}, expected one of classes={names} or {UNSURE}; correct the label, "
            "remove those patches, or name the class"
        )
    absent = [name for name in names if name not in labels]
    if absent:
        raise UserError(
            f"{where}: no patch is labelled {absent[0]!r}; found {labels}; leave it out of classes="
        )
    return names, sure, rows[doubtful].reset_index(drop=True)


def _left_out(rows: pd.DataFrame, without: list[str], where: Path) -> pd.DataFrame:
    if not without:
        return rows
    out = _named("without", rows, without, where)
    warnings.warn(
        f"{where}: {int(out.sum())} patches labelled {', '.join(without)} are left out, as without= says",
        stacklevel=3,
    )
    return rows[~out].reset_index(drop=True)


def _named(key: str, rows: pd.DataFrame, names: list[str], where: Path) -> pd.Series:
    """Which rows have one of these labels; each of them must be there."""
    labels = sorted(set(rows["label"]) - {UNLABELLED})
    absent = [name for name in names if name not in labels]
    if absent:
        raise UserError(
            f"{where}: {key}={names}: no patch is labelled {absent[0]!r}; found {labels}"
        )
    return rows["label"].isin(names)
