"""What the names of files say: which are frames, and their times, channels, planes and positions.

Microscopes write a file a picture and put what it shows into its name: `_t001_ch00`, `_s1_w2`, `xy03c1t010`,
`T=0_C=1`, `A1_1_00d06h00m`. The parts of a name that change from file to file are read here, and each must be
understood: two numbers that change without a word for what they count are refused.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stemcell_lit.errors import UserError
from stemcell_lit.movies.suffixes import bare_name, natural_key

# Larger numbers in names are clocks (milliseconds since 1970), not counters of frames
LARGEST_NUMBER = 10_000_000

TIME, CHANNEL, PLANE, POSITION = "time", "channel", "plane", "position"
# Words before a number, as microscopes and Fiji write them
_WORDS = {
    **dict.fromkeys(("t", "tp", "time", "timepoint", "frame", "fr", "sk"), TIME),
    **dict.fromkeys(("c", "ch", "chan", "channel", "w", "wv", "wave", "wavelength"), CHANNEL),
    **dict.fromkeys(("z", "slice", "plane", "focus"), PLANE),
    **dict.fromkeys(
        ("s", "p", "xy", "pos", "position", "site", "fov", "field", "scene", "series", "stage"),
        POSITION,
    ),
    **dict.fromkeys(
        ("well", "region", "roi", "point", "tile", "r", "row", "col", "column"), POSITION
    ),
}
_HOURS = {
    **dict.fromkeys(("d", "day", "days"), 24.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 1 / 60),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), 1 / 3600),
    **dict.fromkeys(("ms", "msec"), 1 / 3.6e6),
}
# 00d06h30m, 06h30m, 1d12h: each part is named
_CLOCK = re.compile(
    r"(?<![0-9A-Za-z.])(?:(?P<d>\d+)d(?P<h>\d+)h(?:(?P<m>\d+)m(?:in)?)?(?:(?P<s>\d+)s)?"
    r"|(?P<h2>\d+)h(?P<m2>\d+)m(?:in)?(?:(?P<s2>\d+)s)?)(?![0-9A-Za-z])",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?<!\d)(?P<Y>(?:19|20)\d\d)[-_.]?(?P<M>\d\d)[-_.]?(?P<D>\d\d)[T_ -]?(?P<h>\d\d)[-_:.h]?(?P<m>\d\d)"
    r"(?:[-_:.m]?(?P<s>\d\d))?s?(?!\d)"
)
# Wells of a plate: only where their letter changes, for C1 may be a channel and P1 a position
_WELL = re.compile(r"(?<![0-9A-Za-z])(?P<well>[A-P](?:0?[1-9]|1\d|2[0-4]))(?![0-9A-Za-z])")
_UNIT = "|".join(sorted(_HOURS, key=len, reverse=True))
_NUMBER = re.compile(
    rf"(?P<sign>(?<![0-9])[-+\u2212])?(?P<number>[0-9]+(?:\.[0-9]+)?)"
    rf"(?P<unit>[ _]?(?:{_UNIT})(?![0-9A-Za-z]))?",
    re.IGNORECASE,
)
_COMMA = re.compile(
    rf"(?<![0-9,])([0-9]+),([0-9]+)(?=[ _]?(?:{_UNIT})(?![0-9A-Za-z]))", re.IGNORECASE
)
# Micro-Manager 1.4: img_TIME_CHANNEL_PLANE
_MICRO_MANAGER = re.compile(r"^img_(?P<t>\d{9})_(?P<c>.*)_(?P<z>\d{3})$")
# PerkinElmer Harmony: row, column, field, plane, channel, time
_HARMONY = re.compile(r"^r(?P<r>\d+)c(?P<col>\d+)f(?P<f>\d+)p(?P<z>\d+)-ch(?P<c>\d+)sk(?P<t>\d+)")


@dataclass(frozen=True)
class Slot:
    """A part of a name that may change from file to file."""

    # time, hours, date, channel, plane, position, order (of names without numbers), or empty where no word tells
    kind: str
    text: str  # as written, with its word
    value: float | str  # what it says: a number, hours, or the text itself


@dataclass
class Arrangement:
    """What `arrange` found."""

    # the name of each position -> its frames; one entry with an empty name where names tell none
    movies: dict[str, Arranged]
    notices: list[str]  # what was understood that the owner should know
    channel: bool  # whether the names told the channel that is wanted
    plane: bool  # the same of the plane


@dataclass
class Arranged:
    """The frames of one movie, in order."""

    files: list[Path]  # one a frame
    numbers: list[int]  # their frame numbers, as the names have them, else 0, 1, ...
    hours: list[float] | None = None  # their times by the names, None where these tell none
    named: bool = False  # whether the numbers stand in the names
    # what was understood that the owner should know
    notices: list[str] = field(default_factory=list)


def arrange(
    files: Sequence[Path],
    where: Path,
    *,
    channel: str | None = None,
    plane: int | None = None,
    position: str | None = None,
) -> Arrangement:
    """Sorts files of one frame each into movies, by what their names say.

    Args:
        files: pictures, one frame each.
        where: their folder, for messages.
        channel: which channel, by its word and number, its number, or its name.
        plane: which focal plane, by its number.
        position: which stage position alone, the same; None: all.

    Raises:
        UserError: a part of the names changes that is not understood, several channels or planes are there and none
            is chosen, or two files are the same frame.
    """
    slots = _slots(files, where)
    changing = [i for i in range(len(slots[0])) if len({row[i].value for row in slots}) > 1]
    kinds: dict[str, list[int]] = defaultdict(list)
    for i in changing:
        kinds[slots[0][i].kind].append(i)
    keep = list(range(len(files)))
    notices: list[str] = []
    told = {}
    for kind, wanted in ((CHANNEL, channel), (PLANE, None if plane is None else str(plane))):
        columns = [i for i in range(len(slots[0])) if slots[0][i].kind == kind]
        told[kind] = bool(columns) and wanted is not None
        keep = _choose(kind, wanted, [[row[i] for row in slots] for i in columns], keep, where)
        kinds.pop(kind, None)
    places: dict[str, list[int]] = {"": keep}
    spots = kinds.pop(POSITION, [])
    if not spots and position is not None:  # the only one that is there may be named
        spots = [i for i in range(len(slots[0])) if slots[0][i].kind == POSITION]
    if spots:
        places = defaultdict(list)
        for k in keep:
            places["_".join(slots[k][i].text for i in spots)].append(k)
    if position is not None:
        if not spots:
            raise UserError(
                f"{where}: position={position}: the names of its files tell no positions; leave it out"
            )
        chosen = _pick(POSITION, position, list(places), where)
        places = {chosen: places[chosen]}
    elif spots:
        some = ", ".join(itertools.islice(places, 4)) + (", ..." if len(places) > 4 else "")
        notices.append(f"its {len(places)} stage positions ({some}) are movies of their own")
    _say_unknown(files, slots, kinds, places, where)
    movies = {
        name: _ordered([files[k] for k in part], [slots[k] for k in part], kinds, where)
        for name, part in places.items()
    }
    return Arrangement(movies, notices, told[CHANNEL], told[PLANE])


def _slots(files: Sequence[Path], where: Path) -> list[list[Slot]]:
    """The parts of each name; all names must have the same parts, in the same words."""
    names = [bare_name(f) for f in files]
    letters = {tuple(m["well"][0] for m in _WELL.finditer(n)) for n in names}
    read = [_parse(n, wells=len(letters) > 1) for n in names]
    first = read[0]
    text_at: set[int] = set()
    for file, (template, slots) in zip(files, read, strict=True):
        same = len(template) == len(first[0]) and [s.kind for s in slots] == [
            s.kind for s in first[1]
        ]
        if not same:
            if not any(slots for _, slots in read):
                break
            raise UserError(
                f"{where}: names of different kinds, such as {files[0].name} and {file.name}; expected the frames of "
                "one movie, named alike; move the others elsewhere, or rename them"
            )
        text_at |= {i for i, (a, b) in enumerate(zip(template, first[0], strict=True)) if a != b}
    if not any(slots for _, slots in read):
        # no numbers at all: the order of the alphabet, and each name a frame
        order = sorted(range(len(files)), key=lambda k: natural_key(files[k].name))
        rank = {k: float(i) for i, k in enumerate(order)}
        return [[Slot("order", f.name, rank[k])] for k, f in enumerate(files)]
    if len(text_at) > 1:
        raise UserError(
            f"{where}: names that differ in several words, such as {files[0].name} and {files[-1].name}; expected the "
            "frames of one movie, named alike; move the others elsewhere, or rename them"
        )
    result = []
    for template, slots in read:
        words = [
            Slot(CHANNEL, _word(template[i], [t[i] for t, _ in read]), template[i]) for i in text_at
        ]
        result.append([*slots, *words])
    _settle_signs(result)
    return result


def _word(text: str, others: list[str]) -> str:
    """The words of a text that others have not at their place: gfp of `gfp_s` beside `phase_s`."""
    split = [re.split(r"[_\-. ]", t) for t in others]
    words = re.split(r"[_\-. ]", text)
    if len({len(s) for s in split}) == 1:
        words = [w for i, w in enumerate(words) if any(s[i] != w for s in split)]
    return "_".join(w for w in words if w)


def _parse(name: str, wells: bool) -> tuple[list[str], list[Slot]]:
    """Text between the parts of a name, and the parts."""
    if m := _MICRO_MANAGER.match(name):
        return [""], [
            Slot(TIME, m["t"], float(m["t"])),
            Slot(CHANNEL, m["c"], m["c"].casefold()),
            Slot(PLANE, m["z"], float(m["z"])),
        ]
    if m := _HARMONY.match(name):
        place = f"r{m['r']}c{m['col']}f{m['f']}"
        return [name[m.end() :].casefold()], [
            Slot(POSITION, place, place),
            Slot(PLANE, f"p{m['z']}", float(m["z"])),
            Slot(CHANNEL, f"ch{m['c']}", float(m["c"])),
            Slot(TIME, f"sk{m['t']}", float(m["t"])),
        ]
    name = _COMMA.sub(r"\1.\2", name)
    special: list[tuple[int, int, Slot]] = []
    for pattern, read in ((_CLOCK, _clock), (_DATE, _date), *([(_WELL, _well)] if wells else [])):
        for m in pattern.finditer(name):
            slot = read(m)
            if slot and all(m.end() <= a or m.start() >= b for a, b, _ in special):
                special.append((m.start(), m.end(), slot))
    special.sort()
    text: list[str] = []
    slots: list[Slot] = []
    at = 0
    for start, end, found in [*special, (len(name), len(name), None)]:
        pending = _numbers(name[at:start], text, slots)
        text.append(pending)
        if found:
            slots.append(found)
        at = end
    return [t.casefold() for t in text], slots


def _numbers(part: str, text: list[str], slots: list[Slot]) -> str:
    """Adds the plain numbers of a piece of a name; returns the text after the last."""
    at = 0
    for m in _NUMBER.finditer(part):
        before = part[at : m.start()]
        word = re.search(r"([A-Za-z]+)[=_\-\s.#(]*$", before)
        key = word[1].casefold() if word else ""
        number = float(m["number"])
        unit = (m["unit"] or "").strip(" _").casefold()
        kind = _WORDS.get(key, "")
        if unit:
            kind, number = "hours", number * _HOURS[unit]
        elif len(key) > 1 and key in _HOURS:
            kind, number = "hours", number * _HOURS[key]
        written = (word[1] if word and kind not in ("", "hours") else "") + m["number"]
        text.append(before)
        sign = m["sign"] or ""
        if sign == "\u2212" or (sign and before[-1:] in ("", "_", "=", "(", " ")):
            sign = "+" if sign == "+" else "--"  # a separator does not follow another
        slots.append(Slot(kind, sign + written, number))
        at = m.end()
    return part[at:]


def _clock(m: re.Match[str]) -> Slot:
    d, h, minutes, s = (
        float(m[a] or (m[b] if b else None) or 0)
        for a, b in (("d", None), ("h", "h2"), ("m", "m2"), ("s", "s2"))
    )
    return Slot("hours", m[0], d * 24 + h + minutes / 60 + s / 3600)


def _date(m: re.Match[str]) -> Slot | None:
    try:
        day = datetime.datetime(int(m["Y"]), int(m["M"]), int(m["D"]))
        when = day.replace(hour=int(m["h"]), minute=int(m["m"]), second=int(m["s"] or 0))
    except ValueError:
        return None
    return Slot("date", m[0], (when - datetime.datetime(1900, 1, 1)).total_seconds() / 3600)


def _well(m: re.Match[str]) -> Slot:
    return Slot(POSITION, m["well"], m["well"])


def _settle_signs(rows: list[list[Slot]]) -> None:
    """A minus before a number is a sign behind a separator, or where other files have none; else it separates."""
    for i in range(len(rows[0])):
        signs = [re.match(r"[-+]*", row[i].text)[0] for row in rows]  # type: ignore[index]
        for row, sign in zip(rows, signs, strict=True):
            slot = row[i]
            if sign and isinstance(slot.value, float):
                negative = sign == "--" or (sign == "-" and set(signs) != {"-"})
                row[i] = Slot(
                    slot.kind, slot.text[len(sign) :], -slot.value if negative else slot.value
                )


def _choose(
    kind: str, wanted: str | None, columns: list[list[Slot]], keep: list[int], where: Path
) -> list[int]:
    """The files of one channel or plane; its number and its name may both stand in a file's name."""
    named = [list(dict.fromkeys(c[k].text for k in keep)) for c in columns]
    several = [names for names in named if len(names) > 1]
    if wanted is None:
        if not several:
            return keep
        example = several[-1][0] if kind == CHANNEL else str(int(_digits(several[0][0])))
        raise UserError(
            f"{where}: found {len(several[0])} {kind}s in the names of its files ({', '.join(several[-1][:6])}); "
            f"expected one file a frame; give {kind}={example}"
        )
    for column, names in zip(columns, named, strict=True):
        if chosen := _matching(wanted, names):
            keep = [k for k in keep if column[k].text == chosen]
            return _choose(kind, None, columns, keep, where)
    if columns:
        _pick(kind, wanted, [n for names in named for n in names], where)
    return keep


def _matching(wanted: str, names: list[str]) -> str:
    """The one of several names that is meant, by its text or by its number; empty if none is."""
    same = [n for n in names if n.casefold() == wanted.casefold()]
    if not same and wanted.isdecimal():
        same = [n for n in names if _digits(n) and int(_digits(n)) == int(wanted)]
    return same[0] if len(same) == 1 else ""


def _pick(kind: str, wanted: str, names: list[str], where: Path) -> str:
    if chosen := _matching(wanted, names):
        return chosen
    raise UserError(f"{where}: {kind}={wanted}: found {', '.join(names[:12])}; give one of these")


def _digits(text: str) -> str:
    found = re.findall(r"[0-9]+", text)
    return found[0] if len(found) == 1 else ""


def _say_unknown(
    files: Sequence[Path],
    slots: list[list[Slot]],
    kinds: dict[str, list[int]],
    places: dict[str, list[int]],
    where: Path,
) -> None:
    """Takes one number without a word as the time where nothing else tells it; refuses what is left."""
    unknown = kinds.pop("", [])
    timed = [i for k in (TIME, "hours", "date", "order") for i in kinds.get(k, [])]
    # what only repeats the order of something known says nothing more
    left = [i for i in unknown if not any(_repeats(slots, places, i, j) for j in timed)]
    if not timed and left:
        main = left[-1] if all(_repeats(slots, places, i, left[-1]) for i in left[:-1]) else left[0]
        left = [i for i in left if i != main and not _repeats(slots, places, i, main)]
        kinds[TIME] = [main]
    several = kinds.get(TIME, [])
    left += [i for i in several[1:] if not _repeats(slots, places, i, several[0])]
    if left:
        which = [*several[:1], *left] if several else left
        shown = " and ".join(f"{slots[0][i].text!r}" for i in which[:3])
        raise UserError(
            f"{where}: several numbers change from name to name ({shown} in {files[0].name}) and no word says what "
            "they count; expected names such as img_s1_t001_ch0_z2 (s position, t time, ch channel, z plane); rename "
            "the files, or move those of each movie into a folder of its own"
        )


def _repeats(slots: list[list[Slot]], places: dict[str, list[int]], i: int, j: int) -> bool:
    """Whether part i only rises with part j, in each place."""
    for part in places.values():
        pairs = sorted({(float(slots[k][j].value), float(slots[k][i].value)) for k in part})
        if any(a[0] == b[0] or not a[1] < b[1] for a, b in itertools.pairwise(pairs)):
            return False
    return True


def _ordered(
    files: list[Path],
    slots: list[list[Slot]],
    kinds: dict[str, list[int]],
    where: Path,
) -> Arranged:
    """Files of one movie by their times."""

    def column(kind: str) -> list[float] | None:
        found = kinds.get(kind)
        return [float(row[found[0]].value) for row in slots] if found else None

    counted, hours, dates = column(TIME), column("hours"), column("date")
    if hours is None and dates is not None:
        begin = min(dates)
        hours = [d - begin for d in dates]
    told = counted or hours or column("order")
    key = told or [0.0] * len(files)
    order = sorted(range(len(files)), key=lambda k: key[k])
    for a, b in itertools.pairwise(order):
        if key[a] == key[b]:
            raise UserError(
                f"{where}: {files[a].name} and {files[b].name} are the same frame by their names; expected one file a "
                "frame; move one of them elsewhere"
            )
    if told is None:  # one file
        numbers = [slots[0][i].value for i in range(len(slots[0])) if slots[0][i].kind == TIME]
        whole = (
            len(numbers) == 1
            and float(numbers[0]).is_integer()
            and float(numbers[0]) <= LARGEST_NUMBER
        )
        return Arranged(files, [int(float(numbers[0]))] if whole else [0], None, whole)
    if hours is not None:
        for a, b in itertools.pairwise(order):
            if not hours[a] < hours[b]:
                raise UserError(
                    f"{where}: {files[b].name} comes after {files[a].name} by its number and not by its time; "
                    "correct the names"
                )
        hours = [hours[k] for k in order]
    result = Arranged([files[k] for k in order], list(range(len(files))), hours)
    if counted is not None:
        _number(
            result, [counted[k] for k in order], [slots[k][kinds[TIME][0]] for k in order], where
        )
    return result


def _number(result: Arranged, counted: list[float], slots: list[Slot], where: Path) -> None:
    """Frame numbers from the names, where they are counters."""
    if any(not c.is_integer() for c in counted):
        pairs = [
            tuple(int(p) for p in s.text.lstrip("".join(map(chr, range(65, 123)))).split("."))
            for s in slots
        ]
        if slots[0].kind == "" and sorted(pairs) != pairs:
            raise UserError(
                f"{where}: {result.files[0].name} and {result.files[-1].name}: it is not clear whether the point in "
                "their numbers is a decimal point; write the unit behind it (0.25h), or number the frames"
            )
        result.notices.append(
            "the numbers in the names of its files are no whole numbers: frames are counted from 0"
        )
        return
    if min(counted) < 0 or max(counted) > LARGEST_NUMBER:
        result.notices.append(
            f"the numbers in the names of its files ({counted[0]:.0f} to {counted[-1]:.0f}) do not count frames: "
            "frames are counted from 0"
        )
        return
    result.numbers, result.named = [int(c) for c in counted], True
    steps = {b - a for a, b in itertools.pairwise(result.numbers)}
    if len(steps) == 1 and (step := steps.pop()) > 1:
        result.notices.append(
            f"its frames are numbered in steps of {step}: hours_per_frame is the time from one number to the next, "
            f"not from file to file"
        )
    elif len(steps) > 1:
        missing = result.numbers[-1] - result.numbers[0] + 1 - len(result.numbers)
        result.notices.append(
            f"gaps in time: {missing} of the frame numbers between its first and its last frame are not there"
        )
