"""Columns of a user's table that are ours under another name: told by the user, or by a name that has one meaning.

`columns={time_h:hours}` maps our names to theirs. Of its own accord a column of time is taken where its name says the
unit (`hours`, `t_min`, `Time (s)`), and a number of frames where it says that (`frame_number`). A name that leaves the
unit open (`time`, `t`, `timepoint`) is asked about: hours taken for frames would be silently wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stemcell_lit.errors import UserError

# what one of them is, in hours; each is a name of a column for `columns=`, beside those that are read
TIMES = {"time_h": 1.0, "time_d": 24.0, "time_min": 1 / 60, "time_s": 1 / 3600}
_WORDS = {"time_h": "hours", "time_d": "days", "time_min": "minutes", "time_s": "seconds"}
_UNITS = {
    "time_h": "h hr hrs hour hours",
    "time_d": "d day days",
    "time_min": "min mins minute minutes",
    "time_s": "s sec secs second seconds",
}
_UNIT = {word: name for name, words in _UNITS.items() for word in words.split()}
# names that are a unit alone; `min` may be a minimum, `day` a replicate, `h` a hue
_ALONE = {"hours", "hour", "hrs", "days", "minutes", "mins", "seconds", "secs"}
_TIME_WORDS = "time|t|elapsed|elapsedtime|timein|acquisitiontime|frametime"
_FRAMES = {"frames", "frameno", "framenumber", "framenr", "frameindex", "frameidx", "frameid"}
_OPEN = {"time", "times", "t", "timepoint", "timepoints", "tp", "timestep", "timestamp"}
_OPEN |= {"elapsed", "elapsedtime"}


@dataclass(frozen=True)
class Found:
    """Which columns of a table are read.

    Attributes:
        places: our name -> the position of the column.
        hours: what one of the column `time_h` is, in hours.
        said: what was understood, a sentence each.
    """

    places: dict[str, int]
    hours: float = 1.0
    said: list[str] = field(default_factory=list)


def find_columns(
    names: Sequence[str],
    wanted: Sequence[str],
    given: Mapping[str, str | None] | None,
    where: str,
) -> Found:
    """The columns that the user names or whose name has one meaning; others are found by their own names later.

    Args:
        names: of the table's columns.
        wanted: our names of what is read.
        given: our name -> theirs; None for a column that is not there; None: nothing is understood of its own accord.
        where: begins messages.

    Raises:
        UserError: a name given that is not ours or not in the table, or a column of time without a unit.
    """
    timed = "time_h" in wanted
    legal = [*wanted, *(TIMES if timed else ())]
    places: dict[str, int] = {}
    hours, said = 1.0, list[str]()
    for name, theirs in (given or {}).items():
        if name not in legal:
            expected = ", ".join(dict.fromkeys(legal))
            raise UserError(
                f"columns.{name}={theirs}: that is not read from {where}, expected columns: {expected}"
            )
        if theirs is None:
            continue
        own = "time_h" if name in TIMES else name
        if own in places:
            raise UserError("columns: gives the time twice; name one column")
        places[own] = _place(names, str(theirs), name, where)
        hours = TIMES.get(name, hours)
    there = {_plain(n) for n in names}
    if given is None:
        return Found(places)
    if "frame" in wanted and "frame" not in (there | set(given)):
        same = [i for i, n in enumerate(names) if _bare(n) in _FRAMES and i not in places.values()]
        if len(same) == 1:
            places["frame"] = same[0]
            said.append(f"column {names[same[0]]!r} is read as frame")
    if timed and not ({"time_h"} & there or set(TIMES) & set(given)):
        units = {i: unit_of(n) for i, n in enumerate(names) if i not in places.values()}
        same = [i for i, unit in units.items() if unit]
        if len(same) > 1:
            shown = " and ".join(repr(names[i]) for i in same)
            raise UserError(
                f"{where}: columns {shown} both tell times; expected one; give "
                f"columns={{{units[same[0]]}:{word(names[same[0]])}}} for the one that holds"
            )
        if same:
            unit = units[same[0]]
            assert unit is not None
            places["time_h"], hours = same[0], TIMES[unit]
            said.append(f"column {names[same[0]]!r} is read as time in {_WORDS[unit]}")
        else:
            _ask(names, places, "frame" in wanted, where)
    return Found(places, hours, said)


def unit_of(name: str) -> str | None:
    """The name of ours that a column of time has by its unit, such as time_min for `Time (min)`; None: it says none."""
    bare = _bare(name)
    if bare in _ALONE:
        return _UNIT[bare]
    if bare == "hpi":  # hours post infection
        return "time_h"
    for unit in sorted(_UNIT, key=len, reverse=True):
        if re.fullmatch(rf"({_TIME_WORDS}){unit}", bare):
            return _UNIT[unit]
    return None


def _ask(names: Sequence[str], places: dict[str, int], frames: bool, where: str) -> None:
    """Refuses a column of time without a unit."""
    for i, name in enumerate(names):
        if _bare(name) not in _OPEN or i in places.values():
            continue
        typed = word(name)
        choices = [
            f"columns={{{key}:{typed}}} if it holds {_WORDS[key]}" for key in ("time_h", "time_min")
        ]
        if frames and "frame" not in places and "frame" not in {_plain(n) for n in names}:
            choices.append(f"columns={{frame:{typed}}} if it numbers frames")
        raise UserError(
            f"{where}: column {name!r} tells a time, but not in which unit; give {', '.join(choices)} (time_s and "
            "time_d are seconds and days), or columns={time_h:none} to leave it out"
        )


def _place(names: Sequence[str], theirs: str, ours: str, where: str) -> int:
    for plain in (str, _plain):
        same = [i for i, n in enumerate(names) if plain(n) == plain(theirs)]
        if len(same) == 1:
            return same[0]
        if same:
            break
    shown = ", ".join(n for n in names if n)[:300]
    many = f"{len(same)} columns" if same else "no column"
    raise UserError(
        f"{where}: columns={{{ours}:{word(theirs)}}}: found {many} of that name among {shown}"
    )


def _plain(name: str) -> str:
    return name.strip().casefold()


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def word(name: str) -> str:
    """As it is typed as a value in braces."""
    return name if re.fullmatch(r"\w+", name) else f"'{name}'"
