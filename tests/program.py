"""Commands of this package in processes of their own, without nine seconds of imports for each where that can be."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from stemcell_lit.launch.slots import default_slots
from stemcell_lit.launch.warm import PROGRAM, WarmProcess, can_start_warm


class Program:
    """`stemcell-lit WORDS`, running.

    Args:
        words: the command and its settings.
        env: beside this process's environment.
        cwd: the folder in which it runs.
    """

    def __init__(self, *words: object, env: Mapping[str, str] | None = None, cwd: object = "."):
        argv = [*PROGRAM, *map(str, words)]
        whole = {**os.environ, **default_slots("cpu", 1, 2)[0], **(env or {})}
        self._folder = tempfile.TemporaryDirectory()  # gone with this object
        self._log = Path(self._folder.name) / "log"
        with contextlib.chdir(str(cwd)), self._log.open("ab") as log:
            if can_start_warm(argv, whole):
                self._process = WarmProcess(argv, whole, self._log)
            else:
                self._process = subprocess.Popen(argv, env=whole, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        """Standard output and error until now."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 300) -> int:
        """Its exit status; an error after so many seconds."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < end, self.said[-3000:]
            time.sleep(0.02)
        return code
