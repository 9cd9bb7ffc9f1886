"""One case: an input, the words that a user types, and what is right.

The program is called as a user calls it, in a folder that holds the input as `in`. It is right if it read the right
values, or refused in one sentence; and if it changed or left nothing beside its output.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

OUT = "OUT"  # stands for the output of a run among its words
TIME_LIMIT = 60  # seconds a run, on a machine that others use, too

Make = Callable[[Path], Any]
Words = Sequence["str | tuple[str, ...]"]  # each must be in a text, or one of a tuple


class _Hang(BaseException):
    """The time of a run is over."""


@dataclass
class Found:
    """What a run did.

    Attributes:
        status: its exit status; None where it ended in an exception.
        said: what it printed, errors and notices included.
        message: its one error message.
        sort: "" where nothing is wrong by itself, else `crash`, `destroyed`, `left over` or `hang`.
        why: of `sort`.
        out: its output.
        memory: what the runs of one case remember of each other.
    """

    status: int | None
    said: str
    message: str
    sort: str
    why: str
    out: Path
    memory: dict[str, Any] = field(default_factory=dict)
    _rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def store(self) -> Any:
        from stemcell_lit.patches.store import PatchStore

        return PatchStore.open(self.out)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the store's manifest, each with the mean gray value of its patch as `value`."""
        if not self._rows:
            store = self.store
            means = store.pixels.reshape(len(store.pixels), -1).mean(1)
            self._rows = [
                {
                    **{k: _plain(v) for k, v in row.items()},
                    "value": float(m),
                    "source": Path(str(row["source"])).name,
                    "path": str(row["source"]),
                }
                for row, m in zip(store.manifest.to_dict("records"), means, strict=True)
            ]
        return self._rows


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


# --- what is right --------------------------------------------------------------------------------

Check = Callable[[Found], str]  # "" where right, else what was found


@dataclass(frozen=True)
class Right:
    """What a run may do. `check` gives "" or (sort of fault, what was found)."""

    text: str
    check: Callable[[Found], tuple[str, str]]


def reads(*checks: Check, says: Words = (), text: str = "read") -> Right:
    """Status 0 and a store (or another output) that passes the checks; `says` must have been printed."""

    def check(found: Found) -> tuple[str, str]:
        if found.status == 2:
            return "refused wrongly", found.message
        for one in checks:
            try:
                if wrong := one(found):
                    return "silent", wrong
            except Exception as error:
                return "silent", f"{type(error).__name__}: {error}"
        if lacks := _lacks(found.said, says):
            return "silent", f"did not say {lacks!r}; said {found.said.strip()[-200:]!r}"
        return "", ""

    return Right(text + (f", told {_words(says)}" if says else ""), check)


def refused(*words: str | tuple[str, ...]) -> Right:
    """Status 2 and one message in which these words are."""

    def check(found: Found) -> tuple[str, str]:
        if found.status == 0:
            return "silent", f"done: {found.said.strip()[-160:]!r}"
        if lacks := _lacks(found.message, words):
            return "refused wrongly", f"message lacks {lacks!r}: {found.message}"
        return "", ""

    return Right(f"refused ({_words(words)})" if words else "refused", check)


def either(*rights: Right) -> Right:
    """Any of these."""

    def check(found: Found) -> tuple[str, str]:
        wrongs = [right.check(found) for right in rights]
        if any(not sort for sort, _ in wrongs):
            return "", ""
        same = [
            (sort, why)
            for sort, why in wrongs
            if (sort == "silent") == (found.status == 0) and "done: " not in why
        ]
        return (same or wrongs)[0]

    return Right(" or ".join(right.text for right in rights), check)


def one_result(*rights: Right) -> Right:
    """Any of these, but the same one, with the same gray values, in all runs of the case that say so."""

    def check(found: Found) -> tuple[str, str]:
        sort, why = either(*rights).check(found)
        if sort:
            return sort, why
        got = "refused" if found.status else sorted({round(r["value"]) for r in found.rows})
        first = found.memory.setdefault("one_result", got)
        return ("", "") if got == first else ("silent", f"{got} here, {first} before")

    return Right(f"the same everywhere: {either(*rights).text}", check)


def planned(check_jobs: Callable[[list[Any], Path], str] | None = None) -> Right:
    """Trials were planned; nothing was trained, for jobs are not started here."""

    def check(found: Found) -> tuple[str, str]:
        if found.status == 2:
            return "refused wrongly", found.message
        jobs = found.memory.get("jobs")
        if not jobs:
            return "silent", f"nothing planned: {found.said[-200:]!r}"
        wrong = check_jobs(jobs, found.out) if check_jobs else ""
        return ("silent", wrong) if wrong else ("", "")

    return Right("planned", check)


def _lacks(text: str, words: Words) -> str | tuple[str, ...] | None:
    low = text.lower()
    for word in words:
        if not any(w.lower() in low for w in ([word] if isinstance(word, str) else word)):
            return word
    return None


def _words(words: Words) -> str:
    return ", ".join(w if isinstance(w, str) else "|".join(w) for w in words)


# --- checks of a store ----------------------------------------------------------------------------


def has(*expected: tuple, of: Sequence[str] = ("label", "value"), within: float = 0.01) -> Check:
    """The distinct rows of these columns are these, in any order; numbers agree within `within`."""

    def check(found: Found) -> str:
        got = sorted({tuple(_round(r[c], within) for c in of) for r in found.rows}, key=str)
        left = list(expected)
        for row in got:
            for want in left:
                if all(_near(a, b, within) for a, b in zip(row, want, strict=True)):
                    left.remove(want)
                    break
            else:
                if not any(
                    all(_near(a, b, within) for a, b in zip(row, want, strict=True))
                    for want in expected
                ):
                    return f"{','.join(of)}: found {row}, expected one of {list(expected)}"
        return f"{','.join(of)}: {left} are missing, found {got}" if left else ""

    return check


def _round(value: Any, within: float) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _near(a: Any, b: Any, within: float) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= within
    return a == b


def counts(**expected: int) -> Check:
    """So many patches a class."""
    return counted(expected)


def counted(expected: dict[str, int]) -> Check:
    """So many patches a class, for names that are no Python names."""

    def check(found: Found) -> str:
        labels = [r["label"] for r in found.rows]
        got = {name: labels.count(name) for name in sorted(set(labels))}
        classes = sorted(found.store.classes)
        if got != dict(sorted(expected.items())) or classes != sorted(expected):
            return f"patches a class: {got}, classes {classes}; expected {expected}"
        return ""

    return check


def together(key: Callable[[dict[str, Any]], Any]) -> Check:
    """Two patches share a group if and only if they share this key."""
    return _partition("group", key)


def tracked(key: Callable[[dict[str, Any]], Any]) -> Check:
    """Two patches share a track if and only if they share this key."""
    return _partition("track", key)


def _partition(column: str, key: Callable[[dict[str, Any]], Any]) -> Check:
    def check(found: Found) -> str:
        pairs = {(r[column], key(r)) for r in found.rows}
        got, want = len({a for a, _ in pairs}), len({b for _, b in pairs})
        if not len(pairs) == got == want:
            return f"{column}s: {got}, expected {want}; pairs {sorted(pairs, key=str)[:6]}"
        return ""

    return check


def groups(number: int) -> Check:
    """So many groups."""

    def check(found: Found) -> str:
        got = sorted({r["group"] for r in found.rows})
        return "" if len(got) == number else f"groups {got[:6]}, expected {number}"

    return check


def um(expected: float | None) -> Check:
    """The size of a pixel in the store."""

    def check(found: Found) -> str:
        got = found.store.info["um_per_px"]
        same = got is None if expected is None else got is not None and abs(got - expected) < 1e-3
        return "" if same else f"um/px {got}, expected {expected}"

    return check


def ordered(*sources: str, falling: bool = False, by: str = "source") -> Check:
    """Mean gray values rise strictly from one source (or frame) to the next: one scale for all of them."""

    def check(found: Found) -> str:
        means = []
        for name in sources:
            values = [r["value"] for r in found.rows if str(r[by]) == name]
            if not values:
                return f"nothing of {name}; found {sorted({str(r[by]) for r in found.rows})[:8]}"
            means.append(sum(values) / len(values))
        if falling:
            means = means[::-1]
        rises = all(b - a >= 1 for a, b in itertools.pairwise(means))
        return "" if rises else f"gray values {[round(m, 1) for m in means]}, expected to rise"

    return check


# --- cases and runs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An input with one or more commands.

    Attributes:
        name: what it is, in a few words.
        make: writes the input into the folder `in`.
        runs: words of a command and what is right. `OUT` among them stands for a new output.
    """

    name: str
    make: Make
    runs: tuple[tuple[tuple[str, ...], Right], ...]


def case(name: str, make: Make, *runs: tuple[str, Right]) -> Case:
    """A case; the words of each run are split at blanks (a blank inside a word is written as a tab)."""
    return Case(
        name,
        make,
        tuple((tuple(w.replace("\t", " ") for w in s.split(" ")), right) for s, right in runs),
    )


def snapshot(folder: Path, without: Path) -> dict[str, str]:
    """Every entry below a folder with a digest of its content; links are not followed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in list(folders):
            path = Path(root) / name
            if path == without:
                folders.remove(name)
            elif path.is_symlink():
                found[str(path)] = f"link {path.readlink()}"
            else:
                found[str(path)] = "folder"
        for name in files:
            path = Path(root) / name
            if path == without:
                continue
            if path.is_symlink():
                found[str(path)] = f"link {path.readlink()}"
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(path)] = "special"
    return found


@contextlib.contextmanager
def _own_settings(conf: Path) -> Iterator[None]:
    """Settings of the case instead of those of the package, where it brings its own."""
    with contextlib.ExitStack() as patched:
        for name, module in list(sys.modules.items()):
            if conf.is_dir() and name.startswith("stemcell_lit") and hasattr(module, "conf_dir"):
                patched.enter_context(mock.patch.object(module, "conf_dir", lambda: conf))
        yield


def run(words: Sequence[str], folder: Path, stem: str, memory: dict[str, Any]) -> Found:
    """Types the words in the folder, `stem` for OUT. Jobs of `reproduce` are planned and remembered, not started."""
    from stemcell_lit import __main__ as cli
    from stemcell_lit.studies import reproduce

    def plan(jobs: list[Any], **_: Any) -> Any:
        memory["jobs"] = list(jobs)
        raise SystemExit(0)

    def over(*_: Any) -> None:
        raise _Hang

    argv = [w.replace(OUT, stem) for w in words]
    more = next((w.split(OUT, 1)[1] for w in words if OUT in w), "")
    out = folder / (stem + more.split("/")[0].rstrip("'"))
    before = snapshot(folder, out)
    here = Path.cwd()
    stdout, stderr = io.StringIO(), io.StringIO()
    status: int | None = 0
    sort = why = ""
    alarm = signal.signal(signal.SIGALRM, over)
    log = logging.StreamHandler(stderr)  # Python's own way out is closed while pytest listens
    log.setLevel(logging.WARNING)
    logging.getLogger().addHandler(log)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        os.chdir(folder)
        signal.alarm(TIME_LIMIT)
        try:
            with (
                _own_settings(folder / "in" / "conf"),
                mock.patch.object(reproduce, "run_jobs", plan),
                contextlib.redirect_stdout(stdout),
                contextlib.redirect_stderr(stderr),
            ):
                cli.main(argv)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        except _Hang:
            status, sort, why = None, "hang", f"not done after {TIME_LIMIT} s"
        except Exception as error:
            status, sort, why = None, "crash", f"{type(error).__name__}: {error}"[:300]
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, alarm)
            logging.getLogger().removeHandler(log)
            os.chdir(here)
    err = stderr.getvalue()
    head = f"stemcell-lit {argv[0]}: "
    message = err[err.find(head) + len(head) :].strip() if head in err else ""
    if not sort and status == 2 and (err.count(head) != 1 or not message or "Traceback" in err):
        sort, why = "crash", f"status 2 without one message: {err[-300:]!r}"
    if not sort and status not in (0, 2):
        sort, why = "crash", f"status {status}: {err[-300:]!r}"
    after = snapshot(folder, out)
    lost = [p for p, digest in before.items() if after.get(p) != digest]
    extra = [p for p in after if p not in before]
    if status != 0 and out.exists():
        extra.append(str(out))
    if lost:
        sort, why = (
            "destroyed",
            f"{len(lost)} entries gone or changed, such as {_below(lost, folder)}",
        )
    elif extra and not sort:
        sort, why = "left over", f"{len(extra)} new entries, such as {_below(extra, folder)}"
    return Found(status, stdout.getvalue() + err, message, sort, why, out, memory)


def _below(paths: list[str], folder: Path) -> str:
    return str(Path(sorted(paths)[0]).relative_to(folder))


def judge(one: Case, folder: Path) -> tuple[str, str]:
    """Makes a case and runs it.

    Returns:
        ("", "") where it is right, else the sort of fault (silent, refused wrongly, crash, destroyed, left over,
        hang) and what was found.
    """
    source = folder / "in"
    source.mkdir(parents=True)
    (folder / "neighbour.txt").write_text("not yours")
    one.make(source)
    memory: dict[str, Any] = {}
    for number, (words, right) in enumerate(one.runs):
        found = run(words, folder, f"out{number}", memory)
        sort, why = found.sort, found.why
        if not sort:
            sort, why = right.check(found)
        if sort:
            return sort, f"`{' '.join(words)}`: {why}"
    return "", ""


def steps(
    *numbers: int, early: int, start: int = 5, step: int = 10, hour: float | None = None
) -> list[tuple]:
    """Rows of frames of one gray value each, with hours if they are known."""
    return [
        (
            "early" if t < early else "late",
            start + step * t,
            *(() if hour is None else (t * hour,)),
        )
        for t in numbers
    ]
