"""Every command is killed, starved of space, shut out and doubled; the same command again must end undisturbed.

    python benchmarks/faults.py [--save] [--short] [--seed 0] [--rounds 3] [--only import,simulate] [--keep DIR]

A command runs undisturbed; that is what it makes and how long it takes. Then, per fault, it runs in a fresh folder
beside files that are not its own, is disturbed at a random share of that time, and runs again undisturbed. A fault is
survived when all of this holds: what is made equals what was made undisturbed, nothing else lies beside it or in the
folder for temporary files, no process is left, the foreign files have the same bytes, no traceback was shown, the
disturbed run ended as it may, and the second one with status 0. Full disks and read-only folders are small file
systems in memory, which root alone can mount; elsewhere these faults are left out and counted as such.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import report
from PIL import Image

from stemcell_lit.launch.slots import default_slots
from stemcell_lit.launch.warm import PROGRAM, WarmProcess

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
MARKS = ("<!-- counts of benchmarks/results/faults.json -->", "<!-- end of counts -->")
POLL_S = 0.01
GRACE_S = 5.0  # in which orphans must have gone
LIMIT_S = 240.0  # a run that takes longer hangs
SMOKE = ("profile=smoke", "trainer=cpu", "gan.images=240", "gan.validate_every_images=48")
CLASSES = ("dense", "spread")
PICTURES = 12  # crops to import and to sort


# --- the commands ---------------------------------------------------------------------------------


@dataclass
class Given:
    """What the commands read, made once."""

    root: Path
    env: dict[str, str]

    def crops(self) -> Path:
        """A folder per class."""
        folder = self.root / "crops"
        rng = np.random.default_rng(0)
        for i in range(0 if folder.exists() else PICTURES):
            file = folder / CLASSES[i % 2] / f"g{i // 4}_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(file)
        return folder

    def store(self) -> Path:
        """Patches of simulated movies."""
        self._once(
            "movies",
            "simulate",
            *_simulation(6, 4, 256),
            "out=movies",
            "store=store",
            "extraction.patches_per_movie=60",
        )
        return self.root / "store"

    def results(self) -> Path:
        """A finished trial with a generator."""
        self._once(
            "results", "run", *SMOKE, "method=flat_gan", f"data.store={self.store()}", "out=results"
        )
        return self.root / "results"

    def model(self) -> Path:
        """Its trained classifier."""
        return next(self.results().glob("trials/[!.]*/model"))

    def generator(self) -> Path:
        """The checkpoint of its generator."""
        return next(self.results().glob("artifacts/generator/[!.]*/generator.ckpt"))

    def _once(self, name: str, *words: str) -> None:
        if not (self.root / name).exists():
            run = Run(words, self.root, self.root / "given.log", self.env)
            if run.wait() != 0:
                raise SystemExit(f"{words}: {run.said()[-2000:]}")


@dataclass
class Command:
    """A command of the table.

    Attributes:
        name: in the table.
        words: of the given folder's things, for an output `out` in the working folder.
        prepare: puts into the output what must be there before.
        sorts: its patches are answered in the page, by a client.
        cheap: seconds, for the short campaign.
    """

    name: str
    words: Callable[[Given], Sequence[str]]
    prepare: Callable[[Given, Path], Any] | None = None
    sorts: bool = False
    cheap: bool = False


def _simulation(movies: int, frames: int, size: int) -> list[str]:
    named = {"movies": movies, "frames": frames, "size": size}
    return [f"simulation.{k}={v}" for k, v in named.items()]


COMMANDS = (
    Command("import", lambda g: ["import", f"source={g.crops()}", "store=out"], cheap=True),
    Command(
        "simulate",
        lambda g: ["simulate", *_simulation(2, 3, 128), "simulation.threads=2", "out=out"],
        cheap=True,
    ),
    Command(
        "annotate",
        lambda g: ["annotate", f"source={g.crops()}", f"classes=[{','.join(CLASSES)}]", "out=out"],
        sorts=True,
        cheap=True,
    ),
    Command(
        "report",
        lambda g: ["report", "out=out", "baseline=flat_gan", "resamples=50"],
        prepare=lambda g, out: shutil.copytree(g.results(), out),
        cheap=True,
    ),
    Command(
        "generate",
        lambda g: ["generate", f"checkpoint={g.generator()}", "per_class=8", "store=out"],
    ),
    Command(
        "evaluate",
        lambda g: ["evaluate", f"checkpoint={g.model()}", f"store={g.store()}", "out=out"],
    ),
    Command(
        "predict",
        lambda g: [
            "predict",
            f"movie={g.store().with_name('movies') / 'movie_00.tif'}",
            f"checkpoint={g.model()}",
            "out=out",
        ],
    ),
    Command(
        "run",
        lambda g: ["run", *SMOKE, "method=flat_gan", f"data.store={g.store()}", "out=out"],
    ),
    Command(
        "run -m",
        lambda g: [
            "run",
            "-m",
            "hydra/launcher=local",
            "hydra.launcher.slots=2",
            *SMOKE,
            "method=flat,flat_gan",
            f"data.store={g.store()}",
            "out=out",
        ],
    ),
    Command(
        "reproduce",
        lambda g: [
            "reproduce",
            *SMOKE,
            "methods=[flat,flat_gan]",
            "seeds=[0]",
            "resamples=50",
            f"data.store={g.store()}",
            "slots=2",
            "out=out",
        ],
    ),
    Command(
        "judge",
        lambda g: [
            "judge",
            *SMOKE,
            "gans=[smoke]",
            "folds=[0]",
            f"data.store={g.store()}",
            "out=out",
        ],
    ),
)


class Lost(Exception):
    """What was given away is gone."""


# --- a run ----------------------------------------------------------------------------------------


class Run:
    """A command in a process of its own, as a job of a sweep starts: with everything imported."""

    def __init__(self, words: Sequence[str], folder: Path, log: Path, env: dict[str, str]):
        self.log, self.start = log, log.stat().st_size if log.exists() else 0
        before = Path.cwd()
        os.chdir(folder)
        try:
            self.process = WarmProcess([*PROGRAM, *words], env, log)
        finally:
            os.chdir(before)
        self.begun = time.monotonic()

    def said(self) -> str:
        """What it printed."""
        return (
            self.log.read_bytes()[self.start :].decode("utf-8", "replace")
            if self.log.exists()
            else ""
        )

    def wait(self, until: float = LIMIT_S) -> int | None:
        """Its status; None: it still runs so many seconds after its start."""
        while (code := self.process.poll()) is None and time.monotonic() - self.begun < until:
            time.sleep(POLL_S)
        return code

    def kill(self, number: int, group: bool) -> None:
        """A signal to its process, or to that and all of its process group."""
        try:
            (os.killpg if group else os.kill)(self.process.pid, number)
        except ProcessLookupError:
            if self.process.poll() is None:
                os.kill(self.process.pid, number)


class Sorter:
    """A person at the page of `annotate`: gives each patch the class of its number."""

    def __init__(self) -> None:
        self.saved = 0  # answers that the page has heard of as saved

    def work(self, run: Run, until: float) -> None:
        """Answers until all are sorted, the time is over, or nobody listens."""
        found = None
        while found is None and run.process.poll() is None and time.monotonic() - run.begun < until:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", run.said())
            time.sleep(POLL_S)
        while found and run.process.poll() is None and time.monotonic() - run.begun < until:
            try:
                state = self._ask(found, "/state", None)
                if state["done"] < self.saved:
                    raise Lost("an answer that was saved is gone")
                if state["done"] == state["total"]:
                    run.kill(signal.SIGINT, group=False)
                    return
                given = {"index": state["done"], "label": CLASSES[state["done"] % 2]}
                self.saved = self._ask(found, "/answer", given)["done"]
                time.sleep(0.05)  # a person is slower
            except urllib.error.HTTPError:
                return  # refused: a full disk
            except (OSError, ValueError):
                continue  # it has gone

    @staticmethod
    def _ask(found: re.Match[str], path: str, body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{found[1]}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Token": found[2], "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            state: dict[str, Any] = json.loads(reply.read())
            return state


# --- what was made --------------------------------------------------------------------------------

# What differs between two undisturbed runs: times, addresses, process ids
VOLATILE = re.compile(
    r"(^|/)(\.hydra|wandb|logs?)/|\.log$|log\.jsonl$|\.html$|\.lock$|\.ckpt$|artifact\.json$|artifacts\.csv$"
)
NUMBERS = (".npy", ".npz", ".tif", ".parquet", ".csv", ".png")


def look(out: Path) -> dict[str, str]:
    """Path -> hash of what counts in a file; of other files only that they are there."""
    found = {}
    for file in sorted(f for f in out.rglob("*") if f.is_file()):
        name = file.relative_to(out).as_posix()
        if VOLATILE.search(name):
            continue
        if file.name == "labels.csv":  # without the seconds
            text = file.read_text(encoding="utf-8")
            found[name] = "\n".join(line.rpartition(",")[0] for line in text.splitlines())
        elif file.name == "result.json":
            found[name] = json.dumps(json.loads(file.read_text(encoding="utf-8"))["metrics"])
        elif file.name == "store.json":
            found[name] = json.loads(file.read_text(encoding="utf-8"))["content_hash"]
        elif file.suffix in NUMBERS:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            found[name] = ""
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    lost = [f"absent: {n}" for n in sorted(expected.keys() - found.keys())]
    left = [f"left over: {n}" for n in sorted(found.keys() - expected.keys())]
    changed = [
        f"differs: {n}" for n in sorted(expected) if found.get(n, expected[n]) != expected[n]
    ]
    return lost + left + changed


# --- a place to work ------------------------------------------------------------------------------


class Place:
    """A working folder with files that are not the program's; where asked for, a file system of its own."""

    def __init__(self, root: Path, *, mounted: bool = False):
        self.root, self.mounted = root, mounted
        root.mkdir(parents=True)
        if mounted:
            _mount("-t", "tmpfs", "-o", "size=1g", "none", str(root))
        self.out, self.tmp, self.log = (
            root / "out",
            root / "tmp",
            root.with_name(f"{root.name}.log"),
        )
        self.tmp.mkdir()
        (root / "thesis").mkdir()
        (root / "thesis" / "chapter.txt").write_bytes(random.Random(0).randbytes(2000))
        (root / "notes.txt").write_text("not the program's\n", encoding="utf-8")
        self.foreign = self._foreign()

    def limit(self, size: int) -> None:
        """Leaves room for so many bytes more."""
        used = shutil.disk_usage(self.root).used
        _mount("-o", f"remount,size={used + max(4096, size)}", str(self.root))

    def read_only(self, yes: bool) -> None:
        """Nothing can be written any more; or again, with room enough."""
        _mount("-o", f"remount,{'ro' if yes else 'rw,size=1g'}", str(self.root))

    def wrong(self) -> list[str]:
        """What lies around that should not, and what is no longer as it was."""
        known = {"out", "tmp", "thesis", "notes.txt"}
        left = [p.name for p in self.root.iterdir() if p.name not in known]
        left += [f"TMPDIR/{p.name}" for p in self.tmp.iterdir()]
        changed = [] if self._foreign() == self.foreign else ["foreign files changed"]
        return [f"left over: {name}" for name in left] + changed

    def close(self) -> None:
        """Removes it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.root)], check=False)
        shutil.rmtree(self.root, ignore_errors=True)

    def _foreign(self) -> dict[str, bytes]:
        files = [self.root / "notes.txt", *(self.root / "thesis").rglob("*")]
        return {str(f): f.read_bytes() for f in files}


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    place = folder / "can_mount"
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "none", str(place)], check=False, capture_output=True
    )
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=False)
    return done.returncode == 0


def adopt_orphans() -> None:
    """Whatever loses its parent below this process becomes its child, and can be counted."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def children() -> set[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    found = set()
    for pid in map(int, text.split()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


# --- the faults -----------------------------------------------------------------------------------

KILLS = {
    "SIGKILL, the group": (signal.SIGKILL, True),
    "SIGKILL, the parent": (signal.SIGKILL, False),
    "SIGTERM, the group": (signal.SIGTERM, True),
    "SIGTERM, the parent": (signal.SIGTERM, False),
}
FAULTS = (*KILLS, "full disk", "read-only", "a file in the way", "two at once")
MOUNTED = ("full disk", "read-only")


@dataclass
class Outcome:
    """How often a fault was injected into a command, and what then failed."""

    command: str
    fault: str
    injected: int = 0
    survived: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass
class Whole:
    """An undisturbed run."""

    seconds: float
    bytes: int
    made: dict[str, str]


class Campaign:
    """Faults into commands, in a folder."""

    def __init__(self, root: Path, seed: int = 0):
        self.root, self.random, self.number = root, random.Random(seed), 0
        root.mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        base = {k: v for k, v in os.environ.items() if k != "TMPDIR"}
        self.env = {**base, **default_slots("cpu", 1, 2)[0]}
        (root / "given").mkdir(exist_ok=True)
        self.given = Given(root / "given", self.env)
        Run(
            ["--help"], root, root / "given.log", self.env
        ).wait()  # the server's imports are not a command's time

    def whole(self, command: Command) -> Whole:
        """What a command makes undisturbed, and how long that takes."""
        command.words(self.given)
        place = self._place(command)
        try:
            before = time.monotonic()
            used = shutil.disk_usage(place.root).used
            code, said = self._run(command, place, Sorter())
            if code != 0 or "Traceback" in said:
                raise SystemExit(f"{command.name}: status {code} undisturbed\n{said[-2000:]}")
            seconds, size = (
                time.monotonic() - before,
                sum(f.stat().st_size for f in place.out.rglob("*")),
            )
            size = max(size, shutil.disk_usage(place.root).used - used) if place.mounted else size
            if place.wrong():
                raise SystemExit(f"{command.name}: undisturbed, but {place.wrong()}")
            return Whole(seconds, size, look(place.out))
        finally:
            place.close()

    def inject(self, command: Command, fault: str, whole: Whole) -> list[str]:
        """Disturbs a command once, and runs it again; what is wrong then."""
        known, place, sorter = children(), self._place(command, fault in MOUNTED), Sorter()
        share = self.random.uniform(0.02, 0.98)
        bad = []
        try:
            code, said = self._disturbed(command, fault, whole, place, sorter, share)
            end = time.monotonic() + GRACE_S
            while (left := children() - known) and time.monotonic() < end:
                time.sleep(POLL_S)
            if left:
                bad.append(f"{len(left)} orphans")
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            allowed = {0, 1, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM}
            if code not in allowed:
                bad.append("hangs" if code is None else f"status {code}")
            if "Traceback (most recent call last)" in said:
                bad.append(f"traceback: {said.strip().splitlines()[-1][:160]}")
            again, said = self._run(command, place, sorter)
            if again != 0:
                bad.append(f"status {again} the second time: {said.strip()[-300:]}")
            elif "Traceback (most recent call last)" in said:
                bad.append("traceback the second time")
            else:
                bad += differences(look(place.out), whole.made)
            bad += place.wrong()
        except Lost as error:
            bad.append(str(error))
        finally:
            place.close()
        return [f"{b} (at {share:.2f})" for b in bad]

    def _place(self, command: Command, mounted: bool = False) -> Place:
        self.number += 1
        place = Place(self.root / f"place-{self.number}", mounted=mounted)
        if command.prepare:
            command.prepare(self.given, place.out)
        return place

    def _run(
        self, command: Command, place: Place, sorter: Sorter, until: float = LIMIT_S
    ) -> tuple[int | None, str]:
        run = self._start(command, place)
        if command.sorts:
            sorter.work(run, until)
        code = run.wait(until)
        if code is None and until == LIMIT_S:
            run.kill(signal.SIGKILL, group=True)
        return code, run.said()

    def _start(self, command: Command, place: Place) -> Run:
        env = {**self.env, "TMPDIR": str(place.tmp)}
        return Run(command.words(self.given), place.root, place.log, env)

    def _disturbed(
        self, command: Command, fault: str, whole: Whole, place: Place, sorter: Sorter, share: float
    ) -> tuple[int | None, str]:
        if fault in KILLS:
            number, group = KILLS[fault]
            run = self._start(command, place)
            until = share * whole.seconds
            if command.sorts:
                sorter.work(run, until)
            run.wait(until)
            run.kill(number, group)
            run.begun = time.monotonic()
            return run.wait(60), run.said()
        if fault == "two at once":
            pair = [self._start(command, place) for _ in range(2)]
            if command.sorts:
                for run in pair:
                    sorter.work(run, whole.seconds + 10)
            codes = [run.wait() for run in pair]
            if command.sorts and None in codes:
                raise Lost("annotate does not end")
            best = (
                0
                if 0 in codes and all(c in (0, 2) for c in codes)
                else next(c for c in codes if c != 0)
            )
            return best, pair[0].said()
        if fault == "a file in the way":
            aside = place.root / "tmp" / "aside"
            if command.prepare:
                place.out.rename(aside)
            place.out.write_bytes(b"not the program's")
            code, said = self._run(command, place, sorter, LIMIT_S)
            if place.out.is_dir() or place.out.read_bytes() != b"not the program's":
                raise Lost("the file in the way is gone")
            place.out.unlink()
            if command.prepare:
                aside.rename(place.out)
            return code, said
        if fault == "full disk":
            place.limit(int(share * whole.bytes))
        else:
            place.read_only(True)
        run = self._start(command, place)
        if command.sorts:
            sorter.work(run, whole.seconds + 20)
            run.kill(signal.SIGINT, group=False)
        code = run.wait()
        place.read_only(False)
        if code is None:
            run.kill(signal.SIGKILL, group=True)
        return code, run.said()


def campaign(
    root: Path, commands: Sequence[Command], faults: Sequence[str], rounds: int, seed: int
) -> list[Outcome]:
    """Every fault into every command, so many times each; prints a line for each that was not survived."""
    work = Campaign(root, seed)
    mounts = can_mount(root)
    outcomes = []
    for command in commands:
        whole = work.whole(command)
        print(f"{command.name}: {whole.seconds:.1f} s, {whole.bytes} bytes undisturbed", flush=True)
        for fault in faults:
            outcome = Outcome(command.name, fault)
            outcomes.append(outcome)
            for _ in range(rounds if fault in (*KILLS, "full disk") else 1):
                if fault in MOUNTED and not mounts:
                    continue
                bad = work.inject(command, fault, whole)
                outcome.injected += 1
                outcome.survived += not bad
                outcome.failed += bad
                for line in bad:
                    print(f"  {command.name}, {fault}: {line}", flush=True)
    return outcomes


def table(result: dict[str, Any]) -> str:
    """Survived of injected, a row a command, as Markdown.

    Args:
        result: of `--save`.
    """
    columns: dict[str, tuple[str, ...]] = {"kills": tuple(KILLS)} | {
        f: (f,) for f in FAULTS[len(KILLS) :]
    }
    lines = [f"| command | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for command, counts in result["counts"].items():
        cells = []
        for faults in columns.values():
            some = [counts[f] for f in faults if f in counts]
            cells.append(
                f"{sum(c['survived'] for c in some)} of {sum(c['injected'] for c in some)}"
            )
        lines.append(f"| {command} | {' | '.join(cells)} |")
    total = f"Together {result['value']} of {result['injected']} (seed {result['seed']})."
    return "\n".join([*lines, "", total])


def write_table(result: dict[str, Any]) -> None:
    """Puts the counts into the document, where its marks are."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    DOCUMENT.write_text(
        f"{before}{MARKS[0]}\n\n{table(result)}\n\n{MARKS[1]}{after}", encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--rounds", type=int, default=2, help="of kills and of full disks")
    parser.add_argument(
        "--short", action="store_true", help="the commands that take seconds, once each"
    )
    parser.add_argument("--only", help="commands, separated by commas")
    parser.add_argument("--faults", help="faults, separated by semicolons")
    parser.add_argument("--keep", type=Path, help="work here and leave the logs")
    parser.add_argument("--save", action="store_true", help="keep the counts in results/")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    commands = [c for c in COMMANDS if c.cheap or not given.short]
    if given.only:
        commands = [c for c in commands if c.name in given.only.split(",")]
    faults = given.faults.split(";") if given.faults else FAULTS
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        root = (given.keep or Path(scratch)).resolve()
        outcomes = campaign(root, commands, faults, 1 if given.short else given.rounds, given.seed)
    injected, survived = (sum(getattr(o, n) for o in outcomes) for n in ("injected", "survived"))
    counts: dict[str, dict[str, Any]] = {}
    for o in outcomes:
        about: dict[str, Any] = {"injected": o.injected, "survived": o.survived}
        counts.setdefault(o.command, {})[o.fault] = about | (
            {"failed": o.failed} if o.failed else {}
        )
    result = report(
        "faults",
        survived,
        "faults survived",
        f"{injected} of {injected}",
        None,
        given.save,
        injected=injected,
        seed=given.seed,
        seconds=round(time.monotonic() - start),
        counts=counts,
    )
    if given.save:
        write_table(result)
    sys.exit(survived != injected)


if __name__ == "__main__":
    main()
