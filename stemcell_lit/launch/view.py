"""What the terminal shows of jobs: those that run, one that ended, and the sum of all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stemcell_lit.base.terminal import printable
from stemcell_lit.launch.jobs import JobOutcome, RunningJob
from stemcell_lit.settings.quoting import plain

QUIET_S = 60.0  # without a line, where there is no terminal


@dataclass
class JobsView:
    """What the user sees: a live table in a terminal, elsewhere a line per finished job or per minute."""

    console: Console
    title: str
    slots: int
    outcomes: Mapping[str, JobOutcome]
    costs: Mapping[str, float]  # of every job, see `Job.cost`
    begun: float = field(default_factory=time.monotonic)
    live: Live | None = None
    drawn: float = 0.0
    spoke: float = field(default_factory=time.monotonic)
    waits: str = ""  # why jobs wait
    running: Mapping[int, RunningJob] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of jobs."""
        return len(self.costs)

    @contextmanager
    def shown(self, running: Mapping[int, RunningJob]) -> Iterator[None]:
        """Draws the table from now on, where there is a terminal."""
        self.running = running
        skipped = len(self.outcomes)
        if skipped:
            self.console.print(f"{skipped} of {self.total} jobs were done already", highlight=False)
        if self.console.is_terminal and skipped < self.total:
            with Live(console=self.console, auto_refresh=False, transient=True) as self.live:
                yield
        else:
            yield
        self.live = None

    def refresh(self) -> None:
        """Draws it again, now and then; without a terminal, a line after a minute of none."""
        now = time.monotonic()
        if self.live is not None and now - self.drawn > 0.5:
            self.live.update(self._table(), refresh=True)
            self.drawn = now
        elif self.live is None and self.running and now - self.spoke > QUIET_S:
            names = ", ".join(f"{r.name} ({_clock(r.elapsed)})" for r in self.running.values())
            self._line(f"{self._counts()}: {names}")

    def _line(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        self.spoke = time.monotonic()

    def note(self, waits: str) -> None:
        """Says why jobs wait: below the table, or as a line; empty: none does."""
        self.waits = waits
        if self.live is None and waits:
            self._line(waits)

    def ended(self, outcome: JobOutcome) -> None:
        """Says that a job has ended."""
        if self.live is not None and outcome.status == "done":
            return  # the table counts it
        ended = len(self.outcomes)
        how = "done" if outcome.status == "done" else f"FAILED ({outcome.reason})"
        line = f"[{ended}/{self.total}] {outcome.name}: {how} in {_clock(outcome.seconds)}"
        ran = sum(o.status != "skipped" for o in self.outcomes.values())
        rate = 60 * ran / (time.monotonic() - self.begun)
        line += f", {rate:.1f} jobs/min" if rate >= 0.5 else f", {60 * rate:.1f} jobs/h"
        left = self._left()
        if left is not None and ended < self.total:
            line += f", about {_clock(left)} left"
        self._line(line)

    def summary(self, outcomes: Sequence[JobOutcome], *, interrupted: bool) -> None:
        """The last word: how many ended how, and each failed job with the end of its log."""
        write = self.console.print
        for o in outcomes:
            if o.status == "failed":
                where = f", log {o.log}" if o.log else ""
                write()
                write(
                    printable(f"FAILED {o.name}: {o.reason}{where}"), markup=False, soft_wrap=True
                )
                for line in o.tail.splitlines():
                    write(f"  | {printable(line)}", markup=False, highlight=False, soft_wrap=True)
        counts = [
            f"{n} {status}"
            for status in ("done", "skipped", "failed", "stopped")
            if (n := sum(o.status == status for o in outcomes))
        ]
        text = f"{self.title or 'jobs'}: {', '.join(counts) or 'none'} in {_clock(self._elapsed())}"
        if interrupted:
            text += "; interrupted, run the same command again to continue"
        write(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self.begun

    def _left(self) -> float | None:
        """Seconds left, if what remains takes as long for its cost as what has ended; None: nothing has."""
        ran = [o for o in self.outcomes.values() if o.status in ("done", "failed")]
        cost = sum(self.costs[o.name] for o in ran)
        if not cost:
            return None
        of_one = sum(o.seconds for o in ran) / cost
        runs = {r.name: r.elapsed for r in self.running.values()}
        seconds = [
            max(0.0, cost * of_one - runs.get(name, 0.0))
            for name, cost in self.costs.items()
            if name not in self.outcomes
        ]
        return max([sum(seconds) / self.slots, *seconds]) if seconds else 0.0

    def _counts(self) -> str:
        """How many jobs wait, run and have ended, since when, at what rate, and the time left."""
        total = sum(rate for r in self.running.values() if (rate := r.rate()) is not None)
        failed = sum(o.status == "failed" for o in self.outcomes.values())
        left = self._left()
        return (
            f"{self.total - len(self.outcomes) - len(self.running)} queued, {len(self.running)} running, "
            f"{len(self.outcomes) - failed} done, {failed} failed; {_clock(self._elapsed())}"
            + (f", {total:,.0f} images/s" if total else "")
            + ("" if left is None else f", about {_clock(left)} left")
        )

    def _table(self) -> Table:
        caption = self._counts() + (f"\n{plain(self.waits)}" if self.waits else "")
        table = Table(
            "slot",
            "job",
            "time",
            "images/s",
            "says",
            title=plain(self.title) or None,
            caption=caption,
            expand=True,
            box=None,
        )
        for slot, process in sorted(self.running.items()):
            says = Text(printable(process.tail(1)), no_wrap=True, overflow="ellipsis")
            rate = process.rate()
            images = "" if rate is None else f"{rate:,.0f}"
            table.add_row(str(slot), plain(process.name), _clock(process.elapsed), images, says)
        return table


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
