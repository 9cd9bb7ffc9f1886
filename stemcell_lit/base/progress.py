"""Notes of how far a job is, for whoever started it, and a line for the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from stemcell_lit.base import formats as form
from stemcell_lit.errors import UserError

PROGRESS = "progress.json"  # while a job trains: images seen and their rate


PROGRESS_ENV = "STEMCELL_LIT_PROGRESS"  # tells a job where that file is


STALE_S = 60.0  # older progress is no progress; a validation may pause it for some seconds


_PROGRESS = form.record({"images": form.whole(), "per_s": form.number(0)})


def write_progress(file: str | Path, seen: int, rate: float) -> None:
    """Notes images seen and their rate; a reader sees the old note or the new one."""
    part = Path(f"{file}.part")
    part.write_text(json.dumps({"images": seen, "per_s": round(rate, 2)}), encoding="utf-8")
    part.replace(file)


def read_rate(file: Path) -> float | None:
    """Images per second of a job that is training, from its note."""
    try:
        if time.time() - file.stat().st_mtime > STALE_S:
            return None
        return float(form.read_json(file, _PROGRESS, "it is written anew", 4096)["per_s"])
    except (OSError, UserError):
        return None  # it does not train


SILENT_S = 5.0  # shorter work shows nothing


LINE_S = 15.0  # between two lines where the output is no terminal


class Progress:
    """One line on stderr now and then: frames done, frames/s, time left. Short work is silent.

    Args:
        total: to do.
        title: of the work.
        unit: what is done.
    """

    def __init__(self, total: int, title: str = "predict", unit: str = "frames"):
        self.title, self.unit = title, unit
        self.total, self.start = total, time.monotonic()
        self.last, self.said = self.start, False
        self.terminal = sys.stderr.isatty()

    def show(self, done: int, share: float | None = None) -> None:
        """Says how many are done; at most twice a second, or a line now and then where there is no terminal.

        `share` of the work that this is, above 0 to 1, where some take longer than others.
        """
        now = time.monotonic()
        pause = 0.5 if self.terminal else LINE_S
        if now - self.start < SILENT_S or now - self.last < pause:
            return
        self.last, self.said = now, True
        rate = done / (now - self.start)
        share = done / self.total if share is None else share
        left = (now - self.start) * (1 - share) / share / 60
        line = f"{self.title}: {done:,} of {self.total:,} {self.unit}, {rate:.2f} {self.unit}/s, {left:.1f} min left"
        print(
            f"\r\033[K{line}" if self.terminal else line,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        """Clears the line."""
        if self.terminal and self.said:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
